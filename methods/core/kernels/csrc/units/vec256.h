// Trait class of the 256-bit x86 units.  The including unit defines
//   QA_UNIT    name of the trait class
//   QA_DOT     optional: dot product of unsigned by signed bytes into int32 (the VNNI units);
//              without it, int16 accumulation (dword = 4 k) or pmaddwd (dword = 2 k).
#include <immintrin.h>

#include "engine.h"
#include "units/vec256_quantize.h"
#include "units/vec256_store.h"
#include "units/vec256_unpack.h"

namespace {

struct QA_UNIT : Quantize256, Unpack256, Store256 {
    static constexpr int64_t kBlockBytes = 128 * 1024;
    static constexpr int64_t kThreadWork = 16 * 1000 * 1000;
    static constexpr bool kDirect = true;  // dense_direct exists
    static constexpr bool kPairs = false, kTiles = false, kResident = true;

    // ---- micro-kernels: VECTORS x 2 accumulators, one dword step at a time ---------------------

    typedef int32_t Dword __attribute__((may_alias, aligned(1)));

    static __m256i load(const uint8_t* at) {
        return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at));
    }
    static __m256i spread(const uint8_t* at) {
#if defined(QA_PIN)
        __m256i all;
        __asm__("vpbroadcastd %1, %0" : "=" QA_PIN(all) : "m"(*reinterpret_cast<const Dword*>(at)));
        return all;
#endif
        int32_t dword;
        std::memcpy(&dword, at, 4);
        return _mm256_set1_epi32(dword);
    }

    // acc += products of one dword of activations and one dword of weights per lane
    template <bool PAIR>
    static void multiply_add(__m256i& acc, __m256i activation, __m256i weight) {
#if defined(QA_DOT)
        QA_DOT(acc, activation, weight);
#else
        if (PAIR) {
            const __m256i product = _mm256_madd_epi16(activation, weight);
            QA_ADD32(acc, product);
        } else {
            const __m256i product = _mm256_maddubs_epi16(activation, weight);
            QA_ADD16(acc, product);
        }
#endif
    }

#if defined(QA_DOT)
    static constexpr bool kNarrow = false;
#else
    static constexpr bool kNarrow = true;  // int16 accumulators when PAIR is false
#endif

    // Moves int16 accumulators to the int32 tile; int32 accumulators are already exact.
    template <bool PAIR, int ROWS>
    static inline __attribute__((always_inline)) void flush(__m256i (&acc)[ROWS][2], int32_t* tile, bool first) {
        const __m256i ones = _mm256_set1_epi16(1);
#pragma GCC unroll 6
        for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 2
            for (int h = 0; h < 2; ++h) {
                __m256i* at = reinterpret_cast<__m256i*>(tile + 16 * r + 8 * h);
                __m256i sum = acc[r][h];
                if (kNarrow && !PAIR) sum = _mm256_madd_epi16(sum, ones);
                if (!first) sum = _mm256_add_epi32(sum, _mm256_load_si256(at));
                _mm256_store_si256(at, sum);
            }
    }

    template <bool PAIR, int ROWS>
    static QA_NOINLINE void dense(const uint8_t* const* rows, const int32_t* offset,
                                  const void* panel, const uint16_t* chunk, int chunks,
                                  int32_t* tile) {
        const uint8_t* w = static_cast<const uint8_t*>(panel);
        const uint8_t* row[ROWS];
#pragma GCC unroll 6
        for (int r = 0; r < ROWS; ++r) row[r] = rows[r];
        for (int i = 0; i < chunks; ++i) {
            __m256i acc[ROWS][2];
#pragma GCC unroll 6
            for (int r = 0; r < ROWS; ++r) acc[r][0] = acc[r][1] = _mm256_setzero_si256();
            for (int s = chunk[i] * (PAIR ? 4 : 2); s > 0; --s, offset += 2, w += 128) {
#pragma GCC unroll 2
                for (int u = 0; u < 2; ++u) {
                    const __m256i w0 = load(w + 64 * u), w1 = load(w + 64 * u + 32);
                    const int64_t at = offset[u];
#pragma GCC unroll 6
                    for (int r = 0; r < ROWS; ++r) {
                        const __m256i a = spread(row[r] + at);
                        multiply_add<PAIR>(acc[r][0], a, w0);
                        multiply_add<PAIR>(acc[r][1], a, w1);
                    }
                }
            }
            flush<PAIR, ROWS>(acc, tile, i == 0);
        }
    }

