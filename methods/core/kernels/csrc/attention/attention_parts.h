// Pieces of integer attention: codes as 16-bit numbers less their zero points, panels of them, the
// product, and the rows of a softmax.
//
// With zero points taken off before the product, sums are exact without any correction after it:
// 33,000 products of two codes of 8 bits fit 32 bits.
#ifndef QUANTARENA_ATTENTION_PARTS_H
#define QUANTARENA_ATTENTION_PARTS_H

#include <cmath>
#include <limits>

#include "call.h"
#include "lanes.h"

namespace {

typedef uint32_t LaneWords __attribute__((vector_size(32)));  // where wrapping around is meant

QA_INLINE void load_some(Lanes& to, const float* from, int64_t count) {
    if (count >= 8) return load_lanes(to, from);
    to = Lanes{};
    std::memcpy(&to, from, sizeof(float) * count);
}

QA_INLINE void store_some(float* to, const Lanes& from, int64_t count) {
    if (count >= 8) return store_lanes(to, from);
    std::memcpy(to, &from, sizeof(float) * count);
}

// Eight codes less their zero point; NaN gives the lowest.
QA_INLINE void code_lanes(const Lanes& x, const Quantizer& q, float factor, int16_t* to) {
#if defined(__AVX2__) && defined(__FMA__)
    __m256 v = _mm256_mul_ps(x, _mm256_set1_ps(factor));
    v = _mm256_min_ps(_mm256_max_ps(v, _mm256_set1_ps(q.lo)), _mm256_set1_ps(q.hi));
    const __m256i n = _mm256_cvtps_epi32(v);
    const __m128i half = _mm_packs_epi32(_mm256_castsi256_si128(n), _mm256_extracti128_si256(n, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), half);
#else
    for (int i = 0; i < 8; ++i) {
        float v = x[i] * factor;
        v = v > q.lo ? v : q.lo;  // false for NaN
        v = v < q.hi ? v : q.hi;
        to[i] = static_cast<int16_t>(lrintf(v));
    }
#endif
}

// A row of `count` floats as codes, zeros up to `padded`, a multiple of 8.  The next head's row lies
// `ahead` further: too far from this one for the processor to guess.
inline void code_row(const float* from, int64_t count, int64_t padded, const Quantizer& q,
                     int16_t* to, int64_t ahead) {
    Lanes v;
    int64_t i = 0;
    for (; i + 16 <= count; i += 16) {
        __builtin_prefetch(from + ahead + i);
        load_lanes(v, from + i);
        code_lanes(v, q, q.inv, to + i);
        load_lanes(v, from + i + 8);
        code_lanes(v, q, q.inv, to + i + 8);
    }
    for (; i < count; i += 8) {
        load_some(v, from + i, count - i);
        code_lanes(v, q, q.inv, to + i);
    }
    for (; i < padded; ++i) to[i] = 0;
}

// Rows of 32-bit pairs become columns: panel[step][16 rows].
inline void turn_panel(const int16_t* rows, int64_t pitch, int64_t steps, int16_t* panel) {
    int64_t s = 0;
#if defined(__AVX2__)
    for (; s + 8 <= steps; s += 8)
        for (int half = 0; half < 2; ++half) {
            __m256i r[8], t[8];
            for (int i = 0; i < 8; ++i)
                r[i] = _mm256_loadu_si256(
                    reinterpret_cast<const __m256i*>(rows + (8 * half + i) * pitch + 2 * s));
            for (int i = 0; i < 8; i += 2) {
                t[i] = _mm256_unpacklo_epi32(r[i], r[i + 1]);
                t[i + 1] = _mm256_unpackhi_epi32(r[i], r[i + 1]);
            }
            for (int i = 0; i < 8; i += 4)
                for (int k = 0; k < 2; ++k) {
                    r[i + 2 * k] = _mm256_unpacklo_epi64(t[i + k], t[i + k + 2]);
                    r[i + 2 * k + 1] = _mm256_unpackhi_epi64(t[i + k], t[i + k + 2]);
                }
            for (int i = 0; i < 4; ++i) {
                __m256i* to = reinterpret_cast<__m256i*>(panel + (s + i) * 32 + 16 * half);
                _mm256_storeu_si256(to, _mm256_permute2x128_si256(r[i], r[i + 4], 0x20));
                _mm256_storeu_si256(to + 8, _mm256_permute2x128_si256(r[i], r[i + 4], 0x31));
            }
        }
#endif
    for (; s < steps; ++s)
        for (int n = 0; n < 16; ++n) std::memcpy(panel + s * 32 + 2 * n, rows + n * pitch + 2 * s, 4);
}

// Two rows side by side in every panel of 16 columns; panels lie `pitch` apart.
inline void pair_rows(const int16_t* one, const int16_t* other, int64_t columns, int64_t pitch,
                      int16_t* panel) {
    for (int64_t c = 0; c < columns; c += 16, panel += pitch) {
#if defined(__AVX2__)
        const __m256i a = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(one + c));
        const __m256i b = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(other + c));
        const __m256i lo = _mm256_unpacklo_epi16(a, b), hi = _mm256_unpackhi_epi16(a, b);
        __m256i* to = reinterpret_cast<__m256i*>(panel);
        _mm256_storeu_si256(to, _mm256_permute2x128_si256(lo, hi, 0x20));
        _mm256_storeu_si256(to + 1, _mm256_permute2x128_si256(lo, hi, 0x31));
#else
        for (int n = 0; n < 16; ++n) {
            panel[2 * n] = one[c + n];
            panel[2 * n + 1] = other[c + n];
        }
#endif
    }
}

