// What one task of the selective scan works on: one sample, one group and up to 64 neighbouring channels of it.
#pragma once

#include <cstdint>

constexpr int WIDTH = 64;
constexpr int CHUNK = 16;  // tokens whose states a backward task keeps

// Rows of x, step, gy and of y, gx, gstep are `row` floats apart with `width` channels, those of b and c `state_row`
// with `states` numbers. a and ga are (width, states), d and gd (width,). gb and gc, rows of `states`, are this task's
// share of the sum over the channels; ga and gd are its sample's share. Of the results, a forward task has y, a backward
// task the rest. `scratch` has room for state_space_scratch_size(tokens, states, y) floats.
struct StateSpace {
    int64_t tokens, row, state_row;
    int width, states;
    const float *x, *step, *a, *b, *c, *d, *gy;
    float *y, *gx, *gstep, *ga, *gb, *gc, *gd, *scratch;
};

// In blocks of (states, WIDTH): a in base 2 and the state; for a backward task also what comes back to the state, ga,
// sums over channels for b and c, states and factors of every token of a chunk, and the state before every chunk.
inline int64_t state_space_scratch_size(int64_t tokens, int states, bool forward) {
    const int64_t chunks = (tokens + CHUNK - 1) / CHUNK;
    return (forward ? 2 : 6 + 2 * CHUNK + chunks) * states * WIDTH;
}
