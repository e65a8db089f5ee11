// Micro-kernels of the 512-bit x86 units: products of unsigned and signed bytes, summed in int32.
// Broadcasts and dot products are inline assembly: compilers replace them by copies of registers and
// broadcasts from general ones, which cost a third to a half of the speed on some machines.
#ifndef QUANTARENA_VEC512_H
#define QUANTARENA_VEC512_H

#include <immintrin.h>

#include "engine.h"
#include "units/vec512_quantize.h"
#include "units/vec512_store.h"
#include "units/vec512_unpack.h"

namespace {

struct Wide512 : Quantize512, Unpack512, Store512 {
    static constexpr int64_t kBlockBytes = 128 * 1024;
    static constexpr int64_t kThreadWork = 16 * 1000 * 1000;
    static constexpr bool kDirect = false;
    static constexpr bool kPairs = true;
    static constexpr bool kTiles = false, kResident = true;

    typedef int32_t Dword __attribute__((may_alias, aligned(1)));

    static QA_INLINE __m512i spread(const uint8_t* at) {
        __m512i all;
        __asm__("vpbroadcastd %1, %0" : "=v"(all) : "m"(*reinterpret_cast<const Dword*>(at)));
        return all;
    }
    static QA_INLINE void multiply_add(__m512i& acc, __m512i activation, __m512i weight) {
        __asm__("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(activation), "v"(weight));
    }
    // The same four weights for all pixels.
    static QA_INLINE void multiply_add(__m512i& acc, __m512i activation, const uint8_t* weight) {
        __asm__("vpdpbusd %2%{1to16%}, %1, %0"
                : "+v"(acc)
                : "v"(activation), "m"(*reinterpret_cast<const Dword*>(weight)));
    }

    // ROWS pixels by PANELS panels that lie `pitch` bytes apart; tile [panel][row][16].  Products of a few
    // rows would wait for each other, so steps of K take turns in several sums.
    template <int ROWS, int PANELS>
    static QA_NOINLINE void pair_tile(const uint8_t* const* rows, const int32_t* offset, const uint8_t* w,
                                      int64_t pitch, int steps, int32_t* tile) {
        constexpr int kSums = ROWS * PANELS <= 2 ? 4 : ROWS * PANELS <= 4 ? 2 : 1;
        // one step at a time where a panel is alone: gcc 12 copies eight accumulators between two steps
        constexpr int kSteps = kSums > 1 ? kSums : PANELS == 1 ? 1 : 2;
        const uint8_t* row[ROWS];
        __m512i acc[kSums][ROWS][PANELS];
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; ++r) row[r] = rows[r];
#pragma GCC unroll 4
        for (int u = 0; u < kSums; ++u)
#pragma GCC unroll 8
            for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 2
                for (int p = 0; p < PANELS; ++p) acc[u][r][p] = _mm512_setzero_si512();
        do {  // a unit of K has four steps
#pragma GCC unroll 4
            for (int u = 0; u < kSteps; ++u) {
                __m512i weight[PANELS];
#pragma GCC unroll 2
                for (int p = 0; p < PANELS; ++p) weight[p] = _mm512_loadu_si512(w + 64 * u + p * pitch);
                const int64_t at = offset[u];
#pragma GCC unroll 8
                for (int r = 0; r < ROWS; ++r) {
                    const __m512i a = spread(row[r] + at);
#pragma GCC unroll 2
                    for (int p = 0; p < PANELS; ++p) multiply_add(acc[u % kSums][r][p], a, weight[p]);
                }
            }
            offset += kSteps;
            w += 64 * kSteps;
        } while ((steps -= kSteps) > 0);
#pragma GCC unroll 2
        for (int p = 0; p < PANELS; ++p)
#pragma GCC unroll 8
            for (int r = 0; r < ROWS; ++r) {
                __m512i sum = acc[0][r][p];
#pragma GCC unroll 4
                for (int u = 1; u < kSums; ++u) sum = _mm512_add_epi32(sum, acc[u][r][p]);
                _mm512_store_si512(tile + 16 * (p * ROWS + r), sum);
            }
    }

    // One panel, for the parts of a layer of several widths that has few pixels.
    template <bool PAIR, int ROWS>
    static void dense(const uint8_t* const* rows, const int32_t* offset, const void* panel,
                      const uint16_t* chunk, int chunks, int32_t* tile) {
        int steps = 0;
        for (int i = 0; i < chunks; ++i) steps += 4 * chunk[i];
        pair_tile<ROWS, 1>(rows, offset, static_cast<const uint8_t*>(panel), 0, steps, tile);
    }

    // How 16 pixels lie: one after the other, in two runs of eight, or in four of four.
    enum Runs { kOneRun, kTwoRuns, kFourRuns };

    template <int RUNS>
    static QA_INLINE __m512i load_runs(const uint8_t* const* p, int64_t at) {
        if (RUNS == kOneRun) return _mm512_loadu_si512(p[0] + at);
        const auto four = [at](const uint8_t* from) {
            return _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + at));
        };
        const auto eight = [at](const uint8_t* from) {
            return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + at));
        };
        if (RUNS == kTwoRuns)
            return _mm512_inserti64x4(_mm512_castsi256_si512(eight(p[0])), eight(p[2]), 1);
        __m512i all = _mm512_inserti32x4(_mm512_castsi128_si512(four(p[0])), four(p[1]), 1);
        all = _mm512_inserti32x4(all, four(p[2]), 2);
        return _mm512_inserti32x4(all, four(p[3]), 3);
    }

    // CHANNELS channels of a panel by 16 pixels; tile [channel][16].
    template <int CHANNELS, int RUNS>
    static QA_NOINLINE void plane_tile(const uint8_t* const* pixels, const int32_t* offset, const uint8_t* w,
                                       int steps, int32_t* tile) {
        const uint8_t* p[4] = {pixels[0], pixels[1], pixels[2], pixels[3]};
        __m512i acc[CHANNELS];
#pragma GCC unroll 16
        for (int r = 0; r < CHANNELS; ++r) acc[r] = _mm512_setzero_si512();
        do {
#pragma GCC unroll 2
            for (int u = 0; u < 2; ++u) {
                const __m512i a = load_runs<RUNS>(p, offset[u]);
#pragma GCC unroll 16
                for (int r = 0; r < CHANNELS; ++r) multiply_add(acc[r], a, w + 64 * u + 4 * r);
            }
            offset += 2;
            w += 128;
        } while ((steps -= 2) > 0);
#pragma GCC unroll 16
        for (int r = 0; r < CHANNELS; ++r) _mm512_store_si512(tile + 16 * r, acc[r]);
    }

    // The instruction alone, on operands in registers: as many products as 6 x 16 outputs of a unit.
    template <bool PAIR>
    static void resident(int64_t repeats) {
        __m512i acc[12], a = _mm512_set1_epi8(1);
#pragma GCC unroll 12
        for (int k = 0; k < 12; ++k) acc[k] = _mm512_setzero_si512();
        for (int64_t i = 0; i < repeats; ++i)
#pragma GCC unroll 24
            for (int k = 0; k < 24; ++k) multiply_add(acc[k % 12], a, a);
#pragma GCC unroll 12
        for (int k = 0; k < 12; ++k) __asm__ volatile("" ::"v"(acc[k]));
    }
};

}  // namespace

#endif
