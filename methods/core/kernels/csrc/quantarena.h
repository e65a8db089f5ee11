// C ABI of the packed low-bit kernels, shared by every translation unit.
//
// A layer is a matrix of integer weight codes c, stored as panels of 16 output channels, and a
// static affine activation quantizer a = clamp(round(x / sx) + zx, 0, act_max).  Every entry point
// computes the integer  T = sum (a - zx) * (c - zw)  exactly and writes  sx * sw * T + bias.
//
// Accumulators are int32.  The caller proves that they suffice: per output channel, act_max times the
// sum of the positive values of c - zw, and times that of the negative ones, must not exceed 2^31 - 1
// (formats.py, largest_sum), and K at most 65,000.  The bound holds for every input and every zx.
// In the worst case (8 bits, |zw| = 2^8) that is K = 21,931; with zw within the codes K = 33,025.
#ifndef QUANTARENA_H
#define QUANTARENA_H

#include <cstddef>
#include <cstdint>

extern "C" {

// One packed layer.  All pointers belong to the caller and must outlive the call.
struct QaLayer {
    int32_t weight_bits;   // 1..8
    int32_t act_max;       // 2^act_bits - 1
    int32_t pair;          // 0: four 8-bit k per dword, 1: two 16-bit k per dword
    int32_t groups;
    int32_t out_channels;  // per group
    int32_t in_channels;   // per group
    int32_t in_padded;     // in_channels rounded up to 4
    int32_t units;         // 16-wide slices of the padded K axis
    int32_t panels;        // 16-channel panels per group
    int32_t kernel_h, kernel_w;
    int32_t stride_h, stride_w;
    int32_t pad_h, pad_w;
    int32_t dilation_h, dilation_w;
    int32_t table_size;           // entries of act_scale and act_zero
    int32_t sum_groups;           // groups add to the same outputs: scales by K-group
    int32_t parts;                // layers that this one is made of, or 0
    const uint8_t* codes;         // [groups * panels][units][32 * weight_bits]
    const int32_t* chunk_start;   // [groups * panels + 1] into chunk_units
    const uint16_t* chunk_units;  // units that an int16 accumulator provably survives
    const float* weight_scale;    // [groups * out_channels]
    const int32_t* weight_sum;    // [groups * out_channels], sum of codes over K
    const int32_t* weight_zero;   // [groups * out_channels] or null
    const float* bias;            // [groups * out_channels], or [out_channels] of a sum, or null
    const float* in_mult;         // [groups * in_channels] or null
    const float* act_scale;       // [table_size]
    const int32_t* act_zero;      // [table_size]
    const QaLayer* const* part;   // [parts], or null
    const int32_t* source;        // [out_channels], or null
};

// A layer made of parts has the output channels of all of them, in any order: channel n of a group is
// channel source[n] of the parts' side by side.  Parts differ in width and number of output channels
// only.  Codes, scale, sum, zero and bias are theirs, all else (chunks too) is the whole layer's.

// Shape and strides (in elements) of one input and output.  A linear layer is a 1x1 convolution
// over an image of one row, whose pixels are the rows of the matrix.
struct QaGeometry {
    int64_t batch, height, width;
    int64_t out_height, out_width;
    int64_t x_batch, x_row, x_pixel, x_channel;
    int64_t y_batch, y_row, y_pixel, y_channel;
};

// Activation parameters by pixel and group instead of the layer's table; the geometry is one row and
// nothing is padded.  Zero points may lie up to 2^14 beyond the codes where the caller has the proof of
// sums for differences that large.
struct QaRowScales {
    const float* scale;   // [pixels][groups]
    const int32_t* zero;  // [pixels][groups]
};

// Where the activation ranges of K-groups come from.
enum QaRanges {
    QA_BY_CALL = 0,          // a table with one row for each sampler call
    QA_BY_ROW = 1,           // QaRowScales
    QA_FOUND = 2,            // found in each row when it arrives, a range that holds zero
    QA_FOUND_SYMMETRIC = 3,  // likewise, with the zero point in the middle of the codes
};

// Groups of the K axis with activation ranges of their own, whose sums add to the same outputs, and a
// branch in float32 beside the integers.  Groups of a layer without `sum_groups` are ranges of its
// channels, in any order of the input's: panels have no padding between them.  Those of a layer with
// `sum_groups` are the layer's own; it is a matrix.
struct QaGroups {
    int32_t count;
    int32_t ranges;             // QaRanges; by row or found only for a matrix
    int32_t rank;               // of the branch, or 0
    int32_t table_size;         // rows of act_scale and act_zero
    const int32_t* edge;        // [count + 1], first channel of the weights in each group
    const uint16_t* order;      // [in_channels], the input's channel that each of the weights' is, or null
    const float* act_scale;     // [table_size][count]
    const int32_t* act_zero;    // [table_size][count]
    const float* weight_scale;  // [count][out_channels], or null: the layer's, alike for all groups
    const float* down;          // [kernel_h][kernel_w][channels of the input][rank], and 7 floats more
    const float* up;            // [rank][out_channels]
};

enum QaFlags {
    QA_ACCUMULATE = 1,  // add to y instead of overwriting it
    QA_INTEGER = 2,     // y is int32 and receives T
};

enum QaError { QA_OK = 0, QA_NO_MEMORY = 1, QA_BAD_ARGUMENT = 2, QA_NOT_FINITE = 3 };

// Functions applied element by element.
enum QaActivation { QA_PLAIN = 0, QA_SILU = 1, QA_GELU = 2, QA_GELU_TANH = 3 };

// Group normalization of float32 images, then an activation.  Input and output are dense and share a
// layout.
struct QaNorm {
    int64_t batch, channels, pixels, groups;
    int32_t last;        // channels of a pixel side by side, else pixels of a channel
    int32_t activation;  // QaActivation
    float eps;
    const float* weight;  // [channels] or null
    const float* bias;    // [channels] or null
};

// Rows of float32 for an activation; pitches in elements.  The output is dense.
struct QaRows {
    int64_t rows, columns, x_row, gate_row;
    int32_t activation;  // QaActivation
};

// Rows of float32 whose channels are multiplied and rotated: index c = o * size + s, Hartley over o and
// Walsh-Hadamard over s, without normalization.  The output is dense and may not be the input.
struct QaRotation {
    int64_t rows, order, size;  // channels = order * size, size a power of two, order odd
    const float* factor;        // [channels]
    const float* table;         // [order][order], or null where order is 1
};

typedef int (*QaRun)(const QaLayer*, const QaGeometry*, const float* x, void* y, int32_t step,
                     int32_t threads, int32_t flags, const QaRowScales* rows);

// As QaRun, for a layer whose K axis has groups.  Channels of x are contiguous.  With QA_INTEGER, y
// receives the sums of each group, one dense output after the other; chunks of a layer without
// `sum_groups` are those of [panels][count].  A range that is found in what is not finite:
// QA_NOT_FINITE.
typedef int (*QaRunGroups)(const QaLayer*, const QaGroups*, const QaGeometry*, const float* x, void* y,
                           int32_t step, int32_t threads, int32_t flags, const QaRowScales* rows);
}

