// A recorded step: a list of native operations on buffers, run by one loop.
//
// An operand is a slot and an offset in bytes.  The caller gives the address of each slot with the
// call, so one recording serves any arena, any inputs and any outputs.  Slot 0 is address 0: offsets
// into it are the addresses of what does not move, such as weights.
#ifndef QUANTARENA_STEP_H
#define QUANTARENA_STEP_H

#include "quantarena.h"

extern "C" {

struct QaOperand {
    int32_t slot;  // negative: no such operand
    int32_t reserved;
    int64_t offset;
};

enum QaOpKind {
    QA_OP_LAYER,       // QaRun: params QaLayer, more QaGeometry; x, y, scales and zeros of rows
    QA_OP_NORM,        // QaUnit.norm: params QaNorm; x, y
    QA_OP_ACTIVATION,  // QaUnit.activation: params QaRows; x, gate, y
    QA_OP_EXTREMES,    // QaUnit.extremes: params two int64, count and width; x, low, high
    QA_OP_ATTENTION,   // QaUnit.attention: params QaAttention; query, key, value, mask, probs, y
    QA_OP_ROTATION,    // QaUnit.rotate: params QaRotation; x, y
    QA_OP_KERNEL,      // QaStepKernel: params of its own
    QA_OP_GROUPS,      // QaRunGroups: params QaGroupedLayer, more QaGeometry; x, y, scales and zeros of rows
};

// Both structures of a layer whose K axis has groups.
struct QaGroupedLayer {
    const QaLayer* layer;
    const QaGroups* groups;
};

struct QaOp {
    int32_t kind;   // QaOpKind
    int32_t flags;  // QaFlags of a layer
    int32_t table;  // entry of the tables that the operation reads; negative: that of the call
    int32_t reserved;
    void* function;
    const void* params;
    const void* more;
    QaOperand at[8];
};

// Kernels of recorded steps take the addresses of their operands, the result first.
typedef int (*QaStepKernel)(const void* params, char* const* at, int32_t threads);

// Float32 values computed element by element from operands of any strides:  one register for each
// input, then one for each instruction; the last one is the result.
enum QaPointOp {
    QA_POINT_ADD, QA_POINT_SUB, QA_POINT_MUL, QA_POINT_DIV,                  // a, b
    QA_POINT_ADD_NUMBER, QA_POINT_MUL_NUMBER, QA_POINT_DIV_NUMBER,           // a, value
    QA_POINT_NUMBER_SUB, QA_POINT_NUMBER_DIV,                                // value, a
    QA_POINT_NEGATE, QA_POINT_EXP, QA_POINT_SIN, QA_POINT_COS,               // a
    QA_POINT_SILU, QA_POINT_GELU, QA_POINT_GELU_TANH,                        // a
};
struct QaPointCode {
    int32_t op, a, b;
    float value;
};
enum { QA_POINT_DIMS = 6, QA_POINT_INPUTS = 7, QA_POINT_CODES = 16 };
struct QaPointwise {
    int64_t size[QA_POINT_DIMS];                        // the last one is innermost
    int64_t stride[QA_POINT_INPUTS + 1][QA_POINT_DIMS];  // in elements; of the result first
    int32_t integer[QA_POINT_INPUTS + 1];                // input is int64
    int32_t inputs, count;
    QaPointCode code[QA_POINT_CODES];
};

// Layer normalization of rows; y, x, weight, bias.
struct QaLayerNorm {
    int64_t rows, width;
    float eps;
};

// y[i] = table[index[i]], rows of `width` floats; y, table, index (int64).
struct QaGather {
    int64_t rows, width, table;  // rows of the table: an index beyond them is an error
};

// softmax(Q K^T * factor + mask) V in float32; y, query, key, value, mask.  Strides in elements; a
// row's channels lie side by side.
struct QaProducts {
    int64_t samples, heads, queries, keys, width, value_width;
    int64_t y_sample, y_head, y_row, q_sample, q_head, q_row, k_sample, k_head, k_row;
    int64_t v_sample, v_head, v_row, mask_sample, mask_head, mask_row, mask_key;
    float factor;
};
}

struct QaStepKernels {
    QaStepKernel pointwise, layer_norm, gather, products;
};
extern const QaStepKernels qa_step_scalar, qa_step_avx2;

#endif
