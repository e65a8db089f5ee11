// NEON unit with the dot product extension (Armv8.2): signed bytes into int32.
//
// Activation codes are unsigned, so a - 128 is multiplied and 128 * sum(w) added back; the sum of the
// weights comes from the same instruction, once per step for all rows.  All but the micro-kernels is
// the portable code, which compilers vectorize for this target.
#define QA_PORTABLE_TRAITS_ONLY
#include "units/isa_scalar.cpp"

#include <arm_neon.h>

namespace {

struct Neon : Scalar {
    static constexpr int64_t kThreadWork = 16 * 1000 * 1000;

    static int32x4_t spread(const uint8_t* at) {
        uint32_t dword;
        std::memcpy(&dword, at, 4);
        return vreinterpretq_s32_u32(vdupq_n_u32(dword));
    }
    static int8x16_t centred(int8x16_t codes) {
        return veorq_s8(codes, vdupq_n_s8(static_cast<int8_t>(-128)));
    }

    // tile[r][n]: a row's dword against 4 x 4 channels
    template <bool PAIR, int ROWS>
    static void dense(const uint8_t* const* row, const int32_t* offset, const void* panel,
                      const uint16_t* chunk, int chunks, int32_t* tile) {
        const int64_t total = steps(chunk, chunks, PAIR);
        const int8_t* w = static_cast<const int8_t*>(panel);
        int32x4_t acc[ROWS][4], shift[4];
        for (int h = 0; h < 4; ++h) {
            shift[h] = vdupq_n_s32(0);
            for (int r = 0; r < ROWS; ++r) acc[r][h] = vdupq_n_s32(0);
        }
        const int8x16_t half = vdupq_n_s8(64);
        for (int64_t s = 0; s < total; ++s, w += 64) {
            int8x16_t weight[4];
            for (int h = 0; h < 4; ++h) {
                weight[h] = vld1q_s8(w + 16 * h);
                shift[h] = vdotq_s32(shift[h], half, weight[h]);
            }
            for (int r = 0; r < ROWS; ++r) {
                const int8x16_t a = centred(vreinterpretq_s8_s32(spread(row[r] + offset[s])));
                for (int h = 0; h < 4; ++h) acc[r][h] = vdotq_s32(acc[r][h], a, weight[h]);
            }
        }
        for (int r = 0; r < ROWS; ++r)
            for (int h = 0; h < 4; ++h)
                vst1q_s32(tile + 16 * r + 4 * h, vaddq_s32(acc[r][h], vshlq_n_s32(shift[h], 1)));
    }

    // tile[n][x]: 16 pixels against a channel's dword
    template <bool PAIR, int CHANNELS, bool SPLIT>
    static void planar(const uint8_t* const* at, const int32_t* offset, const void* panel,
                       const uint16_t* chunk, int chunks, int32_t* tile) {
        const int64_t total = steps(chunk, chunks, PAIR);
        const uint8_t* w = static_cast<const uint8_t*>(panel);
        int32x4_t acc[CHANNELS][4], shift[CHANNELS];
        for (int n = 0; n < CHANNELS; ++n) {
            shift[n] = vdupq_n_s32(0);
            for (int h = 0; h < 4; ++h) acc[n][h] = vdupq_n_s32(0);
        }
        const int8x16_t half = vdupq_n_s8(64);
        for (int64_t s = 0; s < total; ++s, w += 64) {
            int8x16_t a[4];
            for (int h = 0; h < 4; ++h)
                a[h] = centred(vreinterpretq_s8_u8(vld1q_u8(at[h] + offset[s])));
            for (int n = 0; n < CHANNELS; ++n) {
                const int8x16_t weight = vreinterpretq_s8_s32(spread(w + 4 * n));
                shift[n] = vdotq_s32(shift[n], half, weight);
                for (int h = 0; h < 4; ++h) acc[n][h] = vdotq_s32(acc[n][h], a[h], weight);
            }
        }
        for (int n = 0; n < CHANNELS; ++n)
            for (int h = 0; h < 4; ++h)
                vst1q_s32(tile + 16 * n + 4 * h, vaddq_s32(acc[n][h], vshlq_n_s32(shift[n], 1)));
    }
};

}  // namespace

extern const QaUnit qa_unit_neon = {QuadForm<Neon>::run, QuadForm<Neon>::peak, run_norm,
                                 run_activation, run_extremes, run_attention, run_rotation,
                                 run_groups<Neon, false>};
