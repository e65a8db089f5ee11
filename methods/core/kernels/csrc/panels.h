// Multiplication of a block by one unpacked panel, tile by tile.
#ifndef QUANTARENA_PANELS_H
#define QUANTARENA_PANELS_H

#include "call.h"

namespace {

// One panel of 16 output channels against all pixels of a block.
template <class Isa, bool PAIR>
struct PanelRun {
    static void prefetch(const Call& call, int64_t at) {
        __builtin_prefetch(static_cast<const char*>(call.y) + 4 * at, 1);
    }

    // Codes of a panel less their zero points; lanes that no channel of the image meets stay zero.
    static void unpack(const Call& call, const QaLayer& part, int group, int tile, void* panel) {
        const int64_t index = static_cast<int64_t>(group) * part.panels + tile;
        const Fold fold(part, PAIR, group, tile);
        Isa::template unpack<PAIR>(part.codes + index * part.units * 32 * part.weight_bits,
                                   part.weight_bits, part.units, panel, fold.zero);
        if (fold.any) clear_spare(call, static_cast<uint8_t*>(panel));
    }

    static void clear_spare(const Call& call, uint8_t* panel) {
        const QaLayer& l = *call.layer;
        constexpr int lanes = PAIR ? 2 : 4, bytes = 4 / lanes;
        for (int s = call.tap_steps; l.in_channels < l.in_padded && s <= call.real_steps; s += call.tap_steps)
            for (int c = l.in_channels - l.in_padded; c < 0; ++c) {
                const int at = c + lanes * s;  // among all lanes
                for (int n = 0; n < 16; ++n)
                    std::memset(panel + 64 * (at / lanes) + 4 * n + at % lanes * bytes, 0, bytes);
            }
        std::memset(panel + 64 * static_cast<int64_t>(call.real_steps), 0,
                    64 * static_cast<size_t>(call.total_steps - call.real_steps));
    }

    // Whether a handful of rows can be multiplied by 8-bit codes as they are stored, which does not pay
    // for unpacking; a spare lane of the image would meet a zero point.
    static bool direct(const Call& call, const QaLayer& part, int pixels) {
        const bool spare = call.layer->in_channels < call.layer->in_padded;
        return PAIR && Isa::kDirect && !call.planar && pixels <= 6 && part.weight_bits == 8 &&
               !(spare && part.weight_zero);
    }

    template <int ROWS, bool DIRECT>
    static void dense_rows(const Call& call, const uint8_t* image, const void* panel, const int32_t* zero,
                           const uint16_t* chunk, int chunks, const int32_t* from, int32_t* tile) {
        const uint8_t* row[ROWS];
        for (int r = 0; r < ROWS; ++r) row[r] = image + from[r];
        if constexpr (DIRECT) {
            Isa::template dense_direct<ROWS>(row, call.step_offset, panel, zero, call.real_steps, tile);
        } else {
            Isa::template dense<PAIR, ROWS>(row, call.step_offset, panel, chunk, chunks, tile);
        }
    }

    // What a panel's outputs need; later groups of a sum add to the first one's.
    static Epilogue epilogue(const Call& call, int group) {
        Epilogue e = call.epilogue;
        if (call.layer->sum_groups && group > 0) e.flags |= QA_ACCUMULATE;
        return e;
    }
    static int64_t first_channel(const QaLayer& l, int group, int n0) {
        return (l.sum_groups ? 0 : static_cast<int64_t>(group) * l.out_channels) + n0;
    }

    // Sums of up to six pixels.  DIRECT: `panel` are 8-bit codes in pair order, still packed, and `zero`
    // what is to be taken off them.
    template <bool DIRECT>
    static void multiply(const Call& call, const uint8_t* image, const void* panel, const int32_t* zero,
                         const uint16_t* chunk, int chunks, const int32_t* from, int rows,
                         int32_t* tile) {
        switch (rows) {
            case 6: dense_rows<6, DIRECT>(call, image, panel, zero, chunk, chunks, from, tile); break;
            case 5: dense_rows<5, DIRECT>(call, image, panel, zero, chunk, chunks, from, tile); break;
            case 4: dense_rows<4, DIRECT>(call, image, panel, zero, chunk, chunks, from, tile); break;
            case 3: dense_rows<3, DIRECT>(call, image, panel, zero, chunk, chunks, from, tile); break;
            case 2: dense_rows<2, DIRECT>(call, image, panel, zero, chunk, chunks, from, tile); break;
            default: dense_rows<1, DIRECT>(call, image, panel, zero, chunk, chunks, from, tile);
        }
    }

    // Where the outputs of a panel go.
    struct Outlet {
        Epilogue e;
        int first, width, group;  // `first`: channel of the constants
        int64_t shift;
    };
    static Outlet outlet(const Call& call, int p) {
        const QaLayer& l = *call.layer;
        const int group = p / l.panels, n0 = p % l.panels * 16;
        return {epilogue(call, group), p * 16, smaller(16, l.out_channels - n0), group,
                first_channel(l, group, n0) * call.geo.y_channel};
    }

