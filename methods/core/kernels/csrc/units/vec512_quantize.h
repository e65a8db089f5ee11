// 512-bit x86: floats to byte codes, and sums of codes.
#ifndef QUANTARENA_VEC512_QUANTIZE_H
#define QUANTARENA_VEC512_QUANTIZE_H

#include "units/vec256_quantize.h"

namespace {

struct Quantize512 : Quantize256 {
    static __mmask16 first16(int count) { return static_cast<__mmask16>((1u << count) - 1); }

    // Constants of a quantizer in every lane.
    struct Spread {
        __m512 inv, lo, hi;
        explicit Spread(const Quantizer& q)
            : inv(_mm512_set1_ps(q.inv)), lo(_mm512_set1_ps(q.lo)), hi(_mm512_set1_ps(q.hi)) {}
        // maxps returns its second operand when either is NaN
        __m512i codes(__m512 v) const {
            return _mm512_cvtps_epi32(_mm512_min_ps(_mm512_max_ps(v, lo), hi));
        }
    };

    template <bool PAIR>
    static void quantize_planar(const float* const* plane, const float* mult, int n, const Quantizer& q,
                                uint32_t* to) {
        static_assert(!PAIR, "byte codes alone");
        const Spread s(q);
        const __m512i zero =
            _mm512_set1_epi32(static_cast<int32_t>(static_cast<uint32_t>(q.zero) * 0x01010101u));
        for (int i = 0; i < n; i += 16) {
            const __mmask16 keep = first16(smaller(16, n - i));
            // signed codes, summed at their bit positions; adding the zero points makes every lane
            // non-negative again, so borrows cancel
            __m512i sum = zero;
#pragma GCC unroll 4
            for (int k = 0; k < 4; ++k) {
                __m512 v = _mm512_mul_ps(_mm512_maskz_loadu_ps(keep, plane[k] + i), s.inv);
                if (mult) v = _mm512_mul_ps(v, _mm512_set1_ps(mult[k]));
                sum = _mm512_add_epi32(sum, _mm512_slli_epi32(s.codes(v), 8 * k));
            }
            if (keep == 0xffff) {
                _mm512_storeu_si512(to + i, sum);
            } else {
                _mm512_mask_storeu_epi32(to + i, keep, sum);
            }
        }
    }

    template <bool MULT>
    static QA_INLINE __m512i load_codes(const float* from, const float* mult, const Spread& s) {
        __m512 v = _mm512_mul_ps(_mm512_loadu_ps(from), s.inv);
        if (MULT) v = _mm512_mul_ps(v, _mm512_loadu_ps(mult));
        return s.codes(v);
    }

    template <bool MULT>
    static void quantize_row(const float* from, const float* mult, int n, const Quantizer& q, uint8_t* to) {
        const Spread s(q);
        const __m512i zero = _mm512_set1_epi16(static_cast<int16_t>(q.zero));
        // packing works within 128-bit lanes: dword 4 * l + j of the result belongs to place 4 * j + l
        const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
        int i = 0;
        for (; i + 64 <= n; i += 64) {
            const __m512i a = load_codes<MULT>(from + i, mult + (MULT ? i : 0), s);
            const __m512i b = load_codes<MULT>(from + i + 16, mult + (MULT ? i + 16 : 0), s);
            const __m512i c = load_codes<MULT>(from + i + 32, mult + (MULT ? i + 32 : 0), s);
            const __m512i d = load_codes<MULT>(from + i + 48, mult + (MULT ? i + 48 : 0), s);
            const __m512i ab = _mm512_add_epi16(_mm512_packs_epi32(a, b), zero);
            const __m512i cd = _mm512_add_epi16(_mm512_packs_epi32(c, d), zero);
            _mm512_storeu_si512(to + i, _mm512_permutexvar_epi32(order, _mm512_packus_epi16(ab, cd)));
        }
        const __m512i wide_zero = _mm512_set1_epi32(q.zero);
        for (; i < n; i += 16) {
            const __mmask16 keep = first16(smaller(16, n - i));
            __m512 v = _mm512_mul_ps(_mm512_maskz_loadu_ps(keep, from + i), s.inv);
            if (MULT) v = _mm512_mul_ps(v, _mm512_maskz_loadu_ps(keep, mult + i));
            const __m128i codes = _mm512_cvtepi32_epi8(_mm512_add_epi32(s.codes(v), wide_zero));
            if (keep == 0xffff) {
                _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i), codes);
            } else {
                _mm_mask_storeu_epi8(to + i, keep, codes);
            }
        }
    }

    template <bool PAIR>
    static void quantize_dense(const float* from, const float* mult, int n, const Quantizer& q, uint8_t* to) {
        static_assert(!PAIR, "byte codes alone");
        if (mult) {
            quantize_row<true>(from, mult, n, q, to);
        } else {
            quantize_row<false>(from, from, n, q, to);
        }
    }

    static int32_t sum_dense(const uint8_t* at, int n) {
        __m512i total = _mm512_setzero_si512();
        for (int i = 0; i < n; i += 64) {
            const int left = smaller(64, n - i);
            const __mmask64 keep = left == 64 ? ~uint64_t{0} : (uint64_t{1} << left) - 1;
            const __m512i v = _mm512_maskz_loadu_epi8(keep, at + i);
            total = _mm512_add_epi64(total, _mm512_sad_epu8(v, _mm512_setzero_si512()));
        }
        return static_cast<int32_t>(_mm512_reduce_add_epi64(total));
    }
};

}  // namespace

#endif
