// Programs of element by element operations, a few hundred elements at a time: intermediate values
// stay in the first-level cache.  Each instruction rounds, as separate passes would.
#ifndef QUANTARENA_POINTWISE_H
#define QUANTARENA_POINTWISE_H

#include "float_ops.h"
#include "step/step.h"

namespace {

constexpr int64_t kChunk = 256;

// One instruction over a chunk; `to` may be an operand.
template <class Function>
QA_INLINE void each(const float* a, float* to, int64_t n, Function f) {
    map_lanes(a, to, n, [&](Lanes& v, int64_t, int) QA_ALWAYS { f(v); });
}
template <class Function>
QA_INLINE void each(const float* a, const float* b, float* to, int64_t n, Function f) {
    map_lanes(a, to, n, [&](Lanes& v, int64_t at, int real) QA_ALWAYS {
        Lanes w = {};
        std::memcpy(&w, b + at, sizeof(float) * real);
        f(v, w);
    });
}

inline void point_step(const QaPointCode& c, const float* a, const float* b, float* to, int64_t n) {
    const float k = c.value;
    switch (c.op) {
        case QA_POINT_ADD: return each(a, b, to, n, [](Lanes& v, const Lanes& w) QA_ALWAYS { v = v + w; });
        case QA_POINT_SUB: return each(a, b, to, n, [](Lanes& v, const Lanes& w) QA_ALWAYS { v = v - w; });
        case QA_POINT_MUL: return each(a, b, to, n, [](Lanes& v, const Lanes& w) QA_ALWAYS { v = v * w; });
        case QA_POINT_DIV: return each(a, b, to, n, [](Lanes& v, const Lanes& w) QA_ALWAYS { v = v / w; });
        case QA_POINT_ADD_NUMBER: return each(a, to, n, [k](Lanes& v) QA_ALWAYS { v = v + k; });
        case QA_POINT_MUL_NUMBER: return each(a, to, n, [k](Lanes& v) QA_ALWAYS { v = v * k; });
        case QA_POINT_DIV_NUMBER: return each(a, to, n, [k](Lanes& v) QA_ALWAYS { v = v / k; });
        case QA_POINT_NUMBER_SUB: return each(a, to, n, [k](Lanes& v) QA_ALWAYS { v = k - v; });
        case QA_POINT_NUMBER_DIV: return each(a, to, n, [k](Lanes& v) QA_ALWAYS { v = k / v; });
        case QA_POINT_NEGATE: return each(a, to, n, [](Lanes& v) QA_ALWAYS { v = -v; });
        case QA_POINT_EXP:
            for (int64_t i = 0; i < n; ++i) to[i] = std::exp(a[i]);
            return;
        case QA_POINT_SIN:
            for (int64_t i = 0; i < n; ++i) to[i] = std::sin(a[i]);
            return;
        case QA_POINT_COS:
            for (int64_t i = 0; i < n; ++i) to[i] = std::cos(a[i]);
            return;
        case QA_POINT_SILU:
            return each(a, to, n, [](Lanes& v) QA_ALWAYS { activate_lanes<QA_SILU>(v); });
        case QA_POINT_GELU:
            return each(a, to, n, [](Lanes& v) QA_ALWAYS { activate_lanes<QA_GELU>(v); });
        case QA_POINT_GELU_TANH:
            return each(a, to, n, [](Lanes& v) QA_ALWAYS { activate_lanes<QA_GELU_TANH>(v); });
    }
}

// `n` elements of an input as floats side by side: in place where they are, else in `room`.
inline const float* point_load(const QaPointwise& p, int input, const char* base, int64_t at,
                               int64_t n, float* room) {
    const int64_t stride = p.stride[input][QA_POINT_DIMS - 1];
    if (p.integer[input]) {
        const int64_t* from = reinterpret_cast<const int64_t*>(base) + at;
        for (int64_t i = 0; i < n; ++i) room[i] = static_cast<float>(from[i * stride]);
        return room;
    }
    const float* from = reinterpret_cast<const float*>(base) + at;
    if (stride == 1) return from;
    if (stride == 0) {
        for (int64_t i = 0; i < n; ++i) room[i] = from[0];
    } else {
        for (int64_t i = 0; i < n; ++i) room[i] = from[i * stride];
    }
    return room;
}

inline void point_row(const QaPointwise& p, char* const* base, const int64_t* at, int64_t n) {
    alignas(64) float room[QA_POINT_INPUTS + QA_POINT_CODES][kChunk];
    const float* value[QA_POINT_INPUTS + QA_POINT_CODES];
    const int64_t stride = p.stride[0][QA_POINT_DIMS - 1];
    float* y = reinterpret_cast<float*>(base[0]) + at[0];
    for (int i = 0; i < p.inputs; ++i)
        value[i] = point_load(p, i + 1, base[i + 1], at[i + 1], n, room[i]);
    int last = p.inputs - 1;
    for (int k = 0; k < p.count; ++k) {
        const QaPointCode& c = p.code[k];
        last = p.inputs + k;
        float* to = k == p.count - 1 && stride == 1 ? y : room[last];
        point_step(c, value[c.a], value[c.b], to, n);
        value[last] = to;
    }
    if (value[last] == y) return;
    if (stride == 1) {
        std::memcpy(y, value[last], sizeof(float) * n);
    } else {
        for (int64_t i = 0; i < n; ++i) y[i * stride] = value[last][i];
    }
}

int run_pointwise(const void* params, char* const* base, int32_t threads) {
    const QaPointwise& p = *static_cast<const QaPointwise*>(params);
    const int64_t width = p.size[QA_POINT_DIMS - 1];
    const int64_t chunks = ceil_div(width, kChunk);
    int64_t rows = 1;
    for (int d = 0; d + 1 < QA_POINT_DIMS; ++d) rows *= p.size[d];
    // a task is worth taking: some 4096 elements
    const int64_t grain = larger<int64_t>(1, 4096 / smaller(width, kChunk));
    const int64_t items = rows * chunks;
    for_all(ceil_div(items, grain), rows * width, threads, [&](int64_t task) {
        const int64_t end = smaller(items, (task + 1) * grain);
        for (int64_t item = task * grain; item < end; ++item) {
            const int64_t first = item % chunks * kChunk;
            int64_t rest = item / chunks, at[QA_POINT_INPUTS + 1];
            for (int k = 0; k <= p.inputs; ++k) at[k] = first * p.stride[k][QA_POINT_DIMS - 1];
            for (int d = QA_POINT_DIMS - 2; d >= 0 && rest > 0; --d) {
                const int64_t index = rest % p.size[d];
                rest /= p.size[d];
                for (int k = 0; k <= p.inputs; ++k) at[k] += index * p.stride[k][d];
            }
            point_row(p, base, at, smaller(kChunk, width - first));
        }
    });
    return QA_OK;
}

}  // namespace

#endif
