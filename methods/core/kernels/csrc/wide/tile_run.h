// Multiplication of a block by tiles: 16 pixels x 64 k by 64 k x 16 channels an instruction.
//
// The unpacked panel is the right operand as it is: a step of K is a row of a tile.  The left operand is
// read from the image, without a copy where 16 pixels lie at equal distances; else their codes are packed
// once for all panels.  K is walked in segments that are contiguous in the image: a row of the kernel,
// or a tap where taps lie apart.  A segment's last tile is filled up with rows of zero weights, so what
// the left operand reads beyond the segment does not matter.
//
// Pixels are outside, panels inside: at this speed writing the outputs takes as long as the products, and
// this order writes whole rows of them, prefetched while the products run.
#ifndef QUANTARENA_TILE_RUN_H
#define QUANTARENA_TILE_RUN_H

#include "panels.h"
#include "wide/tiles.h"

namespace {

template <class Isa>
struct TileRun {
    using Panel = PanelRun<Isa, false>;
    static constexpr int64_t kPanelsBytes = 1 << 20;  // of unpacked panels that stay in the second-level cache
    static constexpr int kFewRows = 64;               // below, panels are used at once

    // How a layer's K becomes tiles.
    struct Depth {
        int steps, segments, tiles;  // steps and tiles of a segment
        explicit Depth(const Call& call) {
            const QaLayer& l = *call.layer;
            steps = call.tap_steps * (l.dilation_w == 1 ? l.kernel_w : 1);
            segments = call.real_steps / steps;
            tiles = (steps + 15) / 16;
        }
        int all() const { return segments * tiles; }
        int64_t panel_bytes() const { return static_cast<int64_t>(all()) * kTileSize; }
    };

    // Sixteen pixels: tile t of K begins at base + offset[t], the next pixel `stride` further.
    struct Rows {
        const uint8_t* base;
        const int32_t* offset;
        int64_t stride;
        int count;
    };

    static int panels_at_once(const Call& call, int pixels) {
        const int panels = call.layer->panels;
        const int64_t fit = kPanelsBytes / Depth(call).panel_bytes() / 2 * 2;
        const int most = pixels <= kFewRows ? 4 : static_cast<int>(smaller<int64_t>(larger<int64_t>(fit, 4), 1 << 16));
        return smaller(most, panels);
    }

    // Panels, packed pixels, descriptions of pixels, and two tables of offsets.
    static size_t bytes(const Call& call, int pixels) {
        const Depth depth(call);
        const size_t groups = (static_cast<size_t>(pixels) + 15) / 16;
        return depth.panel_bytes() * (panels_at_once(call, pixels) + groups) + (sizeof(Rows) * groups + 63) / 64 * 64 +
               (2 * sizeof(int32_t) * depth.all() + 63) / 64 * 64;
    }

    // Moves the segments of an unpacked panel to whole tiles.
    static void pad(const Depth& depth, uint8_t* panel) {
        const int64_t steps = depth.steps, whole = 16 * static_cast<int64_t>(depth.tiles);
        if (steps == whole) return;
        for (int64_t s = depth.segments - 1; s >= 0; --s) {
            uint8_t* to = panel + 64 * whole * s;
            std::memmove(to, panel + 64 * steps * s, static_cast<size_t>(64 * steps));
            std::memset(to + 64 * steps, 0, static_cast<size_t>(64 * (whole - steps)));
        }
    }

    // Sixteen pixels of the image from `from` on, or fewer, which are packed.
    static Rows rows_at(const uint8_t* image, const int32_t* from, int count, int tiles, const int32_t* offset,
                        const int32_t* packed_offset, uint8_t* packed) {
        bool even = count == kTileRows;
        const int64_t stride = count > 1 ? from[1] - from[0] : 0;
        for (int i = 1; i < count; ++i) even &= from[i] - from[i - 1] == stride;
        if (even) return {image + from[0], offset, stride, count};
        for (int t = 0; t < tiles; ++t)
            for (int i = 0; i < count; ++i)
                std::memcpy(packed + kTileSize * static_cast<int64_t>(t) + kTileBytes * i, image + from[i] + offset[t],
                            kTileBytes);
        return {packed, packed_offset, kTileBytes, count};
    }

    // Cache lines of the outputs that a block of tiles will write, in B panels.
    template <int B>
    struct Lines {
        const char* y;
        const int64_t* to;
        int64_t shift[B];
        int64_t pitch;  // of channels
        unsigned pixels;

