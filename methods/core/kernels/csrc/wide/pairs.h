// Multiplication of a block by panels two at a time, for units with 512-bit registers: every activation
// that is spread meets the weights of 32 channels.
#ifndef QUANTARENA_PAIRS_H
#define QUANTARENA_PAIRS_H

#include "panels.h"

namespace {

template <class Isa>
struct PairRun {
    using Panel = PanelRun<Isa, false>;
    static constexpr int kRows = 8;

    // Codes of eight bits, which keep their zero points, are stored as the micro-kernels read them.
    static const uint8_t* stored(const QaLayer& l, int p) {
        if (l.weight_bits != 8 || l.parts) return nullptr;
        return l.codes + static_cast<int64_t>(p) * l.units * 256;
    }

    template <int ROWS, int PANELS>
    static void rows_of(const Call& call, const uint8_t* image, const uint8_t* panel, const int32_t* from,
                        int32_t* tile) {
        const uint8_t* row[ROWS];
        for (int r = 0; r < ROWS; ++r) row[r] = image + from[r];
        Isa::template pair_tile<ROWS, PANELS>(row, call.step_offset, panel, 64 * static_cast<int64_t>(call.total_steps),
                                              call.total_steps, tile);
    }

    template <int PANELS>
    static void multiply(const Call& call, const uint8_t* image, const uint8_t* panel, const int32_t* from,
                         int rows, int32_t* tile) {
        switch (rows) {
            case 8: return rows_of<8, PANELS>(call, image, panel, from, tile);
            case 7: return rows_of<7, PANELS>(call, image, panel, from, tile);
            case 6: return rows_of<6, PANELS>(call, image, panel, from, tile);
            case 5: return rows_of<5, PANELS>(call, image, panel, from, tile);
            case 4: return rows_of<4, PANELS>(call, image, panel, from, tile);
            case 3: return rows_of<3, PANELS>(call, image, panel, from, tile);
            case 2: return rows_of<2, PANELS>(call, image, panel, from, tile);
            default: return rows_of<1, PANELS>(call, image, panel, from, tile);
        }
    }

    // Outputs of PANELS neighbouring panels, from p on, that are unpacked one after the other.
    template <int PANELS>
    static void dense_panels(const Call& call, int p, const uint8_t* image, const uint8_t* panel,
                             const int64_t* to, int pixel, int count, const int32_t* sums) {
        const int32_t* from = reinterpret_cast<const int32_t*>(to + count);
        const typename Panel::Outlet out[2] = {Panel::outlet(call, p), Panel::outlet(call, p + PANELS - 1)};
        alignas(64) int32_t tile[PANELS * kRows * 16];
        for (int m = 0; m < count; m += kRows) {
            const int rows = smaller(count - m, kRows);
            // the micro-kernel hides the time that the output lines take to arrive
            for (int r = 0; r < rows; ++r)
                for (int i = 0; i < PANELS; ++i) Panel::prefetch(call, to[m + r] + out[i].shift);
            multiply<PANELS>(call, image, panel, from + m, rows, tile);
            for (int i = 0; i < PANELS; ++i)
                Panel::store(call, out[i], tile + i * rows * 16, rows, to, pixel, m, sums);
        }
    }

    template <int CHANNELS>
    static void planes_of(const Call& call, const uint8_t* image, const uint8_t* weights,
                          const PixelVector* v, int32_t* tile) {
        const uint8_t* at[4] = {image + v[0].lo, image + v[0].hi, image + v[1].lo, image + v[1].hi};
        const int32_t* offset = call.step_offset;
        if (!v[0].whole() || !v[1].whole())
            return Isa::template plane_tile<CHANNELS, Isa::kFourRuns>(at, offset, weights, call.total_steps, tile);
        if (v[1].lo == v[0].lo + 32)
            return Isa::template plane_tile<CHANNELS, Isa::kOneRun>(at, offset, weights, call.total_steps, tile);
        Isa::template plane_tile<CHANNELS, Isa::kTwoRuns>(at, offset, weights, call.total_steps, tile);
    }

    // Outputs of a panel where pixels are contiguous: 16 pixels at a time.
    static void planar_panel(const Call& call, int p, const uint8_t* image, const uint8_t* panel,
                             const PixelVector* list, int count, const int32_t* sums) {
        const QaLayer& l = *call.layer;
        const int group = p / l.panels, n0 = p % l.panels * 16;
        const int width = smaller(16, l.out_channels - n0);
        const int64_t pitch = call.geo.y_channel, first = Panel::first_channel(l, group, n0) * pitch;
        const Epilogue e = Panel::epilogue(call, group);
        alignas(64) int32_t tile[16 * 16];
        for (int m = 0; m < count; m += 2) {
            const bool both = m + 1 < count;
            const PixelVector pair[2] = {list[m], list[both ? m + 1 : m]};
            for (int n = 0; n < width; ++n) Panel::prefetch(call, pair[0].y_lo + first + n * pitch);
            switch ((width + 3) / 4) {
                case 4: planes_of<16>(call, image, panel, pair, tile); break;
                case 3: planes_of<12>(call, image, panel, pair, tile); break;
                case 2: planes_of<8>(call, image, panel, pair, tile); break;
                default: planes_of<4>(call, image, panel, pair, tile);
            }
            if (both && Isa::side_by_side(pair[0], pair[1])) {
                Isa::store_run(tile, width, e, p * 16, sums + 8 * m, call.y, first + pair[0].y_lo, pitch);
                continue;
            }
            for (int v = 0; v < 1 + both; ++v)
                Isa::store_planar(tile + 8 * v, width, e, p * 16, pair[v], sums + 8 * (m + v), call.y, first, pitch);
        }
    }

    // One panel, or two of them.
    static void run(const Call& call, int p, bool two, const uint8_t* image, const uint8_t* panel,
                    const void* list, int pixel, int count, const int32_t* sums) {
        const int64_t* to = static_cast<const int64_t*>(list);
        if (call.planar) {
            planar_panel(call, p, image, panel, static_cast<const PixelVector*>(list), count, sums);
        } else if (two) {
            dense_panels<2>(call, p, image, panel, to, pixel, count, sums);
        } else {
            dense_panels<1>(call, p, image, panel, to, pixel, count, sums);
        }
    }

    // The work of `repeats` times 6 x 16 outputs, on data that stay in the first-level cache.
    static void peak(const uint8_t* const* row, const int32_t* offset, const uint8_t* panel, int steps,
                     int64_t repeats) {
        alignas(64) int32_t tile[2 * kRows * 16];
        for (int64_t i = 0; i < repeats * 3 / 8; ++i) {
            Isa::template pair_tile<kRows, 2>(row, offset, panel, 64 * static_cast<int64_t>(steps), steps, tile);
            __asm__ volatile("" ::"r"(tile) : "memory");  // somebody reads the sums
        }
    }
};

}  // namespace

#endif
