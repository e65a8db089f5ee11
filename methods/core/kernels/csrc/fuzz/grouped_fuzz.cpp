// Random layers whose K axis has groups, with gathers, ranges by row, and branches of small rank,
// against plain loops.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "fuzz/fuzz_problem.h"
#include "quantarena.h"

extern "C" {
const char* qa_isa_name(int32_t);
void* qa_entry(const char*, int32_t);
}

namespace {

struct Grouped {
    Problem p;
    QaGroups groups{};
    QaGeometry g{};
    std::vector<int32_t> edge{0}, chunk_start{0}, act_zero, row_zero;
    std::vector<uint16_t> order, chunks;
    std::vector<float> act_scale, weight_scale, row_scale;
    std::unique_ptr<float[]> x, down, up;
    int step = 0;
    bool apart() const { return p.layer.sum_groups != 0; }
    int inputs() const { return p.layer.groups * p.layer.in_channels; }
};

struct Range {
    float scale;
    int zero;
};

// Where the ranges of a row's group are found, the formulas of affine_params once more.
Range found(const Grouped& t, int64_t row, int group) {
    const QaLayer& l = t.p.layer;
    float low = 0, high = 0;
    for (int k = 0; k < l.in_channels; ++k) {
        const int at = group * l.in_channels + k;
        float v = t.x[row * t.g.x_pixel + at];
        if (l.in_mult) v *= t.p.mult[at];
        low = std::min(low, v), high = std::max(high, v);
    }
    const float top = static_cast<float>(l.act_max), half = static_cast<float>((l.act_max + 1) / 2);
    if (t.groups.ranges == QA_FOUND_SYMMETRIC)
        return {std::max(std::max(high / (half - 1), -low / half), 1e-8f), static_cast<int>(half)};
    const float scale = std::max((high - low) / top, 1e-8f);
    return {scale, static_cast<int>(std::min(std::max(std::nearbyint(-low / scale), 0.0f), top))};
}

Range range_of(const Grouped& t, int64_t row, int group) {
    if (t.groups.ranges == QA_BY_CALL) {
        const size_t at = static_cast<size_t>(t.step * t.groups.count + group);
        return {t.act_scale[at], t.act_zero[at]};
    }
    if (t.groups.ranges != QA_BY_ROW) return found(t, row, group);
    const size_t at = static_cast<size_t>(row * t.groups.count + group);
    return {t.row_scale[at], t.row_zero[at]};
}

int centred(const Grouped& t, float x, Range range, int channel) {
    const bool by_product = t.groups.ranges >= QA_FOUND;
    const float mult = t.p.layer.in_mult ? t.p.mult[channel] : 1.0f;
    float v = by_product ? x * mult * (1.0f / range.scale) : x * (1.0f / range.scale);
    if (by_product) v = (x * mult) * (1.0f / range.scale);
    else if (t.p.layer.in_mult) v *= mult;
    const float low = static_cast<float>(-range.zero), high = static_cast<float>(t.p.layer.act_max - range.zero);
    if (std::isnan(v)) v = low;
    return static_cast<int>(std::nearbyint(v < low ? low : v > high ? high : v));
}

void cut_groups(Grouped& t) {
    const QaLayer& l = t.p.layer;
    const int lanes = l.pair ? 2 : 4, taps = l.kernel_h * l.kernel_w;
    for (int panel = 0; panel < l.panels; ++panel)
        for (int g = 0; g < t.groups.count; ++g) {
            const int steps = (t.edge[g + 1] + lanes - 1) / lanes - t.edge[g] / lanes;
            int left = (steps * taps * lanes + 15) / 16;
            for (; left > 0;) {
                const int n = l.pair || t.p.wide ? left : std::min(left, factor_bits(t.p) < 5 ? pick(1, 2) : 1);
                t.chunks.push_back(static_cast<uint16_t>(n));
                left -= n;
            }
            t.chunk_start.push_back(static_cast<int32_t>(t.chunks.size()));
        }
}

Grouped random_groups() {
    Grouped t;
    do t.p = random_problem();
    while (!t.p.parts.empty() || (t.p.layer.groups > 1 && t.p.layer.kernel_h * t.p.layer.kernel_w > 1));
    QaLayer& l = t.p.layer;
    QaGroups& k = t.groups;
    const bool matrix = l.kernel_h * l.kernel_w == 1 && (l.groups > 1 || pick(0, 1));
    if (matrix) l.stride_h = l.stride_w = 1, l.pad_h = l.pad_w = 0;
    l.sum_groups = l.groups > 1;
    const bool by_row = l.sum_groups || (matrix && pick(0, 1));
    k.ranges = by_row ? pick(1, l.act_max > 1 ? 3 : 2) : 0;
    k.count = l.sum_groups ? l.groups : by_row ? 1 : pick(1, std::min(l.in_channels, 9));
    std::vector<int32_t> cuts;
    for (int c = 1; c < t.inputs(); ++c) cuts.push_back(c);
    std::shuffle(cuts.begin(), cuts.end(), generator);
    if (l.sum_groups) {
        for (int g = 1; g < k.count; ++g) t.edge.push_back(g * l.in_channels);
    } else {
        std::sort(cuts.begin(), cuts.begin() + (k.count - 1));
        t.edge.insert(t.edge.end(), cuts.begin(), cuts.begin() + (k.count - 1));
    }
    t.edge.push_back(t.inputs());
    k.edge = t.edge.data();
    if (!by_row && pick(0, 3)) {
        for (int c = 0; c < t.inputs(); ++c) t.order.push_back(static_cast<uint16_t>(c));
        std::shuffle(t.order.begin(), t.order.end(), generator);
        k.order = t.order.data();
    }
    k.table_size = pick(1, 3);
    t.step = pick(0, k.table_size - 1);
    for (int i = 0; i < k.table_size * k.count; ++i) {
        t.act_scale.push_back(0.01f * pick(1, 9) * (pick(0, 2) ? 1.0f : 40.0f));  // groups differ a lot
        t.act_zero.push_back(pick(0, 1) ? pick(0, 1) * l.act_max : pick(0, l.act_max));
    }
    k.act_scale = t.act_scale.data();
    k.act_zero = t.act_zero.data();
    if (!l.sum_groups && pick(0, 1)) {
        for (int i = 0; i < k.count * l.out_channels; ++i) t.weight_scale.push_back(0.01f * pick(1, 9));
        k.weight_scale = t.weight_scale.data();
    }
    if (!l.sum_groups) {
        cut_groups(t);
        l.chunk_start = t.chunk_start.data();
        l.chunk_units = t.chunks.data();
    }
    k.rank = pick(0, 1) ? pick(1, 40) : 0;
    const int taps = l.kernel_h * l.kernel_w, downs = taps * t.inputs() * k.rank;
    t.down.reset(new float[static_cast<size_t>(downs) + 7]);
    t.up.reset(new float[static_cast<size_t>(k.rank * l.out_channels)]);
    for (int i = 0; i < downs + 7; ++i) t.down[i] = i < downs ? 0.125f * pick(-8, 8) : NAN;
    for (int i = 0; i < k.rank * l.out_channels; ++i) t.up[i] = 0.125f * pick(-8, 8);
    k.down = t.down.get();
    k.up = t.up.get();
    QaGeometry& g = t.g;
    g.batch = matrix || t.p.deep ? 1 : pick(1, 3);
    g.height = matrix ? 1 : std::max(pick(1, t.p.deep ? 2 : 9), l.dilation_h * (l.kernel_h - 1) + 1 - 2 * l.pad_h);
    g.width = std::max(pick(1, t.p.deep ? 3 : 30), l.dilation_w * (l.kernel_w - 1) + 1 - 2 * l.pad_w);
    g.out_height = (g.height + 2 * l.pad_h - l.dilation_h * (l.kernel_h - 1) - 1) / l.stride_h + 1;
    g.out_width = (g.width + 2 * l.pad_w - l.dilation_w * (l.kernel_w - 1) - 1) / l.stride_w + 1;
    g.x_channel = 1;
    g.x_pixel = t.inputs() + pick(0, 3);
    g.x_row = g.x_pixel * g.width + pick(0, 3);
    g.x_batch = g.x_row * g.height + pick(0, 3);
    const int64_t size = (g.batch - 1) * g.x_batch + (g.height - 1) * g.x_row + (g.width - 1) * g.x_pixel + t.inputs();
    t.x.reset(new float[static_cast<size_t>(size)]);
    const float special[] = {NAN, INFINITY, -INFINITY, 1e30f};
    const bool odd = k.ranges < QA_FOUND && k.rank == 0 && pick(0, 3) == 0;
    for (int64_t i = 0; i < size; ++i)
        t.x[i] = odd && pick(0, 9) == 0 ? special[pick(0, 3)] : 0.05f * pick(-400, 400);
    const int far = k.ranges == QA_BY_ROW && pick(0, 1) ? farthest(t.p) : 0;
    for (int64_t i = 0; i < g.width * k.count; ++i) {
        t.row_scale.push_back(0.05f * pick(1, 9));
        t.row_zero.push_back(pick(0, l.act_max));
        if (far) t.row_zero.back() = pick(0, 1) ? l.act_max + pick(0, far) : -pick(0, far);
    }
    const int64_t out = l.out_channels;
    if (pick(0, 3)) {
        g.y_channel = 1, g.y_pixel = out, g.y_row = out * g.out_width, g.y_batch = g.y_row * g.out_height;
    } else {
        g.y_pixel = 1, g.y_row = g.out_width, g.y_channel = g.y_row * g.out_height, g.y_batch = out * g.y_channel;
    }
    return t;
}

// What one output ought to be: sums of each group, the value, and the size of what it is made of.
struct Want {
    std::vector<int64_t> totals;
    double value, size;
};

Want wanted(const Grouped& t, int64_t b, int n, int64_t oy, int64_t ox) {
    const QaLayer& l = t.p.layer;
    const QaGeometry& g = t.g;
    const int taps = l.kernel_h * l.kernel_w, rank = t.groups.rank;
    Want w{std::vector<int64_t>(static_cast<size_t>(t.groups.count)), t.p.biased ? t.p.bias[n] : 0.0, 0};
    std::vector<double> down(static_cast<size_t>(rank));
    for (int tap = 0; tap < taps; ++tap) {
        const int64_t y = oy * l.stride_h - l.pad_h + tap / l.kernel_w * l.dilation_h;
        const int64_t x = ox * l.stride_w - l.pad_w + tap % l.kernel_w * l.dilation_w;
        if (y < 0 || y >= g.height || x < 0 || x >= g.width) continue;
        const float* at = t.x.get() + b * g.x_batch + y * g.x_row + x * g.x_pixel;
        for (int i = 0; i < t.groups.count; ++i) {
            const Range range = range_of(t, x, i);
            for (int k = t.edge[i]; k < t.edge[i + 1]; ++k) {
                const int channel = t.groups.order ? t.order[k] : k;
                const int row = t.apart() ? i * l.out_channels + n : n, inner = t.apart() ? k - t.edge[i] : k;
                const int c = t.p.weight[(static_cast<size_t>(row) * l.in_channels + inner) * taps + tap];
                w.totals[i] += static_cast<int64_t>(centred(t, at[channel], range, channel)) * (c - t.p.zero[row]);
            }
        }
        for (int k = 0; k < t.inputs() * rank; ++k)
            down[k % rank] += static_cast<double>(at[k / rank]) * t.down[tap * t.inputs() * rank + k];
    }
    for (int i = 0; i < t.groups.count; ++i) {
        const double sw = t.groups.weight_scale ? t.weight_scale[i * l.out_channels + n]
                                                : t.p.scale[t.apart() ? i * l.out_channels + n : n];
        const double term = static_cast<double>(w.totals[i]) * sw * range_of(t, ox, i).scale;
        w.value += term, w.size += std::fabs(term);
    }
    for (int r = 0; r < rank; ++r) {
        const double term = down[r] * t.up[r * l.out_channels + n];
        w.value += term, w.size += std::fabs(term) + 40;  // terms of `down` may cancel
    }
    return w;
}

}  // namespace

