// Stand-alone fuzz driver for the sanitizers: random layers and shapes on every usable instruction
// set, inputs and outputs in heap blocks of exactly their size, results against a naive loop.
// Build and run with `python -m quantarena.methods.core.kernels.sanitize`.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "fuzz/fuzz_problem.h"
#include "quantarena.h"

extern "C" {
const char* qa_isa_name(int32_t);
void* qa_entry(const char*, int32_t);  // in the order of QaUnit
void qa_set_parallel(void*);
}
bool attention_trial(uint64_t seed);  // attention_fuzz.cpp

namespace {

void threads_of_our_own(void (*fn)(void*), void* arg, unsigned count, unsigned) {
    std::vector<std::thread> team;
    for (unsigned i = 1; i < count; ++i) team.emplace_back(fn, arg);
    fn(arg);
    for (std::thread& t : team) t.join();
}

// Activation parameters of one pixel.
struct Range {
    float scale;
    int zero;
};

int code_of(float x, const Problem& p, Range range, int channel) {
    float v = x * (1.0f / range.scale);
    if (p.layer.in_mult) v *= p.mult[channel];
    const int zero = range.zero;
    if (std::isnan(v)) return 0;
    const float low = static_cast<float>(-zero), high = static_cast<float>(p.layer.act_max - zero);
    return static_cast<int>(std::nearbyint(v < low ? low : v > high ? high : v)) + zero;
}

int64_t naive(const Problem& p, const QaGeometry& g, const float* x, Range range, int64_t b, int n,
              int64_t oy, int64_t ox) {
    const QaLayer& l = p.layer;
    const int taps = l.kernel_h * l.kernel_w, group = n / l.out_channels;
    const int zw = p.zero[n], zx = range.zero;
    int64_t total = 0;
    for (int c = 0; c < l.in_channels; ++c)
        for (int t = 0; t < taps; ++t) {
            const int64_t y = oy * l.stride_h - l.pad_h + t / l.kernel_w * l.dilation_h;
            const int64_t xx = ox * l.stride_w - l.pad_w + t % l.kernel_w * l.dilation_w;
            if (y < 0 || y >= g.height || xx < 0 || xx >= g.width) continue;
            const int channel = group * l.in_channels + c;
            const float v = x[b * g.x_batch + channel * g.x_channel + y * g.x_row + xx * g.x_pixel];
            const int w = p.weight[(static_cast<size_t>(n) * l.in_channels + c) * taps + t];
            total += static_cast<int64_t>(code_of(v, p, range, channel) - zx) * (w - zw);
        }
    return total;
}

double activated(double v, int kind) {
    if (kind == QA_SILU) return v / (1 + std::exp(-v));
    if (kind == QA_GELU) return 0.5 * v * std::erfc(-v / std::sqrt(2.0));
    if (kind == QA_GELU_TANH)
        return 0.5 * v * (1 + std::tanh(std::sqrt(2 / M_PI) * (v + 0.044715 * v * v * v)));
    return v;
}

bool near(float found, double want) { return std::fabs(found - want) <= 2e-5 * (1 + std::fabs(want)); }

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

bool trial(uint64_t seed) {
    generator.seed(seed);
    Problem p = random_problem();
    QaLayer& l = p.layer;
    // rows with ranges of their own belong to linear layers
    const bool by_row = l.kernel_h == 1 && l.kernel_w == 1 && pick(0, 2) > 0;
    if (by_row) l.stride_h = l.stride_w = 1, l.pad_h = l.pad_w = 0;
    l.sum_groups = l.groups > 1 && pick(0, 1);
    QaGeometry g{};
    g.batch = by_row || p.deep ? 1 : pick(1, 3);
    g.height = by_row || p.deep ? 1 : pick(1, 14);
    g.width = pick(1, p.deep ? 9 : 36);
    g.out_height = (g.height + 2 * l.pad_h - l.dilation_h * (l.kernel_h - 1) - 1) / l.stride_h + 1;
    g.out_width = (g.width + 2 * l.pad_w - l.dilation_w * (l.kernel_w - 1) - 1) / l.stride_w + 1;
    if (g.height + 2 * l.pad_h < l.dilation_h * (l.kernel_h - 1) + 1 ||
        g.width + 2 * l.pad_w < l.dilation_w * (l.kernel_w - 1) + 1)
        return true;
    const int64_t in = static_cast<int64_t>(l.groups) * l.in_channels;
    const int64_t out = static_cast<int64_t>(l.sum_groups ? 1 : l.groups) * l.out_channels;
    if (by_row || pick(0, 1)) {  // channels last, on either side
        g.x_channel = 1;
        g.x_pixel = in, g.x_row = in * g.width, g.x_batch = in * g.width * g.height;
    } else {
        g.x_pixel = 1;
        g.x_row = g.width, g.x_channel = g.width * g.height, g.x_batch = in * g.x_channel;
    }
    if (pick(0, 1)) {
        g.y_channel = 1;
        g.y_pixel = out, g.y_row = out * g.out_width, g.y_batch = g.y_row * g.out_height;
    } else {
        g.y_pixel = 1;
        g.y_row = g.out_width, g.y_channel = g.out_width * g.out_height, g.y_batch = out * g.y_channel;
    }
    const size_t inputs = static_cast<size_t>(in * g.width * g.height * g.batch);
    const size_t outputs = static_cast<size_t>(out * g.out_width * g.out_height * g.batch);
    const std::unique_ptr<float[]> x(new float[inputs]);
    const float special[] = {NAN, INFINITY, -INFINITY, 1e30f, -1e30f, 0.0f, -0.0f};
    const float end = pick(0, 1) ? 1e9f : -1e9f;  // all codes at one end: the largest sums
    const bool ends = pick(0, 3) == 0;
    for (size_t i = 0; i < inputs; ++i)
        x[i] = ends ? end : pick(0, 9) ? 0.05f * pick(-400, 400) : special[pick(0, 6)];
    const int step = pick(0, l.table_size - 1);
    const int parts = l.sum_groups ? l.groups : 1;
    std::vector<float> row_scale;
    std::vector<int32_t> row_zero;
    for (int64_t i = 0; by_row && i < g.width * l.groups; ++i) {
        row_scale.push_back(0.05f * pick(1, 9));
        row_zero.push_back(pick(0, l.act_max));
    }
    const QaRowScales own = {row_scale.data(), row_zero.data()};
    const QaRowScales* rows = by_row ? &own : nullptr;
    char text[16];
    for (int i = 0; qa_isa_name(i) != nullptr; ++i) {
        const std::string name = qa_isa_name(i);
        if (l.pair && (name == "avxvnni" || name == "avx512vnni" || name == "neon")) continue;
        if (p.wide && name == "avx2") continue;
        std::snprintf(text, sizeof text, "%s", name.c_str());
        const QaRun run = reinterpret_cast<QaRun>(qa_entry(text, 0));
        const std::unique_ptr<int32_t[]> total(new int32_t[outputs]);
        const std::unique_ptr<float[]> y(new float[outputs]);
        std::memset(y.get(), 0, outputs * sizeof(float));
        const int threads = pick(1, 3);
        if ((!l.sum_groups &&
             run(&l, &g, x.get(), total.get(), step, threads, QA_INTEGER, rows) != QA_OK) ||
            run(&l, &g, x.get(), y.get(), step, threads, QA_ACCUMULATE, rows) != QA_OK) {
            std::printf("seed %llu: %s failed\n", static_cast<unsigned long long>(seed), text);
            return false;
        }
        for (int64_t b = 0; b < g.batch; ++b)
            for (int n = 0; n < out; ++n)
                for (int64_t oy = 0; oy < g.out_height; ++oy)
                    for (int64_t ox = 0; ox < g.out_width; ++ox) {
                        const size_t at = static_cast<size_t>(b * g.y_batch + n * g.y_channel +
                                                              oy * g.y_row + ox * g.y_pixel);
                        int64_t want = 0;
                        double value = p.bias[n], size = 0;
                        for (int part = 0; part < parts; ++part) {
                            const int channel = part * l.out_channels * (parts > 1) + n;
                            const int64_t row = ox * l.groups + channel / l.out_channels;
                            const Range range = by_row ? Range{row_scale[row], row_zero[row]}
                                                       : Range{p.table[step], p.table_zero[step]};
                            want = naive(p, g, x.get(), range, b, channel, oy, ox);
                            const double term =
                                static_cast<double>(want) * range.scale * p.scale[channel];
                            value += term;
                            size += std::fabs(term);
                        }
                        if ((l.sum_groups || total[at] == want) &&
                            std::fabs(y[at] - value) <= 1e-5 * size + 1e-3)
                            continue;
                        std::printf("seed %llu: %s gives %d instead of %lld\n",
                                    static_cast<unsigned long long>(seed), text, total[at],
                                    static_cast<long long>(want));
                        return false;
                    }
    }
    return true;
}

}  // namespace

int main(int argc, char** argv) {
    const uint64_t first = argc > 1 ? std::strtoull(argv[1], nullptr, 10) : 0;
    const uint64_t count = argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 300;
    qa_set_parallel(reinterpret_cast<void*>(&threads_of_our_own));
    for (uint64_t seed = first; seed < first + count; ++seed)
        if (!trial(seed) || !float_trial(seed) || !attention_trial(seed)) return 1;
    std::printf("%llu trials exact\n", static_cast<unsigned long long>(count));
    return 0;
}