        unsigned count() const { return (pitch == 1 ? pixels : (pixels + 15) / 16 * 16) * B; }
        QA_INLINE void prefetch(unsigned i) const {
            const unsigned line = i / B;
            int64_t at = shift[i % B];
            if (pitch == 1) {
                at += to[line];
            } else {  // sixteen pixels of each channel are a line
                at += to[line / 16 * 16] + line % 16 * pitch;
            }
            __asm__ volatile("prefetchw %0" ::"m"(y[4 * at]));
        }
    };

    // Sums of 16 A pixels and 16 B channels to `out`, [A][B][16][16].  Tiles 0 to 3 are sums, 4 and 5 pixels,
    // the others weights; of four panels, weights take turns in 5 to 7.
    template <int A, int B>
    static QA_NOINLINE void multiply(const Rows* rows, const uint8_t* panel, int64_t pitch, int tiles,
                                     const Lines<B>& lines, int32_t* out) {
        const unsigned count = lines.count(), each = static_cast<unsigned>(ceil_div(count, tiles));
        unsigned line = 0;
        tile_zero<0>();
        if constexpr (B > 1) tile_zero<1>();
        if constexpr (A > 1 || B > 2) tile_zero<2>();
        if constexpr ((A > 1 && B > 1) || B > 2) tile_zero<3>();
        for (int t = 0; t < tiles; ++t, panel += kTileSize) {
            for (const unsigned end = smaller(line + each, count); line < end; ++line) lines.prefetch(line);
            const uint8_t* first = rows[0].base + rows[0].offset[t];
            if constexpr (B > 2) {
                tile_load<4>(first, rows[0].stride);
                tile_load<5>(panel, kTileBytes);
                tile_dot<0, 4, 5>();
                tile_load<6>(panel + pitch, kTileBytes);
                tile_dot<1, 4, 6>();
                tile_load<7>(panel + 2 * pitch, kTileBytes);
                tile_dot<2, 4, 7>();
                tile_load<5>(panel + 3 * pitch, kTileBytes);
                tile_dot<3, 4, 5>();
            } else {
                tile_load<6>(panel, kTileBytes);
                tile_load<4>(first, rows[0].stride);
                tile_dot<0, 4, 6>();
                if constexpr (B > 1) {
                    tile_load<7>(panel + pitch, kTileBytes);
                    tile_dot<1, 4, 7>();
                }
                if constexpr (A > 1) {
                    tile_load<5>(rows[1].base + rows[1].offset[t], rows[1].stride);
                    tile_dot<2, 5, 6>();
                    if constexpr (B > 1) tile_dot<3, 5, 7>();
                }
            }
        }
        tile_store<0>(out, kTileBytes);
        if constexpr (B > 1) tile_store<1>(out + 256, kTileBytes);
        if constexpr (B > 2) tile_store<2>(out + 512, kTileBytes);
        if constexpr (B > 2) tile_store<3>(out + 768, kTileBytes);
        if constexpr (A > 1) tile_store<2>(out + 256 * B, kTileBytes);
        if constexpr (A > 1 && B > 1) tile_store<3>(out + 768, kTileBytes);
    }

    // What a block's tiles share.
    struct Work {
        const Call& call;
        const int64_t* to;
        int pixel;
        const int32_t* sums;
        const uint8_t* panels;
        Depth depth;
    };

    // Outputs of A groups of pixels, from pixel m of the block on, and of panels p to p + B - 1, of which
    // the first lies at place `at`.
    template <int A, int B>
    static void outputs(const Work& w, const Rows* rows, int m, int p, int at) {
        alignas(64) int32_t out[A * B * 256];
        typename Panel::Outlet outlet[B];
        Lines<B> lines = {static_cast<const char*>(w.call.y), w.to + m, {}, w.call.geo.y_channel, 0};
        for (int b = 0; b < B; ++b) {
            outlet[b] = Panel::outlet(w.call, p + b);
            lines.shift[b] = outlet[b].shift;
        }
        for (int a = 0; a < A; ++a) lines.pixels += static_cast<unsigned>(rows[a].count);
        const int64_t pitch = w.depth.panel_bytes();
        multiply<A, B>(rows, w.panels + at * pitch, pitch, w.depth.all(), lines, out);
        for (int a = 0; a < A; ++a)
            for (int b = 0; b < B; ++b)
                Panel::store(w.call, outlet[b], out + 256 * (a * B + b), rows[a].count, w.to, w.pixel,
                             m + kTileRows * a, w.sums);
    }

