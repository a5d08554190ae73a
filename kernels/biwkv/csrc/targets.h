// One library for all x86-64 machines: the kernels are compiled for AVX-512 and for AVX2 beside what every one has.
#pragma once

#include "block.h"
#include "volume.h"

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(BIWKV_BASELINE)
#define BIWKV_TARGETS

#pragma GCC push_options
#pragma GCC target("arch=x86-64-v4", "prefer-vector-width=512")
namespace v4 {
constexpr int LANES = 16;
#include "compute.h"
}  // namespace v4
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("arch=x86-64-v3")
namespace v3 {
constexpr int LANES = 8;
#include "compute.h"
}  // namespace v3
#pragma GCC pop_options
#endif

namespace baseline {
constexpr int LANES = 4;
#include "compute.h"
}  // namespace baseline

static int newest_level = 4;

template <class Task>
void compute(const Task& task) {
#ifdef BIWKV_TARGETS
    if (newest_level >= 4 && __builtin_cpu_supports("x86-64-v4")) return v4::compute(task);
    if (newest_level >= 3 && __builtin_cpu_supports("x86-64-v3")) return v3::compute(task);
#endif
    baseline::compute(task);
}
