// The selective scan for one processor: targets.h includes this once for each, with its number of LANES.
//
// Vectors are of channels. Blocks of scratch are (vectors, states, LANES), so that a vector's states lie together.

#include "vectors.h"

// 2^x, which ends at the largest float.
INLINE Floats factor(Floats x) { return power_of_two(x > 127.999f ? Floats{} + 127.999f : x); }

INLINE Floats load_part(const float* p, int valid) {
    if (valid >= LANES) return load(p);
    float part[LANES] = {};
    std::copy_n(p, valid, part);
    return load(part);
}

INLINE void store_part(float* p, Floats x, int valid) {
    if (valid >= LANES) return store(p, x);
    float part[LANES];
    store(part, x);
    std::copy_n(part, valid, p);
}

INLINE float sum(Floats x) {
    typedef float Four __attribute__((vector_size(16)));
    union {
        Floats whole;
        Four parts[LANES / 4];
    } u = {x};
    Four s = u.parts[0];
    for (int i = 1; i < LANES / 4; ++i) s += u.parts[i];
    return (s[0] + s[2]) + (s[1] + s[3]);
}

// a in base 2, padded with zeros.
static void load_rates(const StateSpace& task, float* rates) {
    for (int first = 0; first < task.width; first += LANES)
        for (int n = 0; n < task.states; ++n, rates += LANES)
            for (int i = 0; i < LANES; ++i)
                rates[i] = first + i < task.width ? LOG2_E * task.a[(first + i) * task.states + n] : 0.0f;
}

// One token: h = 2^(step rates) h + step x b. Calls each(vector, state, h before, factor) -> nothing for what else is to be
// done, if anything.
template <class Each>
INLINE void advance(const StateSpace& task, int64_t t, const float* rates, float* h, const Each& each) {
    const float* b = task.b + t * task.state_row;
    for (int first = 0; first < task.width; first += LANES) {
        const Floats step = load_part(task.step + t * task.row + first, task.width - first);
        const Floats u = step * load_part(task.x + t * task.row + first, task.width - first);
        const int64_t at = int64_t(first) * task.states;
        for (int n = 0; n < task.states; ++n) {
            const int64_t i = at + n * LANES;
            const Floats before = load(h + i), e = factor(step * load(rates + i));
            store(h + i, e * before + u * b[n]);
            each(i, before, e);
        }
    }
}

static void forward(const StateSpace& task) {
    const int64_t block = int64_t(task.states) * WIDTH;
    float *rates = task.scratch, *h = rates + block;
    load_rates(task, rates);
    std::fill_n(h, block, 0.0f);
    for (int64_t t = 0; t < task.tokens; ++t) {
        const float *b = task.b + t * task.state_row, *c = task.c + t * task.state_row;
        for (int first = 0; first < task.width; first += LANES) {
            const int valid = task.width - first;
            const Floats step = load_part(task.step + t * task.row + first, valid);
            const Floats x = load_part(task.x + t * task.row + first, valid), u = step * x;
            Floats y = x * load_part(task.d + first, valid);
            float *own = h + int64_t(first) * task.states, *rate = rates + int64_t(first) * task.states;
            for (int n = 0; n < task.states; ++n, own += LANES, rate += LANES) {
                const Floats after = factor(step * load(rate)) * load(own) + u * b[n];
                store(own, after);
                y += after * c[n];
            }
            store_part(task.y + t * task.row + first, y, valid);
        }
    }
}

// What a backward task keeps in scratch.
struct Kept {
    float *rates, *h, *back, *ga, *gb, *gc, *states, *factors, *starts;

    Kept(const StateSpace& task, int64_t block)
        : rates(task.scratch),
          h(rates + block),
          back(h + block),
          ga(back + block),
          gb(ga + block),
          gc(gb + block),
          states(gc + block),
          factors(states + CHUNK * block),
          starts(factors + CHUNK * block) {}
};

// The token t, whose states and factors are those of the j-th of its chunk. p is the gradient of its state.
static void retreat(const StateSpace& task, int64_t t, int64_t j, int64_t block, const Kept& kept) {
    const float *b = task.b + t * task.state_row, *c = task.c + t * task.state_row;
    const int states = task.states;
    std::fill_n(kept.gb, states * LANES, 0.0f), std::fill_n(kept.gc, states * LANES, 0.0f);
    for (int first = 0; first < task.width; first += LANES) {
        const int valid = task.width - first;
        const int64_t here = t * task.row + first, at = int64_t(first) * states;
        const Floats step = load_part(task.step + here, valid), x = load_part(task.x + here, valid);
        const Floats gy = load_part(task.gy + here, valid), u = step * x;
        Floats gu{}, gstep{};
        const float *h = kept.states + j * block + at, *e = kept.factors + j * block + at;
        for (int n = 0; n < states; ++n) {
            const int64_t i = n * LANES;
            const Floats faded = load(e + i) * load(h + i), p = load(kept.back + at + i) + gy * c[n];
            store(kept.gc + i, load(kept.gc + i) + gy * (faded + u * b[n]));
            store(kept.gb + i, load(kept.gb + i) + p * u);
            gu += p * b[n];
            const Floats exponent = p * faded;
            gstep += exponent * load(kept.rates + at + i);
            store(kept.ga + at + i, load(kept.ga + at + i) + exponent * step);
            store(kept.back + at + i, p * load(e + i));
        }
        store_part(task.gx + here, gu * step + gy * load_part(task.d + first, valid), valid);
        store_part(task.gstep + here, gu * x + gstep * (1 / LOG2_E), valid);
        store_part(task.gd + first, load_part(task.gd + first, valid) + gy * x, valid);
    }
    for (int n = 0; n < states; ++n) {
        task.gb[t * states + n] = sum(load(kept.gb + n * LANES));
        task.gc[t * states + n] = sum(load(kept.gc + n * LANES));
    }
}

static void backward(const StateSpace& task) {
    const int64_t block = int64_t(task.states) * WIDTH;
    const Kept kept(task, block);
    load_rates(task, kept.rates);
    std::fill_n(kept.h, 3 * block, 0.0f);  // and back and ga
    std::fill_n(task.gd, task.width, 0.0f);
    for (int64_t t = 0; t < task.tokens; ++t) {
        if (t % CHUNK == 0) std::copy_n(kept.h, block, kept.starts + t / CHUNK * block);
        advance(task, t, kept.rates, kept.h, [](int64_t, Floats, Floats) {});
    }
    for (int64_t chunk = (task.tokens - 1) / CHUNK; chunk >= 0; --chunk) {
        const int64_t first = chunk * CHUNK, last = std::min(first + CHUNK, task.tokens);
        float* h = kept.starts + chunk * block;
        for (int64_t t = first; t < last; ++t) {
            const int64_t at = (t - first) * block;
            advance(task, t, kept.rates, h, [&](int64_t i, Floats before, Floats e) {
                store(kept.states + at + i, before);
                store(kept.factors + at + i, e);
            });
        }
        for (int64_t t = last; t-- > first;) retreat(task, t, t - first, block, kept);
    }
    for (int c = 0; c < task.width; ++c)
        for (int n = 0; n < task.states; ++n)
            task.ga[c * task.states + n] = kept.ga[(c / LANES * task.states + n) * LANES + c % LANES];
}

static void compute(const StateSpace& task) { task.y ? forward(task) : backward(task); }