bool grouped_trial(uint64_t seed) {
    generator.seed(seed);
    Grouped t = random_groups();
    const QaLayer& l = t.p.layer;
    const QaGeometry& g = t.g;
    const int64_t outputs = g.batch * g.out_height * g.out_width * l.out_channels;
    std::vector<Want> want(static_cast<size_t>(outputs));
    for (int64_t b = 0; b < g.batch; ++b)
        for (int n = 0; n < l.out_channels; ++n)
            for (int64_t i = 0; i < g.out_height * g.out_width; ++i) {
                const int64_t oy = i / g.out_width, ox = i % g.out_width;
                want[b * g.y_batch + n * g.y_channel + oy * g.y_row + ox * g.y_pixel] = wanted(t, b, n, oy, ox);
            }
    const QaRowScales own = {t.row_scale.data(), t.row_zero.data()};
    const QaRowScales* rows = t.groups.ranges == QA_BY_ROW ? &own : nullptr;
    for (int i = 0; qa_isa_name(i) != nullptr; ++i) {
        const std::string name = qa_isa_name(i);
        const int threads = pick(1, 4);
        const bool add = pick(0, 1);
        if (l.pair ? name != "scalar" && name != "avx2" : name == "avx2" && t.p.wide) continue;
        const QaRunGroups run = reinterpret_cast<QaRunGroups>(qa_entry(name.c_str(), 7));
        const std::unique_ptr<int32_t[]> total(new int32_t[outputs * t.groups.count]);
        const std::unique_ptr<float[]> y(new float[outputs]);
        std::fill(y.get(), y.get() + outputs, add ? 0.0f : NAN);
        const int flags = add ? QA_ACCUMULATE : 0;
        if (run(&l, &t.groups, &g, t.x.get(), total.get(), t.step, threads, QA_INTEGER, rows) != QA_OK ||
            run(&l, &t.groups, &g, t.x.get(), y.get(), t.step, threads, flags, rows) != QA_OK) {
            std::printf("seed %llu: %s refuses groups\n", static_cast<unsigned long long>(seed), name.c_str());
            return false;
        }
        for (int64_t o = 0; o < outputs; ++o) {
            bool same = std::fabs(y[o] - want[o].value) <= 1e-5 * want[o].size + 1e-3;
            for (int k = 0; k < t.groups.count; ++k) same = same && total[k * outputs + o] == want[o].totals[k];
            if (same) continue;
            std::printf("seed %llu: %s gives %g for %g in %d groups, ranges %d, rank %d, first sum %d for %lld\n",
                        static_cast<unsigned long long>(seed), name.c_str(), static_cast<double>(y[o]),
                        want[o].value, t.groups.count, t.groups.ranges, t.groups.rank, total[o],
                        static_cast<long long>(want[o].totals[0]));
            return false;
        }
    }
    return true;
}
