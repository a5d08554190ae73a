// What one task of Bi-WKV over several axes works on: one sample and up to 32 neighbouring channels.
#pragma once

#include "block.h"

constexpr int ROW = 2 * GROUP;  // a token's two sums of every channel
constexpr int MOST_AXES = 3;

// Rows of k, v, gy and of the results are `stride` floats apart, with `width` channels. w and gw (axes, GROUP), u and
// gu (GROUP,) are padded with zeros. Of the results, a forward task has y, a backward task the rest.
struct Volume {
    int axes;
    int64_t sizes[MOST_AXES], tokens, stride;
    int width;
    const float *w, *u, *k, *v, *gy;
    float *y, *gw, *gu, *gk, *gv, *scratch;
};

// In scratch, a row for every token in each: the sums over all axes so far, room for lines that are walked along, the
// sums over whole lines of the gradients, and those of keys and values for each number of axes.
enum { TOTAL, BEFORE, GRADIENTS, SUMS };
inline int64_t volume_scratch_size(int axes, int64_t tokens) { return (SUMS + axes) * tokens * ROW; }
