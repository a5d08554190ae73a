// Bi-WKV as linear recurrences in float32, with all keys relative to the largest of each channel: one exponential a
// token. The tokens are cut into chunks; a first walk from the right leaves e^k of every token and the right sums at
// the chunks' ends, so that everything else stays in the first-level cache, a chunk at a time.
//
//   A, B  sums of e^k v and e^k over the tokens to the left, C, D to the right
//   P, Q  sums of G = gy / denominator and H = G y to the left, R, S to the right

INLINE float* right_end(const Block& block, int64_t chunk) { return block.scratch + chunk * RIGHT_SUMS * WIDTH; }
INLINE float* left_end(const Block& block, int64_t chunk) {
    return block.scratch + (chunks(block.tokens) * RIGHT_SUMS + chunk * LEFT_SUMS) * WIDTH;
}
INLINE float* all_exponentials(const Block& block) { return left_end(block, chunks(block.tokens)); }

// Factors of a channel. `correction` undoes, a chunk at a time, what rounding of `decay` adds up to over many tokens.
struct Factors {
    alignas(64) float decay[WIDTH], correction[WIDTH], bonus[WIDTH];

    INLINE_MEMBER explicit Factors(const Block& block) {
        for (int c = 0; c < block.width; c += DOUBLES) {
            const Doubles w = widen(block.w + c), exact = exponential(-w);
            narrow(decay + c, exact);
            narrow(correction + c, 1.0 + CHUNK * (1.0 - widen(decay + c) / exact));
            narrow(bonus + c, exponential(widen(block.u + c)));
        }
    }
};

INLINE void largest_keys(const Block& block, float* top) {
    for (int c = 0; c < WIDTH; ++c) top[c] = -INFINITY;
    for (int64_t first = 0; first < block.tokens; first += CHUNK) {
        const int64_t length = std::min<int64_t>(CHUNK, block.tokens - first);
        for (int c = 0; c < block.width; c += GROUP) {
            const float* k = block.k + first * block.stride + c;
            Group largest = load_group(top + c);
            for (int64_t j = 0; j < length; ++j)
                for (int i = 0; i < VECTORS; ++i)
                    largest.x[i] = larger(largest.x[i], load(k + j * block.stride + i * FLOATS));
            store_group(top + c, largest);
        }
    }
}

// Leaves e^k in `e`, rows of `e_stride`, and C and D at the right end of every chunk.
INLINE void walk_from_right(const Block& block, const Factors& factors, float* e, int64_t e_stride) {
    alignas(64) float top[WIDTH], right[2][WIDTH] = {};
    largest_keys(block, top);
    for (int64_t n = chunks(block.tokens) - 1; n >= 0; --n) {
        const int64_t first = n * CHUNK, length = std::min<int64_t>(CHUNK, block.tokens - first);
        for (int c = 0; c < block.width; c += GROUP) {
            const float *k = block.k + first * block.stride + c, *v = block.v + first * block.stride + c;
            float *powers = e + first * e_stride + c, *end = right_end(block, n) + c;
            const Group decay = load_group(factors.decay + c), correction = load_group(factors.correction + c);
            Group C = load_group(right[0] + c), D = load_group(right[1] + c), scale = load_group(top + c);
            store_group(end, C), store_group(end + WIDTH, D);
            for (int i = 0; i < VECTORS; ++i)
                C.x[i] *= correction.x[i], D.x[i] *= correction.x[i], scale.x[i] *= LOG2_E;
            for (int64_t j = length - 1; j >= 0; --j)
                for (int i = 0; i < VECTORS; ++i) {
                    const int64_t at = j * block.stride + i * FLOATS;
                    float* power_at = powers + j * e_stride + i * FLOATS;
                    prefetch(v + at - CHUNK * block.stride), prefetch(power_at - CHUNK * e_stride);
                    const Floats power = power_of_two(load(k + at) * LOG2_E - scale.x[i]);
                    store(power_at, power);
                    C.x[i] = C.x[i] * decay.x[i] + power * load(v + at);
                    D.x[i] = D.x[i] * decay.x[i] + power;
                }
            store_group(right[0] + c, C), store_group(right[1] + c, D);
        }
    }
}

// The right sums of every token inside one chunk.
struct RightSums {
    Group C[CHUNK], D[CHUNK];
};

INLINE void right_sums(const Group& decay, const float* end, const float* e, int64_t e_stride, const float* v,
                       int64_t stride, int64_t length, RightSums& right) {
    Group C = load_group(end), D = load_group(end + WIDTH);
    for (int64_t j = length - 1; j >= 0; --j)
        for (int i = 0; i < VECTORS; ++i) {
            const Floats power = load(e + j * e_stride + i * FLOATS);
            right.C[j].x[i] = C.x[i], right.D[j].x[i] = D.x[i];
            C.x[i] = C.x[i] * decay.x[i] + power * load(v + j * stride + i * FLOATS);
            D.x[i] = D.x[i] * decay.x[i] + power;
        }
}

