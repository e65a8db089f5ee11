// Operations on rows of floats: layer normalization, and rows looked up in a table.
#ifndef QUANTARENA_STEP_ROWS_H
#define QUANTARENA_STEP_ROWS_H

#include "float_ops.h"
#include "step/step.h"

namespace {

constexpr int64_t kRows = 16;  // of a task

int run_layer_norm(const void* params, char* const* at, int32_t threads) {
    const QaLayerNorm& n = *static_cast<const QaLayerNorm*>(params);
    float* y = reinterpret_cast<float*>(at[0]);
    const float *x = reinterpret_cast<const float*>(at[1]), *weight = reinterpret_cast<const float*>(at[2]);
    const float* bias = reinterpret_cast<const float*>(at[3]);
    for_all(ceil_div(n.rows, kRows), n.rows * n.width, threads, [&](int64_t task) {
        const int64_t end = smaller(n.rows, (task + 1) * kRows);
        for (int64_t r = task * kRows; r < end; ++r) {
            const Moments m = moments(x + r * n.width, n.width, n.eps);
            map_lanes(x + r * n.width, y + r * n.width, n.width, [&](Lanes& v, int64_t i, int real) QA_ALWAYS {
                v = (v - m.mean) * m.inverse;
                Lanes part = {};
                if (weight != nullptr) {
                    std::memcpy(&part, weight + i, sizeof(float) * real);
                    v = v * part;
                }
                if (bias != nullptr) {
                    std::memcpy(&part, bias + i, sizeof(float) * real);
                    v = v + part;
                }
            });
        }
    });
    return QA_OK;
}

int run_gather(const void* params, char* const* at, int32_t) {
    const QaGather& g = *static_cast<const QaGather*>(params);
    float* y = reinterpret_cast<float*>(at[0]);
    const float* table = reinterpret_cast<const float*>(at[1]);
    const int64_t* index = reinterpret_cast<const int64_t*>(at[2]);
    for (int64_t r = 0; r < g.rows; ++r) {
        if (index[r] < 0 || index[r] >= g.table) return QA_BAD_ARGUMENT;
        std::memcpy(y + r * g.width, table + index[r] * g.width, sizeof(float) * g.width);
    }
    return QA_OK;
}

}  // namespace

#endif
