// One library for all x86-64 machines: the kernels of the header that KERNELS names, which has a compute(task) for every
// kind of task, are compiled for AVX-512 and for AVX2 beside what every one has.
#pragma once

#define INLINE static inline __attribute__((always_inline))
#define INLINE_MEMBER inline __attribute__((always_inline))
#define INLINE_LAMBDA __attribute__((always_inline))

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(BIWKV_BASELINE)
#define BIWKV_TARGETS

#pragma GCC push_options
#pragma GCC target("arch=x86-64-v4", "prefer-vector-width=512")
namespace v4 {
constexpr int LANES = 16;
#include KERNELS
}  // namespace v4
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("arch=x86-64-v3")
namespace v3 {
constexpr int LANES = 8;
#include KERNELS
}  // namespace v3
#pragma GCC pop_options
#endif

namespace baseline {
constexpr int LANES = 4;
#include KERNELS
}  // namespace baseline

inline int newest_level = 4;  // of all kernels of the library

template <class Task>
static void compute(const Task& task) {
#ifdef BIWKV_TARGETS
    if (newest_level >= 4 && __builtin_cpu_supports("x86-64-v4")) return v4::compute(task);
    if (newest_level >= 3 && __builtin_cpu_supports("x86-64-v3")) return v3::compute(task);
#endif
    baseline::compute(task);
}
