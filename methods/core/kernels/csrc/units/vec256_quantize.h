// 256-bit x86: floats to activation codes, and sums of codes.
#ifndef QUANTARENA_VEC256_QUANTIZE_H
#define QUANTARENA_VEC256_QUANTIZE_H

#include <immintrin.h>

#include "call.h"

namespace {

struct Quantize256 {
    static __m256i codes(__m256 v, __m256 lo, __m256 hi) {
        // maxps returns its second operand when either is NaN
        return _mm256_cvtps_epi32(_mm256_min_ps(_mm256_max_ps(v, lo), hi));
    }

    template <bool PAIR>
    static void quantize_planar(const float* const* plane, const float* mult, int n,
                                const Quantizer& q, uint32_t* to) {
        constexpr int lanes = PAIR ? 2 : 4;
        const __m256 inv = _mm256_set1_ps(q.inv), lo = _mm256_set1_ps(q.lo);
        const __m256 hi = _mm256_set1_ps(q.hi);
        const uint32_t every = PAIR ? 0x00010001u : 0x01010101u;  // the zero point in every lane
        const __m256i zero =
            _mm256_set1_epi32(static_cast<int32_t>(static_cast<uint32_t>(q.zero) * every));
        int i = 0;
        for (; i + 8 <= n; i += 8) {
            // signed codes, summed at their bit positions; adding the zero points makes every lane
            // non-negative again, so borrows cancel
            __m256i sum = zero;
            for (int k = 0; k < lanes; ++k) {
                __m256 v = _mm256_mul_ps(_mm256_loadu_ps(plane[k] + i), inv);
                if (mult) v = _mm256_mul_ps(v, _mm256_set1_ps(mult[k]));
                sum = _mm256_add_epi32(sum, _mm256_slli_epi32(codes(v, lo, hi), 32 / lanes * k));
            }
            _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + i), sum);
        }
        for (; i < n; ++i) {
            uint32_t dword = 0;
            for (int k = 0; k < lanes; ++k) {
                float v = plane[k][i] * q.inv;
                if (mult) v *= mult[k];
                dword |= quantize_one(v, q) << (32 / lanes * k);
            }
            to[i] = dword;
        }
    }

    static __m256i load_codes(const float* from, const float* mult, __m256 inv, __m256 lo, __m256 hi) {
        __m256 v = _mm256_mul_ps(_mm256_loadu_ps(from), inv);
        if (mult) v = _mm256_mul_ps(v, _mm256_loadu_ps(mult));
        return codes(v, lo, hi);
    }

    template <bool PAIR>
    static void quantize_dense(const float* from, const float* mult, int n, const Quantizer& q,
                               uint8_t* to) {
        const __m256 inv = _mm256_set1_ps(q.inv), lo = _mm256_set1_ps(q.lo);
        const __m256 hi = _mm256_set1_ps(q.hi);
        const __m256i zero = _mm256_set1_epi16(static_cast<int16_t>(q.zero));
        const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
        int i = 0;
        if (PAIR) {
            for (; i + 16 <= n; i += 16) {
                const __m256i a = load_codes(from + i, mult ? mult + i : nullptr, inv, lo, hi);
                const __m256i b = load_codes(from + i + 8, mult ? mult + i + 8 : nullptr, inv, lo, hi);
                __m256i ab = _mm256_add_epi16(_mm256_packs_epi32(a, b), zero);
                ab = _mm256_permute4x64_epi64(ab, 0xd8);
                _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + 2 * i), ab);
            }
        } else {
            for (; i + 32 <= n; i += 32) {
                const float* m = mult ? mult + i : nullptr;
                const __m256i a = load_codes(from + i, m, inv, lo, hi);
                const __m256i b = load_codes(from + i + 8, m ? m + 8 : m, inv, lo, hi);
                const __m256i c = load_codes(from + i + 16, m ? m + 16 : m, inv, lo, hi);
                const __m256i d = load_codes(from + i + 24, m ? m + 24 : m, inv, lo, hi);
                const __m256i ab = _mm256_add_epi16(_mm256_packs_epi32(a, b), zero);
                const __m256i cd = _mm256_add_epi16(_mm256_packs_epi32(c, d), zero);
                const __m256i all = _mm256_permutevar8x32_epi32(_mm256_packus_epi16(ab, cd), order);
                _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + i), all);
            }
            for (; i + 8 <= n; i += 8) {
                const __m256i a = load_codes(from + i, mult ? mult + i : nullptr, inv, lo, hi);
                const __m256i aa = _mm256_add_epi16(_mm256_packs_epi32(a, a), zero);
                const __m256i b = _mm256_permutevar8x32_epi32(_mm256_packus_epi16(aa, aa), order);
                _mm_storel_epi64(reinterpret_cast<__m128i*>(to + i), _mm256_castsi256_si128(b));
            }
        }
        for (; i < n; ++i) {
            float v = from[i] * q.inv;
            if (mult) v *= mult[i];
            const uint32_t code = quantize_one(v, q);
            if (PAIR) {
                const uint16_t wide = static_cast<uint16_t>(code);
                std::memcpy(to + 2 * i, &wide, 2);
            } else {
                to[i] = static_cast<uint8_t>(code);
            }
        }
    }

    static constexpr bool kMovesBytes = true;

    // Codes less than 2^15 away from every zero point, not yet at the ends of the range.
    static __m256i near_codes(const float* from, const float* mult, const float* inv, const int32_t* zero) {
        const __m256 end = _mm256_set1_ps(30000.0f);
        __m256 v = _mm256_mul_ps(_mm256_loadu_ps(from), _mm256_loadu_ps(inv));
        if (mult) v = _mm256_mul_ps(v, _mm256_loadu_ps(mult));
        const __m256i z = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(zero));
        return _mm256_add_epi32(codes(v, _mm256_sub_ps(_mm256_setzero_ps(), end), end), z);
    }

    // As `quantize_dense`, each channel with its own range.
    template <bool PAIR>
    static void quantize_each(const float* from, const float* mult, const float* inv, const int32_t* zero,
                              int32_t most, int n, uint8_t* to) {
        const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
        const __m256i top = PAIR ? _mm256_set1_epi16(static_cast<int16_t>(most))
                                 : _mm256_set1_epi8(static_cast<char>(most));
        int i = 0;
        if (PAIR) {
            for (; i + 16 <= n; i += 16) {
                const float* m = mult ? mult + i : nullptr;
                const __m256i a = near_codes(from + i, m, inv + i, zero + i);
                const __m256i b = near_codes(from + i + 8, m ? m + 8 : m, inv + i + 8, zero + i + 8);
                const __m256i ab = _mm256_permute4x64_epi64(_mm256_packus_epi32(a, b), 0xd8);
                _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + 2 * i), _mm256_min_epi16(ab, top));
            }
        } else {
            for (; i + 32 <= n; i += 32) {
                __m256i part[4];
                for (int k = 0; k < 4; ++k) {
                    const int at = i + 8 * k;
                    part[k] = near_codes(from + at, mult ? mult + at : nullptr, inv + at, zero + at);
                }
                const __m256i ab = _mm256_packs_epi32(part[0], part[1]);
                const __m256i cd = _mm256_packs_epi32(part[2], part[3]);
                const __m256i all = _mm256_permutevar8x32_epi32(_mm256_packus_epi16(ab, cd), order);
                _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + i), _mm256_min_epu8(all, top));
            }
            for (; i + 8 <= n; i += 8) {
                const __m256i a = near_codes(from + i, mult ? mult + i : nullptr, inv + i, zero + i);
                const __m256i aa = _mm256_packs_epi32(a, a);
                const __m256i b = _mm256_permutevar8x32_epi32(_mm256_packus_epi16(aa, aa), order);
                _mm_storel_epi64(reinterpret_cast<__m128i*>(to + i),
                                 _mm256_castsi256_si128(_mm256_min_epu8(b, top)));
            }
        }
        for (; i < n; ++i) {
            float v = from[i] * inv[i];
            if (mult) v *= mult[i];
            const Quantizer q = {inv[i], static_cast<float>(-zero[i]), static_cast<float>(most - zero[i]), zero[i]};
            const uint32_t code = quantize_one(v, q);
            if (PAIR) {
                const uint16_t wide = static_cast<uint16_t>(code);
                std::memcpy(to + 2 * i, &wide, 2);
            } else {
                to[i] = static_cast<uint8_t>(code);
            }
        }
    }

    // Bytes of each pixel in another order: 32 bytes of the output are taken from `sources` times 16 of
    // the input, by `moves`[block][source][32] as pshufb takes them.  Whole blocks are written, from the
    // last to the first, so that what is written beyond a pixel is overwritten by the next.
    static void move_bytes(const uint8_t* from, int64_t from_pitch, int pixels, const uint8_t* moves,
                           int sources, int blocks, uint8_t* to, int64_t to_pitch) {
        for (int b = blocks - 1; b >= 0; --b) {
            const __m256i* move = reinterpret_cast<const __m256i*>(moves + 32 * static_cast<int64_t>(b) * sources);
            for (int m = 0; m < pixels; ++m) {
                const __m128i* at = reinterpret_cast<const __m128i*>(from + m * from_pitch);
                __m256i all = _mm256_setzero_si256();
                for (int s = 0; s < sources; ++s) {
                    const __m256i source = _mm256_broadcastsi128_si256(_mm_loadu_si128(at + s));
                    all = _mm256_or_si256(all, _mm256_shuffle_epi8(source, _mm256_loadu_si256(move + s)));
                }
                _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + m * to_pitch + 32 * b), all);
            }
        }
    }

    // Sums of byte codes; word products need none, see Fold.
    static int32_t sum_dense(const uint8_t* at, int n) {
        int32_t sum = 0;
        int i = 0;
        __m256i total = _mm256_setzero_si256();
        for (; i + 32 <= n; i += 32) {
            const __m256i v = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at + i));
            total = _mm256_add_epi64(total, _mm256_sad_epu8(v, _mm256_setzero_si256()));
        }
        alignas(32) int64_t part[4];
        _mm256_store_si256(reinterpret_cast<__m256i*>(part), total);
        for (; i < n; ++i) sum += at[i];
        return sum + static_cast<int32_t>(part[0] + part[1] + part[2] + part[3]);
    }

    static __m256i load_pixels(const uint8_t* lo, const uint8_t* hi) {
        const __m256i low = _mm256_castsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(lo)));
        return _mm256_inserti128_si256(low, _mm_loadu_si128(reinterpret_cast<const __m128i*>(hi)), 1);
    }

    static void sum_planar(const uint8_t* lo, const uint8_t* hi, const int32_t* offset, int taps,
                           int steps, int spare, int32_t* sums) {
        const __m256i ones16 = _mm256_set1_epi16(1), ones8 = _mm256_set1_epi8(1);
        __m256i total = _mm256_setzero_si256();
        for (int t = 0; t < taps; ++t)
            for (int c = 0; c < steps; ++c, ++offset) {
                __m256i v = load_pixels(lo + *offset, hi + *offset);
                const int real = smaller(4, (steps - c) * 4 - spare);
                if (real < 4) {
                    const uint32_t keep = (uint32_t{1} << (8 * real)) - 1;
                    v = _mm256_and_si256(v, _mm256_set1_epi32(static_cast<int32_t>(keep)));
                }
                v = _mm256_maddubs_epi16(v, ones8);
                total = _mm256_add_epi32(total, _mm256_madd_epi16(v, ones16));
            }
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(sums), total);
    }
};

}  // namespace

#endif