INLINE void forward_linear(const Block& block) {
    const Factors factors(block);
    const int64_t stride = block.stride;
    walk_from_right(block, factors, block.y, stride);  // e^k waits in y
    alignas(64) float left[2][WIDTH] = {};
    RightSums right;
    for (int64_t n = 0, first = 0; first < block.tokens; ++n, first += CHUNK) {
        const int64_t length = std::min<int64_t>(CHUNK, block.tokens - first);
        for (int c = 0; c < block.width; c += GROUP) {
            const float* v = block.v + first * stride + c;
            float* y = block.y + first * stride + c;
            const Group decay = load_group(factors.decay + c), bonus = load_group(factors.bonus + c);
            right_sums(decay, right_end(block, n) + c, y, stride, v, stride, length, right);
            Group A = load_group(left[0] + c), B = load_group(left[1] + c);
            for (int i = 0; i < VECTORS; ++i) {
                const Floats correction = load(factors.correction + c + i * FLOATS);
                A.x[i] *= correction, B.x[i] *= correction;
            }
            for (int64_t j = 0; j < length; ++j)
                for (int i = 0; i < VECTORS; ++i) {
                    const int64_t at = j * stride + i * FLOATS;
                    const Floats e = load(y + at), own = e * bonus.x[i], value = load(v + at);
                    const Floats numerator = (A.x[i] + right.C[j].x[i]) + own * value;
                    store(y + at, numerator * reciprocal((B.x[i] + right.D[j].x[i]) + own));
                    A.x[i] = A.x[i] * decay.x[i] + e * value;
                    B.x[i] = B.x[i] * decay.x[i] + e;
                }
            store_group(left[0] + c, A), store_group(left[1] + c, B);
        }
    }
}

// Leaves G in gv and H in gk, where the walk back finds them, and A, B, P and Q at the left end of every chunk.
INLINE void backward_from_left(const Block& block, const Factors& factors) {
    alignas(64) float left[LEFT_SUMS][WIDTH] = {}, sums[2][WIDTH] = {};
    RightSums right;
    for (int64_t n = 0, first = 0; first < block.tokens; ++n, first += CHUNK) {
        const int64_t length = std::min<int64_t>(CHUNK, block.tokens - first);
        for (int c = 0; c < block.width; c += GROUP) {
            const int64_t at = first * block.stride + c;
            const float* powers = all_exponentials(block) + first * WIDTH + c;
            const Group decay = load_group(factors.decay + c), bonus = load_group(factors.bonus + c);
            right_sums(decay, right_end(block, n) + c, powers, WIDTH, block.v + at, block.stride, length, right);
            for (int i = 0; i < VECTORS; ++i) {
                const int lane = c + i * FLOATS;
                const Floats correction = load(factors.correction + lane);
                Floats A = load(left[0] + lane) * correction, B = load(left[1] + lane) * correction;
                Floats P = load(left[2] + lane) * correction, Q = load(left[3] + lane) * correction;
                float* end = left_end(block, n) + lane;
                store(end, A), store(end + WIDTH, B), store(end + 2 * WIDTH, P), store(end + 3 * WIDTH, Q);
                Floats pairs{}, bonuses{};
                for (int64_t j = 0; j < length; ++j) {
                    const int64_t row = at + j * block.stride + i * FLOATS;
                    const Floats e = load(powers + j * WIDTH + i * FLOATS), own = e * bonus.x[i];
                    const Floats value = load(block.v + row);
                    const int64_t next = row + CHUNK * block.stride;
                    prefetch(block.gy + next), prefetch(block.gv + next), prefetch(block.gk + next);
                    const Floats inverse = reciprocal((B + right.D[j].x[i]) + own);
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

INLINE void backward_from_right(const Block& block, const Factors& factors) {
    alignas(64) float right[2][WIDTH] = {}, sums[WIDTH] = {};
    Floats A[CHUNK], B[CHUNK], P[CHUNK], Q[CHUNK];
    for (int64_t n = chunks(block.tokens) - 1; n >= 0; --n) {
        const int64_t first = n * CHUNK, length = std::min<int64_t>(CHUNK, block.tokens - first);
        for (int c = 0; c < block.width; c += FLOATS) {
            const int64_t at = first * block.stride + c;
            const float* powers = all_exponentials(block) + first * WIDTH + c;
            const Floats decay = load(factors.decay + c), bonus = load(factors.bonus + c);
            const float* end = left_end(block, n) + c;
            Floats a = load(end), b = load(end + WIDTH), p = load(end + 2 * WIDTH), q = load(end + 3 * WIDTH);
            for (int64_t j = 0; j < length; ++j) {
                const int64_t row = at + j * block.stride;
                const Floats e = load(powers + j * WIDTH);
                A[j] = a, B[j] = b, P[j] = p, Q[j] = q;
                a = a * decay + e * load(block.v + row), b = b * decay + e;
                p = p * decay + load(block.gv + row), q = q * decay + load(block.gk + row);
            }
            const Floats correction = load(factors.correction + c);
            Floats R = load(right[0] + c) * correction, S = load(right[1] + c) * correction, pairs{};
            for (int64_t j = length - 1; j >= 0; --j) {
                const int64_t row = at + j * block.stride;
                const Floats G = load(block.gv + row), H = load(block.gk + row), e = load(powers + j * WIDTH);
                const Floats gv = e * ((P[j] + R) + bonus * G);
                store(block.gv + row, gv);
                store(block.gk + row, load(block.v + row) * gv - e * ((Q[j] + S) + bonus * H));
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
    walk_from_right(block, factors, all_exponentials(block), WIDTH);
    backward_from_left(block, factors);
    backward_from_right(block, factors);
}
