// Bi-WKV on the CPU behind a plain C interface, so that any torch and any Python can call it. float32, contiguous.
//
// A task is one sample and 64 channels.

#include <algorithm>
#include <functional>
#include <new>
#include <numeric>
#include <vector>

#include "tasks.h"
#include "volume.h"

#define KERNELS "compute.h"
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

int run(const Call& call, int threads) {
    return run_tasks(call.batch * call.blocks(), call.batch * call.tokens * call.channels, threads,
                     scratch_size(call.tokens), [&](int64_t task, float* scratch) { run_task(call, task, scratch); });
}

// The same over several axes, where a task is one sample and 32 channels.
struct VolumeCall {
    Call flat;  // gw of every sample is (B, axes, C)
    int axes;
    const int64_t* sizes;

    int64_t blocks() const { return (flat.channels + GROUP - 1) / GROUP; }
};

void run_volume_task(const VolumeCall& call, int64_t task, float* scratch) {
    const Call& flat = call.flat;
    const int64_t sample = task / call.blocks(), channel = task % call.blocks() * GROUP;
    const int width = static_cast<int>(std::min<int64_t>(GROUP, flat.channels - channel));
    const int64_t at = sample * flat.tokens * flat.channels + channel;
    float w[MOST_AXES * GROUP] = {}, u[GROUP] = {}, gw[MOST_AXES * GROUP], gu[GROUP];
    for (int a = 0; a < call.axes; ++a) std::copy_n(flat.w + a * flat.channels + channel, width, w + a * GROUP);
    std::copy_n(flat.u + channel, width, u);
    Volume volume{call.axes, {}, flat.tokens, flat.channels, width, w,       u,  flat.k + at, flat.v + at,
                  nullptr,   nullptr, gw,     gu,            nullptr, nullptr, scratch};
    std::copy_n(call.sizes, call.axes, volume.sizes);
    if (flat.y) {
        volume.y = flat.y + at;
        return compute(volume);
    }
    volume.gy = flat.gy + at, volume.gk = flat.gk + at, volume.gv = flat.gv + at;
    compute(volume);
    for (int a = 0; a < call.axes; ++a)
        std::copy_n(gw + a * GROUP, width, flat.gw + (sample * call.axes + a) * flat.channels + channel);
    std::copy_n(gu, width, flat.gu + sample * flat.channels + channel);
}

int run(const VolumeCall& call, int threads) {
    const Call& flat = call.flat;
    return run_tasks(flat.batch * call.blocks(), flat.batch * flat.tokens * flat.channels, threads,
                     volume_scratch_size(call.axes, flat.tokens),
                     [&](int64_t task, float* scratch) { run_volume_task(call, task, scratch); });
}

int64_t tokens(const int64_t* sizes, int axes) {
    return std::accumulate(sizes, sizes + axes, int64_t{1}, std::multiplies<int64_t>());
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

EXPORT int biwkv_version() { return 2; }

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

// The same over 1 to 3 axes, with k and v (B, *sizes, C) and w and gw (axes, C). For |w| size of up to 40 over all axes
// together and |u| of up to 20.
EXPORT int biwkv_nd_forward(const float* w, const float* u, const float* k, const float* v, float* y, int64_t batch,
                            const int64_t* sizes, int axes, int64_t channels, int threads) {
    const Call flat{w,       u,       k,       v,       nullptr, y,      nullptr,
                    nullptr, nullptr, nullptr, batch,   tokens(sizes, axes), channels};
    return run(VolumeCall{flat, axes, sizes}, threads);
}

EXPORT int biwkv_nd_backward(const float* w, const float* u, const float* k, const float* v, const float* gy, float* gw,
                             float* gu, float* gk, float* gv, int64_t batch, const int64_t* sizes, int axes,
                             int64_t channels, int threads) {
    try {
        std::vector<float> shares_w(batch * axes * channels), shares_u(batch * channels);
        const Call flat{w,  u,  k,     v,      gy,      nullptr, shares_w.data(), shares_u.data(),
                        gk, gv, batch, tokens(sizes, axes), channels};
        if (run(VolumeCall{flat, axes, sizes}, threads)) return 1;
        sum_samples(shares_w, batch, axes * channels, gw);
        sum_samples(shares_u, batch, channels, gu);
        return 0;
    } catch (const std::bad_alloc&) {
        return 1;
    }
}

}  // extern "C"
