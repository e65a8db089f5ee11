// Programs of element by element operations, some thousand elements at a time: intermediate values
// stay in the first-level cache.  Each instruction rounds, as separate passes would.
#ifndef QUANTARENA_POINTWISE_H
#define QUANTARENA_POINTWISE_H

#include "float_ops.h"
#include "step/step.h"

namespace {

constexpr int64_t kChunk = 1024;

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

// The tiles that a program runs on: up to `rows` of the last axis but one, up to `columns` of the last.
// Narrow rows share a tile, which would otherwise cost more than its elements.
struct PointTiles {
    int64_t rows, columns, across, down, outer;  // tiles along both axes, and in how many places

    explicit PointTiles(const QaPointwise& p) {
        const int64_t width = p.size[QA_POINT_DIMS - 1], height = p.size[QA_POINT_DIMS - 2];
        columns = smaller(width, kChunk);
        rows = width <= kChunk ? larger<int64_t>(1, smaller(height, kChunk / larger<int64_t>(width, 1))) : 1;
        across = ceil_div(width, kChunk);
        down = ceil_div(height, rows);
        outer = 1;
        for (int d = 0; d + 2 < QA_POINT_DIMS; ++d) outer *= p.size[d];
    }
    int64_t each() const { return across * down; }
};

// A tile of an operand: `rows` times `columns` elements from `at` on.
struct PointPlace {
    const QaPointwise& p;
    int64_t rows, columns;

    int64_t pitch(int operand) const { return p.stride[operand][QA_POINT_DIMS - 2]; }
    int64_t stride(int operand) const { return p.stride[operand][QA_POINT_DIMS - 1]; }
    // Whether its elements lie side by side.
    bool dense(int operand) const {
        return stride(operand) == 1 && (rows == 1 || pitch(operand) == columns);
    }
    bool copies() const { return p.count == 0 && p.inputs == 1; }
};

inline void point_gather(const float* from, int64_t stride, int64_t n, float* to) {
    if (stride == 1) {
        std::memcpy(to, from, sizeof(float) * n);
    } else if (stride == 0) {
        for (int64_t i = 0; i < n; ++i) to[i] = from[0];
    } else {
        for (int64_t i = 0; i < n; ++i) to[i] = from[i * stride];
    }
}

// A tile of an input as floats side by side in `to`.
inline void point_load(const PointPlace& t, int input, const char* base, int64_t at, float* to) {
    const int64_t stride = t.stride(input), pitch = t.pitch(input);
    for (int64_t r = 0; r < t.rows; ++r, at += pitch, to += t.columns) {
        if (t.p.integer[input]) {
            const int64_t* from = reinterpret_cast<const int64_t*>(base) + at;
            for (int64_t i = 0; i < t.columns; ++i) to[i] = static_cast<float>(from[i * stride]);
        } else {
            point_gather(reinterpret_cast<const float*>(base) + at, stride, t.columns, to);
        }
    }
}

inline void point_scatter(const PointPlace& t, const float* from, float* y) {
    const int64_t stride = t.stride(0), pitch = t.pitch(0);
    for (int64_t r = 0; r < t.rows; ++r, y += pitch, from += t.columns) {
        if (stride == 1) {
            std::memcpy(y, from, sizeof(float) * t.columns);
        } else {
            for (int64_t i = 0; i < t.columns; ++i) y[i * stride] = from[i];
        }
    }
}

// Registers of the tiles of one task.  What was gathered for a tile stays for the next one where that
// reads the same elements, as bias and scale of all pixels are.
struct PointRegisters {
    alignas(64) float room[QA_POINT_INPUTS + QA_POINT_CODES][kChunk];
    struct {
        const char* base;
        int64_t at, rows, columns;
    } held[QA_POINT_INPUTS] = {};

    const float* load(const PointPlace& t, int input, const char* base, int64_t at) {
        if (!t.p.integer[input] && t.dense(input)) return reinterpret_cast<const float*>(base) + at;
        auto& now = held[input - 1];
        if (now.base != base || now.at != at || now.rows != t.rows || now.columns != t.columns)
            point_load(t, input, base, at, room[input - 1]);
        now = {base, at, t.rows, t.columns};
        return room[input - 1];
    }

    void run(const PointPlace& t, char* const* base, const int64_t* at) {
        const QaPointwise& p = t.p;
        float* y = reinterpret_cast<float*>(base[0]) + at[0];
        if (t.copies() && !p.integer[1] && t.stride(0) == 1) {  // nothing goes through a register
            const float* from = reinterpret_cast<const float*>(base[1]) + at[1];
            for (int64_t r = 0; r < t.rows; ++r, y += t.pitch(0), from += t.pitch(1))
                point_gather(from, t.stride(1), t.columns, y);
            return;
        }
        const float* value[QA_POINT_INPUTS + QA_POINT_CODES];
        for (int i = 0; i < p.inputs; ++i) value[i] = load(t, i + 1, base[i + 1], at[i + 1]);
        const bool direct = t.dense(0);
        int last = p.inputs - 1;
        for (int k = 0; k < p.count; ++k) {
            const QaPointCode& c = p.code[k];
            last = p.inputs + k;
            float* to = k == p.count - 1 && direct ? y : room[last];
            point_step(c, value[c.a], value[c.b], to, t.rows * t.columns);
            value[last] = to;
        }
        if (value[last] != y) point_scatter(t, value[last], y);
    }
};

int run_pointwise(const void* params, char* const* base, int32_t threads) {
    const QaPointwise& p = *static_cast<const QaPointwise*>(params);
    const int64_t width = p.size[QA_POINT_DIMS - 1], height = p.size[QA_POINT_DIMS - 2];
    const PointTiles tiles(p);
    const int64_t each = tiles.each(), items = tiles.outer * each;
    if (items == 0) return QA_OK;
    // a task is worth taking: some 4096 elements
    const int64_t grain = larger<int64_t>(1, 4096 / (tiles.rows * tiles.columns));
    for_all(ceil_div(items, grain), items * tiles.rows * tiles.columns, threads, [&](int64_t task) {
        const int64_t end = smaller(items, (task + 1) * grain);
        PointRegisters registers;
        int64_t at[QA_POINT_INPUTS + 1], origin[QA_POINT_INPUTS + 1];
        for (int64_t item = task * grain; item < end;) {
            int64_t within = item % each;
            for (int k = 0; k <= p.inputs; ++k) origin[k] = 0;
            int64_t rest = item / each;
            for (int d = QA_POINT_DIMS - 3; d >= 0 && rest > 0; --d) {
                const int64_t index = rest % p.size[d];
                rest /= p.size[d];
                for (int k = 0; k <= p.inputs; ++k) origin[k] += index * p.stride[k][d];
            }
            for (; within < each && item < end; ++within, ++item) {
                const int64_t row = (tiles.across == 1 ? within : within / tiles.across) * tiles.rows;
                const int64_t column = tiles.across == 1 ? 0 : within % tiles.across * kChunk;
                const PointPlace tile = {p, smaller(tiles.rows, height - row),
                                         smaller(tiles.columns, width - column)};
                for (int k = 0; k <= p.inputs; ++k)
                    at[k] = origin[k] + row * tile.pitch(k) + column * tile.stride(k);
                registers.run(tile, base, at);
            }
        }
    });
    return QA_OK;
}

}  // namespace

#endif
