// Attention in float32: softmax(Q K^T * factor + mask) V for every sample and head.
//
// The keys of a head are turned once, so that scores of eight keys are a vector; then four queries at
// a time go through both products, with their scores in the first-level cache.
#ifndef QUANTARENA_STEP_PRODUCTS_H
#define QUANTARENA_STEP_PRODUCTS_H

#include "float_ops.h"
#include "step/step.h"

namespace {

constexpr int kQueries = 4;

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

// `columns` is a multiple of eight.
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
    for (int64_t k = 0; k < padded; k += 8) {
        Lanes v;
        load_lanes(v, row + k);
        store_lanes(row + k, v * factor);
    }
    if (mask != nullptr)
        for (int64_t k = 0; k < keys; ++k) row[k] += mask[k * mask_key];
    for (int64_t k = keys; k < padded; ++k) row[k] = low;
    Lanes most = Lanes{} + low, v;
    for (int64_t k = 0; k < padded; k += 8) {
        load_lanes(v, row + k);
        most = v > most ? v : most;
    }
    float top = most[0];
    for (int i = 1; i < 8; ++i) top = larger(top, most[i]);
    const bool blind = top == low;
    Lanes sum = {};
    for (int64_t k = 0; k < padded; k += 8) {
        load_lanes(v, row + k);
        const LaneBits none = v == low;
        v = v - (blind ? 0.0f : top);
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

    void run(float* room) const {
        const int64_t keys = ceil_div(p.keys, 8) * 8, width = ceil_div(p.value_width, 8) * 8;
        float* turned = room;                         // [width][keys]
        float* values = turned + keys * p.width;      // [keys][value width]
        float* scores = values + keys * width;        // [kQueries][keys]
        float* outputs = scores + kQueries * keys;    // [kQueries][value width]
        for (int64_t k = 0; k < keys; ++k) {
            for (int64_t c = 0; c < p.width; ++c)
                turned[c * keys + k] = k < p.keys ? key[k * p.k_row + c] : 0.0f;
            for (int64_t c = 0; c < width; ++c)
                values[k * width + c] = k < p.keys && c < p.value_width ? value[k * p.v_row + c] : 0.0f;
        }
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
            product(weights, values, width, p.keys, outputs, width);
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