// Whether little work is shared among threads too.  Only the fuzz driver wants that: its layers are
// small, and threads have to meet in them.
#if defined(QA_SHARE_ALL)
constexpr bool kShareAll = true;
#else
constexpr bool kShareAll = false;
#endif

// Runs fn(arg) on `threads` threads at once and returns when all have finished.
void qa_parallel(int threads, void (*fn)(void*), void* arg);

// A 64-byte aligned block of at least `bytes` bytes, private to the calling thread and valid until
// its next request for the same slot.  Null when memory is exhausted.
enum QaSlot { QA_SLOT_ACTIVATIONS, QA_SLOT_PANEL, QA_SLOT_BLOCK, QA_SLOT_CALL, QA_SLOT_COUNT };
void* qa_scratch(QaSlot slot, size_t bytes);

struct QaAttention;  // attention.h

// Entry points of one instruction-set unit.  `peak` runs the micro-kernel alone on data that stay in
// the first-level cache, for as many products as `repeats` times 6 x 16 outputs and `units` units of K
// have (repeats a multiple of 32).  With no units it runs the products of one unit without memory:
// the instruction alone, on operands in registers.
struct QaUnit {
    QaRun run;
    int (*peak)(int32_t pair, int32_t units, int64_t repeats);
    int (*norm)(const QaNorm*, const float* x, float* y, int32_t threads);
    int (*activation)(const QaRows*, const float* x, const float* gate, float* y, int32_t threads);
    int (*extremes)(const float* x, float* low, float* high, int64_t count, int64_t width,
                    int32_t threads);
    int (*attention)(const QaAttention*, int32_t threads);
    int (*rotate)(const QaRotation*, const float* x, float* y, int32_t threads);
    QaRunGroups run_groups;
};
extern const QaUnit qa_unit_scalar, qa_unit_avx2, qa_unit_avxvnni, qa_unit_avx512vnni;
extern const QaUnit qa_unit_avx512wide, qa_unit_amx, qa_unit_neon;

#endif
