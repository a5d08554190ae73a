// GROUP channels as so many vectors.

constexpr int VECTORS = GROUP / FLOATS;
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

// Brings what a later step reads or writes nearer; an address outside of the tensor does no harm.
INLINE void prefetch(const float* p) { __builtin_prefetch(p); }
