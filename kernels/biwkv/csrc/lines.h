// Bi-WKV over several axes by walks along the lines of one axis after the other, in float32 and relative to the largest
// key of each channel. Formulas are in nd_scan.py; sums of the distances come along with the walks: where
// L_i = sum_{j < i} d^{i - j} x_j, with M_{i+1} = d M_i + L_{i+1} it is M_i = sum_{j < i} (i - j) d^{i - j} x_j.

constexpr int TILE = 2;  // lines side by side, whose recurrences are independent

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

// Neighbouring lines of one axis that begin at row `first`; the rows of a line are `inner` apart.
struct Lines {
    int64_t first, inner, size;
    INLINE_MEMBER int64_t at(int64_t position) const { return (first + position * inner) * ROW; }
};

// Along COUNT neighbouring lines in both directions: a token's sum over all others of its line is added to its total
// and, if there is an `out`, to what is `in` for `out`, which may be `in` itself. `before` (size, COUNT, ROW) keeps the
// sums over those before. With DISTANCE, sums over distances times `others` are taken from gw.
template <int COUNT, bool DISTANCE>
INLINE void walk(const Lines& lines, const Fades& fades, const float* in, float* out, float* totals, float* before,
                 const float* others, float* gw) {
    constexpr int PARTS = COUNT * ROW / FLOATS;
    Floats states[PARTS] = {}, distances[PARTS] = {};
    Group pairs{};
    const auto add = [&](int n, Floats x, Floats fade, Floats other) INLINE_LAMBDA {
        if (DISTANCE) pairs.x[n % VECTORS] += (n / VECTORS % 2 ? -distances[n] : distances[n]) * other;
        states[n] = states[n] * fade + x * fade;
        if (DISTANCE) distances[n] = distances[n] * fade + states[n];
    };
    const auto fade_after = [&](int64_t step) INLINE_LAMBDA {
        return load_group(step % CHUNK == CHUNK - 1 ? fades.exact : fades.usual);
    };
    for (int64_t step = 0; step < lines.size; ++step) {
        const Group fade = fade_after(step);
        for (int n = 0; n < PARTS; ++n) {
            const int64_t at = lines.at(step) + n * FLOATS;
            store(before + (step * PARTS + n) * FLOATS, states[n]);
            add(n, load(in + at), fade.x[n % VECTORS], DISTANCE ? load(others + at) : Floats{});
        }
    }
    for (int n = 0; n < PARTS; ++n) states[n] = distances[n] = Floats{};
    for (int64_t step = 0; step < lines.size; ++step) {
        const Group fade = fade_after(step);
        const int64_t position = lines.size - 1 - step;
        for (int n = 0; n < PARTS; ++n) {
            const int64_t at = lines.at(position) + n * FLOATS;
            const Floats x = load(in + at), rest = load(before + (position * PARTS + n) * FLOATS) + states[n];
            store(totals + at, load(totals + at) + rest);
            if (out) store(out + at, x + rest);
            add(n, x, fade.x[n % VECTORS], DISTANCE ? load(others + at) : Floats{});
        }
    }
    for (int i = 0; DISTANCE && i < VECTORS; ++i) store(gw + i * FLOATS, load(gw + i * FLOATS) - pairs.x[i]);
}

template <bool DISTANCE>
INLINE void walk_axis(const Volume& volume, int axis, const float* in, float* out, const float* others) {
    const Fades fades(volume.w + axis * GROUP);
    float *gw = volume.gw + axis * GROUP, *totals = part(volume, TOTAL), *before = part(volume, BEFORE);
    Lines lines{0, 1, volume.sizes[axis]};
    for (int a = axis + 1; a < volume.axes; ++a) lines.inner *= volume.sizes[a];
    for (int64_t outer = 0; outer < volume.tokens; outer += lines.size * lines.inner) {
        int64_t i = 0;
        for (; i + TILE <= lines.inner; i += TILE) {
            lines.first = outer + i;
            walk<TILE, DISTANCE>(lines, fades, in, out, totals, before, others, gw);
        }
        for (; i < lines.inner; ++i) {
            lines.first = outer + i;
            walk<1, DISTANCE>(lines, fades, in, out, totals, before, others, gw);
        }
    }
}

// What goes into the walk along an axis: the last axis is the first. A forward task needs only the latest.
INLINE float* sums(const Volume& volume, int axis) {
    return part(volume, SUMS + (volume.y ? 0 : volume.axes - 1 - axis));
}

INLINE void sum_up(const Volume& volume, const Group& bonus) {
    start(volume, bonus);
    for (int axis = volume.axes - 1; axis >= 0; --axis) {
        float *in = sums(volume, axis), *out = axis > 0 ? sums(volume, axis - 1) : nullptr;
        walk_axis<false>(volume, axis, in, out, nullptr);
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
    float* grads = part(volume, GRADIENTS);
    start_gradients(volume, bonus, grads);
    std::fill_n(volume.gw, volume.axes * GROUP, 0.0f);
    for (int axis = 0; axis < volume.axes; ++axis)
        walk_axis<true>(volume, axis, grads, axis + 1 < volume.axes ? grads : nullptr, sums(volume, axis));
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
