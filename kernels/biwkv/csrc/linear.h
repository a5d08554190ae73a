// Bi-WKV as linear recurrences in float32, relative to the largest key of each channel: two exponentials a token
// forward, three backward. The tokens are cut into chunks; a first walk from the right leaves the right sums at the
// chunks' ends, so that everything else stays in the first-level cache, a chunk at a time.
//
//   A, B  sums of e^k v and e^k over the tokens to the left, C, D to the right
//   P, Q  sums of G = gy / denominator and H = G y to the left, R, S to the right
#pragma once

#include "block.h"
#include "vectors.h"

constexpr int CHUNK = 16;
constexpr int VECTORS = 2;  // channels go in groups of 2 vectors: two independent recurrences hide latency
constexpr int GROUP = VECTORS * FLOATS;

// Factors of a channel. `correction` undoes, a chunk at a time, what rounding of `decay` adds up to over many tokens.
struct Factors {
    float decay[WIDTH], correction[WIDTH], bonus[WIDTH];

    explicit Factors(const Block& block) {
        for (int c = 0; c < block.width; ++c) {
            decay[c] = std::exp(-block.w[c]);
            correction[c] = static_cast<float>(std::exp(-CHUNK * (block.w[c] + std::log(double(decay[c])))));
            bonus[c] = std::exp(block.u[c]);
        }
    }
};

struct Group {
    Floats x[VECTORS];
};

INLINE Group load_group(const float* p) {
    Group g;
    for (int i = 0; i < VECTORS; ++i) g.x[i] = load(p + i * FLOATS);
    return g;
}

INLINE void store_group(float* p, const Group& g) {
    for (int i = 0; i < VECTORS; ++i) store(p + i * FLOATS, g.x[i]);
}

// Right sums at the right end of every chunk, relative to e^scale; the last scale is the largest key of all.
struct RightEnds {
    std::vector<float> sums;  // (chunks, 3, WIDTH): C, D, scale
    float top[WIDTH];

    float* at(int64_t chunk) { return &sums[chunk * 3 * WIDTH]; }
};

INLINE void walk_from_right(const Block& block, const Factors& factors, RightEnds& ends) {
    const int64_t chunks = (block.tokens + CHUNK - 1) / CHUNK;
    ends.sums.resize(chunks * 3 * WIDTH);
    float state[3][WIDTH];
    for (int c = 0; c < WIDTH; ++c) state[0][c] = state[1][c] = 0, state[2][c] = -INFINITY;
    for (int64_t n = chunks - 1; n >= 0; --n) {
        const int64_t first = n * CHUNK, length = std::min<int64_t>(CHUNK, block.tokens - first);
        for (int c = 0; c < block.width; c += GROUP) {
            const float *k = block.k + first * block.stride + c, *v = block.v + first * block.stride + c;
            Group C = load_group(state[0] + c), D = load_group(state[1] + c), top = load_group(state[2] + c);
            float* end = ends.at(n) + c;
            store_group(end, C), store_group(end + WIDTH, D), store_group(end + 2 * WIDTH, top);
            const Group decay = load_group(factors.decay + c), correction = load_group(factors.correction + c);
            Group old = top;
            for (int64_t j = 0; j < length; ++j)
                for (int i = 0; i < VECTORS; ++i)
                    top.x[i] = larger(top.x[i], load(k + j * block.stride + i * FLOATS));
            for (int i = 0; i < VECTORS; ++i) {
                const Floats fade = exponential(old.x[i] - top.x[i]) * correction.x[i];
                C.x[i] *= fade, D.x[i] *= fade;
            }
            for (int64_t j = length - 1; n > 0 && j >= 0; --j)
                for (int i = 0; i < VECTORS; ++i) {
                    const Floats e = exponential(load(k + j * block.stride + i * FLOATS) - top.x[i]);
                    C.x[i] = C.x[i] * decay.x[i] + e * load(v + j * block.stride + i * FLOATS);
                    D.x[i] = D.x[i] * decay.x[i] + e;
                }
            store_group(state[0] + c, C), store_group(state[1] + c, D), store_group(state[2] + c, top);
        }
    }
    for (int c = 0; c < WIDTH; ++c) ends.top[c] = state[2][c];
}

