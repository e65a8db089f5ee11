// One call of integer attention, as its caller describes it; see attention.h.
#ifndef QUANTARENA_ATTENTION_CALL_H
#define QUANTARENA_ATTENTION_CALL_H

#include "quantarena.h"

// Static quantizers of one operand, one for each table entry and group of heads.
struct QaGrid {
    const float* scale;    // [entries][groups]
    const float* zero;     // the same, whole numbers
    const int64_t* group;  // [heads], or null: all of group 0
    const int64_t* entry;  // [samples], or null: `first` for all
    int64_t first, groups;
    int64_t most;  // 2^bits - 1
};

struct QaAttention {
    int64_t samples, heads, queries, keys, width, value_width;
    int64_t excluded;  // leading keys that stay in floating point
    // strides in elements; a row's channels lie side by side
    int64_t q_sample, q_head, q_row, k_sample, k_head, k_row, v_sample, v_head, v_row;
    int64_t y_sample, y_head, y_row;
    int64_t mask_sample, mask_head, mask_row, mask_key;
    int64_t stage;    // QaStage
    int64_t integer;  // scores: y is int32 [..][queries][keys - excluded]; mix: see below
    // logarithmic codes: codes an octave (0: uniform codes), leading axes with a scale of their own,
    // the last code, and whether it stands for 0
    int64_t per_octave, kept, top, zero_code;
    const float *query, *key, *value;
    const float* mask;       // added to the scores, or null
    float* probs;            // dense [samples][heads][queries][keys]: read to mix, else room for
                             // logarithmic codes with a scale of the run time
    const float* log_scale;  // one static scale, or null
    void* y;
    QaGrid grid[4];  // query, key, value, softmax (its zero point may be any)
    float factor;    // of the scores before the softmax
};

// The first product alone, the second alone, or all.  The second's integers are dense
// [samples][heads][queries][value_width]: int32 of uniform codes; of logarithmic ones int64 in units
// of 2^-32 of the scale, codes of even numbers before all of odd ones where both exist.
enum QaStage { QA_SCORES = 0, QA_MIX = 1, QA_ATTEND = 2 };

#endif
