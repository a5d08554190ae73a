// What one task works on: one sample and up to 64 neighbouring channels.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

constexpr int WIDTH = 64;

// Rows of k, v, gy and of the results are `stride` floats apart; `width` channels of them are read and written, a
// multiple of 32. gw and gu are this sample's share. Of the results, a forward task has y, a backward task the rest.
struct Block {
    int64_t tokens, stride;
    int width;
    const float *w, *u, *k, *v, *gy;
    float *y, *gw, *gu, *gk, *gv;
};

// One scale for all tokens of a channel is enough for sums in float32. Then weights relative to the largest key are
// at least e^-60 where they matter, and no sum exceeds T e^60 times a value.
inline bool is_narrow(const Block& block) {
    for (int c = 0; c < block.width; ++c)
        if (!(std::fabs(block.w[c]) * block.tokens <= 40.0f && std::fabs(block.u[c]) <= 20.0f)) return false;
    return true;
}
