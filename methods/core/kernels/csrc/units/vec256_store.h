// 256-bit x86: int32 tiles to outputs.
#ifndef QUANTARENA_VEC256_STORE_H
#define QUANTARENA_VEC256_STORE_H

#include <immintrin.h>

#include "call.h"

namespace {

struct Store256 {
    static __m256i first_lanes(int count) {
        return _mm256_cmpgt_epi32(_mm256_set1_epi32(count), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
    }

    static __m256 scaled(const int32_t* tile, __m256i correction, __m256 scale, __m256 bias) {
        const __m256i t = _mm256_load_si256(reinterpret_cast<const __m256i*>(tile));
        return _mm256_fmadd_ps(_mm256_cvtepi32_ps(_mm256_sub_epi32(t, correction)), scale, bias);
    }

    static void add_to(float* at, __m256 v) {
        _mm256_storeu_ps(at, _mm256_add_ps(v, _mm256_loadu_ps(at)));
    }

    // `rows` rows of 16 channels, of which `width` exist; row r goes to y[to[r] + shift + n * pitch].
    static void store_dense(const int32_t* tile, int rows, const Epilogue& e, int n0, int width,
                            const int32_t* sums, void* y, const int64_t* to, int64_t shift,
                            int64_t pitch) {
        if (width == 16 && pitch == 1 && !(e.flags & QA_INTEGER) && sums == nullptr) {
            const __m256i c0 = load32(e.correction + n0), c1 = load32(e.correction + n0 + 8);
            const __m256 s0 = _mm256_loadu_ps(e.scale + n0), s1 = _mm256_loadu_ps(e.scale + n0 + 8);
            const __m256 b0 = _mm256_loadu_ps(e.bias + n0), b1 = _mm256_loadu_ps(e.bias + n0 + 8);
            float* base = static_cast<float*>(y) + shift;
            if (e.flags & QA_ACCUMULATE) {
                for (int r = 0; r < rows; ++r, tile += 16) {
                    add_to(base + to[r], scaled(tile, c0, s0, b0));
                    add_to(base + to[r] + 8, scaled(tile + 8, c1, s1, b1));
                }
                return;
            }
            for (int r = 0; r < rows; ++r, tile += 16) {
                _mm256_storeu_ps(base + to[r], scaled(tile, c0, s0, b0));
                _mm256_storeu_ps(base + to[r] + 8, scaled(tile + 8, c1, s1, b1));
            }
            return;
        }
        for (int r = 0; r < rows; ++r)
            for (int n = 0; n < width; n += 8)
                store_some(tile + 16 * r + n, smaller(8, width - n), e, n0 + n, sums ? sums[r] : 0, y,
                           to[r] + shift + n * pitch, pitch);
    }

    static void store_some(const int32_t* tile, int count, const Epilogue& e, int n, int32_t sum,
                           void* y, int64_t at, int64_t pitch) {
        __m256i t = _mm256_load_si256(reinterpret_cast<const __m256i*>(tile));
        t = _mm256_sub_epi32(t, load32(e.correction + n));
        if (e.weight_zero)
            t = _mm256_sub_epi32(
                t, _mm256_mullo_epi32(load32(e.weight_zero + n), _mm256_set1_epi32(sum)));
        const __m256 v = _mm256_fmadd_ps(_mm256_cvtepi32_ps(t), _mm256_loadu_ps(e.scale + n),
                                         _mm256_loadu_ps(e.bias + n));
        put(v, t, count, e, y, at, pitch);
    }

    // Up to eight channels of one pixel: values, or integers where those are asked for.
    static void put(__m256 v, __m256i t, int count, const Epilogue& e, void* y, int64_t at,
                    int64_t pitch) {
        if (e.flags & QA_INTEGER) {
            alignas(32) int32_t lane[8];
            _mm256_store_si256(reinterpret_cast<__m256i*>(lane), t);
            for (int i = 0; i < count; ++i) static_cast<int32_t*>(y)[at + i * pitch] = lane[i];
            return;
        }
        float* out = static_cast<float*>(y) + at;
        if (pitch == 1 && count == 8) {
            if (e.flags & QA_ACCUMULATE) v = _mm256_add_ps(v, _mm256_loadu_ps(out));
            _mm256_storeu_ps(out, v);
        } else if (pitch == 1) {
            const __m256i keep = first_lanes(count);
            if (e.flags & QA_ACCUMULATE) v = _mm256_add_ps(v, _mm256_maskload_ps(out, keep));
            _mm256_maskstore_ps(out, keep, v);
        } else {
            alignas(32) float lane[8];
            _mm256_store_ps(lane, v);
            for (int i = 0; i < count; ++i)
                out[i * pitch] = e.flags & QA_ACCUMULATE ? out[i * pitch] + lane[i] : lane[i];
        }
    }

    // As `store_dense`, each row with its own activation scale and zero point.
    static void store_rows(const int32_t* tile, int rows, const RowScales& own, const Epilogue& e,
                           int n0, int width, const int32_t* sums, void* y, const int64_t* to,
                           int64_t shift, int64_t pitch) {
        if (width == 16 && pitch == 1 && !(e.flags & QA_INTEGER) && sums == nullptr) {
            const __m256i c0 = load32(e.correction + n0), c1 = load32(e.correction + n0 + 8);
            const __m256 s0 = _mm256_loadu_ps(e.scale + n0), s1 = _mm256_loadu_ps(e.scale + n0 + 8);
            const __m256 b0 = _mm256_loadu_ps(e.bias + n0), b1 = _mm256_loadu_ps(e.bias + n0 + 8);
            for (int r = 0; r < rows; ++r, tile += 16) {
                const __m256i zero = _mm256_set1_epi32(own.zero[r * own.pitch]);
                const __m256 factor = _mm256_set1_ps(own.scale[r * own.pitch]);
                float* out = static_cast<float*>(y) + shift + to[r];
                const __m256 v0 = scaled(tile, _mm256_mullo_epi32(zero, c0), _mm256_mul_ps(factor, s0), b0);
                const __m256 v1 = scaled(tile + 8, _mm256_mullo_epi32(zero, c1), _mm256_mul_ps(factor, s1), b1);
                if (e.flags & QA_ACCUMULATE) {
                    add_to(out, v0);
                    add_to(out + 8, v1);
                } else {
                    _mm256_storeu_ps(out, v0);
                    _mm256_storeu_ps(out + 8, v1);
                }
            }
            return;
        }
        for (int r = 0; r < rows; ++r) {
            const __m256i zero = _mm256_set1_epi32(own.zero[r * own.pitch]);
            const __m256 factor = _mm256_set1_ps(own.scale[r * own.pitch]);
            for (int n = 0; n < width; n += 8) {
                __m256i t = _mm256_load_si256(reinterpret_cast<const __m256i*>(tile + 16 * r + n));
                t = _mm256_sub_epi32(t, _mm256_mullo_epi32(zero, load32(e.correction + n0 + n)));
                if (sums)
                    t = _mm256_sub_epi32(t, _mm256_mullo_epi32(load32(e.weight_zero + n0 + n),
                                                               _mm256_set1_epi32(sums[r])));
                const __m256 scale = _mm256_mul_ps(factor, _mm256_loadu_ps(e.scale + n0 + n));
                const __m256 v =
                    _mm256_fmadd_ps(_mm256_cvtepi32_ps(t), scale, _mm256_loadu_ps(e.bias + n0 + n));
                put(v, t, smaller(8, width - n), e, y, to[r] + shift + n * pitch, pitch);
            }
        }
    }

    static __m256i load32(const int32_t* at) {
        return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at));
    }