    // Outputs of pixels m to m + rows - 1 of a block whose first is `pixel`.
    static inline QA_ALWAYS void store(const Call& call, const Outlet& out, const int32_t* tile, int rows,
                                       const int64_t* to, int pixel, int m, const int32_t* sums) {
        const int32_t* total = out.e.weight_zero ? sums + m : nullptr;
        if (call.rows) {
            const int32_t groups = call.layer->groups;
            const int64_t at = static_cast<int64_t>(pixel + m) * groups + out.group;
            const RowScales own = {call.rows->scale + at, call.rows->zero + at, groups};
            Isa::store_rows(tile, rows, own, out.e, out.first, out.width, total, call.y, to + m, out.shift,
                            call.geo.y_channel);
        } else {
            Isa::store_dense(tile, rows, out.e, out.first, out.width, total, call.y, to + m, out.shift,
                             call.geo.y_channel);
        }
    }

    template <bool DIRECT>
    static void dense_panel(const Call& call, int p, const uint8_t* image, const void* panel,
                            const int32_t* zero, const int64_t* to, int pixel, int count, const int32_t* sums) {
        const QaLayer& l = *call.layer;
        const int32_t* from = reinterpret_cast<const int32_t*>(to + count);
        const Outlet out = outlet(call, p);
        const uint16_t* chunk = l.chunk_units + l.chunk_start[p];
        const int chunks = l.chunk_start[p + 1] - l.chunk_start[p];
        alignas(64) int32_t tile[6 * 16];
        for (int m = 0; m < count; m += 6) {
            const int rows = smaller(count - m, 6);
            // the micro-kernel hides the time that the output lines take to arrive
            for (int r = 0; r < rows; ++r) prefetch(call, to[m + r] + out.shift);
            multiply<DIRECT>(call, image, panel, zero, chunk, chunks, from + m, rows, tile);
            store(call, out, tile, rows, to, pixel, m, sums);
        }
    }

    template <int CHANNELS>
    static void planar_block(const Call& call, const uint8_t* image, const uint8_t* panel,
                             const uint16_t* chunk, int chunks, const PixelVector* v, int32_t* tile) {
        const uint8_t* at[4] = {image + v[0].lo, image + v[0].hi, image + v[1].lo, image + v[1].hi};
        if (v[0].whole() && v[1].whole()) {
            Isa::template planar<PAIR, CHANNELS, false>(at, call.step_offset, panel, chunk, chunks,
                                                        tile);
        } else {
            Isa::template planar<PAIR, CHANNELS, true>(at, call.step_offset, panel, chunk, chunks,
                                                       tile);
        }
    }

    static void planar_panel(const Call& call, int p, const uint8_t* image, const void* panel,
                             const PixelVector* list, int count, const int32_t* sums) {
        const QaLayer& l = *call.layer;
        const int group = p / l.panels, n0 = p % l.panels * 16;
        const int width = smaller(16, l.out_channels - n0);
        const int64_t channel = first_channel(l, group, n0);
        const Epilogue e = epilogue(call, group);
        const uint16_t* chunk = l.chunk_units + l.chunk_start[p];
        const int chunks = l.chunk_start[p + 1] - l.chunk_start[p];
        alignas(64) int32_t tile[6 * 16];
        for (int m = 0; m < count; m += 2) {
            const PixelVector pair[2] = {list[m], list[m + 1 < count ? m + 1 : m]};
            for (int n = 0; n < width;) {
                const int left = width - n;
                const uint8_t* weights = static_cast<const uint8_t*>(panel) + 4 * n;
                for (int c = 0; c < smaller(left, 6); ++c) {
                    const int64_t plane = (channel + n + c) * call.geo.y_channel;
                    prefetch(call, pair[0].y_lo + plane);
                    prefetch(call, pair[1].y_hi + plane);
                }
                int channels;
                if (left >= 9 || left == 5 || left == 6) {
                    channels = 6;
                    planar_block<6>(call, image, weights, chunk, chunks, pair, tile);
                } else if (left >= 3) {
                    channels = 4;
                    planar_block<4>(call, image, weights, chunk, chunks, pair, tile);
                } else {
                    channels = 2;
                    planar_block<2>(call, image, weights, chunk, chunks, pair, tile);
                }
                const int real = smaller(channels, left);
                for (int v = 0; v < 2 && m + v < count; ++v)
                    Isa::store_planar(tile + 8 * v, real, e, p * 16 + n, pair[v],
                                      sums + 8 * (m + v), call.y,
                                      (channel + n) * call.geo.y_channel, call.geo.y_channel);
                n += channels;
            }
        }
    }
};

}  // namespace

#endif
