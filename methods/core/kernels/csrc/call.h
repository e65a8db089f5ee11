// What the parts of the engine share: one call of one layer, and small helpers.
#ifndef QUANTARENA_CALL_H
#define QUANTARENA_CALL_H

#include <cmath>
#include <cstdint>
#include <cstring>

#include "quantarena.h"

// Micro-kernels and unpackers stay functions of their own: inlined, compilers spill in them.
#define QA_NOINLINE __attribute__((noinline))

namespace {

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
template <class T>
inline T smaller(T a, T b) {
    return a < b ? a : b;
}
template <class T>
inline T larger(T a, T b) {
    return a > b ? a : b;
}

// code = clamp(round(x * inv), lo, hi) + zero, in float until after the clamp; NaN gives lo.
struct Quantizer {
    float inv, lo, hi;
    int32_t zero;
};

inline Quantizer make_quantizer(float scale, int32_t zero, int32_t most) {
    return {1.0f / scale, static_cast<float>(-zero), static_cast<float>(most - zero), zero};
}

inline uint32_t quantize_one(float value, const Quantizer& q) {
    float v = value > q.lo ? value : q.lo;  // false for NaN
    v = v < q.hi ? v : q.hi;
    return static_cast<uint32_t>(static_cast<int32_t>(lrintf(v)) + q.zero);
}

// Where the codes and constants of an output channel are.
struct Channel {
    const QaLayer* part;
    int index;  // of the part
    int row;    // in a group of the part
};

inline Channel channel_of(const QaLayer& l, int n) {
    if (l.parts == 0) return {&l, 0, n};
    const int at = l.source[n];
    int index = 0, first = 0, edge = 0;
    for (int i = 0; i + 1 < l.parts; ++i) {  // no branch that depends on the channel
        edge += l.part[i]->out_channels;
        index += at >= edge;
        first = at >= edge ? edge : first;
    }
    return {l.part[index], index, at - first};
}

// Zero points that leave a panel's codes when these are unpacked; the products are then those of c - zw,
// and no output needs the sum of its activations.  Codes of 7 and 8 bits less a zero point may not fit a
// byte, so that byte products keep them as they are (layout.py proves sums of what is multiplied).
struct Fold {
    int32_t zero[16] = {};
    bool any = false;
    Fold(const QaLayer& l, bool pair, int group, int tile) {
        if (l.weight_zero == nullptr || !folds(l, pair)) return;
        any = true;
        const int count = smaller(16, l.out_channels - 16 * tile);
        const int32_t* from = l.weight_zero + static_cast<int64_t>(group) * l.out_channels + 16 * tile;
        for (int n = 0; n < count; ++n) zero[n] = from[n];
    }
    static bool folds(const QaLayer& l, bool pair) { return pair || l.weight_bits <= 6; }
};

// In every step of an unpacked panel, byte order[b] of the 16 at `from` becomes byte b of four
// channels; none where it is negative.
struct LaneMove {
    const uint8_t* from;
    int8_t order[16];
};

// Eight neighbouring output pixels as two groups of four; `lo`, `hi` are byte offsets into the
// activation image, `y_lo`, `y_hi` element offsets into the output.
struct PixelVector {
    int32_t lo, hi;
    int64_t y_lo, y_hi;
    int32_t count_lo, count_hi;
    bool whole() const { return hi == lo + 16; }
};

// Per-channel constants of the epilogue, padded to whole panels.
struct Epilogue {
    const float* scale;
    const float* bias;
    const int32_t* correction;
    const int32_t* weight_zero;  // null where none is left to be taken off, see Fold
    int32_t flags;
};

// Activation parameters of the rows of a tile; the next row's lie `pitch` further.
struct RowScales {
    const float* scale;
    const int32_t* zero;
    int64_t pitch;
};

struct Call {
    const QaLayer* layer;
    QaGeometry geo;
    const float* x;
    void* y;
    int32_t flags;
    Quantizer quant;
    const QaRowScales* rows;
    bool planar;
    bool tiles;  // the call is large enough for tiles, where the unit has them
    int tap_steps;    // 32-bit steps per kernel tap
    int real_steps;   // of all taps
    int total_steps;  // padded to whole units
    int image_cols;   // dwords per (row, step, phase) when planar, pixels per row when dense
    int64_t row_pitch, image_pitch;  // bytes
    int block_images, block_rows, block_cols;
    int grid_images, grid_rows, grid_cols;
    int splits;  // groups of panels per block
    int items;
    int next;
    int failed;
    const int32_t* step_offset;
    Epilogue epilogue;
};

// A rectangle of output pixels of neighbouring images.
struct Block {
    int image0, images, row0, rows, col0, cols;
};

}  // namespace

#endif
