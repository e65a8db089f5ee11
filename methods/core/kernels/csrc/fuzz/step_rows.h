// Random normalizations, activations, table look-ups and attention of a recorded step.
#ifndef QUANTARENA_FUZZ_STEP_ROWS_H
#define QUANTARENA_FUZZ_STEP_ROWS_H

#include "fuzz/reference.h"
#include "fuzz/step_program.h"

namespace {

struct Line {
    double mean, inverse, most;
};
template <class At>
Line line(int64_t count, double eps, At at) {
    Line l = {0, 0, 0};
    double square = 0;
    for (int64_t i = 0; i < count; ++i)
        l.mean += at(i) / static_cast<double>(count),
            l.most = std::max(l.most, std::fabs(static_cast<double>(at(i))));
    for (int64_t i = 0; i < count; ++i)
        square += (at(i) - l.mean) * (at(i) - l.mean) / static_cast<double>(count);
    l.inverse = 1 / std::sqrt(square + eps);
    return l;
}
// Whether a normalized value is right, as far as float sums of such numbers can be.
bool normal(float found, double want, const Line& l, double weight) {
    if (!std::isfinite(l.mean) || !std::isfinite(l.inverse) || l.most > 1e6) return true;
    return std::fabs(found - want) <=
           3e-5 * (1 + std::fabs(want)) + 4e-6 * l.most * l.inverse * std::fabs(weight);
}

void add_layer_norm(Program& program) {
    const QaLayerNorm n = {pick(1, 40), pick(1, 90), 1e-5f};
    Operation made;
    made.at = {{program.buffer(n.rows * n.width), 0}};
    const Place y = made.at[0];
    made.at.push_back(program.read(n.rows * n.width));
    if (made.at[1].buffer == y.buffer) made.at[1] = {program.input(n.rows * n.width), 0};
    for (int k = 0; k < 2; ++k)
        made.at.push_back(pick(0, 1) ? Place{program.input(n.width), 0} : Place{-1, 0});
    made.kernel = 1;
    made.op.params = program.keep(n);
    const std::vector<Place> at = made.at;
    made.check = [=](const std::vector<char*>& m) {
        for (int64_t r = 0; r < n.rows; ++r) {
            const float* x = floats(m, at[1]) + r * n.width;
            const Line l = line(n.width, static_cast<double>(n.eps),
                                [&](int64_t i) { return static_cast<double>(x[i]); });
            for (int64_t i = 0; i < n.width; ++i) {
                const double w = at[2].buffer < 0 ? 1.0 : static_cast<double>(floats(m, at[2])[i]);
                const double want = (x[i] - l.mean) * l.inverse * w +
                                    (at[3].buffer < 0 ? 0.0 : static_cast<double>(floats(m, at[3])[i]));
                if (!normal(floats(m, y)[r * n.width + i], want, l, w)) return false;
            }
        }
        return true;
    };
    program.add(std::move(made));
}

void add_norm(Program& program) {
    QaNorm n{};
    n.groups = pick(1, 4), n.channels = n.groups * pick(1, 11), n.pixels = pick(1, 40), n.batch = pick(1, 3);
    n.last = pick(0, 1), n.activation = pick(0, 3), n.eps = 1e-5f;
    const int64_t size = n.batch * n.channels * n.pixels, width = n.channels / n.groups;
    Operation made;
    made.at = {program.read(size)};
    made.at.push_back({program.buffer(size), 0});
    made.entry = 2;
    made.op.kind = QA_OP_NORM;
    made.op.params = program.keep(n);
    const std::vector<Place> at = made.at;
    made.check = [=](const std::vector<char*>& m) {
        for (int64_t b = 0; b < n.batch; ++b)
            for (int64_t g = 0; g < n.groups; ++g) {
                const auto place = [&](int64_t k) {
                    const int64_t c = g * width + k / n.pixels, p = k % n.pixels;
                    return b * n.channels * n.pixels + (n.last ? p * n.channels + c : c * n.pixels + p);
                };
                const Line l = line(width * n.pixels, static_cast<double>(n.eps), [&](int64_t k) {
                    return static_cast<double>(floats(m, at[0])[place(k)]);
                });
                for (int64_t k = 0; k < width * n.pixels; ++k) {
                    const double v = (floats(m, at[0])[place(k)] - l.mean) * l.inverse;
                    if (!normal(floats(m, at[1])[place(k)], activated(v, n.activation), l, 1)) return false;
                }
            }
        return true;
    };
    program.add(std::move(made));
}

void add_activation(Program& program) {
    QaRows r{};
    r.rows = pick(1, 20), r.columns = pick(1, 60), r.activation = pick(1, 3);
    r.x_row = r.columns + pick(0, 3), r.gate_row = r.columns + pick(0, 3);
    Operation made;
    made.at = {program.read((r.rows - 1) * r.x_row + r.columns)};
    made.at.push_back(pick(0, 1) ? program.read((r.rows - 1) * r.gate_row + r.columns) : Place{-1, 0});
    made.at.push_back({program.buffer(r.rows * r.columns), 0});
    made.entry = 3;
    made.op.kind = QA_OP_ACTIVATION;
    made.op.params = program.keep(r);
    const std::vector<Place> at = made.at;
    made.check = [=](const std::vector<char*>& m) {
        for (int64_t i = 0; i < r.rows; ++i)
            for (int64_t c = 0; c < r.columns; ++c) {
                const double x = static_cast<double>(floats(m, at[0])[i * r.x_row + c]);
                const double gate =
                    at[1].buffer < 0 ? 1.0 : static_cast<double>(floats(m, at[1])[i * r.gate_row + c]);
                const double want = activated(x, r.activation) * gate;
                if (std::fabs(x) < 1e4 && std::fabs(gate) < 1e4 &&
                    !(std::fabs(floats(m, at[2])[i * r.columns + c] - want) <=
                      2e-5 * (1 + std::fabs(want) + std::fabs(gate))))
                    return false;
            }
        return true;
    };
    program.add(std::move(made));
}

void add_gather(Program& program) {
    const QaGather g = {pick(1, 9), pick(1, 50), pick(1, 9)};
    Operation made;
    const int index = program.buffer(g.rows, true);
    Buffer& b = program.buffers[index];
    b.given = true;
    b.value.resize(b.bytes());
    for (int64_t i = 0; i < g.rows; ++i) {
        const int64_t v = pick(0, static_cast<int>(g.table) - 1);
        std::memcpy(b.value.data() + 8 * i, &v, 8);
    }
    const Place table = program.read(g.table * g.width);
    made.at = {{program.buffer(g.rows * g.width), 0}, table, {index, 0}};
    made.kernel = 2;
    made.op.params = program.keep(g);
    const std::vector<Place> at = made.at;
    made.check = [=](const std::vector<char*>& m) {
        for (int64_t i = 0; i < g.rows; ++i) {
            int64_t v;
            std::memcpy(&v, m[index] + 8 * i, 8);
            if (std::memcmp(floats(m, at[0]) + i * g.width, floats(m, table) + v * g.width,
                            sizeof(float) * g.width))
                return false;
        }
        return true;
    };
    program.add(std::move(made));
}

void add_products(Program& program) {
    QaProducts p{};
    p.samples = pick(1, 2), p.heads = pick(1, 3), p.queries = pick(1, 19), p.keys = pick(1, 21);
    p.width = pick(1, 20), p.value_width = pick(1, 20), p.factor = 0.25f;
    const auto lay = [&](int64_t rows, int64_t width, int64_t& sample, int64_t& head, int64_t& row) {
        if (pick(0, 1)) {  // heads side by side in a row
            head = width, row = width * p.heads + pick(0, 3), sample = row * rows;
        } else {
            row = width, head = row * rows, sample = head * p.heads;
        }
        return (p.samples - 1) * sample + (p.heads - 1) * head + (rows - 1) * row + width;
    };
    const int64_t q = lay(p.queries, p.width, p.q_sample, p.q_head, p.q_row);
    const int64_t k = lay(p.keys, p.width, p.k_sample, p.k_head, p.k_row);
    const int64_t v = lay(p.keys, p.value_width, p.v_sample, p.v_head, p.v_row);
    p.y_row = p.value_width, p.y_head = p.y_row * p.queries, p.y_sample = p.y_head * p.heads;
    Operation made;
    made.at = {{-1, 0}, program.read(q), program.read(k), program.read(v), {-1, 0}};
    if (pick(0, 1)) {
        p.mask_sample = 0, p.mask_head = 0, p.mask_row = pick(0, 1) * p.keys, p.mask_key = 1;
        made.at[4] = {program.input(p.queries * p.keys), 0};
        float* mask = reinterpret_cast<float*>(program.buffers[made.at[4].buffer].value.data());
        for (int64_t i = 0; i < p.queries * p.keys; ++i)
            if (pick(0, 3) == 0) mask[i] = -INFINITY;
    }
    made.at[0] = {program.buffer(p.samples * p.y_sample), 0};
    made.kernel = 3;
    made.op.params = program.keep(p);
    const std::vector<Place> at = made.at;
    made.check = [=](const std::vector<char*>& m) {
        std::vector<double> score(p.keys);
        for (int64_t s = 0; s < p.samples; ++s)
            for (int64_t h = 0; h < p.heads; ++h)
                for (int64_t i = 0; i < p.queries; ++i) {
                    double top = -INFINITY, size = 0, sum = 0, most = 0;
                    for (int64_t j = 0; j < p.keys; ++j) {
                        double dot = 0, span = 0;
                        for (int64_t c = 0; c < p.width; ++c) {
                            const double a = static_cast<double>(
                                floats(m, at[1])[s * p.q_sample + h * p.q_head + i * p.q_row + c]);
                            const double b = static_cast<double>(
                                floats(m, at[2])[s * p.k_sample + h * p.k_head + j * p.k_row + c]);
                            dot += a * b, span += std::fabs(a * b);
                        }
                        score[j] = dot * static_cast<double>(p.factor);
                        size = std::max(size, span);
                        if (!std::isfinite(span)) size = INFINITY;
                        if (at[4].buffer >= 0)
                            score[j] +=
                                static_cast<double>(floats(m, at[4])[i * p.mask_row + j * p.mask_key]);
                        top = std::max(top, score[j]);
                    }
                    for (int64_t j = 0; j < p.keys; ++j)
                        sum += score[j] = top == -INFINITY ? 0 : std::exp(score[j] - top);
                    if (!(size < 1e4)) continue;  // an exponential of such numbers has no digits left
                    for (int64_t c = 0; c < p.value_width; ++c) {
                        double want = 0;
                        for (int64_t j = 0; j < p.keys; ++j) {
                            const double b = static_cast<double>(
                                floats(m, at[3])[s * p.v_sample + h * p.v_head + j * p.v_row + c]);
                            want += sum > 0 ? score[j] / sum * b : 0;
                            most = std::isfinite(b) ? std::max(most, std::fabs(b)) : INFINITY;
                        }
                        const float found = floats(m, at[0])[s * p.y_sample + h * p.y_head + i * p.y_row + c];
                        if (std::isfinite(most) && !(std::fabs(found - want) <= most * (2e-5 + 4e-6 * size)))
                            return false;
                    }
                }
        return true;
    };
    program.add(std::move(made));
}

}  // namespace

#endif