#if defined(QA_DOT)
    // ---- groups of K: sums turn into floats between the registers ------------------------------

    static constexpr int kGroupStep = 1;

    static __m256i load_ints(const int32_t* at) {
        return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at));
    }

    // Sums of one group on top of what `acc` holds.
    template <int ROWS>
    static QA_INLINE void add_group(const uint8_t* const (&row)[ROWS], const int32_t*& offset,
                                    const uint8_t*& w, int steps, __m256i (&acc)[ROWS][2]) {
        for (; steps > 0; --steps, ++offset, w += 64) {
            const __m256i w0 = load(w), w1 = load(w + 32);
            const int64_t at = *offset;
#pragma GCC unroll 6
            for (int r = 0; r < ROWS; ++r) {
                const __m256i a = spread(row[r] + at);
                QA_DOT(acc[r][0], a, w0);
                QA_DOT(acc[r][1], a, w1);
            }
        }
    }

    // OWN: every row has its own scale and zero point.
    template <int ROWS, bool OWN>
    static QA_NOINLINE void grouped(const uint8_t* const* rows, const int32_t* offset, const void* panel,
                                    const GroupTile& t, float* to) {
        const uint8_t* w = static_cast<const uint8_t*>(panel);
        const uint8_t* row[ROWS];
        __m256 f[ROWS][2];
#pragma GCC unroll 6
        for (int r = 0; r < ROWS; ++r) {
            row[r] = rows[r];
            f[r][0] = _mm256_loadu_ps(to + 16 * r);
            f[r][1] = _mm256_loadu_ps(to + 16 * r + 8);
        }
        for (int g = 0; g < t.count; ++g) {
            const __m256i c0 = _mm256_sub_epi32(_mm256_setzero_si256(), load_ints(t.start + 16 * g));
            const __m256i c1 = _mm256_sub_epi32(_mm256_setzero_si256(), load_ints(t.start + 16 * g + 8));
            __m256i acc[ROWS][2];
#pragma GCC unroll 6
            for (int r = 0; r < ROWS; ++r) {
                const __m256i zero = _mm256_set1_epi32(OWN ? t.row_zero[r * t.pitch + g] : 0);
                acc[r][0] = OWN ? _mm256_mullo_epi32(c0, zero) : c0;
                acc[r][1] = OWN ? _mm256_mullo_epi32(c1, zero) : c1;
            }
            add_group<ROWS>(row, offset, w, t.steps[g], acc);
            const __m256 s0 = _mm256_loadu_ps(t.scale + 16 * g), s1 = _mm256_loadu_ps(t.scale + 16 * g + 8);
#pragma GCC unroll 6
            for (int r = 0; r < ROWS; ++r) {
                const __m256 own = _mm256_set1_ps(OWN ? t.row_scale[r * t.pitch + g] : 1.0f);
                const __m256 f0 = OWN ? _mm256_mul_ps(own, s0) : s0, f1 = OWN ? _mm256_mul_ps(own, s1) : s1;
                f[r][0] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(acc[r][0]), f0, f[r][0]);
                f[r][1] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(acc[r][1]), f1, f[r][1]);
            }
        }
#pragma GCC unroll 6
        for (int r = 0; r < ROWS; ++r) {
            _mm256_storeu_ps(to + 16 * r, f[r][0]);
            _mm256_storeu_ps(to + 16 * r + 8, f[r][1]);
        }
    }

    // The integers of each group, or floats where zero points of weights are left.
    template <int ROWS>
    static QA_NOINLINE void group_totals(const uint8_t* const* rows, const int32_t* offset, const void* panel,
                                         const GroupTile& t, float* f) {
        const uint8_t* w = static_cast<const uint8_t*>(panel);
        const uint8_t* row[ROWS];
        for (int r = 0; r < ROWS; ++r) row[r] = rows[r];
        alignas(32) int32_t tile[ROWS * 16];
        for (int g = 0; g < t.count; ++g) {
            __m256i acc[ROWS][2];
#pragma GCC unroll 6
            for (int r = 0; r < ROWS; ++r) acc[r][0] = acc[r][1] = _mm256_setzero_si256();
            add_group<ROWS>(row, offset, w, t.steps[g], acc);
            flush<false, ROWS>(acc, tile, true);
            finish_group<ROWS>(tile, t, g, f);
        }
    }
