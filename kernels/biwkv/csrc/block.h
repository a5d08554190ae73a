// What one task works on: one sample and up to 64 neighbouring channels.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

constexpr int WIDTH = 64;
constexpr int GROUP = 32;  // channels that go together: independent recurrences hide latency
constexpr int CHUNK = 16;  // tokens

inline int64_t chunks(int64_t tokens) { return (tokens + CHUNK - 1) / CHUNK; }

// What linear.h keeps: sums at the ends of the chunks, (chunks, SUMS, WIDTH), and e^k of every token, (T, WIDTH).
constexpr int RIGHT_SUMS = 2, LEFT_SUMS = 4;
inline int64_t scratch_size(int64_t tokens) { return (chunks(tokens) * (RIGHT_SUMS + LEFT_SUMS) + tokens) * WIDTH; }

// Rows of k, v, gy and of the results are `stride` floats apart; `width` channels of them are read and written, a
// multiple of GROUP. gw and gu are this sample's share. Of the results, a forward task has y, a backward task the rest.
// `scratch` has room for scratch_size(tokens) floats.
struct Block {
    int64_t tokens, stride;
    int width;
    const float *w, *u, *k, *v, *gy;
    float *y, *gw, *gu, *gk, *gv, *scratch;
};

// One scale for all tokens of a channel is enough for sums in float32. Then weights relative to the largest key are
// at least e^-60 where they matter, and no sum exceeds T e^60 times a value.
inline bool is_narrow(const Block& block) {
    for (int c = 0; c < block.width; ++c)
        if (!(std::fabs(block.w[c]) * block.tokens <= 40.0f && std::fabs(block.u[c]) <= 20.0f)) return false;
    return true;
}
