// Random layers for the fuzz driver, and the packed layout of layout.py, written a second time.
#ifndef QUANTARENA_FUZZ_PROBLEM_H
#define QUANTARENA_FUZZ_PROBLEM_H

#include <algorithm>
#include <cstdlib>
#include <initializer_list>
#include <memory>
#include <random>
#include <vector>

#include "quantarena.h"

namespace {

thread_local std::mt19937_64 generator;
int pick(int low, int high) { return std::uniform_int_distribution<int>(low, high)(generator); }
int pick_of(std::initializer_list<int> values) {
    return values.begin()[pick(0, static_cast<int>(values.size()) - 1)];
}

struct Problem {
    QaLayer layer{};
    std::vector<int> weight;  // [group][out][channel][kh][kw]
    std::vector<uint8_t> codes;
    std::vector<int32_t> chunk_start{0}, sum, zero, table_zero;
    std::vector<uint16_t> chunks;
    std::vector<float> scale, bias, mult, table;
    bool asymmetric = false, biased = false;
    bool far = false;   // zero points outside of the codes, up to +-2^bits
    bool deep = false;  // as many products as int32 sums survive with the worst zero points
    bool wide = false;  // byte products that only int32 accumulators survive
    bool edges = false;  // sizes around those of tiles and panels
    // of a layer made of others; weight, scale, bias and zero are then those of all parts, in order
    std::vector<std::unique_ptr<Problem>> parts;
    std::vector<const QaLayer*> part;
    std::vector<int32_t> source;
};

// The layout of layout.py, written a second time from its description.
void encode(Problem& p) {
    QaLayer& l = p.layer;
    const int taps = l.kernel_h * l.kernel_w, lanes = l.pair ? 2 : 4, bits = l.weight_bits;
    p.codes.assign(static_cast<size_t>(l.groups) * l.panels * l.units * 32 * bits, 0);
    for (int g = 0; g < l.groups; ++g)
        for (int n = 0; n < l.panels * 16; ++n)
            for (int k = 0; k < l.units * 16; ++k) {
                const int tap = k / l.in_padded, c = k % l.in_padded;
                int code = 0;
                if (n < l.out_channels && tap < taps && c < l.in_channels)
                    code = p.weight[((static_cast<size_t>(g) * l.out_channels + n) * l.in_channels + c) *
                                        taps + tap];
                const int within = k % 16, step = within / lanes;
                const int position = (step * 16 + n % 16) * lanes + within % lanes;
                const int v = position / 32, byte = position % 32;
                uint8_t* unit = p.codes.data() +
                                ((static_cast<size_t>(g) * l.panels + n / 16) * l.units + k / 16) * 32 * bits;
                if (bits == 8) {
                    unit[v * 32 + byte] = static_cast<uint8_t>(code);
                    continue;
                }
                int value = code + (1 << (bits - 1));
                for (int width = 4; width >= 1; width /= 2) {
                    if (!(bits & width)) continue;
                    const int per_byte = 8 / width;
                    const int field = value & ((1 << width) - 1);
                    unit[v / per_byte * 32 + byte] |= static_cast<uint8_t>(field << (v % per_byte * width));
                    unit += 32 * width;
                    value >>= width;
                }
            }
}

// Bits of what is multiplied: weights less their zero points have one more, less far ones two.
int factor_bits(const Problem& p) { return p.layer.weight_bits + p.asymmetric + p.far; }

// Chunks of K that int16 accumulators survive: a unit of 4 steps is safe up to 5 bits, two up to 4.
void cut(Problem& p, int widest) {
    QaLayer& l = p.layer;
    l.panels = (l.out_channels + 15) / 16;
    for (int q = 0; q < l.groups * l.panels; ++q) {
        for (int left = l.units; left > 0;) {
            const int n = l.pair || p.wide ? left : std::min(left, widest < 5 ? pick(1, 2) : 1);
            p.chunks.push_back(static_cast<uint16_t>(n));
            left -= n;
        }
        p.chunk_start.push_back(static_cast<int32_t>(p.chunks.size()));
    }
    l.chunk_start = p.chunk_start.data();
    l.chunk_units = p.chunks.data();
}

// Codes and constants of all channels.
void fill(Problem& p) {
    QaLayer& l = p.layer;
    const int taps = l.kernel_h * l.kernel_w, outs = l.groups * l.out_channels;
    const int low = -(1 << (l.weight_bits - 1)), high = -low - 1;
    p.weight.resize(static_cast<size_t>(outs) * l.in_channels * taps);
    const int style = pick(0, 3);
    for (int& w : p.weight) w = style == 0 ? low : style == 1 ? high : style == 2 ? (pick(0, 1) ? low : high) : pick(low, high);
    p.sum.assign(outs, 0);
    for (size_t i = 0; i < p.weight.size(); ++i)
        p.sum[i / (static_cast<size_t>(l.in_channels) * taps)] += p.weight[i];
    p.asymmetric = (l.pair || p.wide || l.weight_bits < 5) && pick(0, 1);
    p.far = p.asymmetric && (l.pair || p.wide || l.weight_bits < 4) && pick(0, 1);
    cut(p, factor_bits(p));
    const int reach = 1 << l.weight_bits, end = pick(0, 3);
    p.biased = pick(0, 1);
    for (int n = 0; n < outs; ++n) {
        p.scale.push_back(0.01f * pick(1, 9));
        p.bias.push_back(p.biased ? 0.1f * pick(-9, 9) : 0);
        const int away = end == 0 ? reach : end == 1 ? -reach : pick(-reach, reach);
        p.zero.push_back(p.far ? away : p.asymmetric ? pick(low, high) : 0);
    }
    encode(p);
    l.codes = p.codes.data();
    l.weight_scale = p.scale.data();
    l.weight_sum = p.sum.data();
    l.weight_zero = p.asymmetric ? p.zero.data() : nullptr;
    l.bias = p.biased ? p.bias.data() : nullptr;
}

// Makes a layer of parts of several widths, whose channels are in their own order or in any.
void compose(Problem& p) {
    QaLayer& l = p.layer;
    const size_t depth = static_cast<size_t>(l.in_channels) * l.kernel_h * l.kernel_w;
    l.out_channels = 0;
    int widest = 0;
    for (int i = pick(1, pick(0, 3) ? 3 : 12); i > 0; --i) {
        p.parts.push_back(std::make_unique<Problem>());
        Problem& q = *p.parts.back();
        q.layer = l;
        q.wide = p.wide;
        q.layer.weight_bits = pick(1, l.pair || p.wide ? 8 : 5);
        q.layer.out_channels = pick(1, 40);
        fill(q);
        widest = std::max(widest, factor_bits(q));
        p.part.push_back(&q.layer);
        l.out_channels += q.layer.out_channels;
        p.asymmetric |= q.asymmetric;
        p.biased |= q.biased;
    }
    for (int n = 0; n < l.out_channels; ++n) p.source.push_back(n);
    const int style = pick(0, 3);
    if (style == 0) std::shuffle(p.source.begin(), p.source.end(), generator);
    if (style > 1) {  // each part's channels in their order, spread among the others'
        std::vector<int> whose, next;
        for (size_t i = 0, first = 0; i < p.parts.size(); first += p.part[i++]->out_channels) {
            whose.insert(whose.end(), p.part[i]->out_channels, static_cast<int>(i));
            next.push_back(static_cast<int>(first));
        }
        std::shuffle(whose.begin(), whose.end(), generator);
        for (int n = 0; n < l.out_channels; ++n) p.source[n] = next[whose[n]]++;
    }
    for (int g = 0; g < l.groups; ++g)
        for (int n = 0; n < l.out_channels; ++n) {
            int i = 0, row = p.source[n];
            while (row >= p.part[i]->out_channels) row -= p.part[i++]->out_channels;
            const Problem& q = *p.parts[i];
            const size_t from = static_cast<size_t>(g) * q.layer.out_channels + row;
            p.weight.insert(p.weight.end(), q.weight.begin() + from * depth, q.weight.begin() + (from + 1) * depth);
            p.scale.push_back(q.scale[from]);
            p.bias.push_back(q.bias[from]);
            p.zero.push_back(q.zero[from]);
        }
    cut(p, widest);
    l.parts = static_cast<int32_t>(p.part.size());
    l.part = p.part.data();
    l.source = p.source.data();
}

// K of the deepest layers at 8 bits, see quantarena.h: with any zero points, with zero points within
// the codes, and with any codes that a proof allows.
constexpr int kDeepest[] = {21931, 33025, 65000};

// The largest sum of an output channel's positive, or negative, weights less their zero points.
int64_t largest_side(const Problem& p) {
    const size_t depth =
        static_cast<size_t>(p.layer.in_channels) * p.layer.kernel_h * p.layer.kernel_w;
    int64_t most = 1;
    for (size_t n = 0; n < p.scale.size(); ++n) {
        int64_t side[2] = {0, 0};
        for (size_t k = n * depth; k < (n + 1) * depth; ++k) {
            const int w = p.weight[k] - p.zero[n];
            side[w < 0] += std::abs(w);
        }
        most = std::max({most, side[0], side[1]});
    }
    return most;
}

// The proof that a caller owes, see quantarena.h.
bool proven(const Problem& p) { return p.layer.act_max * largest_side(p) <= 0x7fffffff; }

// How far beyond the codes zero points of rows may lie by that proof.
int farthest(const Problem& p) {
    return static_cast<int>(std::min<int64_t>(1 << 14, 0x7fffffff / largest_side(p) - p.layer.act_max));
}

Problem any_problem() {
    Problem p;
    p.deep = pick(0, 19) == 0;
    QaLayer& l = p.layer;
    l.weight_bits = pick(1, 8);
    const int act_bits = pick(1, 8);
    l.act_max = (1 << act_bits) - 1;
    l.groups = pick(0, 3) ? 1 : pick(2, 3);
    l.out_channels = pick(1, 40);
    l.in_channels = pick(1, pick(0, 3) ? 40 : 400);
    if (pick(0, 7) == 0)  // a filter for each channel, or a few
        l.groups = pick(2, 40), l.in_channels = pick(0, 3) ? 1 : 2, l.out_channels = pick(1, 3);
    l.kernel_h = pick(1, pick(0, 3) ? 3 : 6);
    l.kernel_w = pick(1, pick(0, 3) ? 3 : 6);
    if (pick(0, 2) == 0 || l.in_channels > 40) l.kernel_h = l.kernel_w = 1;
    l.stride_h = pick(1, 4);
    l.stride_w = pick(1, 4);
    if (pick(0, 1)) l.stride_h = l.stride_w = 1;
    l.pad_h = pick(0, pick(0, 3) ? 2 : 7);  // a kernel may lie in the padding altogether
    l.pad_w = pick(0, pick(0, 3) ? 2 : 7);
    l.dilation_h = pick(1, 3);
    l.dilation_w = pick(1, 3);
    l.pair = pick(0, 1);
    p.wide = !l.pair && (l.weight_bits > 5 || pick(0, 3) == 0);
    p.edges = !p.deep && pick(0, 3) == 0;
    if (p.edges) {
        l.out_channels = pick_of({1, 15, 16, 17, 31, 32, 33, 48});
        l.in_channels = pick_of({1, 3, 4, 60, 63, 64, 65, 68, 128, 288, 320});
        l.groups = pick(0, 3) ? 1 : 2;
        l.kernel_h = l.kernel_w = pick(0, 2) && l.in_channels < 320 ? 1 : 3;
        l.pad_h = l.pad_w = l.kernel_h / 2;
        l.stride_h = l.stride_w = l.kernel_h == 3 && pick(0, 2) == 0 ? 2 : 1;
        l.dilation_h = l.dilation_w = l.kernel_h == 3 && pick(0, 2) == 0 ? 2 : 1;
    }
    if (p.deep) {
        const int taps = pick(0, 2) ? 1 : 9, most = kDeepest[pick(0, 2)];
        l.in_channels = (most - (pick(0, 1) ? 0 : pick(0, 40))) / taps, l.out_channels = pick(1, 3);
        l.groups = l.stride_h = l.stride_w = 1;
        l.kernel_h = l.kernel_w = taps == 9 ? 3 : 1, l.pad_h = l.pad_w = taps == 9;
        l.dilation_h = l.dilation_w = 1;
    }
    l.in_padded = (l.in_channels + 3) / 4 * 4;
    l.units = (l.in_padded * l.kernel_h * l.kernel_w + 15) / 16;
    for (int c = 0; c < l.groups * l.in_channels; ++c) p.mult.push_back(0.25f * pick(1, 8));
    l.table_size = pick(1, 3);
    for (int i = 0; i < l.table_size; ++i) {
        p.table.push_back(0.05f * pick(1, 5));
        p.table_zero.push_back(pick(0, 1) ? pick(0, 1) * l.act_max : pick(0, l.act_max));
    }
    l.in_mult = pick(0, 2) ? nullptr : p.mult.data();
    l.act_scale = p.table.data();
    l.act_zero = p.table_zero.data();
    if (!p.deep && pick(0, 1)) {
        compose(p);
    } else {
        fill(p);
    }
    return p;
}

// A layer that its caller may run.
Problem random_problem() {
    for (;;) {
        Problem p = any_problem();
        if (proven(p)) return p;
    }
}

}  // namespace

#endif