#endif

    static __m256i widen(const uint8_t* at) {
        return _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at)));
    }

    // The pair form of `dense` on 8-bit codes as they are stored less `zero`, for a few rows.
    template <int ROWS>
    static QA_NOINLINE void dense_direct(const uint8_t* const* rows, const int32_t* offset,
                                         const void* codes, const int32_t* zero, int steps,
                                         int32_t* tile) {
        const uint8_t* w = static_cast<const uint8_t*>(codes);
        const __m256i z0 = word_pairs(zero), z1 = word_pairs(zero + 8);
        const uint8_t* row[ROWS];
#pragma GCC unroll 6
        for (int r = 0; r < ROWS; ++r) row[r] = rows[r];
        __m256i acc[ROWS][2];
#pragma GCC unroll 6
        for (int r = 0; r < ROWS; ++r) acc[r][0] = acc[r][1] = _mm256_setzero_si256();
        for (int s = 0; s < steps; s += 2, w += 64) {
#pragma GCC unroll 2
            for (int u = 0; u < 2; ++u) {
                const __m256i w0 = _mm256_sub_epi16(widen(w + 32 * u), z0);
                const __m256i w1 = _mm256_sub_epi16(widen(w + 32 * u + 16), z1);
                const int64_t at = offset[s + u];
#pragma GCC unroll 6
                for (int r = 0; r < ROWS; ++r) {
                    const __m256i a = spread(row[r] + at);
                    const __m256i p0 = _mm256_madd_epi16(a, w0), p1 = _mm256_madd_epi16(a, w1);
                    QA_ADD32(acc[r][0], p0);
                    QA_ADD32(acc[r][1], p1);
                }
            }
        }
        flush<true, ROWS>(acc, tile, true);
    }

    // The instructions of a product alone, on operands in registers: as many products as 6 x 16 outputs
    // of a unit.
    template <bool PAIR>
    static void resident(int64_t repeats) {
        __m256i acc[12], a = _mm256_set1_epi8(1);
#pragma GCC unroll 12
        for (int k = 0; k < 12; ++k) acc[k] = _mm256_setzero_si256();
        for (int64_t i = 0; i < repeats; ++i)
#pragma GCC unroll 96
            for (int k = 0; k < (PAIR ? 96 : 48); ++k) {
                __asm__ volatile("" : "+x"(a));  // the product is not the same one every time
                multiply_add<PAIR>(acc[k % 12], a, a);
            }
#pragma GCC unroll 12
        for (int k = 0; k < 12; ++k) __asm__ volatile("" ::"x"(acc[k]));
    }

    template <bool PAIR, int CHANNELS, bool SPLIT>
    static QA_NOINLINE void planar(const uint8_t* const* pixels, const int32_t* offset,
                                   const void* panel, const uint16_t* chunk, int chunks,
                                   int32_t* tile) {
        const uint8_t* w = static_cast<const uint8_t*>(panel);
        const uint8_t *p0 = pixels[0], *p1 = pixels[1], *p2 = pixels[2], *p3 = pixels[3];
        for (int i = 0; i < chunks; ++i) {
            __m256i acc[CHANNELS][2];
#pragma GCC unroll 6
            for (int r = 0; r < CHANNELS; ++r) acc[r][0] = acc[r][1] = _mm256_setzero_si256();
            for (int s = chunk[i] * (PAIR ? 4 : 2); s > 0; --s, offset += 2, w += 128) {
#pragma GCC unroll 2
                for (int u = 0; u < 2; ++u) {
                    const int64_t at = offset[u];
                    const __m256i a0 = SPLIT ? load_pixels(p0 + at, p1 + at) : load(p0 + at);
                    const __m256i a1 = SPLIT ? load_pixels(p2 + at, p3 + at) : load(p2 + at);
#pragma GCC unroll 6
                    for (int r = 0; r < CHANNELS; ++r) {
                        const __m256i weight = spread(w + 64 * u + 4 * r);
                        multiply_add<PAIR>(acc[r][0], a0, weight);
                        multiply_add<PAIR>(acc[r][1], a1, weight);
                    }
                }
            }
            flush<PAIR, CHANNELS>(acc, tile, i == 0);
        }
    }
};

}  // namespace