    static void store_planar(const int32_t* tile, int channels, const Epilogue& e, int n0,
                             const PixelVector& v, const int32_t* sums, void* y, int64_t at,
                             int64_t pitch) {
        const bool full = v.count_lo + v.count_hi == 8 && v.y_hi == v.y_lo + 4;
        for (int n = 0; n < channels; ++n, at += pitch) {
            __m256i t = _mm256_load_si256(reinterpret_cast<const __m256i*>(tile + 16 * n));
            t = _mm256_sub_epi32(t, _mm256_set1_epi32(e.correction[n0 + n]));
            if (e.weight_zero)
                t = _mm256_sub_epi32(
                    t, _mm256_mullo_epi32(_mm256_set1_epi32(e.weight_zero[n0 + n]), load32(sums)));
            if (e.flags & QA_INTEGER) {
                alignas(32) int32_t lane[8];
                _mm256_store_si256(reinterpret_cast<__m256i*>(lane), t);
                int32_t* out = static_cast<int32_t*>(y) + at;
                for (int i = 0; i < v.count_lo; ++i) out[v.y_lo + i] = lane[i];
                for (int i = 0; i < v.count_hi; ++i) out[v.y_hi + i] = lane[4 + i];
                continue;
            }
            __m256 value = _mm256_fmadd_ps(_mm256_cvtepi32_ps(t), _mm256_set1_ps(e.scale[n0 + n]),
                                           _mm256_set1_ps(e.bias[n0 + n]));
            float* out = static_cast<float*>(y) + at;
            if (full) {
                if (e.flags & QA_ACCUMULATE) value = _mm256_add_ps(value, _mm256_loadu_ps(out + v.y_lo));
                _mm256_storeu_ps(out + v.y_lo, value);
                continue;
            }
            store_half(out + v.y_lo, v.count_lo, _mm256_castps256_ps128(value), e.flags);
            store_half(out + v.y_hi, v.count_hi, _mm256_extractf128_ps(value, 1), e.flags);
        }
    }

    static void store_half(float* out, int count, __m128 value, int flags) {
        const __m128i keep = _mm_cmpgt_epi32(_mm_set1_epi32(count), _mm_setr_epi32(0, 1, 2, 3));
        if (count == 0) return;
        if (flags & QA_ACCUMULATE) value = _mm_add_ps(value, _mm_maskload_ps(out, keep));
        _mm_maskstore_ps(out, keep, value);
    }
};

}  // namespace

#endif
