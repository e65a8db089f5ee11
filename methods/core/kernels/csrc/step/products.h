// Attention in float32: softmax(Q K^T * factor + mask) V for every sample and head.
//
// The keys of a head are turned once, so that scores of eight keys are a vector; then four queries at
// a time go through both products, with their scores in the first-level cache.
#ifndef QUANTARENA_STEP_PRODUCTS_H
#define QUANTARENA_STEP_PRODUCTS_H

#include "float_ops.h"
#include "step/step.h"

// Lanes of two vectors in another order: 0 to 7 are those of the first one.
#if defined(__clang__) || __GNUC__ >= 12
#define QA_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define QA_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, LaneBits{__VA_ARGS__})
#endif

namespace {

constexpr int kQueries = 4;

// The largest lane, as a tree; not for NaN.
QA_INLINE float most_lane(const Lanes& of) {
    Lanes other = QA_SHUFFLE(of, of, 4, 5, 6, 7, 0, 1, 2, 3), v = of > other ? of : other;
    other = QA_SHUFFLE(v, v, 2, 3, 0, 1, 6, 7, 4, 5);
    v = v > other ? v : other;
    other = QA_SHUFFLE(v, v, 1, 0, 3, 2, 5, 4, 7, 6);
    v = v > other ? v : other;
    return v[0];
}

// Eight rows of eight floats become columns.
QA_INLINE void turn_lanes(Lanes (&v)[8]) {
    Lanes pair[8], four[8];
#pragma GCC unroll 4
    for (int i = 0; i < 8; i += 2) {
        pair[i] = QA_SHUFFLE(v[i], v[i + 1], 0, 8, 1, 9, 4, 12, 5, 13);
        pair[i + 1] = QA_SHUFFLE(v[i], v[i + 1], 2, 10, 3, 11, 6, 14, 7, 15);
    }
#pragma GCC unroll 2
    for (int i = 0; i < 8; i += 4)
#pragma GCC unroll 2
        for (int k = 0; k < 2; ++k) {
            four[i + 2 * k] = QA_SHUFFLE(pair[i + k], pair[i + k + 2], 0, 1, 8, 9, 4, 5, 12, 13);
            four[i + 2 * k + 1] = QA_SHUFFLE(pair[i + k], pair[i + k + 2], 2, 3, 10, 11, 6, 7, 14, 15);
        }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
        v[i] = QA_SHUFFLE(four[i], four[i + 4], 0, 1, 2, 3, 8, 9, 10, 11);
        v[i + 4] = QA_SHUFFLE(four[i], four[i + 4], 4, 5, 6, 7, 12, 13, 14, 15);
    }
}

// total[i][k] = sum over c of a[i][c] * b[c * pitch + 8 k], for kQueries rows and VECTORS vectors.
template <int VECTORS>
QA_INLINE void small_product(const float* const* a, const float* b, int64_t pitch, int64_t depth,
                             Lanes (&total)[kQueries][VECTORS]) {
    for (int i = 0; i < kQueries; ++i)
        for (int k = 0; k < VECTORS; ++k) total[i][k] = Lanes{};
    for (int64_t c = 0; c < depth; ++c) {
        Lanes right[VECTORS];
#pragma GCC unroll 4
        for (int k = 0; k < VECTORS; ++k) load_lanes(right[k], b + c * pitch + 8 * k);
#pragma GCC unroll 4
        for (int i = 0; i < kQueries; ++i) {
            const Lanes left = Lanes{} + a[i][c];
#pragma GCC unroll 4
            for (int k = 0; k < VECTORS; ++k) {
                Lanes sum = left;
                multiply_add(sum, right[k], total[i][k]);
                total[i][k] = sum;
            }
        }
    }
}

template <int VECTORS>
QA_NOINLINE void product_block(const float* const* a, const float* b, int64_t pitch, int64_t depth,
                               float* to, int64_t to_pitch) {
    Lanes total[kQueries][VECTORS];
    small_product<VECTORS>(a, b, pitch, depth, total);
    for (int i = 0; i < kQueries; ++i)
        for (int k = 0; k < VECTORS; ++k) store_lanes(to + i * to_pitch + 8 * k, total[i][k]);
}

// `columns` is a multiple of eight; rows of `to` lie side by side.
inline void product(const float* const* a, const float* b, int64_t pitch, int64_t depth, float* to,
                    int64_t columns) {
    int64_t n = 0;
    for (; n + 16 <= columns; n += 16) product_block<2>(a, b + n, pitch, depth, to + n, columns);
    for (; n < columns; n += 8) product_block<1>(a, b + n, pitch, depth, to + n, columns);
}

