// Bi-WKV for any finite input: float64 sums, each relative to e^scale where the scale follows the largest weight in
// the sum. About four times slower than linear.h, and needed only for decays, |w| T > 40, or bonuses that are large.
// Two sums under the same weights; as `top` is that of the largest, the sum of weights is between 1 and T.
struct LogSums {
    Doubles x{}, y{}, top = Doubles{} - INFINITY;

    // One token on: all weights decay, then x1 and y1 enter with weight e^s.
    INLINE_MEMBER void add(Doubles w, Doubles s, Doubles x1, Doubles y1) {
        const Doubles faded = top - w, next = larger(faded, s);
        const Doubles keep = exponential(faded - next), enter = exponential(s - next);
        x = x * keep + enter * x1, y = y * keep + enter * y1, top = next;
    }
};

// Every token's sums over the tokens to its left or right.
struct History {
    std::vector<double> data;

    explicit History(int64_t tokens) : data(tokens * 3 * DOUBLES) {}
    INLINE_MEMBER void put(int64_t t, const LogSums& sums) {
        double* p = &data[t * 3 * DOUBLES];
        store(p, sums.x), store(p + DOUBLES, sums.y), store(p + 2 * DOUBLES, sums.top);
    }
    INLINE_MEMBER LogSums get(int64_t t) const {
        const double* p = &data[t * 3 * DOUBLES];
        LogSums sums;
        sums.x = load(p), sums.y = load(p + DOUBLES), sums.top = load(p + 2 * DOUBLES);
        return sums;
    }
};

// y, and the denominator as e^scale / inverse.
struct Output {
    Doubles y, inverse, scale;
};

INLINE Output combine(const LogSums& left, const LogSums& right, Doubles own, Doubles value) {
    const Doubles scale = larger(larger(left.top, right.top), own);
    const Doubles a = exponential(left.top - scale), c = exponential(right.top - scale), o = exponential(own - scale);
    const Doubles inverse = 1.0 / (left.y * a + right.y * c + o);
    return {(left.x * a + right.x * c + o * value) * inverse, inverse, scale};
}

INLINE void right_history(const Block& block, int c, Doubles w, History& history) {
    LogSums right;
    for (int64_t t = block.tokens - 1; t >= 0; --t) {
        const int64_t row = t * block.stride + c;
        history.put(t, right);
        right.add(w, widen(block.k + row), widen(block.v + row), Doubles{} + 1.0);
    }
}

INLINE void forward_log_scale(const Block& block) {
    History history(block.tokens);
    for (int c = 0; c < block.width; c += DOUBLES) {
        const Doubles w = widen(block.w + c), u = widen(block.u + c);
        right_history(block, c, w, history);
        LogSums left;
        for (int64_t t = 0; t < block.tokens; ++t) {
            const int64_t row = t * block.stride + c;
            const Doubles k = widen(block.k + row), v = widen(block.v + row);
            narrow(block.y + row, combine(left, history.get(t), u + k, v).y);
            left.add(w, k, v, Doubles{} + 1.0);
        }
    }
}

INLINE Doubles pairs(const LogSums& grads, const LogSums& values, Doubles w) {
    return exponential(grads.top + values.top - w) * (grads.x * values.x - grads.y * values.y);
}

// In three walks: right; left, for y and the sums of gy / denominator and its product with y; and right again.
INLINE void backward_log_scale(const Block& block) {
    History rights(block.tokens), lefts(block.tokens), grads(block.tokens), own(block.tokens);
    for (int c = 0; c < block.width; c += DOUBLES) {
        const Doubles w = widen(block.w + c), u = widen(block.u + c);
        Doubles gw{}, gu{};
        right_history(block, c, w, rights);
        LogSums left, grad;
        for (int64_t t = 0; t < block.tokens; ++t) {
            const int64_t row = t * block.stride + c;
            const Doubles k = widen(block.k + row), v = widen(block.v + row);
            const LogSums right = rights.get(t);
            const Output out = combine(left, right, u + k, v);
            LogSums token;
            token.x = widen(block.gy + row) * out.inverse, token.y = token.x * out.y, token.top = -out.scale;
            gu += exponential(u + k + token.top) * (token.x * v - token.y);
            gw -= pairs(grad, right, w);
            lefts.put(t, left), grads.put(t, grad), own.put(t, token);
            left.add(w, k, v, Doubles{} + 1.0);
            grad.add(w, token.top, token.x, token.y);
        }
        grad = LogSums();
        for (int64_t t = block.tokens - 1; t >= 0; --t) {
            const int64_t row = t * block.stride + c;
            const Doubles k = widen(block.k + row), v = widen(block.v + row);
            const LogSums token = own.get(t), before = grads.get(t);
            const Doubles a = exponential(before.top + k), b = exponential(grad.top + k);
            const Doubles o = exponential(u + k + token.top);
            const Doubles gv = a * before.x + b * grad.x + o * token.x;
            narrow(block.gv + row, gv);
            narrow(block.gk + row, v * gv - (a * before.y + b * grad.y + o * token.y));
            gw -= pairs(grad, lefts.get(t), w);
            grad.add(w, token.top, token.x, token.y);
        }
        narrow(block.gw + c, gw), narrow(block.gu + c, gu);
    }
}
