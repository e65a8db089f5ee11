// Tables of a call whose K axis has groups: where codes lie in the image of a pixel, and in what order
// the micro-kernel walks over them.
//
// A pixel's codes are dwords of the groups, one group after the other.  Where a group begins or ends
// within a dword of the weights, that dword is there twice: lanes of other groups hold code 0 in it.
// So weights have no padding between groups, and products of a dword belong to one group.
#ifndef QUANTARENA_GROUP_PLAN_H
#define QUANTARENA_GROUP_PLAN_H

#include "grouped/tile.h"
#include "plan.h"

namespace {

struct GroupCall : Call {
    const QaGroups* groups;
    bool apart;   // groups have panels of their own
    bool plain;   // the image is that of a layer without groups
    int count;
    int inputs;   // channels of x
    int lanes;    // of a pixel, over all groups
    int step;     // row of the tables
    int32_t *first, *wide;         // [count], first dword of a pixel's group and their number
    int32_t *steps, *begin;        // [count], steps of a group, and the first
    int32_t* flat;                 // [steps], offsets for a pixel that is there at every tap
    int32_t* stored;               // [steps], step of the panel, or -1: no weights
    int32_t* from;                 // [lanes], channel of x of each lane, or -1
    int32_t* zero;                 // [inputs], zero points
    float *inv, *mult;             // [inputs]
    uint8_t* moves;                // byte moves, see Isa::move_bytes
    uint8_t* edge_pixel;           // codes of a pixel beyond the border
    uint8_t* probe;                // codes whose sums are the corrections
    float* nothing;                // [inputs] zeros
    Call of_panels;  // as `PanelRun::unpack` wants it
    int not_finite;
};

template <class Isa, bool PAIR>
struct GroupPlan {
    using Cut = Plan<Isa, PAIR>;
    static constexpr int kLanes = Cut::kLanes;
    static constexpr int kStepsPerUnit = Cut::kStepsPerUnit;
    // Units without a micro-kernel for groups multiply whole units of K.
    static constexpr int kGrain = !PAIR && GroupStep<Isa>::value > 0 ? GroupStep<Isa>::value : kStepsPerUnit;
    static constexpr int kMoved = 512;  // most channels whose bytes move by table

    static int first_dword(const GroupCall& c, int g) { return c.groups->edge[g] / kLanes; }
    static int dwords(const GroupCall& c, int g) {
        return static_cast<int>(ceil_div(c.groups->edge[g + 1], kLanes)) - first_dword(c, g);
    }
    static int taps(const QaLayer& l) { return l.kernel_h * l.kernel_w; }

    // What `plan_blocks` reads.
    static void shape(GroupCall& c) {
        const QaLayer& l = *c.layer;
        c.count = c.groups->count;
        c.apart = l.sum_groups != 0;
        c.plain = !c.apart && c.count == 1 && c.groups->order == nullptr;
        c.inputs = l.in_channels * l.groups;
        c.tap_steps = 0;
        for (int g = 0; g < c.count; ++g) c.tap_steps += c.apart ? l.in_padded / kLanes : dwords(c, g);
        if (c.plain) c.tap_steps = l.in_padded / kLanes;
        c.lanes = c.tap_steps * kLanes;
        c.real_steps = l.in_padded / kLanes * taps(l);
        c.total_steps = 0;
        for (int g = 0; g < c.count; ++g) c.total_steps += group_steps(c, g);
        c.of_panels = c;
        c.of_panels.tap_steps = l.in_padded / kLanes;
        c.of_panels.total_steps = l.units * kStepsPerUnit;
    }
    static int group_steps(const GroupCall& c, int g) {
        const QaLayer& l = *c.layer;
        if (c.apart || c.plain) return l.units * kStepsPerUnit;
        return static_cast<int>(ceil_div(dwords(c, g) * taps(l), kGrain)) * kGrain;
    }

    // Consecutive arrays in one block.
    struct Carve {
        char* at;
        size_t used = 0;
        template <class T>
        void take(T*& to, int64_t count) {
            to = at == nullptr ? nullptr : reinterpret_cast<T*>(at + used);
            used += (sizeof(T) * static_cast<size_t>(count) + 63) / 64 * 64;
        }
    };
    static int move_blocks(const GroupCall& c) { return static_cast<int>(ceil_div(c.lanes, 32)); }
    static int sources(const GroupCall& c) { return static_cast<int>(ceil_div(c.inputs, 16)); }
    static bool moved(const GroupCall& c) {
        return !PAIR && !c.apart && !c.plain && c.inputs <= kMoved;
    }