// Scores become weights that add up to `1 / *inverse`; a row that sees no key gives 0.
inline void weigh(float* row, int64_t keys, int64_t padded, float factor, const float* mask,
                  int64_t mask_key, float* inverse) {
    const float low = -__builtin_inff();
    if (mask != nullptr) {
        for (int64_t k = 0; k < keys; ++k) row[k] = row[k] * factor + mask[k * mask_key];
        factor = 1.0f;
    }
    Lanes most = Lanes{} + low, v, sum = {};
    for (int64_t k = 0; k < padded; k += 8) {
        load_lanes(v, row + k);
        v = v * factor;
        if (k + 8 > keys)
            for (int64_t i = keys - k; i < 8; ++i) v[i] = low;
        store_lanes(row + k, v);
        most = v > most ? v : most;
    }
    const float top = most_lane(most);
    const bool blind = top == low;
    const float shift = blind ? 0.0f : top;
    for (int64_t k = 0; k < padded; k += 8) {
        load_lanes(v, row + k);
        const LaneBits none = v == low;
        v = v - shift;
        exp_lanes(v);
        v = none ? Lanes{} : v;
        store_lanes(row + k, v);
        sum += v;
    }
    *inverse = blind ? 0.0f : 1.0f / add_up(sum);
}

struct Head {
    const QaProducts& p;
    const float *query, *key, *value, *mask;
    float* y;

    static int64_t scratch(const QaProducts& p) {
        const int64_t keys = ceil_div(p.keys, 8) * 8, width = ceil_div(p.value_width, 8) * 8;
        return keys * (p.width + width + kQueries) + kQueries * width;
    }

    // Channels by keys: turned[c][k] = key[k][c], zeros past the last key.
    void turn(float* turned, int64_t keys) const {
        if (p.width % 8 != 0) {
            for (int64_t k = 0; k < keys; ++k)
                for (int64_t c = 0; c < p.width; ++c)
                    turned[c * keys + k] = k < p.keys ? key[k * p.k_row + c] : 0.0f;
            return;
        }
        for (int64_t k = 0; k < keys; k += 8)
            for (int64_t c = 0; c < p.width; c += 8) {
                Lanes square[8];
#pragma GCC unroll 8
                for (int i = 0; i < 8; ++i) {
                    square[i] = Lanes{};
                    if (k + i < p.keys) load_lanes(square[i], key + (k + i) * p.k_row + c);
                }
                turn_lanes(square);
#pragma GCC unroll 8
                for (int i = 0; i < 8; ++i) store_lanes(turned + (c + i) * keys + k, square[i]);
            }
    }

    void run(float* room) const {
        const int64_t keys = ceil_div(p.keys, 8) * 8, width = ceil_div(p.value_width, 8) * 8;
        float* turned = room;                         // [width][keys]
        float* copied = turned + keys * p.width;      // [keys][value width], where rows end within a vector
        float* scores = copied + keys * width;        // [kQueries][keys]
        float* outputs = scores + kQueries * keys;    // [kQueries][value width]
        turn(turned, keys);
        const bool whole = width == p.value_width;
        for (int64_t k = 0; k < p.keys && !whole; ++k)
            for (int64_t c = 0; c < width; ++c)
                copied[k * width + c] = c < p.value_width ? value[k * p.v_row + c] : 0.0f;
        const float* values = whole ? value : copied;
        const int64_t values_pitch = whole ? p.v_row : width;
        for (int64_t first = 0; first < p.queries; first += kQueries) {
            const int count = static_cast<int>(smaller<int64_t>(kQueries, p.queries - first));
            const float *rows[kQueries], *weights[kQueries];
            float inverse[kQueries];
            for (int i = 0; i < kQueries; ++i) {
                rows[i] = query + (first + smaller(i, count - 1)) * p.q_row;
                weights[i] = scores + i * keys;
            }
            product(rows, turned, keys, p.width, scores, keys);
            for (int i = 0; i < count; ++i)
                weigh(scores + i * keys, p.keys, keys, p.factor,
                      mask ? mask + (first + i) * p.mask_row : nullptr, p.mask_key, inverse + i);
            product(weights, values, values_pitch, p.keys, outputs, width);
            for (int i = 0; i < count; ++i) {
                float* to = y + (first + i) * p.y_row;
                const float factor = inverse[i];
                map_lanes(outputs + i * width, to, p.value_width,
                          [factor](Lanes& v, int64_t, int) QA_ALWAYS { v = v * factor; });
            }
        }
    }
};

int run_products(const void* params, char* const* at, int32_t threads) {
    const QaProducts& p = *static_cast<const QaProducts*>(params);
    const auto floats = [&](int k) { return reinterpret_cast<const float*>(at[k]); };
    int failed = 0;
    const int64_t work = p.samples * p.heads * p.queries * p.keys * 4;
    for_all(p.samples * p.heads, work, threads, [&](int64_t pair) {
        void* room = qa_scratch(QA_SLOT_BLOCK, sizeof(float) * Head::scratch(p));
        if (room == nullptr) return __atomic_store_n(&failed, 1, __ATOMIC_RELAXED);
        const int64_t s = pair / p.heads, h = pair % p.heads;
        const float* mask = floats(4);
        Head{p,
             floats(1) + s * p.q_sample + h * p.q_head,
             floats(2) + s * p.k_sample + h * p.k_head,
             floats(3) + s * p.v_sample + h * p.v_head,
             mask ? mask + s * p.mask_sample + h * p.mask_head : nullptr,
             reinterpret_cast<float*>(at[0]) + s * p.y_sample + h * p.y_head}
            .run(static_cast<float*>(room));
    });
    return failed ? QA_NO_MEMORY : QA_OK;
}

}  // namespace

#endif
