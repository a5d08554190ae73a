// Bi-WKV forward on CUDA devices with every input read once: a block holds 32 channels of all tokens of one sample in
// shared memory, a warp a chunk of the tokens, a thread one channel of its chunk.
//
//   A, B  sums of e^k v and e^k over the tokens to the left, C, D to the right
//
// All threads sum up their chunks, relative to its largest key; after one barrier each knows what enters its chunk from
// both sides, and walks through it with sums relative to the largest key of all. That needs |w| T <= 40 and |u| <= 20;
// blocks that have other channels leave them to the Triton kernel, which takes its channels 64 at a time.
//
// Compiled at run time, with KEY and VALUE one of Float, BFloat16 and Half. Without a device compiler it is plain C++,
// where `emulate` runs the same functions a block and a thread after the other, for tests.

#ifdef __CUDACC__
#define INLINE __device__ __forceinline__
#else
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>
#define INLINE inline
#endif

constexpr int WIDTH = 32;       // channels of a block
constexpr int GROUP = 64;       // channels that go the same way
constexpr int ROWS = 8;         // tokens at a time in registers
constexpr int MAX_PARTS = 7;    // of ROWS tokens in a chunk
constexpr int SUMMARY = 5;      // numbers of a chunk and channel: largest key in powers of 2, A, B, C, D
constexpr float LOG2_E = 1.44269504f;
constexpr float NO_KEY = -3e38f;  // of tokens that are not there: their weight is 0

#ifdef __CUDACC__
INLINE float power_of_2(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
INLINE float inverse(float x) {
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
#else
INLINE float power_of_2(float x) { return std::exp2(x); }
INLINE float inverse(float x) { return 1.0f / x; }
#endif
INLINE float exponential(float x) { return power_of_2(x * LOG2_E); }

struct Float {
    using Bits = float;
    static INLINE float load(Bits x) { return x; }
    static INLINE Bits store(float x) { return x; }
};

struct BFloat16 {
    using Bits = unsigned short;
#ifdef __CUDACC__
    static INLINE float load(Bits x) { return __uint_as_float(unsigned(x) << 16); }
    static INLINE Bits store(float x) {
        Bits y;
        asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y) : "f"(x));
        return y;
    }
#else
    static float load(Bits x) {
        const uint32_t bits = uint32_t(x) << 16;
        float y;
        std::memcpy(&y, &bits, 4);
        return y;
    }
    static Bits store(float x) {  // to the nearest, ties to even
        uint32_t bits;
        std::memcpy(&bits, &x, 4);
        return Bits((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
    }
#endif
};

struct Half {
    using Bits = unsigned short;
#ifdef __CUDACC__
    static INLINE float load(Bits x) {
        float y;
        asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x));
        return y;
    }
    static INLINE Bits store(float x) {
        Bits y;
        asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y) : "f"(x));
        return y;
    }
#else
    static float load(Bits x) {
        _Float16 y;
        std::memcpy(&y, &x, 2);
        return y;
    }
    static Bits store(float x) {
        const _Float16 y = x;
        Bits bits;
        std::memcpy(&bits, &y, 2);
        return bits;
    }
#endif
};

// What a thread works on. Tiles are (tokens, WIDTH) in shared memory, up to a multiple of ROWS with tokens of no weight;
// k, v point to its chunk's first row and channel.
struct Chunk {
    const KEY::Bits* k;
    const VALUE::Bits* v;
    int parts;  // of ROWS tokens
    float w, u;
};

// What it keeps in registers over the barrier: C and D of its chunk alone at the right ends of its parts.
struct Kept {
    float C[MAX_PARTS], D[MAX_PARTS], top;
};

// e^k relative to 2^top. Rounding of `top` is the same for all that it is subtracted from.
INLINE float weight(const Chunk& chunk, int row, float top) {
    return power_of_2(fmaf(KEY::load(chunk.k[row * WIDTH]), LOG2_E, -top));
}

// e^(-w) as it enters the recurrences, and what undoes its rounding, a part at a time.
struct Decay {
    float once, correction;

    INLINE explicit Decay(float w) {
        const double exact = exp(-double(w));
        once = float(exact);
        correction = float(1.0 + ROWS * (exact - double(once)) / exact);
    }
};