// What becomes of the sums: multiplied in this order, or left as integers.
struct Outlet {
    float factor[3];
    bool integer;
};

// to[r][16 columns] = sum over 2 * `steps` of a[r] times the panel; `steps` is even.
template <int ROWS>
QA_NOINLINE void product_tile(const int16_t* a, int64_t a_pitch, const int16_t* panel, int64_t steps,
                              const Outlet& outlet, float* to, int64_t pitch) {
#if defined(__AVX2__)
    const int16_t* row[ROWS];
#pragma GCC unroll 6
    for (int r = 0; r < ROWS; ++r) row[r] = a + r * a_pitch;
    __m256i acc[ROWS][2];
#pragma GCC unroll 6
    for (int r = 0; r < ROWS; ++r) acc[r][0] = acc[r][1] = _mm256_setzero_si256();
    for (int64_t s = 0; s < steps; s += 2, panel += 64) {
#pragma GCC unroll 2
        for (int u = 0; u < 2; ++u) {
            const __m256i* w = reinterpret_cast<const __m256i*>(panel + 32 * u);
            const __m256i w0 = _mm256_loadu_si256(w), w1 = _mm256_loadu_si256(w + 1);
#pragma GCC unroll 6
            for (int r = 0; r < ROWS; ++r) {
                int32_t pair;
                std::memcpy(&pair, row[r] + 2 * (s + u), 4);
                const __m256i v = _mm256_set1_epi32(pair);
                const __m256i p0 = _mm256_madd_epi16(v, w0), p1 = _mm256_madd_epi16(v, w1);
                QA_ADD32(acc[r][0], p0);
                QA_ADD32(acc[r][1], p1);
            }
        }
    }
    const __m256 f0 = _mm256_set1_ps(outlet.factor[0]), f1 = _mm256_set1_ps(outlet.factor[1]);
    const __m256 f2 = _mm256_set1_ps(outlet.factor[2]);
#pragma GCC unroll 6
    for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 2
        for (int h = 0; h < 2; ++h) {
            float* at = to + r * pitch + 8 * h;
            if (outlet.integer) {
                _mm256_storeu_si256(reinterpret_cast<__m256i*>(at), acc[r][h]);
            } else {
                const __m256 v = _mm256_mul_ps(_mm256_cvtepi32_ps(acc[r][h]), f0);
                _mm256_storeu_ps(at, _mm256_mul_ps(_mm256_mul_ps(v, f1), f2));
            }
        }
#else
    for (int r = 0; r < ROWS; ++r) {
        int32_t sum[16] = {};
        for (int64_t s = 0; s < steps; ++s) {
            const int16_t *v = a + r * a_pitch + 2 * s, *w = panel + 32 * s;
            for (int n = 0; n < 16; ++n) sum[n] += v[0] * w[2 * n] + v[1] * w[2 * n + 1];
        }
        for (int n = 0; n < 16; ++n) {
            float v = static_cast<float>(sum[n]);
            for (const float f : outlet.factor) v *= f;
            if (outlet.integer) std::memcpy(&v, &sum[n], 4);
            to[r * pitch + n] = v;
        }
    }
#endif
}

