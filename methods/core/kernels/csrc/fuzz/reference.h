// What layers and activations compute, by the plainest loops.
#ifndef QUANTARENA_FUZZ_REFERENCE_H
#define QUANTARENA_FUZZ_REFERENCE_H

#include <cmath>
#include <cstdint>
#include <vector>

#include "fuzz/fuzz_problem.h"

namespace {

// Activation parameters of one pixel.
struct Range {
    float scale;
    int zero;
};

// Integers that an input stands for, and the sums that a layer makes of them, by the plainest loops.
struct Reference {
    const Problem& p;
    const QaGeometry& g;
    std::vector<int16_t> code;  // less the zero point; [batch][channel][height][width]

    template <class RangeOf>
    Reference(const Problem& problem, const QaGeometry& geometry, const float* x, RangeOf range_of)
        : p(problem), g(geometry) {
        const int64_t channels = static_cast<int64_t>(p.layer.groups) * p.layer.in_channels;
        for (int64_t b = 0; b < g.batch; ++b)
            for (int64_t c = 0; c < channels; ++c)
                for (int64_t i = 0; i < g.height * g.width; ++i) {
                    const int64_t at = b * g.x_batch + c * g.x_channel + i / g.width * g.x_row +
                                       i % g.width * g.x_pixel;
                    const Range range = range_of(i % g.width, c / p.layer.in_channels);
                    code.push_back(static_cast<int16_t>(centred(x[at], range, c)));
                }
    }

    int centred(float x, Range range, int64_t channel) const {
        float v = x * (1.0f / range.scale);
        if (p.layer.in_mult) v *= p.mult[channel];
        const float low = static_cast<float>(-range.zero);
        const float high = static_cast<float>(p.layer.act_max - range.zero);
        if (std::isnan(v)) v = low;
        return static_cast<int>(std::nearbyint(v < low ? low : v > high ? high : v));
    }

    int64_t sum(int64_t b, int n, int64_t oy, int64_t ox) const {
        const QaLayer& l = p.layer;
        const int taps = l.kernel_h * l.kernel_w, group = n / l.out_channels;
        const int64_t channels = static_cast<int64_t>(l.groups) * l.in_channels;
        const int zero = p.zero[n];
        int64_t total = 0;
        for (int t = 0; t < taps; ++t) {
            const int64_t y = oy * l.stride_h - l.pad_h + t / l.kernel_w * l.dilation_h;
            const int64_t x = ox * l.stride_w - l.pad_w + t % l.kernel_w * l.dilation_w;
            if (y < 0 || y >= g.height || x < 0 || x >= g.width) continue;
            const int64_t first = b * channels + static_cast<int64_t>(group) * l.in_channels;
            const int16_t* a = code.data() + (first * g.height + y) * g.width + x;
            const int* w = p.weight.data() + static_cast<size_t>(n) * l.in_channels * taps + t;
            for (int c = 0; c < l.in_channels; ++c, a += g.height * g.width, w += taps)
                total += static_cast<int64_t>(*a) * (*w - zero);
        }
        return total;
    }
};

double activated(double v, int kind) {
    if (kind == QA_SILU) return v / (1 + std::exp(-v));
    if (kind == QA_GELU) return 0.5 * v * std::erfc(-v / std::sqrt(2.0));
    if (kind == QA_GELU_TANH)
        return 0.5 * v * (1 + std::tanh(std::sqrt(2 / M_PI) * (v + 0.044715 * v * v * v)));
    return v;
}

bool near(float found, double want) { return std::fabs(found - want) <= 2e-5 * (1 + std::fabs(want)); }

}  // namespace

#endif