// Inside one chunk: e^k, and the right sums of every token.
struct RightSums {
    Group e[CHUNK], C[CHUNK], D[CHUNK];
};

INLINE void right_sums(const Block& block, const Group& decay, const Group& top, const float* end, const float* k,
                       const float* v, int64_t length, RightSums& right) {
    Group C = load_group(end), D = load_group(end + WIDTH);
    for (int i = 0; i < VECTORS; ++i) {
        const Floats fade = exponential(load(end + 2 * WIDTH + i * FLOATS) - top.x[i]);
        C.x[i] *= fade, D.x[i] *= fade;
    }
    for (int64_t j = length - 1; j >= 0; --j)
        for (int i = 0; i < VECTORS; ++i) {
            const Floats e = exponential(load(k + j * block.stride + i * FLOATS) - top.x[i]);
            right.e[j].x[i] = e, right.C[j].x[i] = C.x[i], right.D[j].x[i] = D.x[i];
            C.x[i] = C.x[i] * decay.x[i] + e * load(v + j * block.stride + i * FLOATS);
            D.x[i] = D.x[i] * decay.x[i] + e;
        }
}

INLINE void forward_linear(const Block& block) {
    const Factors factors(block);
    RightEnds ends;
    walk_from_right(block, factors, ends);
    float left[2][WIDTH] = {};
    RightSums right;
    for (int64_t n = 0, first = 0; first < block.tokens; ++n, first += CHUNK) {
        const int64_t length = std::min<int64_t>(CHUNK, block.tokens - first);
        for (int c = 0; c < block.width; c += GROUP) {
            const float *k = block.k + first * block.stride + c, *v = block.v + first * block.stride + c;
            float* y = block.y + first * block.stride + c;
            const Group decay = load_group(factors.decay + c), bonus = load_group(factors.bonus + c);
            right_sums(block, decay, load_group(ends.top + c), ends.at(n) + c, k, v, length, right);
            Group A = load_group(left[0] + c), B = load_group(left[1] + c);
            for (int i = 0; i < VECTORS; ++i) {
                const Floats correction = load(factors.correction + c + i * FLOATS);
                A.x[i] *= correction, B.x[i] *= correction;
            }
            for (int64_t j = 0; j < length; ++j)
                for (int i = 0; i < VECTORS; ++i) {
                    const Floats e = right.e[j].x[i], own = e * bonus.x[i];
                    const Floats value = load(v + j * block.stride + i * FLOATS);
                    const Floats numerator = (A.x[i] + right.C[j].x[i]) + own * value;
                    store(y + j * block.stride + i * FLOATS, numerator / ((B.x[i] + right.D[j].x[i]) + own));
                    A.x[i] = A.x[i] * decay.x[i] + e * value;
                    B.x[i] = B.x[i] * decay.x[i] + e;
                }
            store_group(left[0] + c, A), store_group(left[1] + c, B);
        }
    }
}

// Left sums at the left end of every chunk, (chunks, 4, WIDTH): A, B, P, Q.
struct LeftEnds {
    std::vector<float> sums;

    float* at(int64_t chunk) { return &sums[chunk * 4 * WIDTH]; }
};

