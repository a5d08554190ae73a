// Bi-WKV on the CPU behind a plain C interface, so that any torch and any Python can call it. float32, contiguous.
//
// A task is one sample and 64 channels, and no task reads what another writes: results are the same bits for any
// number of threads. Threads live for one call, so there is nothing that a fork could leave behind.

#include <algorithm>
#include <atomic>
#include <new>
#include <system_error>
#include <thread>
#include <vector>

#include "targets.h"

namespace {

// Tensors of one call. Results that it does not compute are null.
struct Call {
    const float *w, *u, *k, *v, *gy;
    float *y, *gw, *gu, *gk, *gv;  // gw and gu of every sample, (B, C)
    int64_t batch, tokens, channels;

    int64_t blocks() const { return (channels + WIDTH - 1) / WIDTH; }
};

// (tokens, width) of `from` into rows of `width` or back; channels beyond `valid` stay as they are.
void copy_rows(float* to, int64_t to_stride, const float* from, int64_t from_stride, int64_t tokens, int valid) {
    for (int64_t t = 0; t < tokens; ++t) std::copy_n(from + t * from_stride, valid, to + t * to_stride);
}

int newest_level = 4;

void compute(const Block& block) {
#ifdef BIWKV_TARGETS
    if (newest_level >= 4 && __builtin_cpu_supports("x86-64-v4")) return v4::compute(block);
    if (newest_level >= 3 && __builtin_cpu_supports("x86-64-v3")) return v3::compute(block);
#endif
    baseline::compute(block);
}

// The last channels, if they are no multiple of 32, through copies that are padded with zeros.
void compute_padded(Block block, int valid) {
    const int64_t size = block.tokens * block.width;
    std::vector<float> inputs(3 * size), outputs(2 * size);
    const Block whole = block;
    const auto enter = [&](const float*& x, int i) {
        if (x) copy_rows(&inputs[i * size], block.width, x, whole.stride, block.tokens, valid), x = &inputs[i * size];
    };
    const auto leave = [&](float* x, int i) {
        if (x) copy_rows(x, whole.stride, &outputs[i * size], block.width, block.tokens, valid);
    };
    enter(block.k, 0), enter(block.v, 1), enter(block.gy, 2);
    block.stride = block.width;
    if (block.y)
        block.y = &outputs[0];
    else
        block.gk = &outputs[0], block.gv = &outputs[size];
    compute(block);
    leave(whole.y, 0), leave(whole.gk, 0), leave(whole.gv, 1);
}

void run_task(const Call& call, int64_t task, float* scratch) {
    const int64_t sample = task / call.blocks(), channel = task % call.blocks() * WIDTH;
    const int valid = static_cast<int>(std::min<int64_t>(WIDTH, call.channels - channel));
    const int64_t at = sample * call.tokens * call.channels + channel, row = sample * call.channels + channel;
    float w[WIDTH] = {}, u[WIDTH] = {}, gw[WIDTH], gu[WIDTH];
    std::copy_n(call.w + channel, valid, w), std::copy_n(call.u + channel, valid, u);
    const int width = (valid + GROUP - 1) / GROUP * GROUP;
    Block block{call.tokens, call.channels, width, w, u, call.k + at, call.v + at, nullptr, nullptr, gw, gu, nullptr,
                nullptr, scratch};
    if (call.y)
        block.y = call.y + at;
    else
        block.gy = call.gy + at, block.gk = call.gk + at, block.gv = call.gv + at;
    if (valid == width)
        compute(block);
    else
        compute_padded(block, valid);
    if (call.y) return;
    std::copy_n(gw, valid, call.gw + row), std::copy_n(gu, valid, call.gu + row);
}

// A thread's own, whole cache lines.
struct Scratch {
    float* data;

    explicit Scratch(int64_t size) : data(static_cast<float*>(::operator new(size * sizeof(float), LINE))) {}
    ~Scratch() { ::operator delete(data, LINE); }
    static constexpr std::align_val_t LINE{64};
};

// 0, or 1 if there was not enough memory.
int run(const Call& call, int threads) {
    constexpr int64_t WORTH_A_THREAD = 1 << 17;  // elements, about 0.1 ms
    const int64_t tasks = call.batch * call.blocks();
    const int64_t worth = 1 + call.batch * call.tokens * call.channels / WORTH_A_THREAD;
    std::atomic<int64_t> next{0};
    std::atomic<bool> failed{false};
    const auto work = [&] {
        try {
            const Scratch scratch(scratch_size(call.tokens));
            for (int64_t task; !failed && (task = next++) < tasks;) run_task(call, task, scratch.data);
        } catch (const std::bad_alloc&) {
            failed = true;
        }
    };
    std::vector<std::thread> others;
    try {
        const int64_t wanted = std::min({int64_t(threads), tasks, worth}) - 1;
        others.reserve(std::max<int64_t>(wanted, 0));
        for (int64_t i = 0; i < wanted; ++i) others.emplace_back(work);
    } catch (const std::system_error&) {  // no more threads to be had: fewer do the same
    } catch (const std::bad_alloc&) {
    }
    work();
    for (std::thread& other : others) other.join();
    return failed;
}

// (B, C) -> (C,), in the order of the samples.
void sum_samples(const std::vector<float>& shares, int64_t batch, int64_t channels, float* total) {
    for (int64_t c = 0; c < channels; ++c) {
        double sum = 0;
        for (int64_t b = 0; b < batch; ++b) sum += shares[b * channels + c];
        total[c] = static_cast<float>(sum);
    }
}

}  // namespace

#define EXPORT __attribute__((visibility("default")))

extern "C" {

EXPORT int biwkv_version() { return 1; }

// For tests: compute as on a processor of this level of x86-64, though there may be a newer one.
EXPORT void biwkv_limit_level(int level) { newest_level = level; }

// y (B, T, C) from w, u (C,) and k, v (B, T, C).
EXPORT int biwkv_forward(const float* w, const float* u, const float* k, const float* v, float* y, int64_t batch,
                  int64_t tokens, int64_t channels, int threads) {
    const Call call{w, u, k, v, nullptr, y, nullptr, nullptr, nullptr, nullptr, batch, tokens, channels};
    return run(call, threads);
}

// gw, gu (C,) and gk, gv (B, T, C), the gradients of (y * gy).sum().
EXPORT int biwkv_backward(const float* w, const float* u, const float* k, const float* v, const float* gy, float* gw,
                   float* gu, float* gk, float* gv, int64_t batch, int64_t tokens, int64_t channels, int threads) {
    try {
        std::vector<float> shares_w(batch * channels), shares_u(batch * channels);
        const Call call{w,  u,  k,     v,      gy,      nullptr, shares_w.data(), shares_u.data(),
                        gk, gv, batch, tokens, channels};
        if (run(call, threads)) return 1;
        sum_samples(shares_w, batch, channels, gw);
        sum_samples(shares_u, batch, channels, gu);
        return 0;
    } catch (const std::bad_alloc&) {
        return 1;
    }
}

}  // extern "C"
