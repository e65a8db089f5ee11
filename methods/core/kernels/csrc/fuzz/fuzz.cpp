// Stand-alone fuzz driver for the sanitizers: random layers and shapes on every usable instruction
// set, inputs and outputs in heap blocks of exactly their size, results against a naive loop.
// Build and run with `python -m quantarena.methods.core.kernels.sanitize`.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "fuzz/fuzz_problem.h"
#include "fuzz/reference.h"
#include "quantarena.h"

extern "C" {
const char* qa_isa_name(int32_t);
void* qa_entry(const char*, int32_t);  // in the order of QaUnit
void qa_set_parallel(void*);
}
bool attention_trial(uint64_t seed);  // attention_fuzz.cpp
bool grouped_trial(uint64_t seed);    // grouped_fuzz.cpp
bool step_trial(uint64_t seed);       // step_fuzz.cpp

namespace {

void threads_of_our_own(void (*fn)(void*), void* arg, unsigned count, unsigned) {
    std::vector<std::thread> team;
    for (unsigned i = 1; i < count; ++i) team.emplace_back(fn, arg);
    fn(arg);
    for (std::thread& t : team) t.join();
}

typedef int (*Norm)(const QaNorm*, const float*, float*, int32_t);
typedef int (*Extremes)(const float*, float*, float*, int64_t, int64_t, int32_t);
typedef int (*Activate)(const QaRows*, const float*, const float*, float*, int32_t);

// Normalizations and activations in blocks of exactly their size.
bool float_trial(uint64_t seed) {
    generator.seed(seed);
    QaNorm n{};
    n.groups = pick(1, 4);
    n.channels = n.groups * pick(1, 11);
    n.pixels = pick(1, 40);
    n.batch = pick(1, 3);
    n.last = pick(0, 1);
    n.activation = pick(0, 3);
    n.eps = 1e-5f;
    const int64_t size = n.batch * n.channels * n.pixels;
    const std::unique_ptr<float[]> x(new float[size]), y(new float[size]);
    const std::unique_ptr<float[]> weight(new float[n.channels]), bias(new float[n.channels]);
    for (int64_t i = 0; i < size; ++i) x[i] = 0.015625f * pick(-600, 600) + 3;  // exact differences
    for (int64_t c = 0; c < n.channels; ++c) weight[c] = 0.1f * pick(-9, 9), bias[c] = 0.1f * pick(-9, 9);
    n.weight = pick(0, 1) ? weight.get() : nullptr;
    n.bias = pick(0, 1) ? bias.get() : nullptr;
    QaRows r{};
    r.rows = pick(1, 9), r.columns = pick(1, 40);
    r.x_row = r.columns + pick(0, 3), r.gate_row = r.columns + pick(0, 3);
    r.activation = pick(1, 3);
    const std::unique_ptr<float[]> rows(new float[(r.rows - 1) * r.x_row + r.columns]);
    const std::unique_ptr<float[]> gate(new float[(r.rows - 1) * r.gate_row + r.columns]);
    const std::unique_ptr<float[]> out(new float[r.rows * r.columns]);
    for (int64_t i = 0; i < (r.rows - 1) * r.x_row + r.columns; ++i) rows[i] = 0.1f * pick(-999, 999);
    for (int64_t i = 0; i < (r.rows - 1) * r.gate_row + r.columns; ++i) gate[i] = 0.1f * pick(-9, 9);
    const bool gated = pick(0, 1);
    const int64_t width = n.channels / n.groups, area = width * n.pixels;
    for (int i = 0; qa_isa_name(i) != nullptr; ++i) {
        const char* name = qa_isa_name(i);
        const int threads = pick(1, 3);
        if (reinterpret_cast<Norm>(qa_entry(name, 2))(&n, x.get(), y.get(), threads) != QA_OK ||
            reinterpret_cast<Activate>(qa_entry(name, 3))(&r, rows.get(), gated ? gate.get() : nullptr,
                                                          out.get(), threads) != QA_OK)
            return false;
        const int64_t slices = size / n.pixels;
        const std::unique_ptr<float[]> low(new float[slices]), high(new float[slices]);
        reinterpret_cast<Extremes>(qa_entry(name, 4))(x.get(), low.get(), high.get(), slices, n.pixels,
                                                      threads);
        for (int64_t k = 0; k < slices; ++k) {
            const float* from = x.get() + k * n.pixels;
            if (low[k] == *std::min_element(from, from + n.pixels) &&
                high[k] == *std::max_element(from, from + n.pixels))
                continue;
            std::printf("seed %llu: %s misses an extreme\n", static_cast<unsigned long long>(seed), name);
            return false;
        }
        for (int64_t b = 0; b < n.batch; ++b)
            for (int64_t g = 0; g < n.groups; ++g) {
                const auto at = [&](int64_t k) {  // k-th value of the group
                    const int64_t c = g * width + k / n.pixels, p = k % n.pixels;
                    return b * n.channels * n.pixels + (n.last ? p * n.channels + c : c * n.pixels + p);
                };
                double mean = 0, square = 0;
                for (int64_t k = 0; k < area; ++k) mean += x[at(k)] / static_cast<double>(area);
                for (int64_t k = 0; k < area; ++k)
                    square += (x[at(k)] - mean) * (x[at(k)] - mean) / static_cast<double>(area);
                for (int64_t k = 0; k < area; ++k) {
                    const int64_t c = g * width + k / n.pixels;
                    const double v = (x[at(k)] - mean) / std::sqrt(square + n.eps);
                    const double want = v * (n.weight ? weight[c] : 1) + (n.bias ? bias[c] : 0);
                    if (near(y[at(k)], activated(want, n.activation))) continue;
                    std::printf("seed %llu: %s normalizes to %g\n", static_cast<unsigned long long>(seed),
                                name, static_cast<double>(y[at(k)]));
                    return false;
                }
            }
        for (int64_t k = 0; k < r.rows * r.columns; ++k) {
            const int64_t row = k / r.columns, c = k % r.columns;
            const double want = activated(rows[row * r.x_row + c], r.activation) *
                                (gated ? gate[row * r.gate_row + c] : 1);
            if (near(out[k], want)) continue;
            std::printf("seed %llu: %s activates to %g instead of %g\n",
                        static_cast<unsigned long long>(seed), name, static_cast<double>(out[k]), want);
            return false;
        }
    }
    return true;
}

// Strides of an input as torch makes them by slicing, permuting and expanding: pixels or channels
// side by side, the other axes in any order, with gaps.  Returns the elements from first to last.
int64_t stride_input(QaGeometry& g, int64_t channels, bool by_row) {
    struct Axis {
        int64_t size, *stride;
    };
    Axis batch{g.batch, &g.x_batch}, row{g.height, &g.x_row}, pixel{g.width, &g.x_pixel},
        channel{channels, &g.x_channel};
    const bool last = by_row || pick(0, 1), plain = pick(0, 1);
    std::vector<Axis> axes = {last ? channel : pixel};
    if (last) axes.insert(axes.end(), {pixel, row, batch});
    else axes.insert(axes.end(), {row, channel, batch});
    if (!plain && pick(0, 1)) std::shuffle(axes.begin() + 1, axes.end(), generator);
    int64_t step = 1, end = 1;
    for (const Axis& axis : axes) {
        *axis.stride = step;
        if (!plain && &axis != &axes[0] && pick(0, 9) == 0) {
            *axis.stride = 0;  // expanded
            continue;
        }
        end += (axis.size - 1) * step;
        step = step * std::max<int64_t>(axis.size, 1) + (plain ? 0 : pick(0, 3));
    }
    return g.batch * g.height * g.width > 0 ? end : 0;
}

// Units that are compared, and how many layers each has computed.
struct Unit {
    std::string name;
    std::atomic<uint64_t> layers{0};
    bool runs(const Problem& p) const {
        return p.layer.pair ? name == "scalar" || name == "avx2" : name != "avx2" || !p.wide;
    }
};
std::deque<Unit> all_units;

bool trial(uint64_t seed, uint64_t wanted) {
    generator.seed(seed);
    Problem p = random_problem();
    QaLayer& l = p.layer;
    // rows with ranges of their own belong to linear layers
    const bool by_row = l.kernel_h == 1 && l.kernel_w == 1 && pick(0, 2) > 0;
    if (by_row) l.stride_h = l.stride_w = 1, l.pad_h = l.pad_w = 0;
    l.sum_groups = l.groups > 1 && pick(0, 1);
    QaGeometry g{};
    const bool linear = l.kernel_h * l.kernel_w == 1 && l.stride_w == 1 && l.pad_w == 0;
    g.batch = by_row || p.deep ? 1 : pick(0, 19) ? pick(1, 3) : 0;
    g.height = by_row || (p.deep && l.kernel_h == 1) ? 1 : pick(1, p.deep ? 2 : 14);
    g.width = linear && pick(0, 29) == 0 ? 0 : pick(1, p.deep ? 9 / l.kernel_w : 36);
    if (p.edges && linear) {
        g.batch = g.height = 1;
        g.width = pick_of({1, 7, 8, 15, 16, 17, 31, 32, 33, 47, 48, 49});
    } else if (p.edges) {
        g.height = pick_of({1, 4, 8, 15});
        g.width = g.height == 15 ? 17 : g.height;
    }
    // at least one output in each direction
    g.height = std::max<int64_t>(g.height, l.dilation_h * (l.kernel_h - 1) + 1 - 2 * l.pad_h);
    if (!linear) g.width = std::max<int64_t>({g.width, 1, l.dilation_w * (l.kernel_w - 1) + 1 - 2 * l.pad_w});
    g.out_height = (g.height + 2 * l.pad_h - l.dilation_h * (l.kernel_h - 1) - 1) / l.stride_h + 1;
    g.out_width = (g.width + 2 * l.pad_w - l.dilation_w * (l.kernel_w - 1) - 1 + l.stride_w) / l.stride_w;
    const int64_t in = static_cast<int64_t>(l.groups) * l.in_channels;
    const int64_t out = static_cast<int64_t>(l.sum_groups ? 1 : l.groups) * l.out_channels;
    const size_t inputs = static_cast<size_t>(stride_input(g, in, by_row));
    if (pick(0, 1)) {
        g.y_channel = 1;
        g.y_pixel = out, g.y_row = out * g.out_width, g.y_batch = g.y_row * g.out_height;
    } else {
        g.y_pixel = 1;
        g.y_row = g.out_width, g.y_channel = g.out_width * g.out_height, g.y_batch = out * g.y_channel;
    }
    const size_t outputs = static_cast<size_t>(out * g.out_width * g.out_height * g.batch);
    const size_t shift = pick(0, 3) ? 0 : pick(1, 7);  // any alignment of a float
    const std::unique_ptr<float[]> block(new float[shift + inputs]);
    float* const x = block.get() + shift;
    const float special[] = {NAN, INFINITY, -INFINITY, 1e30f, -1e30f, 0.0f, -0.0f};
    const float end = pick(0, 1) ? 1e9f : -1e9f;  // all codes at one end: the largest sums
    const bool ends = pick(0, 3) == 0;
    for (size_t i = 0; i < inputs; ++i)
        x[i] = ends ? end : pick(0, 9) ? 0.05f * pick(-400, 400) : special[pick(0, 6)];
    const int step = pick(0, l.table_size - 1);
    const int parts = l.sum_groups ? l.groups : 1;
    std::vector<float> row_scale;
    std::vector<int32_t> row_zero;
    const int far = by_row && pick(0, 1) ? farthest(p) : 0;
    for (int64_t i = 0; by_row && i < g.width * l.groups; ++i) {
        row_scale.push_back(0.05f * pick(1, 9));
        row_zero.push_back(pick(0, 1) ? pick(0, 1) * l.act_max : pick(0, l.act_max));
        if (far) row_zero.back() = pick(0, 1) ? l.act_max + pick(0, far) : -pick(0, far);
    }
    const QaRowScales own = {row_scale.data(), row_zero.data()};
    const QaRowScales* rows = by_row ? &own : nullptr;
    const auto range_of = [&](int64_t pixel, int64_t group) {
        const size_t at = static_cast<size_t>(pixel * l.groups + group);
        return by_row ? Range{row_scale[at], row_zero[at]} : Range{p.table[step], p.table_zero[step]};
    };
    const Reference reference(p, g, x, range_of);
    struct Want {
        int64_t total;
        double value, size;
    };
    std::vector<Want> want(outputs);
    for (int64_t b = 0; b < g.batch; ++b)
        for (int n = 0; n < out; ++n)
            for (int64_t i = 0; i < g.out_height * g.out_width; ++i) {
                const int64_t oy = i / g.out_width, ox = i % g.out_width;
                Want w{0, p.bias[n], 0};
                for (int part = 0; part < parts; ++part) {
                    const int channel = part * l.out_channels * (parts > 1) + n;
                    w.total = reference.sum(b, channel, oy, ox);
                    const double term = static_cast<double>(w.total) * p.scale[channel] *
                                        range_of(ox, channel / l.out_channels).scale;
                    w.value += term;
                    w.size += std::fabs(term);
                }
                want[b * g.y_batch + n * g.y_channel + oy * g.y_row + ox * g.y_pixel] = w;
            }
    for (Unit& unit : all_units) {
        const int threads = pick(1, 4);
        const bool add = pick(0, 1);
        if (!unit.runs(p) || unit.layers >= wanted) continue;
        const QaRun run = reinterpret_cast<QaRun>(qa_entry(unit.name.c_str(), 0));
        const std::unique_ptr<int32_t[]> total(new int32_t[outputs]);
        const std::unique_ptr<float[]> y(new float[outputs]);
        std::fill(total.get(), total.get() + outputs, INT32_MAX);  // what is not written shows
        std::fill(y.get(), y.get() + outputs, add ? 0.0f : NAN);
        if ((!l.sum_groups && run(&l, &g, x, total.get(), step, threads, QA_INTEGER, rows) != QA_OK) ||
            run(&l, &g, x, y.get(), step, threads, add ? QA_ACCUMULATE : 0, rows) != QA_OK) {
            std::printf("seed %llu: %s failed\n", static_cast<unsigned long long>(seed), unit.name.c_str());
            return false;
        }
        for (size_t i = 0; i < outputs; ++i) {
            if ((l.sum_groups || total[i] == want[i].total) &&
                std::fabs(y[i] - want[i].value) <= 1e-5 * want[i].size + 1e-3)
                continue;
            std::printf("seed %llu: %s gives %d, %g instead of %lld, %g\n",
                        static_cast<unsigned long long>(seed), unit.name.c_str(), total[i],
                        static_cast<double>(y[i]), static_cast<long long>(want[i].total), want[i].value);
            return false;
        }
        ++unit.layers;
    }
    return true;
}

bool all_have(uint64_t wanted) {
    return std::all_of(all_units.begin(), all_units.end(),
                       [&](const Unit& unit) { return unit.layers >= wanted; });
}

}  // namespace