// Leaves G in gv and H in gk, where the walk back finds them.
INLINE void backward_from_left(const Block& block, const Factors& factors, RightEnds& ends, LeftEnds& lefts) {
    float left[4][WIDTH] = {}, sums[2][WIDTH] = {};
    RightSums right;
    for (int64_t n = 0, first = 0; first < block.tokens; ++n, first += CHUNK) {
        const int64_t length = std::min<int64_t>(CHUNK, block.tokens - first);
        for (int c = 0; c < block.width; c += GROUP) {
            const int64_t at = first * block.stride + c;
            const float *k = block.k + at, *v = block.v + at;
            const Group decay = load_group(factors.decay + c), bonus = load_group(factors.bonus + c);
            right_sums(block, decay, load_group(ends.top + c), ends.at(n) + c, k, v, length, right);
            for (int i = 0; i < VECTORS; ++i) {
                const int lane = c + i * FLOATS;
                const Floats correction = load(factors.correction + lane);
                Floats A = load(left[0] + lane) * correction, B = load(left[1] + lane) * correction;
                Floats P = load(left[2] + lane) * correction, Q = load(left[3] + lane) * correction;
                float* end = lefts.at(n) + lane;
                store(end, A), store(end + WIDTH, B), store(end + 2 * WIDTH, P), store(end + 3 * WIDTH, Q);
                Floats pairs{}, bonuses{};
                for (int64_t j = 0; j < length; ++j) {
                    const int64_t row = at + j * block.stride + i * FLOATS;
                    const Floats e = right.e[j].x[i], own = e * bonus.x[i], value = load(block.v + row);
                    const Floats inverse = 1.0f / ((B + right.D[j].x[i]) + own);
                    const Floats y = ((A + right.C[j].x[i]) + own * value) * inverse;
                    const Floats G = load(block.gy + row) * inverse, H = G * y;
                    store(block.gv + row, G), store(block.gk + row, H);
                    bonuses += own * (G * value - H);
                    pairs += P * right.C[j].x[i] - Q * right.D[j].x[i];
                    A = A * decay.x[i] + e * value, B = B * decay.x[i] + e;
                    P = P * decay.x[i] + G, Q = Q * decay.x[i] + H;
                }
                store(left[0] + lane, A), store(left[1] + lane, B), store(left[2] + lane, P);
                store(left[3] + lane, Q);
                store(sums[0] + lane, load(sums[0] + lane) + pairs);
                store(sums[1] + lane, load(sums[1] + lane) + bonuses);
            }
        }
    }
    for (int c = 0; c < block.width; ++c) block.gw[c] = -factors.decay[c] * sums[0][c], block.gu[c] = sums[1][c];
}

INLINE void backward_from_right(const Block& block, const Factors& factors, const float* top, LeftEnds& lefts) {
    float right[2][WIDTH] = {}, sums[WIDTH] = {};
    Floats e[CHUNK], A[CHUNK], B[CHUNK], P[CHUNK], Q[CHUNK];
    const int64_t chunks = (block.tokens + CHUNK - 1) / CHUNK;
    for (int64_t n = chunks - 1; n >= 0; --n) {
        const int64_t first = n * CHUNK, length = std::min<int64_t>(CHUNK, block.tokens - first);
        for (int c = 0; c < block.width; c += FLOATS) {
            const int64_t at = first * block.stride + c;
            const Floats decay = load(factors.decay + c), bonus = load(factors.bonus + c), scale = load(top + c);
            const float* end = lefts.at(n) + c;
            Floats a = load(end), b = load(end + WIDTH), p = load(end + 2 * WIDTH), q = load(end + 3 * WIDTH);
            for (int64_t j = 0; j < length; ++j) {
                const int64_t row = at + j * block.stride;
                A[j] = a, B[j] = b, P[j] = p, Q[j] = q;
                e[j] = exponential(load(block.k + row) - scale);
                a = a * decay + e[j] * load(block.v + row), b = b * decay + e[j];
                p = p * decay + load(block.gv + row), q = q * decay + load(block.gk + row);
            }
            const Floats correction = load(factors.correction + c);
            Floats R = load(right[0] + c) * correction, S = load(right[1] + c) * correction, pairs{};
            for (int64_t j = length - 1; j >= 0; --j) {
                const int64_t row = at + j * block.stride;
                const Floats G = load(block.gv + row), H = load(block.gk + row);
                const Floats gv = e[j] * ((P[j] + R) + bonus * G);
                store(block.gv + row, gv);
                store(block.gk + row, load(block.v + row) * gv - e[j] * ((Q[j] + S) + bonus * H));
                pairs += R * A[j] - S * B[j];
                R = R * decay + G, S = S * decay + H;
            }
            store(right[0] + c, R), store(right[1] + c, S), store(sums + c, load(sums + c) + pairs);
        }
    }
    for (int c = 0; c < block.width; ++c) block.gw[c] -= factors.decay[c] * sums[c];
}

INLINE void backward_linear(const Block& block) {
    const Factors factors(block);
    RightEnds ends;
    LeftEnds lefts;
    lefts.sums.resize((block.tokens + CHUNK - 1) / CHUNK * 4 * WIDTH);
    walk_from_right(block, factors, ends);
    backward_from_left(block, factors, ends, lefts);
    backward_from_right(block, factors, ends.top, lefts);
}