// Sums of one chunk, relative to its largest key, into summary[SUMMARY][WIDTH].
INLINE Kept summarize(const Chunk& chunk, float* summary) {
    Kept kept;
    kept.top = NO_KEY;
    for (int row = 0; row < chunk.parts * ROWS; ++row) kept.top = fmaxf(kept.top, KEY::load(chunk.k[row * WIDTH]));
    kept.top *= LOG2_E;
    const Decay decay(chunk.w);
    float A = 0, B = 0, C = 0, D = 0;
#pragma unroll
    for (int part = MAX_PARTS - 1; part >= 0; --part) {
        if (part >= chunk.parts) continue;
        C *= decay.correction, D *= decay.correction;
        kept.C[part] = C, kept.D[part] = D;
        float fade = exponential(-chunk.w * float((chunk.parts - 1 - part) * ROWS));  // from its end to the chunk's
#pragma unroll
        for (int j = ROWS - 1; j >= 0; --j) {
            const float e = weight(chunk, part * ROWS + j, kept.top);
            const float ev = e * VALUE::load(chunk.v[(part * ROWS + j) * WIDTH]);
            A += ev * fade, B += e * fade;
            C = C * decay.once + ev, D = D * decay.once + e;
            fade *= decay.once;
        }
    }
    summary[0] = kept.top;
    summary[1 * WIDTH] = A, summary[2 * WIDTH] = B, summary[3 * WIDTH] = C, summary[4 * WIDTH] = D;
    return kept;
}

// Sums that enter a chunk from both sides, relative to the largest key of all.
struct Entering {
    float A = 0, B = 0, C = 0, D = 0, top;
};

// `summaries` are those of all chunks, all of `length` tokens but the last.
INLINE Entering enter(const float* summaries, int chunks, int n, float w, int length) {
    Entering in;
    in.top = NO_KEY;
    for (int m = 0; m < chunks; ++m) in.top = fmaxf(in.top, summaries[m * SUMMARY * WIDTH]);
    const float fade = exponential(-w * float(length));
    for (int m = 0; m < n; ++m) {
        const float* from = summaries + m * SUMMARY * WIDTH;
        const float scale = power_of_2(from[0] - in.top);
        in.A = in.A * fade + from[1 * WIDTH] * scale, in.B = in.B * fade + from[2 * WIDTH] * scale;
    }
    for (int m = chunks - 1; m > n; --m) {
        const float* from = summaries + m * SUMMARY * WIDTH;
        const float scale = power_of_2(from[0] - in.top);
        in.C = in.C * fade + from[3 * WIDTH] * scale, in.D = in.D * fade + from[4 * WIDTH] * scale;
    }
    return in;
}

// y of a chunk, of which `rows` are there; they are `stride` apart.
INLINE void output(const Chunk& chunk, const Kept& kept, const Entering& in, KEY::Bits* y, int rows, long long stride) {
    const Decay decay(chunk.w);
    const float bonus = exponential(chunk.u), scale = power_of_2(kept.top - in.top);
    float A = in.A, B = in.B;
#pragma unroll
    for (int part = 0; part < MAX_PARTS; ++part) {
        if (part >= chunk.parts) continue;
        const float fade = exponential(-chunk.w * float((chunk.parts - 1 - part) * ROWS));
        float C = kept.C[part] * scale + in.C * fade, D = kept.D[part] * scale + in.D * fade;
        float e[ROWS], ev[ROWS], numerator[ROWS], denominator[ROWS];
#pragma unroll
        for (int j = ROWS - 1; j >= 0; --j) {
            e[j] = weight(chunk, part * ROWS + j, in.top);
            ev[j] = e[j] * VALUE::load(chunk.v[(part * ROWS + j) * WIDTH]);
            numerator[j] = C + bonus * ev[j], denominator[j] = D + bonus * e[j];
            C = C * decay.once + ev[j], D = D * decay.once + e[j];
        }
        A *= decay.correction, B *= decay.correction;
#pragma unroll
        for (int j = 0; j < ROWS; ++j) {
            const float result = (A + numerator[j]) * inverse(B + denominator[j]);
            if (part * ROWS + j < rows) *y = KEY::store(result);
            y += stride;
            A = A * decay.once + ev[j], B = B * decay.once + e[j];
        }
    }
}

// Whether linear sums are enough for all channels of a group; decided as _is_narrow of triton_kernels.py does.
INLINE bool is_narrow(float w, float u, int tokens) { return fabsf(w) * float(tokens) <= 40.0f && fabsf(u) <= 20.0f; }

#ifdef __CUDACC__

// Rows [first, last) of a tile, by one warp. In pieces of 16 bytes where the tensor allows it.
template <class Bits>
INLINE void load_rows(Bits* tile, const Bits* from, int first, int last, int present, long long stride, bool pieces) {
    const int lane = threadIdx.x % 32;
    if (!pieces) {
        for (int row = first; row < last; ++row)
            if (lane < present) tile[row * WIDTH + lane] = from[row * stride + lane];
        return;
    }
    constexpr int PIECE = 16 / sizeof(Bits), PIECES = WIDTH / PIECE;
    for (int i = first * PIECES + lane; i < last * PIECES; i += 32) {
        const int row = i / PIECES, column = i % PIECES * PIECE;
        if (column >= present) continue;
        const unsigned to = static_cast<unsigned>(__cvta_generic_to_shared(tile + row * WIDTH + column));
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from + row * stride + column) : "memory");
    }
}

