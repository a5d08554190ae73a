// The selective scan on the CPU behind a plain C interface, as Bi-WKV in wkv.cpp. float32, contiguous.
//
// A task is one sample and up to 64 channels of one group.

#include <algorithm>
#include <new>
#include <vector>

#include "state_space.h"
#include "tasks.h"

#define KERNELS "selective.h"
#include "targets.h"

namespace {

// Tensors of one call. Results that it does not compute are null. ga and gd are of every sample, (B, G, D, N) and
// (B, G, D), gb and gc of every block of channels too, (blocks, B, G, T, N).
struct Call {
    const float *x, *step, *a, *b, *c, *d, *gy;
    float *y, *gx, *gstep, *ga, *gb, *gc, *gd;
    int64_t batch, tokens, groups, channels;
    int states;

    int64_t blocks() const { return (channels + WIDTH - 1) / WIDTH; }
    int64_t size() const { return batch * tokens * groups * channels; }
};

void run_task(const Call& call, int64_t index, float* scratch) {
    const int64_t block = index % call.blocks(), group = index / call.blocks() % call.groups;
    const int64_t sample = index / call.blocks() / call.groups, channel = block * WIDTH;
    const int64_t row = call.groups * call.channels, state_row = call.groups * call.states;
    const int64_t at = sample * call.tokens * row + group * call.channels + channel;
    const int64_t state_at = sample * call.tokens * state_row + group * call.states;
    const int64_t parameter = group * call.channels + channel, share = sample * row + parameter;
    const int width = static_cast<int>(std::min<int64_t>(WIDTH, call.channels - channel));
    StateSpace task{call.tokens, row, state_row, width, call.states};
    task.x = call.x + at, task.step = call.step + at;
    task.a = call.a + parameter * call.states, task.d = call.d + parameter;
    task.b = call.b + state_at, task.c = call.c + state_at;
    task.scratch = scratch;
    if (call.y) {
        task.y = call.y + at;
        return compute(task);
    }
    const int64_t sums = ((block * call.batch + sample) * call.groups + group) * call.tokens * call.states;
    task.gy = call.gy + at, task.gx = call.gx + at, task.gstep = call.gstep + at;
    task.ga = call.ga + share * call.states, task.gd = call.gd + share;
    task.gb = call.gb + sums, task.gc = call.gc + sums;
    compute(task);
}

int run(const Call& call, int threads) {
    const int64_t work = call.size() * call.states / 8;
    return run_tasks(call.batch * call.groups * call.blocks(), work, threads,
                     state_space_scratch_size(call.tokens, call.states, call.y),
                     [&](int64_t task, float* scratch) { run_task(call, task, scratch); });
}

// (samples, size) -> (size,), in the order of the samples.
void sum_shares(const std::vector<float>& shares, int64_t samples, float* total) {
    const int64_t size = static_cast<int64_t>(shares.size()) / samples;
    for (int64_t i = 0; i < size; ++i) {
        double sum = 0;
        for (int64_t s = 0; s < samples; ++s) sum += shares[s * size + i];
        total[i] = static_cast<float>(sum);
    }
}

// (blocks, B, G, T, N) -> (B, T, G, N), in the order of the blocks.
void sum_blocks(const std::vector<float>& shares, const Call& call, float* total) {
    const int64_t line = call.states, size = call.batch * call.groups * call.tokens * line;
    for (int64_t s = 0; s < call.batch; ++s)
        for (int64_t g = 0; g < call.groups; ++g)
            for (int64_t t = 0; t < call.tokens; ++t) {
                const float* from = &shares[((s * call.groups + g) * call.tokens + t) * line];
                float* to = total + ((s * call.tokens + t) * call.groups + g) * line;
                std::copy_n(from, line, to);
                for (int64_t block = 1; block < call.blocks(); ++block)
                    for (int64_t n = 0; n < line; ++n) to[n] += from[block * size + n];
            }
}

}  // namespace

#define EXPORT __attribute__((visibility("default")))

extern "C" {

// y (B, T, G, D) from x, step (B, T, G, D), a (G, D, N), b, c (B, T, G, N) and d (G, D).
EXPORT int biwkv_selective_forward(const float* x, const float* step, const float* a, const float* b, const float* c,
                                   const float* d, float* y, int64_t batch, int64_t tokens, int64_t groups,
                                   int64_t channels, int states, int threads) {
    Call call{x, step, a, b, c, d};
    call.y = y, call.batch = batch, call.tokens = tokens;
    call.groups = groups, call.channels = channels, call.states = states;
    return run(call, threads);
}

// The gradients of (y * gy).sum(), each in the shape of its input.
EXPORT int biwkv_selective_backward(const float* x, const float* step, const float* a, const float* b, const float* c,
                                    const float* d, const float* gy, float* gx, float* gstep, float* ga, float* gb,
                                    float* gc, float* gd, int64_t batch, int64_t tokens, int64_t groups,
                                    int64_t channels, int states, int threads) {
    try {
        Call call{x, step, a, b, c, d, gy};
        call.gx = gx, call.gstep = gstep, call.batch = batch, call.tokens = tokens;
        call.groups = groups, call.channels = channels, call.states = states;
        const int64_t parameters = batch * groups * channels, sums = call.blocks() * batch * tokens * groups * states;
        std::vector<float> shares_a(parameters * states), shares_d(parameters), shares_b(sums), shares_c(sums);
        call.ga = shares_a.data(), call.gd = shares_d.data(), call.gb = shares_b.data(), call.gc = shares_c.data();
        if (run(call, threads)) return 1;
        sum_shares(shares_a, batch, ga);
        sum_shares(shares_d, batch, gd);
        sum_blocks(shares_b, call, gb);
        sum_blocks(shares_c, call, gc);
        return 0;
    } catch (const std::bad_alloc&) {
        return 1;
    }
}

}  // extern "C"
