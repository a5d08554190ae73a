// Bi-WKV over several axes by walks along the lines of one axis after the other, in float32 and relative to the largest
// key of each channel. Formulas are in nd_scan.py; sums of the distances come along with the walks: where
// L_i = sum_{j < i} d^{i - j} x_j, with M_{i+1} = d M_i + L_{i+1} it is M_i = sum_{j < i} (i - j) d^{i - j} x_j.

INLINE float* part(const Volume& volume, int which) { return volume.scratch + which * volume.tokens * ROW; }

// `width` channels of a row; the others are 0.
INLINE Group load_some(const float* p, int width) {
    if (width == GROUP) return load_group(p);
    alignas(64) float row[GROUP] = {};
    std::copy_n(p, width, row);
    return load_group(row);
}

INLINE void store_some(float* p, int width, const Group& g) {
    if (width == GROUP) return store_group(p, g);
    alignas(64) float row[GROUP];
    store_group(row, g);
    std::copy_n(row, width, p);
}

// e^k v and e^k of every token into the first sums, and e^u times them into the total.
INLINE void start(const Volume& volume, const Group& bonus) {
    Group top;
    for (int i = 0; i < VECTORS; ++i) top.x[i] = Floats{} - INFINITY;
    for (int64_t t = 0; t < volume.tokens; ++t) {
        const Group k = load_some(volume.k + t * volume.stride, volume.width);
        for (int i = 0; i < VECTORS; ++i) top.x[i] = larger(top.x[i], k.x[i]);
    }
    float *sums = part(volume, SUMS), *total = part(volume, TOTAL);
    for (int64_t t = 0; t < volume.tokens; ++t) {
        const Group k = load_some(volume.k + t * volume.stride, volume.width);
        const Group v = load_some(volume.v + t * volume.stride, volume.width);
        for (int i = 0; i < VECTORS; ++i) {
            const Floats e = power_of_two((k.x[i] - top.x[i]) * LOG2_E);
            const int64_t at = t * ROW + i * FLOATS;
            store(sums + at, e * v.x[i]), store(sums + at + GROUP, e);
            store(total + at, e * v.x[i] * bonus.x[i]), store(total + at + GROUP, e * bonus.x[i]);
        }
    }
}

// e^-w of one axis. Every 16th step undoes what rounding of the others adds up to.
struct Fades {
    alignas(64) float usual[GROUP], exact[GROUP];

    INLINE_MEMBER explicit Fades(const float* w) {
        for (int c = 0; c < GROUP; c += DOUBLES) {
            const Doubles fade = exponential(-widen(w + c));
            narrow(usual + c, fade);
            narrow(exact + c, fade + (CHUNK - 1) * (fade - widen(usual + c)));
        }
    }
};

// Along one axis in one direction: a token's sum over those that come before it is added to its total and, if there is
// an `out`, to `base` for `out`. With `others`, the sum over distances times `others` is taken from gw.
template <bool DISTANCE>
INLINE void walk(const Volume& volume, int axis, bool forwards, const float* in, const float* base, float* out,
                 const float* others) {
    const Fades fades(volume.w + axis * GROUP);
    float *states = part(volume, STATES), *distances = part(volume, DISTANCES), *totals = part(volume, TOTAL);
    float* gw = DISTANCE ? volume.gw + axis * GROUP : nullptr;
    int64_t inner = 1;
    for (int a = axis + 1; a < volume.axes; ++a) inner *= volume.sizes[a];
    const int64_t size = volume.sizes[axis], outer = volume.tokens / (size * inner);
    for (int64_t o = 0; o < outer; ++o) {
        std::fill_n(states, inner * ROW, 0.0f);
        if (DISTANCE) std::fill_n(distances, inner * ROW, 0.0f);
        for (int64_t step = 0; step < size; ++step) {
            const Group fade = load_group(step % CHUNK == CHUNK - 1 ? fades.exact : fades.usual);
            const int64_t first = (o * size + (forwards ? step : size - 1 - step)) * inner * ROW;
            Group pairs{};
            for (int64_t row = 0; row < inner * ROW; row += ROW)
                for (int sum = 0; sum < 2; ++sum)
                    for (int i = 0; i < VECTORS; ++i) {
                        const int64_t lane = row + sum * GROUP + i * FLOATS, at = first + lane;
                        const Floats state = load(states + lane), next = (state + load(in + at)) * fade.x[i];
                        store(states + lane, next);
                        store(totals + at, load(totals + at) + state);
                        if (out) store(out + at, load(base + at) + state);
                        if (DISTANCE) {
                            const Floats distance = load(distances + lane), product = distance * load(others + at);
                            store(distances + lane, distance * fade.x[i] + next);
                            pairs.x[i] += sum == 0 ? product : -product;
                        }
                    }
            for (int i = 0; DISTANCE && i < VECTORS; ++i)
                store(gw + i * FLOATS, load(gw + i * FLOATS) - pairs.x[i]);
        }
    }
}