// All rows against all panels of 16 columns, which lie `panel_pitch` apart.
inline void product(const int16_t* a, int64_t rows, int64_t a_pitch, const int16_t* panels,
                    int64_t count, int64_t panel_pitch, int64_t steps, const Outlet& outlet,
                    float* to, int64_t pitch) {
    for (int64_t p = 0; p < count; ++p, panels += panel_pitch, to += 16) {
        int64_t r = 0;
        for (; r + 6 <= rows; r += 6)
            product_tile<6>(a + r * a_pitch, a_pitch, panels, steps, outlet, to + r * pitch, pitch);
        const int16_t* rest = a + r * a_pitch;
        float* at = to + r * pitch;
        switch (rows - r) {
            case 5: product_tile<5>(rest, a_pitch, panels, steps, outlet, at, pitch); break;
            case 4: product_tile<4>(rest, a_pitch, panels, steps, outlet, at, pitch); break;
            case 3: product_tile<3>(rest, a_pitch, panels, steps, outlet, at, pitch); break;
            case 2: product_tile<2>(rest, a_pitch, panels, steps, outlet, at, pitch); break;
            case 1: product_tile<1>(rest, a_pitch, panels, steps, outlet, at, pitch); break;
            default: break;
        }
    }
}

QA_INLINE float top_lane(const Lanes& v) {
    float top = v[0];
    for (int i = 1; i < 8; ++i) top = larger(top, v[i]);
    return top;
}

// Largest value, -inf of none; `count` is a multiple of 8.
inline float row_top(const float* x, int64_t count) {
    Lanes top = Lanes{} - std::numeric_limits<float>::infinity(), v;
    for (int64_t i = 0; i < count; i += 8) {
        load_lanes(v, x + i);
        top = v > top ? v : top;
    }
    return top_lane(top);
}

// 2^(x log2 e) for x of 0 and below, as far as normal numbers go; NaN stays.  The error is 1e-7 of
// the result times 1 + |x|: small beside 1, the largest, where the result is small.
QA_INLINE void fall_lanes(Lanes& x) {
    constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
    const Lanes rate = Lanes{} + 1.44269504f;
#if defined(__AVX2__) && defined(__FMA__)
    x = _mm256_max_ps(_mm256_set1_ps(-87.0f), x);
#else
    x = x < -87.0f ? Lanes{} - 87.0f : x;
#endif
    Lanes shifted = x, p = Lanes{} + 1.327647129e-3f;
    multiply_add(shifted, rate, kRound);
    multiply_add(x, rate, kRound - shifted);
    multiply_add(p, x, 9.675540961e-3f);
    multiply_add(p, x, 5.550713092e-2f);
    multiply_add(p, x, 2.402212024e-1f);
    multiply_add(p, x, 6.931469440e-1f);
    multiply_add(p, x, 1.0f);
    LaneWords bits, power;
    std::memcpy(&bits, &p, sizeof bits);
    std::memcpy(&power, &shifted, sizeof power);
    bits += power << 23;
    std::memcpy(&x, &bits, sizeof bits);
}

