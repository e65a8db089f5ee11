// 512-bit x86: packed weight codes, less their zero points, to signed bytes.
#ifndef QUANTARENA_VEC512_UNPACK_H
#define QUANTARENA_VEC512_UNPACK_H

#include "units/vec256_unpack.h"

namespace {

struct Unpack512 : Unpack256 {
    // The 32 bytes of a plane, once for the low channels and once for the high ones, each shifted to
    // its field.
    template <int LOW, int HIGH>
    static QA_INLINE __m512i fields(const uint8_t* plane) {
        const __m512i both =
            _mm512_broadcast_i64x4(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(plane)));
        if (LOW == 0 && HIGH == 0) return both;
        const __m512i counts = _mm512_inserti64x4(_mm512_set1_epi16(LOW), _mm256_set1_epi16(HIGH), 1);
        return _mm512_srlv_epi16(both, counts);
    }

    // Step S of a unit: 16 channels of four k.
    template <int BITS, int S>
    static QA_INLINE __m512i step(const uint8_t* codes) {
        if (BITS == 8) return _mm512_loadu_si512(codes + 64 * S);
        __m512i all = _mm512_setzero_si512();
        int shift = 0, base = 0;
        if (BITS & 4) {
            all = _mm512_and_si512(fields<0, 4>(codes + 32 * S), _mm512_set1_epi8(15));
            shift = 4;
            base = 128;
        }
        if (BITS & 2) {
            const __m512i p = _mm512_and_si512(fields<S % 2 * 4, S % 2 * 4 + 2>(codes + base + S / 2 * 32),
                                               _mm512_set1_epi8(3));
            all = shift ? _mm512_or_si512(all, _mm512_slli_epi16(p, shift)) : p;
            shift += 2;
            base += 64;
        }
        if (BITS & 1) {
            const __m512i p =
                _mm512_and_si512(fields<2 * S, 2 * S + 1>(codes + base), _mm512_set1_epi8(1));
            all = shift ? _mm512_or_si512(all, _mm512_slli_epi16(p, shift)) : p;
        }
        return all;
    }

    template <int BITS>
    static QA_NOINLINE void unpack_wide(const uint8_t* codes, int units, uint8_t* panel, const int32_t* zero) {
        const __m512i middle = _mm512_set1_epi8(static_cast<char>(BITS == 8 ? 0 : 1 << (BITS - 1)));
        const __m512i zeros = _mm512_inserti64x4(_mm512_castsi256_si512(byte_quads(zero)), byte_quads(zero + 8), 1);
        const __m512i offset = _mm512_add_epi8(middle, zeros);
        for (int u = 0; u < units; ++u, codes += 32 * BITS, panel += 256) {
            _mm512_store_si512(panel, _mm512_sub_epi8(step<BITS, 0>(codes), offset));
            _mm512_store_si512(panel + 64, _mm512_sub_epi8(step<BITS, 1>(codes), offset));
            _mm512_store_si512(panel + 128, _mm512_sub_epi8(step<BITS, 2>(codes), offset));
            _mm512_store_si512(panel + 192, _mm512_sub_epi8(step<BITS, 3>(codes), offset));
        }
    }

    template <bool PAIR>
    static void unpack(const uint8_t* codes, int bits, int units, void* panel, const int32_t* zero) {
        static_assert(!PAIR, "byte codes alone");
        uint8_t* to = static_cast<uint8_t*>(panel);
        switch (bits) {
            case 1: return unpack_wide<1>(codes, units, to, zero);
            case 2: return unpack_wide<2>(codes, units, to, zero);
            case 3: return unpack_wide<3>(codes, units, to, zero);
            case 4: return unpack_wide<4>(codes, units, to, zero);
            case 5: return unpack_wide<5>(codes, units, to, zero);
            case 6: return unpack_wide<6>(codes, units, to, zero);
            case 7: return unpack_wide<7>(codes, units, to, zero);
            default: return unpack_wide<8>(codes, units, to, zero);
        }
    }
};

}  // namespace

#endif
