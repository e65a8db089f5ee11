// 512-bit x86: int32 tiles to outputs.
#ifndef QUANTARENA_VEC512_STORE_H
#define QUANTARENA_VEC512_STORE_H

#include "units/vec256_store.h"

namespace {

struct Store512 : Store256 {
    // Rows and columns of 16 x 16 numbers of 32 bits change places.
    static QA_INLINE void transpose(__m512i (&r)[16]) {
        __m512i t[16], u[16];
#pragma GCC unroll 8
        for (int i = 0; i < 16; i += 2) {
            t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
            t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
        }
#pragma GCC unroll 4
        for (int i = 0; i < 16; i += 4)
#pragma GCC unroll 2
            for (int h = 0; h < 2; ++h) {
                u[i + 2 * h] = _mm512_unpacklo_epi64(t[i + h], t[i + 2 + h]);
                u[i + 2 * h + 1] = _mm512_unpackhi_epi64(t[i + h], t[i + 2 + h]);
            }
#pragma GCC unroll 4
        for (int c = 0; c < 4; ++c) {  // 128-bit lane l of u[4 i + c] is column 4 l + c of rows 4 i on
            const __m512i even = _mm512_shuffle_i32x4(u[c], u[4 + c], 0x88);
            const __m512i odd = _mm512_shuffle_i32x4(u[c], u[4 + c], 0xdd);
            const __m512i even2 = _mm512_shuffle_i32x4(u[8 + c], u[12 + c], 0x88);
            const __m512i odd2 = _mm512_shuffle_i32x4(u[8 + c], u[12 + c], 0xdd);
            r[c] = _mm512_shuffle_i32x4(even, even2, 0x88);
            r[4 + c] = _mm512_shuffle_i32x4(odd, odd2, 0x88);
            r[8 + c] = _mm512_shuffle_i32x4(even, even2, 0xdd);
            r[12 + c] = _mm512_shuffle_i32x4(odd, odd2, 0xdd);
        }
    }

    // What 16 channels need.
    struct Channels {
        __m512i correction, zero;
        __m512 scale, bias;
        Channels(const Epilogue& e, int n0, const int32_t* sums)
            : correction(_mm512_loadu_si512(e.correction + n0)),
              zero(sums ? _mm512_loadu_si512(e.weight_zero + n0) : _mm512_setzero_si512()),
              scale(_mm512_loadu_ps(e.scale + n0)),
              bias(_mm512_loadu_ps(e.bias + n0)) {}
    };

    // The integers of a row less their corrections.  OWN: the row has its own zero point.
    template <bool OWN>
    static QA_INLINE __m512i total(const int32_t* tile, int r, const RowScales* own, const Channels& c,
                                   const int32_t* sums) {
        __m512i off = c.correction;
        if (OWN) off = _mm512_mullo_epi32(_mm512_set1_epi32(own->zero[r * own->pitch]), off);
        __m512i t = _mm512_sub_epi32(_mm512_load_si512(tile + 16 * r), off);
        if (sums) t = _mm512_sub_epi32(t, _mm512_mullo_epi32(c.zero, _mm512_set1_epi32(sums[r])));
        return t;
    }
    template <bool OWN>
    static QA_INLINE __m512 value(__m512i t, int r, const RowScales* own, const Channels& c) {
        __m512 scale = c.scale;
        if (OWN) scale = _mm512_mul_ps(_mm512_set1_ps(own->scale[r * own->pitch]), scale);
        return _mm512_fmadd_ps(_mm512_cvtepi32_ps(t), scale, c.bias);
    }

    template <bool OWN>
    static void store_any(const int32_t* tile, int rows, const RowScales* own, const Epilogue& e, int n0,
                          int width, const int32_t* sums, void* y, const int64_t* to, int64_t shift,
                          int64_t pitch) {
        const Channels c(e, n0, sums);
        const __mmask16 keep = static_cast<__mmask16>((1u << width) - 1);
        float* base = static_cast<float*>(y) + shift;
        if (pitch == 1 && width == 16 && !(e.flags & (QA_INTEGER | QA_ACCUMULATE))) {
            for (int r = 0; r < rows; ++r)
                _mm512_storeu_ps(base + to[r], value<OWN>(total<OWN>(tile, r, own, c, sums), r, own, c));
            return;
        }
        if (pitch == 1) {
            for (int r = 0; r < rows; ++r) {
                const __m512i t = total<OWN>(tile, r, own, c, sums);
                if (e.flags & QA_INTEGER) {
                    _mm512_mask_storeu_epi32(base + to[r], keep, t);
                    continue;
                }
                __m512 v = value<OWN>(t, r, own, c);
                if (e.flags & QA_ACCUMULATE) v = _mm512_add_ps(v, _mm512_maskz_loadu_ps(keep, base + to[r]));
                _mm512_mask_storeu_ps(base + to[r], keep, v);
            }
            return;
        }
        for (int r = 0; r < rows; r += 16)
            store_planes<OWN>(tile, r, smaller(16, rows - r), own, e, c, width, sums, base, to, pitch);
    }

