// Trait class of the 256-bit x86 units.  The including unit defines
//   QA_UNIT    name of the trait class
//   QA_DOT     optional: dot product of unsigned by signed bytes into int32 (the VNNI units);
//              without it, int16 accumulation (dword = 4 k) or pmaddwd (dword = 2 k).
#include <immintrin.h>

#include "engine.h"

// Plain additions, hidden from the optimizer: gcc would re-associate them across unrolled steps,
// run out of registers and spill the accumulators.
#define QA_ADD16(acc, value) __asm__("vpaddw %2, %1, %0" : "=x"(acc) : "x"(acc), "x"(value))
#define QA_ADD32(acc, value) __asm__("vpaddd %2, %1, %0" : "=x"(acc) : "x"(acc), "x"(value))
#define QA_NOINLINE __attribute__((noinline))

namespace {

struct QA_UNIT {
    static constexpr int64_t kBlockBytes = 128 * 1024;
    static constexpr int64_t kThreadWork = 16 * 1000 * 1000;
    static constexpr bool kDirect = true;  // dense_direct exists

    // ---- activations -------------------------------------------------------------------------

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

    template <bool PAIR>
    static int32_t sum_dense(const uint8_t* at, int n) {
        int32_t sum = 0;
        int i = 0;
        if (PAIR) {
            const uint16_t* wide = reinterpret_cast<const uint16_t*>(at);
            for (; i < n; ++i) sum += wide[i];
            return sum;
        }
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

    template <bool PAIR>
    static void sum_planar(const uint8_t* lo, const uint8_t* hi, const int32_t* offset, int taps,
                           int steps, int spare, int32_t* sums) {
        const __m256i ones16 = _mm256_set1_epi16(1), ones8 = _mm256_set1_epi8(1);
        __m256i total = _mm256_setzero_si256();
        for (int t = 0; t < taps; ++t)
            for (int c = 0; c < steps; ++c, ++offset) {
                __m256i v = load_pixels(lo + *offset, hi + *offset);
                constexpr int lanes = PAIR ? 2 : 4;
                const int real = smaller(lanes, larger(0, (steps - c) * lanes - spare));
                if (real < lanes) {
                    const uint32_t keep = (uint32_t{1} << (32 / lanes * real)) - 1;
                    v = _mm256_and_si256(v, _mm256_set1_epi32(static_cast<int32_t>(keep)));
                }
                if (!PAIR) v = _mm256_maddubs_epi16(v, ones8);
                total = _mm256_add_epi32(total, _mm256_madd_epi16(v, ones16));
            }
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(sums), total);
    }

    // ---- weights -----------------------------------------------------------------------------

    template <bool PAIR, int BITS>
    static QA_NOINLINE void unpack_bits(const uint8_t* codes, int units, uint8_t* panel) {
        const __m256i offset = _mm256_set1_epi8(static_cast<char>(BITS == 8 ? 0 : 1 << (BITS - 1)));
        const __m256i m4 = _mm256_set1_epi8(15), m2 = _mm256_set1_epi8(3), m1 = _mm256_set1_epi8(1);
        for (int u = 0; u < units; ++u, codes += 32 * BITS) {
            const __m256i* in = reinterpret_cast<const __m256i*>(codes);
#pragma GCC unroll 8
            for (int v = 0; v < 8; ++v) {
                __m256i code;
                if (BITS == 8) {
                    code = _mm256_loadu_si256(in + v);
                } else {
                    code = offset;
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
                    code = _mm256_sub_epi8(code, offset);
                }
                if (PAIR) {
                    __m256i* out = reinterpret_cast<__m256i*>(panel) + (u * 8 + v) * 2;
                    _mm256_store_si256(out, _mm256_cvtepi8_epi16(_mm256_castsi256_si128(code)));
                    _mm256_store_si256(out + 1,
                                       _mm256_cvtepi8_epi16(_mm256_extracti128_si256(code, 1)));
                } else {
                    _mm256_store_si256(reinterpret_cast<__m256i*>(panel) + u * 8 + v, code);
                }
            }
        }
    }

