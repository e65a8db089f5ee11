// Portable unit: plain C++ over the same panels, the floor on every machine.
#include "attention/attention.h"
#include "engine.h"

namespace {

struct Scalar {
    static constexpr int64_t kBlockBytes = 128 * 1024;
    static constexpr int64_t kThreadWork = 500 * 1000;
    static constexpr bool kDirect = false, kPairs = false, kTiles = false, kResident = false;

    template <bool PAIR>
    static void quantize_planar(const float* const* plane, const float* mult, int n,
                                const Quantizer& q, uint32_t* to) {
        constexpr int lanes = PAIR ? 2 : 4;
        for (int i = 0; i < n; ++i) {
            uint32_t dword = 0;
            for (int k = 0; k < lanes; ++k) {
                float v = plane[k][i] * q.inv;
                if (mult) v *= mult[k];
                dword |= quantize_one(v, q) << (32 / lanes * k);
            }
            to[i] = dword;
        }
    }

    template <bool PAIR>
    static void quantize_dense(const float* from, const float* mult, int n, const Quantizer& q,
                               uint8_t* to) {
        for (int i = 0; i < n; ++i) {
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

    static int lane(const uint8_t* at, int k, bool pair) {
        if (!pair) return at[k];
        uint16_t wide;
        std::memcpy(&wide, at + 2 * k, 2);
        return wide;
    }

    // Sums of byte codes; word products need none, see Fold.
    static int32_t sum_dense(const uint8_t* at, int n) {
        int32_t sum = 0;
        for (int i = 0; i < n; ++i) sum += at[i];
        return sum;
    }

    static void sum_planar(const uint8_t* lo, const uint8_t* hi, const int32_t* offset, int taps,
                           int steps, int spare, int32_t* sums) {
        for (int i = 0; i < 8; ++i) sums[i] = 0;
        for (int t = 0; t < taps; ++t)
            for (int c = 0; c < steps; ++c) {
                const int real = smaller(4, (steps - c) * 4 - spare);
                for (int i = 0; i < 8; ++i) {
                    const uint8_t* at = (i < 4 ? lo + 4 * i : hi + 4 * (i - 4)) + offset[t * steps + c];
                    for (int k = 0; k < real; ++k) sums[i] += at[k];
                }
            }
    }

    // A panel is unpacked to codes less zero points, 16 channels x (4 int8 | 2 int16) per step.
    template <bool PAIR>
    static void unpack(const uint8_t* codes, int bits, int units, void* panel, const int32_t* zero) {
        const int offset = 1 << (bits - 1);
        int8_t* bytes = static_cast<int8_t*>(panel);
        int16_t* words = static_cast<int16_t*>(panel);
        for (int u = 0; u < units; ++u, codes += 32 * bits) {
            for (int v = 0; v < 8; ++v) {
                for (int i = 0; i < 32; ++i) {
                    int code;
                    if (bits == 8) {
                        code = static_cast<int8_t>(codes[32 * v + i]);
                    } else {
                        const uint8_t* plane = codes + i;
                        int value = 0, shift = 0;
                        if (bits & 4) {
                            value |= (plane[v / 2 * 32] >> (v % 2 * 4) & 15);
                            plane += 128;
                            shift = 4;
                        }
                        if (bits & 2) {
                            value |= (plane[v / 4 * 32] >> (v % 4 * 2) & 3) << shift;
                            plane += 64;
                            shift += 2;
                        }
                        if (bits & 1) value |= (plane[0] >> v & 1) << shift;
                        code = value - offset;
                    }
                    code -= zero[PAIR ? i / 2 : v % 2 * 8 + i / 4];
                    const int64_t at = (static_cast<int64_t>(u) * 8 + v) * 32 + i;
                    if (PAIR) {
                        words[at] = static_cast<int16_t>(code);
                    } else {
                        bytes[at] = static_cast<int8_t>(code);
                    }
                }
            }
        }
    }

    // to[64 s] |= what `moves` take from their panels, for four channels.
    static void move_lanes(const LaneMove* moves, int count, int64_t steps, uint8_t* to) {
        for (int i = 0; i < count; ++i)
            for (int b = 0; b < 16; ++b)
                for (int64_t s = 0; s < steps && moves[i].order[b] >= 0; ++s)
                    to[64 * s + b] |= moves[i].from[64 * s + moves[i].order[b]];
    }

    template <bool PAIR>
    static int32_t dot(const uint8_t* a, const void* panel, int64_t dword) {
        int32_t sum = 0;
        if (PAIR) {
            const int16_t* w = static_cast<const int16_t*>(panel) + 2 * dword;
            for (int k = 0; k < 2; ++k) sum += lane(a, k, true) * w[k];
        } else {
            const int8_t* w = static_cast<const int8_t*>(panel) + 4 * dword;
            for (int k = 0; k < 4; ++k) sum += a[k] * w[k];
        }
        return sum;
    }

    static int64_t steps(const uint16_t* chunk, int chunks, bool pair) {
        int64_t units = 0;
        for (int i = 0; i < chunks; ++i) units += chunk[i];
        return units * (pair ? 8 : 4);
    }

    template <bool PAIR, int ROWS>
    static void dense(const uint8_t* const* row, const int32_t* offset, const void* panel,
                      const uint16_t* chunk, int chunks, int32_t* tile) {
        const int64_t total = steps(chunk, chunks, PAIR);
        for (int i = 0; i < 16 * ROWS; ++i) tile[i] = 0;
        for (int64_t s = 0; s < total; ++s)
            for (int r = 0; r < ROWS; ++r)
                for (int n = 0; n < 16; ++n)
                    tile[16 * r + n] += dot<PAIR>(row[r] + offset[s], panel, 16 * s + n);
    }

    template <bool PAIR, int CHANNELS, bool SPLIT>
    static void planar(const uint8_t* const* at, const int32_t* offset, const void* panel,
                       const uint16_t* chunk, int chunks, int32_t* tile) {
        const int64_t total = steps(chunk, chunks, PAIR);
        for (int i = 0; i < 16 * CHANNELS; ++i) tile[i] = 0;
        for (int64_t s = 0; s < total; ++s)
            for (int n = 0; n < CHANNELS; ++n)
                for (int x = 0; x < 16; ++x)
                    tile[16 * n + x] +=
                        dot<PAIR>(at[x / 4] + offset[s] + 4 * (x % 4), panel, 16 * s + n);
    }

    static void store(int32_t acc, const Epilogue& e, int n, int32_t sum, void* y, int64_t at,
                      float factor = 1.0f, int32_t zero = 1) {
        uint32_t t = static_cast<uint32_t>(acc) -
                     static_cast<uint32_t>(e.correction[n]) * static_cast<uint32_t>(zero);
        if (e.weight_zero) t -= static_cast<uint32_t>(e.weight_zero[n]) * static_cast<uint32_t>(sum);
        const int32_t total = static_cast<int32_t>(t);
        if (e.flags & QA_INTEGER) {
            static_cast<int32_t*>(y)[at] = total;
            return;
        }
        float value = static_cast<float>(total) * (factor * e.scale[n]) + e.bias[n];
        float* out = static_cast<float*>(y) + at;
        if (e.flags & QA_ACCUMULATE) value += *out;
        *out = value;
    }

    static void store_dense(const int32_t* tile, int rows, const Epilogue& e, int n0, int width,
                            const int32_t* sums, void* y, const int64_t* to, int64_t shift,
                            int64_t pitch) {
        for (int r = 0; r < rows; ++r)
            for (int n = 0; n < width; ++n)
                store(tile[16 * r + n], e, n0 + n, sums ? sums[r] : 0, y, to[r] + shift + n * pitch);
    }

    static void store_rows(const int32_t* tile, int rows, const RowScales& own, const Epilogue& e,
                           int n0, int width, const int32_t* sums, void* y, const int64_t* to,
                           int64_t shift, int64_t pitch) {
        for (int r = 0; r < rows; ++r)
            for (int n = 0; n < width; ++n)
                store(tile[16 * r + n], e, n0 + n, sums ? sums[r] : 0, y, to[r] + shift + n * pitch,
                      own.scale[r * own.pitch], own.zero[r * own.pitch]);
    }

    static void store_planar(const int32_t* tile, int channels, const Epilogue& e, int n0,
                             const PixelVector& v, const int32_t* sums, void* y, int64_t at,
                             int64_t pitch) {
        for (int n = 0; n < channels; ++n)
            for (int i = 0; i < 8; ++i) {
                if (i % 4 >= (i < 4 ? v.count_lo : v.count_hi)) continue;
                const int64_t to = at + n * pitch + (i < 4 ? v.y_lo + i : v.y_hi + i - 4);
                store(tile[16 * n + i], e, n0 + n, e.weight_zero ? sums[i] : 0, y, to);
            }
    }
};

}  // namespace

#if !defined(QA_PORTABLE_TRAITS_ONLY)
extern const QaUnit qa_unit_scalar = {BothForms<Scalar>::run, BothForms<Scalar>::peak, run_norm,
                                 run_activation, run_extremes, run_attention, run_rotation,
                                 run_groups<Scalar, true>};
#endif