// Arguments: first seed, layers for each unit, threads that call at the same time.
int main(int argc, char** argv) {
    const uint64_t first = argc > 1 ? std::strtoull(argv[1], nullptr, 10) : 0;
    const uint64_t count = argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 300;
    const unsigned callers = argc > 3 ? static_cast<unsigned>(std::strtoul(argv[3], nullptr, 10)) : 2;
    qa_set_parallel(reinterpret_cast<void*>(&threads_of_our_own));
    for (int i = 0; qa_isa_name(i) != nullptr; ++i) all_units.emplace_back().name = qa_isa_name(i);
    std::atomic<uint64_t> seed{first};
    std::atomic<uint64_t> other{0};
    std::atomic<bool> failed{false};
    const auto call = [&] {
        while (!failed) {
            const uint64_t mine = seed++;
            const bool more = mine - first < count;
            if (!more && all_have(count)) return;
            if (!trial(mine, count) || (more && !(float_trial(mine) && attention_trial(mine) && grouped_trial(mine) && step_trial(mine)))) failed = true;
            if (more) ++other;
        }
    };
    std::vector<std::thread> team;
    for (unsigned i = 1; i < callers; ++i) team.emplace_back(call);
    call();
    for (std::thread& t : team) t.join();
    if (failed) return 1;
    for (const Unit& unit : all_units)
        std::printf("%s: %llu layers, %llu float passes, %llu attention products, %llu layers of groups, "
                    "%llu recorded steps exact\n",
                    unit.name.c_str(),
                    static_cast<unsigned long long>(unit.layers), static_cast<unsigned long long>(other),
                    static_cast<unsigned long long>(other), static_cast<unsigned long long>(other),
                    static_cast<unsigned long long>(other));
    return 0;
}