    template <bool PAIR>
    static void unpack(const uint8_t* codes, int bits, int units, void* panel) {
        uint8_t* to = static_cast<uint8_t*>(panel);
        switch (bits) {
            case 1: return unpack_bits<PAIR, 1>(codes, units, to);
            case 2: return unpack_bits<PAIR, 2>(codes, units, to);
            case 3: return unpack_bits<PAIR, 3>(codes, units, to);
            case 4: return unpack_bits<PAIR, 4>(codes, units, to);
            case 5: return unpack_bits<PAIR, 5>(codes, units, to);
            case 6: return unpack_bits<PAIR, 6>(codes, units, to);
            case 7: return unpack_bits<PAIR, 7>(codes, units, to);
            default: return unpack_bits<PAIR, 8>(codes, units, to);
        }
    }

    // ---- micro-kernels: VECTORS x 2 accumulators, one dword step at a time ---------------------

    static __m256i load(const uint8_t* at) {
        return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at));
    }
    static __m256i spread(const uint8_t* at) {
        int32_t dword;
        std::memcpy(&dword, at, 4);
        return _mm256_set1_epi32(dword);
    }

    // acc += products of one dword of activations and one dword of weights per lane
    template <bool PAIR>
    static void multiply_add(__m256i& acc, __m256i activation, __m256i weight) {
#if defined(QA_DOT)
        acc = QA_DOT(acc, activation, weight);
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

    static __m256i widen(const uint8_t* at) {
        return _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at)));
    }

    // The pair form of `dense` on 8-bit codes as they are stored, for a few rows.
    template <int ROWS>
    static QA_NOINLINE void dense_direct(const uint8_t* const* rows, const int32_t* offset,
                                         const void* codes, int steps, int32_t* tile) {
        const uint8_t* w = static_cast<const uint8_t*>(codes);
        const uint8_t* row[ROWS];
#pragma GCC unroll 6
        for (int r = 0; r < ROWS; ++r) row[r] = rows[r];
        __m256i acc[ROWS][2];
#pragma GCC unroll 6
        for (int r = 0; r < ROWS; ++r) acc[r][0] = acc[r][1] = _mm256_setzero_si256();
        for (int s = 0; s < steps; s += 2, w += 64) {
#pragma GCC unroll 2
            for (int u = 0; u < 2; ++u) {
                const __m256i w0 = widen(w + 32 * u), w1 = widen(w + 32 * u + 16);
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

    // ---- epilogue ----------------------------------------------------------------------------

    static __m256i first_lanes(int count) {
        return _mm256_cmpgt_epi32(_mm256_set1_epi32(count), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
    }

    static __m256 scaled(const int32_t* tile, __m256i correction, __m256 scale, __m256 bias) {
        const __m256i t = _mm256_load_si256(reinterpret_cast<const __m256i*>(tile));
        return _mm256_fmadd_ps(_mm256_cvtepi32_ps(_mm256_sub_epi32(t, correction)), scale, bias);
    }

    // `rows` rows of 16 channels, of which `width` exist; row r goes to y[to[r] + shift + n * pitch].
    static void store_dense(const int32_t* tile, int rows, const Epilogue& e, int n0, int width,
                            const int32_t* sums, void* y, const int64_t* to, int64_t shift,
                            int64_t pitch) {
        if (width == 16 && pitch == 1 && e.flags == 0 && sums == nullptr) {
            const __m256i c0 = load32(e.correction + n0), c1 = load32(e.correction + n0 + 8);
            const __m256 s0 = _mm256_loadu_ps(e.scale + n0), s1 = _mm256_loadu_ps(e.scale + n0 + 8);
            const __m256 b0 = _mm256_loadu_ps(e.bias + n0), b1 = _mm256_loadu_ps(e.bias + n0 + 8);
            float* base = static_cast<float*>(y) + shift;
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
        if (e.flags & QA_INTEGER) {
            alignas(32) int32_t lane[8];
            _mm256_store_si256(reinterpret_cast<__m256i*>(lane), t);
            for (int i = 0; i < count; ++i) static_cast<int32_t*>(y)[at + i * pitch] = lane[i];
            return;
        }
        __m256 v = _mm256_fmadd_ps(_mm256_cvtepi32_ps(t), _mm256_loadu_ps(e.scale + n),
                                   _mm256_loadu_ps(e.bias + n));
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