    // Panels p to p + count - 1 of a group against all pixels of a block.  fill(tile, to) unpacks one.
    template <class Fill>
    static void run(const Call& call, int p, int count, const uint8_t* image, void* scratch, const int64_t* to,
                    int pixel, int pixels, const int32_t* sums, Fill fill) {
        const Depth depth(call);
        const int tiles = depth.all(), groups = (pixels + 15) / 16, most = panels_at_once(call, pixels);
        uint8_t* panels = static_cast<uint8_t*>(scratch);
        uint8_t* packed = panels + depth.panel_bytes() * most;
        Rows* rows = reinterpret_cast<Rows*>(packed + depth.panel_bytes() * groups);
        int32_t* offset = reinterpret_cast<int32_t*>(reinterpret_cast<uint8_t*>(rows) +
                                                     (sizeof(Rows) * static_cast<size_t>(groups) + 63) / 64 * 64);
        int32_t* packed_offset = offset + tiles;
        for (int t = 0; t < tiles; ++t) {
            offset[t] = call.step_offset[t / depth.tiles * depth.steps] + t % depth.tiles * kTileBytes;
            packed_offset[t] = t * kTileSize;
        }
        const int32_t* from = reinterpret_cast<const int32_t*>(to + pixels);
        for (int g = 0; g < groups; ++g)
            rows[g] = rows_at(image, from + kTileRows * g, smaller(kTileRows, pixels - kTileRows * g), tiles, offset,
                              packed_offset, packed + depth.panel_bytes() * g);
        const Work work = {call, to, pixel, sums, panels, depth};
        const Tiles configured;
        for (int first = 0; first < count; first += most) {
            const int here = smaller(most, count - first);
            for (int i = 0; i < here; ++i) {
                uint8_t* panel = panels + depth.panel_bytes() * i;
                fill(p + first + i, panel);
                pad(depth, panel);
            }
            for (int g = 0; g < groups; g += 2) {
                const int m = kTileRows * g, q = p + first;
                int i = 0;
                if (g + 1 < groups) {
                    for (; i + 2 <= here; i += 2) outputs<2, 2>(work, rows + g, m, q + i, i);
                    if (i < here) outputs<2, 1>(work, rows + g, m, q + i, i);
                } else {
                    for (; i + 4 <= here; i += 4) outputs<1, 4>(work, rows + g, m, q + i, i);
                    for (; i + 2 <= here; i += 2) outputs<1, 2>(work, rows + g, m, q + i, i);
                    if (i < here) outputs<1, 1>(work, rows + g, m, q + i, i);
                }
            }
        }
    }

    // See QaUnit; without units, the instruction alone.
    static int peak(int32_t units, int64_t repeats) {
        const int tiles = units / 4;
        const size_t size = static_cast<size_t>(larger(tiles, 1)) * kTileSize;
        uint8_t* data = static_cast<uint8_t*>(qa_scratch(QA_SLOT_PANEL, 4 * size));
        int32_t* offset = static_cast<int32_t*>(qa_scratch(QA_SLOT_CALL, sizeof(int32_t) * larger(tiles, 1)));
        if (data == nullptr || offset == nullptr) return QA_NO_MEMORY;
        for (int t = 0; t < tiles; ++t) offset[t] = t * kTileBytes;
        const Rows rows[2] = {{data, offset, kTileBytes * tiles, kTileRows},
                              {data + size, offset, kTileBytes * tiles, kTileRows}};
        const Lines<2> none = {nullptr, nullptr, {}, 1, 0};
        alignas(64) int32_t out[4 * 256];
        const Tiles configured;
        if (units == 0) {
            tile_zero<0>(), tile_zero<1>(), tile_zero<2>(), tile_zero<3>(), tile_zero<4>(), tile_zero<6>();
            for (int64_t i = 0; i < repeats / 32; ++i) tile_dot<0, 4, 6>(), tile_dot<1, 4, 6>(), tile_dot<2, 4, 6>();
            return QA_OK;
        }
        for (int64_t i = 0; i < repeats * 3 / 32; ++i)
            multiply<2, 2>(rows, data + 2 * size, static_cast<int64_t>(size), tiles, none, out);
        return QA_OK;
    }
};

}  // namespace

#endif
