// Panels of a layer that is made of others: 16 neighbouring output channels, each from a panel of one
// of the parts.  With many pixels the channels are put in order while the weights are unpacked, once
// for a whole block, so that neither products nor outputs know of it.  With few pixels the sums of
// the parts' panels are put in order instead.
#ifndef QUANTARENA_MIXED_H
#define QUANTARENA_MIXED_H

#include "panels.h"

namespace {

// What one block has made of the parts' panels so far.
template <class Isa, bool PAIR>
class MixedPanels {
    using Rows = PanelRun<Isa, PAIR>;
    // Two panels of every width stay unpacked: 16 channels of the whole lie in no more, as a rule.
    static constexpr int kWidths = 8, kSlots = 2 * kWidths;
    static constexpr int64_t kUnitBytes = PAIR ? 512 : 256;  // unpacked
    static constexpr int kNear = 64;  // steps whose channels are moved while they are in the L1 cache

    const Call& call;
    const QaLayer& l;
    const int64_t pitch;
    uint8_t* const panel;
    const uint8_t* held[kSlots] = {};  // codes that are unpacked in each slot
    LaneMove moves[4][4];              // to each four channels
    int count[4] = {};

  public:
    // Whether to put sums in order: a channel of weights has more products than there are pixels.
    static bool few(const Call& call, int pixels) {
        return call.layer->parts && !call.planar && pixels <= 96 && pixels <= call.layer->units * 4;
    }
    static size_t bytes(const Call& call, int pixels) {
        const QaLayer& l = *call.layer;
        const size_t unpacked = static_cast<size_t>(l.units) * kUnitBytes;
        if (!few(call, pixels)) return unpacked * (1 + smaller(2 * l.parts, kSlots));
        size_t panels = 0;
        for (int i = 0; i < l.parts; ++i) panels += l.part[i]->panels;
        return unpacked + panels * (64 * static_cast<size_t>(pixels) + 1);
    }
    MixedPanels(const Call& of, uint8_t* scratch)
        : call(of), l(*of.layer), pitch(l.units * kUnitBytes), panel(scratch) {}

    // Channels 16 p to 16 p + 15 of a group, unpacked to `target`.
    void fill(int group, int p, uint8_t* target) {
        std::memset(target, 0, pitch);
        for (int n = 0; n < smaller(16, l.out_channels - 16 * p); ++n) {
            const Channel at = channel_of(l, 16 * p + n);
            const uint8_t* codes = stored(at, group);
            const int slot = at.index % kWidths * 2 + at.row / 16 % 2;
            uint8_t* from = panel + (1 + slot) * pitch;
            if (held[slot] != codes) {
                if (used(from)) move(target);
                Rows::unpack(call, *at.part, group, at.row / 16, from);
                held[slot] = codes;
            }
            add(from, at.row % 16, n);
        }
        move(target);
    }

    // Sums of those panels of a group's parts that hold channels of panels `first` to `last` - 1.
    void multiply(int group, int first, int last, const uint8_t* image, const int32_t* from, int pixels) {
        uint8_t* wanted = panel + pitch + place(l.parts, 0, pixels);
        std::memset(wanted, 0, place(l.parts, 0, 1) / 64);
        for (int n = 16 * first; n < smaller(16 * last, l.out_channels); ++n) {
            const Channel at = channel_of(l, n);
            wanted[place(at.index, at.row / 16, 1) / 64] = 1;
        }
        for (int i = 0; i < l.parts; ++i) {
            const QaLayer& part = *l.part[i];
            for (int tile = 0; tile < part.panels; ++tile) {
                if (!wanted[place(i, tile, 1) / 64]) continue;
                const int p = group * part.panels + tile;
                const uint8_t* codes = stored({&part, i, 16 * tile}, group);
                const uint16_t* chunk = part.chunk_units + part.chunk_start[p];
                const int chunks = part.chunk_start[p + 1] - part.chunk_start[p];
                int32_t* to = reinterpret_cast<int32_t*>(panel + pitch + place(i, tile, pixels));
                if constexpr (PAIR && Isa::kDirect) {
                    if (Rows::direct(call, part, pixels)) {
                        const Fold fold(part, PAIR, group, tile);
                        Rows::template multiply<true>(call, image, codes, fold.zero, chunk, chunks, from, pixels, to);
                        continue;
                    }
                }
                Rows::unpack(call, part, group, tile, panel);
                for (int m = 0; m < pixels; m += 6)
                    Rows::template multiply<false>(call, image, panel, nullptr, chunk, chunks, from + m,
                                                   smaller(pixels - m, 6), to + 16 * m);
            }
        }
    }

    // Outputs of a panel from the sums.
    void store(int p, const int64_t* to, int pixel, int pixels, const int32_t* sums) {
        const int32_t* at[16] = {};
        const typename Rows::Outlet out = Rows::outlet(call, p);
        const int width = out.width;
        for (int n = 0; n < width; ++n) {
            const Channel from = channel_of(l, p % l.panels * 16 + n);
            at[n] = reinterpret_cast<const int32_t*>(
                        panel + pitch + place(from.index, from.row / 16, pixels)) + from.row % 16;
        }
        alignas(64) int32_t tile[6 * 16] = {};
        for (int m = 0; m < pixels; m += 6) {
            const int rows = smaller(pixels - m, 6);
            for (int n = 0; n < width; ++n)
                for (int r = 0; r < rows; ++r) tile[16 * r + n] = at[n][16 * (m + r)];
            Rows::store(call, out, tile, rows, to, pixel, m, sums);
        }
    }

  private:
    const uint8_t* stored(const Channel& at, int group) const {
        const int64_t index = static_cast<int64_t>(group) * at.part->panels + at.row / 16;
        return at.part->codes + index * l.units * 32 * at.part->weight_bits;
    }

    // Where the sums of a part's panel begin, in bytes.
    int64_t place(int part, int tile, int pixels) const {
        for (int i = 0; i < part; ++i) tile += l.part[i]->panels;
        return static_cast<int64_t>(tile) * pixels * 64;
    }

    bool used(const uint8_t* slot) const {
        for (int q = 0; q < 4; ++q)
            for (int i = 0; i < count[q]; ++i)
                if (moves[q][i].from >= slot && moves[q][i].from < slot + pitch) return true;
        return false;
    }

    // Notes that a lane of an unpacked panel is channel n.
    void add(const uint8_t* from, int lane, int n) {
        LaneMove* all = moves[n / 4];
        int i = 0, shift = 0;
        for (; i < count[n / 4]; ++i) {  // four channels side by side move together
            const int64_t bytes = from + 4 * lane - all[i].from;
            shift = static_cast<int>(bytes);
            if (bytes >= 0 && bytes < 16) break;
        }
        if (i == count[n / 4]) {
            ++count[n / 4];
            all[i].from = from + 4 * smaller(lane, 12);
            std::memset(all[i].order, -1, 16);
            shift = 4 * (lane - smaller(lane, 12));
        }
        for (int b = 0; b < 4; ++b) all[i].order[n % 4 * 4 + b] = static_cast<int8_t>(shift + b);
    }

    void move(uint8_t* target) {
        const int64_t steps = pitch / 64;
        for (int64_t s = 0; s < steps; s += kNear)
            for (int q = 0; q < 4; ++q) {
                Isa::move_lanes(moves[q], count[q], smaller<int64_t>(kNear, steps - s), target + 64 * s + 16 * q);
                for (int i = 0; i < count[q]; ++i) moves[q][i].from += 64 * kNear;
            }
        for (int& c : count) c = 0;
    }
};

}  // namespace

#endif