extern "C" __global__ void __launch_bounds__(1024, 1)
    forward(const float* w, const float* u, const KEY::Bits* k, const VALUE::Bits* v, KEY::Bits* y, int tokens,
            int channels, int length, int margin, int pieces) {
    extern __shared__ __align__(16) unsigned char shared[];
    const int padded = (tokens + ROWS - 1) / ROWS * ROWS;
    KEY::Bits* k_tile = reinterpret_cast<KEY::Bits*>(shared);
    VALUE::Bits* v_tile = reinterpret_cast<VALUE::Bits*>(k_tile + padded * WIDTH);
    float* summaries = reinterpret_cast<float*>(v_tile + padded * WIDTH);

    const int lane = threadIdx.x % 32, n = threadIdx.x / 32, chunks = blockDim.x / 32;
    const int blocks = (channels + WIDTH - 1) / WIDTH;
    const int c = blockIdx.x % blocks * WIDTH, present = min(WIDTH, channels - c);
    const long long sample = blockIdx.x / blocks;

    bool narrow = true;  // every warp finds the same
    for (int i = c / GROUP * GROUP + lane; i < min(c / GROUP * GROUP + GROUP, channels); i += 32)
        narrow = narrow && is_narrow(w[i], u[i], tokens + margin);
    if (!__all_sync(0xffffffff, narrow)) return;

    const long long start = sample * tokens * channels + c;
    const int first = n * length, last = min(first + length, tokens);
    load_rows(k_tile, k + start, first, last, present, channels, pieces);
    load_rows(v_tile, v + start, first, last, present, channels, pieces);
    const int parts = (last - first + ROWS - 1) / ROWS;
    for (int row = last; row < first + parts * ROWS; ++row)
        k_tile[row * WIDTH + lane] = KEY::store(NO_KEY), v_tile[row * WIDTH + lane] = VALUE::store(0);
    asm volatile("cp.async.wait_all;" ::: "memory");
    __syncwarp();

    const int channel = min(lane, present - 1);  // threads without a channel do the last one's work over again
    const Chunk chunk{k_tile + first * WIDTH + channel, v_tile + first * WIDTH + channel, parts, w[c + channel],
                      u[c + channel]};
    const Kept kept = summarize(chunk, summaries + n * SUMMARY * WIDTH + lane);
    __syncthreads();
    const Entering in = enter(summaries + lane, chunks, n, chunk.w, length);
    output(chunk, kept, in, y + start + first * (long long)channels + channel, last - first, channels);
}

#else

// The same for all blocks. `shared` is as large as the kernel's, so that a sanitizer sees accesses beyond it.
extern "C" void emulate(const float* w, const float* u, const KEY::Bits* k, const VALUE::Bits* v, KEY::Bits* y,
                        int batch, int tokens, int channels, int length, int margin) {
    const int chunks = (tokens + length - 1) / length;
    for (long long sample = 0; sample < batch; ++sample)
        for (int c = 0; c < channels; c += WIDTH) {
            bool narrow = true;
            for (int i = c / GROUP * GROUP; i < std::min(c / GROUP * GROUP + GROUP, channels); ++i)
                narrow = narrow && is_narrow(w[i], u[i], tokens + margin);
            if (!narrow) continue;
            const int present = std::min(WIDTH, channels - c);
            const long long start = sample * tokens * channels + c;
            const int padded = (tokens + ROWS - 1) / ROWS * ROWS;
            std::vector<KEY::Bits> k_tile(padded * WIDTH, KEY::store(NO_KEY));
            std::vector<VALUE::Bits> v_tile(padded * WIDTH, VALUE::store(0));
            std::vector<float> summaries(chunks * SUMMARY * WIDTH);
            for (int row = 0; row < tokens; ++row)
                for (int lane = 0; lane < present; ++lane) {
                    k_tile[row * WIDTH + lane] = k[start + (long long)row * channels + lane];
                    v_tile[row * WIDTH + lane] = v[start + (long long)row * channels + lane];
                }
            std::vector<Kept> kept(chunks * WIDTH);
            const auto chunk_of = [&](int n, int lane) {
                const int channel = std::min(lane, present - 1), first = n * length;
                return Chunk{&k_tile[first * WIDTH + channel], &v_tile[first * WIDTH + channel],
                             (std::min(length, padded - first)) / ROWS, w[c + channel], u[c + channel]};
            };
            for (int i = 0; i < chunks * WIDTH; ++i)
                kept[i] = summarize(chunk_of(i / WIDTH, i % WIDTH), &summaries[i / WIDTH * SUMMARY * WIDTH + i % WIDTH]);
            for (int i = 0; i < chunks * WIDTH; ++i) {
                const int n = i / WIDTH, channel = std::min(i % WIDTH, present - 1);
                const Entering in = enter(&summaries[i % WIDTH], chunks, n, w[c + channel], length);
                output(chunk_of(n, i % WIDTH), kept[i], in, y + start + (long long)n * length * channels + channel,
                       std::min(length, tokens - n * length), channels);
            }
        }
}

#endif