// Sums over the lines of the last axis, of these over the lines of the one before it, and so on: sums(a) is what went
// into axis a.
INLINE float* sums(const Volume& volume, int axis) { return part(volume, SUMS + volume.axes - 1 - axis); }

INLINE void sum_up(const Volume& volume, const Group& bonus) {
    start(volume, bonus);
    for (int axis = volume.axes - 1; axis >= 0; --axis) {
        float *in = sums(volume, axis), *out = axis > 0 ? sums(volume, axis - 1) : nullptr;
        walk<false>(volume, axis, true, in, in, out, nullptr);
        walk<false>(volume, axis, false, in, out, out, nullptr);
    }
}

INLINE Group bonuses(const Volume& volume) {
    alignas(64) float bonus[GROUP];
    for (int c = 0; c < GROUP; c += DOUBLES) narrow(bonus + c, exponential(widen(volume.u + c)));
    return load_group(bonus);
}

INLINE void forward_lines(const Volume& volume) {
    sum_up(volume, bonuses(volume));
    for (int64_t t = 0; t < volume.tokens; ++t) {
        const float* total = part(volume, TOTAL) + t * ROW;
        Group y;
        for (int i = 0; i < VECTORS; ++i)
            y.x[i] = load(total + i * FLOATS) * reciprocal(load(total + GROUP + i * FLOATS));
        store_some(volume.y + t * volume.stride, volume.width, y);
    }
}

// G and H of every token into `grads`, and e^u times them into the total.
INLINE void start_gradients(const Volume& volume, const Group& bonus, float* grads) {
    const float* start = sums(volume, volume.axes - 1);
    Group gu{};
    for (int64_t t = 0; t < volume.tokens; ++t) {
        const Group gy = load_some(volume.gy + t * volume.stride, volume.width);
        for (int i = 0; i < VECTORS; ++i) {
            const int64_t at = t * ROW + i * FLOATS;
            float* total = part(volume, TOTAL) + at;
            const Floats inverse = reciprocal(load(total + GROUP));
            const Floats G = gy.x[i] * inverse, H = G * (load(total) * inverse);
            store(grads + at, G), store(grads + at + GROUP, H);
            store(total, G * bonus.x[i]), store(total + GROUP, H * bonus.x[i]);
            gu.x[i] += (G * load(start + at) - H * load(start + at + GROUP)) * bonus.x[i];
        }
    }
    store_group(volume.gu, gu);
}

INLINE void backward_lines(const Volume& volume) {
    const Group bonus = bonuses(volume);
    sum_up(volume, bonus);
    float *in = part(volume, GRADIENTS), *other = part(volume, GRADIENTS + 1);
    start_gradients(volume, bonus, in);
    std::fill_n(volume.gw, volume.axes * GROUP, 0.0f);
    for (int axis = 0; axis < volume.axes; ++axis) {
        float* out = axis + 1 < volume.axes ? other : nullptr;
        walk<true>(volume, axis, true, in, in, out, sums(volume, axis));
        walk<true>(volume, axis, false, in, out, out, sums(volume, axis));
        std::swap(in, other);
    }
    const float* start = sums(volume, volume.axes - 1);
    for (int64_t t = 0; t < volume.tokens; ++t) {
        Group gk, gv;
        for (int i = 0; i < VECTORS; ++i) {
            const int64_t at = t * ROW + i * FLOATS;
            const float* total = part(volume, TOTAL) + at;
            const Floats e = load(start + at + GROUP);
            gv.x[i] = e * load(total);
            gk.x[i] = load(start + at) * load(total) - e * load(total + GROUP);
        }
        store_some(volume.gk + t * volume.stride, volume.width, gk);
        store_some(volume.gv + t * volume.stride, volume.width, gv);
    }
}