    // Up to 16 pixels from `first` on whose channels lie `pitch` apart.
    template <bool OWN>
    static QA_NOINLINE void store_planes(const int32_t* tile, int first, int rows, const RowScales* own,
                                         const Epilogue& e, const Channels& c, int width,
                                         const int32_t* sums, float* base, const int64_t* to, int64_t pitch) {
        __m512i bits[16];
        bool run = true;  // pixels side by side
        for (int i = 0; i < 16; ++i) {
            const int r = first + smaller(i, rows - 1);
            const __m512i t = total<OWN>(tile, r, own, c, sums);
            bits[i] = e.flags & QA_INTEGER ? t : _mm512_castps_si512(value<OWN>(t, r, own, c));
            run &= to[r] == to[first] + smaller(i, rows - 1);
        }
        if (run) {
            transpose(bits);
            const __mmask16 keep = static_cast<__mmask16>((1u << rows) - 1);
            for (int n = 0; n < width; ++n) {
                float* out = base + to[first] + n * pitch;
                __m512 v = _mm512_castsi512_ps(bits[n]);
                if (e.flags & QA_ACCUMULATE) v = _mm512_add_ps(v, _mm512_maskz_loadu_ps(keep, out));
                _mm512_mask_storeu_ps(out, keep, v);
            }
            return;
        }
        alignas(64) float lane[16];
        for (int i = 0; i < rows; ++i) {
            _mm512_store_si512(lane, bits[i]);
            for (int n = 0; n < width; ++n) {
                float* out = base + to[first + i] + n * pitch;
                if (e.flags & QA_ACCUMULATE) lane[n] += *out;
                std::memcpy(out, lane + n, 4);  // an integer's bits where those are asked for
            }
        }
    }

    static void store_dense(const int32_t* tile, int rows, const Epilogue& e, int n0, int width,
                            const int32_t* sums, void* y, const int64_t* to, int64_t shift, int64_t pitch) {
        store_any<false>(tile, rows, nullptr, e, n0, width, sums, y, to, shift, pitch);
    }
    static void store_rows(const int32_t* tile, int rows, const RowScales& own, const Epilogue& e, int n0,
                           int width, const int32_t* sums, void* y, const int64_t* to, int64_t shift,
                           int64_t pitch) {
        store_any<true>(tile, rows, &own, e, n0, width, sums, y, to, shift, pitch);
    }

    // Whether two vectors of eight pixels have 16 outputs side by side.
    static bool side_by_side(const PixelVector& a, const PixelVector& b) {
        return a.count_lo + a.count_hi + b.count_lo + b.count_hi == 16 && a.y_hi == a.y_lo + 4 &&
               b.y_lo == a.y_lo + 8 && b.y_hi == a.y_lo + 12;
    }

    // As `store_planar`, for 16 outputs side by side.
    static void store_run(const int32_t* tile, int channels, const Epilogue& e, int n0, const int32_t* sums,
                          void* y, int64_t at, int64_t pitch) {
        for (int n = 0; n < channels; ++n, at += pitch) {
            __m512i t = _mm512_load_si512(tile + 16 * n);
            t = _mm512_sub_epi32(t, _mm512_set1_epi32(e.correction[n0 + n]));
            if (e.weight_zero)
                t = _mm512_sub_epi32(t, _mm512_mullo_epi32(_mm512_set1_epi32(e.weight_zero[n0 + n]),
                                                           _mm512_loadu_si512(sums)));
            float* out = static_cast<float*>(y) + at;
            if (e.flags & QA_INTEGER) {
                _mm512_storeu_si512(out, t);
                continue;
            }
            __m512 v = _mm512_fmadd_ps(_mm512_cvtepi32_ps(t), _mm512_set1_ps(e.scale[n0 + n]),
                                       _mm512_set1_ps(e.bias[n0 + n]));
            if (e.flags & QA_ACCUMULATE) v = _mm512_add_ps(v, _mm512_loadu_ps(out));
            _mm512_storeu_ps(out, v);
        }
    }
};

}  // namespace

#endif
