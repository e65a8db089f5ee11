// 256-bit x86: packed weight codes, less their zero points, to signed bytes or words.
#ifndef QUANTARENA_VEC256_UNPACK_H
#define QUANTARENA_VEC256_UNPACK_H

#include <immintrin.h>

#include "call.h"

namespace {

struct Unpack256 {
    static __m256i load_eight(const int32_t* at) {
        return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at));
    }
    // The low word of each of eight numbers, twice; the low byte four times.
    static __m256i word_pairs(const int32_t* at) {
        const __m128i order = _mm_setr_epi8(0, 1, 0, 1, 4, 5, 4, 5, 8, 9, 8, 9, 12, 13, 12, 13);
        return _mm256_shuffle_epi8(load_eight(at), _mm256_broadcastsi128_si256(order));
    }
    static __m256i byte_quads(const int32_t* at) {
        const __m128i order = _mm_setr_epi8(0, 0, 0, 0, 4, 4, 4, 4, 8, 8, 8, 8, 12, 12, 12, 12);
        return _mm256_shuffle_epi8(load_eight(at), _mm256_broadcastsi128_si256(order));
    }

    template <bool PAIR, int BITS>
    static QA_NOINLINE void unpack_bits(const uint8_t* codes, int units, uint8_t* panel, const int32_t* zero) {
        const __m256i middle = _mm256_set1_epi8(static_cast<char>(BITS == 8 ? 0 : 1 << (BITS - 1)));
        const __m256i z0 = PAIR ? word_pairs(zero) : byte_quads(zero);
        const __m256i z1 = PAIR ? word_pairs(zero + 8) : byte_quads(zero + 8);
        const __m256i offset[2] = {PAIR ? middle : _mm256_add_epi8(middle, z0),
                                   PAIR ? middle : _mm256_add_epi8(middle, z1)};
        const __m256i m4 = _mm256_set1_epi8(15), m2 = _mm256_set1_epi8(3), m1 = _mm256_set1_epi8(1);
        for (int u = 0; u < units; ++u, codes += 32 * BITS) {
            const __m256i* in = reinterpret_cast<const __m256i*>(codes);
#pragma GCC unroll 8
            for (int v = 0; v < 8; ++v) {
                __m256i code;
                if (BITS == 8) {
                    code = _mm256_loadu_si256(in + v);
                } else {
                    code = middle;
                    int shift = 0, base = 0;
                    if (BITS & 4) {
                        __m256i p = _mm256_loadu_si256(in + v / 2);
                        if (v % 2) p = _mm256_srli_epi16(p, 4);
                        code = _mm256_and_si256(p, m4);
                        shift = 4;
                        base = 4;
                    }
                    if (BITS & 2) {
                        __m256i p = _mm256_loadu_si256(in + base + v / 4);
                        p = _mm256_and_si256(_mm256_srli_epi16(p, v % 4 * 2), m2);
                        code = shift ? _mm256_or_si256(code, _mm256_slli_epi16(p, shift)) : p;
                        shift += 2;
                        base += 2;
                    }
                    if (BITS & 1) {
                        __m256i p = _mm256_loadu_si256(in + base);
                        p = _mm256_and_si256(_mm256_srli_epi16(p, v), m1);
                        code = shift ? _mm256_or_si256(code, _mm256_slli_epi16(p, shift)) : p;
                    }
                }
                if (BITS < 8 || !PAIR) code = _mm256_sub_epi8(code, offset[v % 2]);
                if (PAIR) {
                    __m256i* out = reinterpret_cast<__m256i*>(panel) + (u * 8 + v) * 2;
                    const __m256i w0 = _mm256_cvtepi8_epi16(_mm256_castsi256_si128(code));
                    const __m256i w1 = _mm256_cvtepi8_epi16(_mm256_extracti128_si256(code, 1));
                    _mm256_store_si256(out, _mm256_sub_epi16(w0, z0));
                    _mm256_store_si256(out + 1, _mm256_sub_epi16(w1, z1));
                } else {
                    _mm256_store_si256(reinterpret_cast<__m256i*>(panel) + u * 8 + v, code);
                }
            }
        }
    }

    // to[64 s] |= what `moves` take from their panels, for four channels.
    template <int COUNT>
    static QA_NOINLINE void move_four(const LaneMove* moves, int64_t steps, uint8_t* to) {
        const uint8_t* from[COUNT];
        __m128i order[COUNT];
        for (int i = 0; i < COUNT; ++i) {
            from[i] = moves[i].from;
            order[i] = _mm_loadu_si128(reinterpret_cast<const __m128i*>(moves[i].order));
        }
        for (int64_t s = 0; s < 64 * steps; s += 64) {
            __m128i* out = reinterpret_cast<__m128i*>(to + s);
            __m128i all = _mm_load_si128(out);
            for (int i = 0; i < COUNT; ++i)
                all = _mm_or_si128(
                    all, _mm_shuffle_epi8(
                             _mm_loadu_si128(reinterpret_cast<const __m128i*>(from[i] + s)), order[i]));
            _mm_store_si128(out, all);
        }
    }

    static void move_lanes(const LaneMove* moves, int count, int64_t steps, uint8_t* to) {
        for (; count >= 4; count -= 4, moves += 4) move_four<4>(moves, steps, to);
        switch (count) {
            case 3: return move_four<3>(moves, steps, to);
            case 2: return move_four<2>(moves, steps, to);
            case 1: return move_four<1>(moves, steps, to);
        }
    }

    template <bool PAIR>
    static void unpack(const uint8_t* codes, int bits, int units, void* panel, const int32_t* zero) {
        uint8_t* to = static_cast<uint8_t*>(panel);
        switch (bits) {
            case 1: return unpack_bits<PAIR, 1>(codes, units, to, zero);
            case 2: return unpack_bits<PAIR, 2>(codes, units, to, zero);
            case 3: return unpack_bits<PAIR, 3>(codes, units, to, zero);
            case 4: return unpack_bits<PAIR, 4>(codes, units, to, zero);
            case 5: return unpack_bits<PAIR, 5>(codes, units, to, zero);
            case 6: return unpack_bits<PAIR, 6>(codes, units, to, zero);
            case 7: return unpack_bits<PAIR, 7>(codes, units, to, zero);
            default: return unpack_bits<PAIR, 8>(codes, units, to, zero);
        }
    }
};

}  // namespace

#endif