// x = exp(x - top), in place; their sum.  `count` is a multiple of 16.
inline float row_exp(float* x, int64_t count, float top) {
    Lanes sum[2] = {}, v[2];
    for (int64_t i = 0; i < count; i += 16)
#pragma GCC unroll 2
        for (int k = 0; k < 2; ++k) {
            load_lanes(v[k], x + i + 8 * k);
            v[k] = v[k] - top;
            fall_lanes(v[k]);
            store_lanes(x + i + 8 * k, v[k]);
            sum[k] += v[k];
        }
    return add_up(sum[0] + sum[1]);
}

// Logarithmic codes of ratios to the scale: round(-per_octave * log2(ratio)) in [0, top].
//
// A ratio of m * 2^e, m in [sqrt(1/2), sqrt(2)), rounds to -e octaves; half octaves are those of its
// square. Ratios too small for a square or a normal number lie below any code.
QA_INLINE void log_lanes(Lanes ratio, int per_octave, int top, LaneBits& code) {
    if (per_octave == 2) ratio = ratio * ratio;
    LaneWords bits;
    std::memcpy(&bits, &ratio, sizeof bits);
    bits -= 0x3f3504f3;
    std::memcpy(&code, &bits, sizeof code);
    code = -(code >> 23);
    code = code < 0 ? LaneBits{} : code;
    code = code > top ? LaneBits{} + top : code;
}

// Octaves are cut into planes of 16. In a plane a code weighs -2^(15 - octaves within): 16 bits.
// The last plane holds octave 32 alone, at weight -1.
constexpr int kPlanes = 3;
inline int plane_shift(int plane) { return plane == 0 ? 17 : plane == 1 ? 1 : 0; }

// sums -= 2^shift times the int32 that lie in `from`; `count` is a multiple of 4.
inline void subtract_shifted(int64_t* sums, const float* from, int64_t count, int shift) {
    typedef int32_t Four __attribute__((vector_size(16)));
    typedef int64_t Signed __attribute__((vector_size(32)));
    typedef uint64_t Wide __attribute__((vector_size(32)));
    for (int64_t i = 0; i < count; i += 4) {
        Four part;
        Wide sum;
        std::memcpy(&part, from + i, sizeof part);
        std::memcpy(&sum, sums + i, sizeof sum);
        sum -= reinterpret_cast<Wide>(__builtin_convertvector(part, Signed)) << shift;
        std::memcpy(sums + i, &sum, sizeof sum);
    }
}

// Weights of those codes of a row that belong to a plane and, where half octaves count, a parity.
inline void weigh_row(const int32_t* codes, int64_t count, int plane, int parity, int per_octave,
                      int zero, int16_t* to) {
    const int last = plane == 2 ? 32 : 16 * plane + 15;
    for (int64_t i = 0; i < count; i += 8) {
        LaneBits q;
        std::memcpy(&q, codes + i, sizeof q);
        const LaneBits octave = (q + (per_octave - 1)) >> (per_octave - 1);
        LaneBits weight = -((LaneBits{} + 1) << ((last - octave) & 15));
        weight = (octave >> 4) == plane ? weight : LaneBits{};
        if (per_octave == 2) weight = (q & 1) == parity ? weight : LaneBits{};
        weight = q == zero ? LaneBits{} : weight;
#if defined(__AVX2__)
        const __m256i w = reinterpret_cast<__m256i>(weight);
        _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i),
                         _mm_packs_epi32(_mm256_castsi256_si128(w), _mm256_extracti128_si256(w, 1)));
#else
        for (int n = 0; n < 8; ++n) to[i + n] = static_cast<int16_t>(weight[n]);
#endif
    }
}

// What one head of one sample works with.
struct Head {
    int64_t sample, head, item;
    float scale[4];
    Quantizer q[4];
    const float *query, *key, *value;
    float* probs;
    int16_t *keys, *values;   // panels
    int16_t *codes, *weight;  // rows of a tile
    float *scores, *mixed;
    int32_t* logs;
    int64_t* sums;
    float *outside, *norm;  // scores of excluded keys; reciprocal sums
};

}  // namespace

#endif