    static size_t lay_out(GroupCall& c, char* block) {
        Carve carve{block};
        carve.take(c.first, c.count), carve.take(c.wide, c.count);
        carve.take(c.steps, c.count), carve.take(c.begin, c.count);
        int32_t* offset = nullptr;
        carve.take(offset, c.total_steps);
        c.step_offset = offset;
        carve.take(c.flat, c.total_steps), carve.take(c.stored, c.total_steps);
        carve.take(c.from, c.lanes), carve.take(c.zero, c.inputs + 32);
        carve.take(c.inv, c.inputs + 32), carve.take(c.mult, c.inputs + 32);
        carve.take(c.moves, moved(c) ? 32 * static_cast<int64_t>(move_blocks(c)) * sources(c) : 0);
        carve.take(c.edge_pixel, 4 * static_cast<int64_t>(c.tap_steps) + 64);
        carve.take(c.probe, 4 * static_cast<int64_t>(c.tap_steps) + 64);
        carve.take(c.nothing, c.groups->rank ? c.inputs : 0);
        return carve.used;
    }

    static bool prepare(GroupCall& c) {
        const size_t bytes = lay_out(c, nullptr);
        char* block = static_cast<char*>(qa_scratch(QA_SLOT_CALL, bytes));
        if (block == nullptr) return false;
        lay_out(c, block);
        walk(c);
        channels(c);
        if (c.groups->rank) std::memset(c.nothing, 0, sizeof(float) * static_cast<size_t>(c.inputs));
        return true;
    }

  private:
    static void walk(GroupCall& c) {
        const QaLayer& l = *c.layer;
        int32_t* offset = const_cast<int32_t*>(c.step_offset);
        const int per_tap = l.in_padded / kLanes;
        int s = 0, at = 0;
        for (int g = 0; g < c.count; ++g) {
            c.first[g] = at;
            c.wide[g] = c.apart || c.plain ? per_tap : dwords(c, g);
            c.begin[g] = s;
            c.steps[g] = group_steps(c, g);
            const int from = c.apart || c.plain ? 0 : first_dword(c, g);
            for (int t = 0; t < taps(l); ++t) {
                const int64_t shift = t / l.kernel_w * l.dilation_h * c.row_pitch +
                                      static_cast<int64_t>(t % l.kernel_w) * l.dilation_w * c.tap_steps * 4;
                for (int i = 0; i < c.wide[g]; ++i, ++s) {
                    c.flat[s] = 4 * (at + i);
                    offset[s] = static_cast<int32_t>(shift + c.flat[s]);
                    c.stored[s] = t * per_tap + from + i;
                }
            }
            for (; s < c.begin[g] + c.steps[g]; ++s) {  // weights are zero there
                offset[s] = c.flat[s] = 0;
                c.stored[s] = -1;
            }
            at += c.wide[g];
        }
    }

    // Ranges by channel of the input, and where its codes go.
    static void channels(GroupCall& c) {
        const QaLayer& l = *c.layer;
        const QaGroups& k = *c.groups;
        const bool by_call = k.ranges == QA_BY_CALL;
        const int64_t row = static_cast<int64_t>(c.step) * c.count;
        std::memset(c.edge_pixel, 0, 4 * static_cast<size_t>(c.tap_steps) + 64);
        std::memset(c.probe, 0, 4 * static_cast<size_t>(c.tap_steps) + 64);
        for (int i = 0; i < c.lanes; ++i) c.from[i] = -1;
        for (int g = 0; g < c.count; ++g) {
            const int zero = by_call ? k.act_zero[row + g] : 1;  // by row: sums of the weights alone
            const int first = c.apart ? g * l.in_channels : k.edge[g];
            const int last = c.apart ? first + l.in_channels : k.edge[g + 1];
            const int skip = c.apart || c.plain ? 0 : k.edge[g] % kLanes;
            for (int w = first; w < last; ++w) {
                const int channel = k.order ? k.order[w] : w;
                const int lane = c.first[g] * kLanes + skip + w - first;
                c.from[lane] = channel;
                put(c.probe, lane, zero);
                if (!by_call) continue;
                put(c.edge_pixel, lane, zero);
                c.zero[channel] = zero;
                c.inv[channel] = 1.0f / k.act_scale[row + g];
                c.mult[channel] = l.in_mult ? l.in_mult[channel] : 1.0f;
            }
        }
        if (!moved(c)) return;
        std::memset(c.moves, 0x80, 32 * static_cast<size_t>(move_blocks(c)) * sources(c));
        for (int i = 0; i < c.lanes; ++i) {
            if (c.from[i] < 0) continue;
            const int64_t entry = static_cast<int64_t>(i / 32) * sources(c) + c.from[i] / 16;
            c.moves[32 * entry + i % 32] = static_cast<uint8_t>(c.from[i] % 16);
        }
    }

  public:
    static void put(uint8_t* to, int lane, int code) {
        if (PAIR) {
            const uint16_t wide = static_cast<uint16_t>(code);
            std::memcpy(to + 2 * lane, &wide, 2);
        } else {
            to[lane] = static_cast<uint8_t>(code);
        }
    }
};

}  // namespace

#endif
