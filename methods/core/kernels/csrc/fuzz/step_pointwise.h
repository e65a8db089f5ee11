// Random programs of element by element operations, and what they compute.
#ifndef QUANTARENA_FUZZ_STEP_POINTWISE_H
#define QUANTARENA_FUZZ_STEP_POINTWISE_H

#include "fuzz/reference.h"
#include "fuzz/step_program.h"

namespace {

float arithmetic(int op, float a, float b, float k) {
    switch (op) {
        case QA_POINT_ADD:
            return a + b;
        case QA_POINT_SUB:
            return a - b;
        case QA_POINT_MUL:
            return a * b;
        case QA_POINT_DIV:
            return a / b;
        case QA_POINT_ADD_NUMBER:
            return a + k;
        case QA_POINT_MUL_NUMBER:
            return a * k;
        case QA_POINT_DIV_NUMBER:
            return a / k;
        case QA_POINT_NUMBER_SUB:
            return k - a;
        case QA_POINT_NUMBER_DIV:
            return k / a;
        default:
            return -a;
    }
}

double function(int op, double a) {
    switch (op) {
        case QA_POINT_EXP:
            return std::exp(a);
        case QA_POINT_SIN:
            return std::sin(a);
        case QA_POINT_COS:
            return std::cos(a);
        case QA_POINT_SILU:
            return activated(a, QA_SILU);
        case QA_POINT_GELU:
            return activated(a, QA_GELU);
        default:
            return activated(a, QA_GELU_TANH);
    }
}

// Strides of an operand: axes in any order, some of them expanded.
int64_t strides(const int64_t* size, int64_t* stride, bool whole, bool plain) {
    std::vector<int> axes = {0, 1, 2, 3, 4, 5};
    if (!plain) std::shuffle(axes.begin(), axes.end(), generator);
    int64_t step = 1, span = 1;
    for (int i = QA_POINT_DIMS - 1; i >= 0; --i) {
        const int d = axes[i];
        stride[d] = step;
        if (!whole && pick(0, 4) == 0) {
            stride[d] = 0;
            continue;
        }
        if (!whole && pick(0, 5) == 0) step += pick(1, 3), stride[d] = step;
        span += (size[d] - 1) * stride[d];
        step = stride[d] * size[d];
    }
    return span;
}

void add_pointwise(Program& program) {
    QaPointwise p{};
    int64_t total = 1;
    for (int d = 0; d < QA_POINT_DIMS; ++d) {
        const bool last = d == QA_POINT_DIMS - 1;
        p.size[d] = last && pick(0, 3) == 0 ? pick(1, 900) : pick(0, 2) ? 1 : pick(1, last ? 70 : 9);
        if (total * p.size[d] > 6000) p.size[d] = 1;
        total *= p.size[d];
    }
    p.inputs = pick(1, 4);
    p.count = p.inputs > 1 || pick(0, 2) ? pick(1, 6) : 0;
    Operation made;
    const bool parted = pick(0, 4) == 0;  // two operations write halves of a buffer, as for a concatenation
    const bool inside = !parted && p.count > 0 && pick(0, 4) == 0;  // over the first input
    const int64_t span = strides(p.size, p.stride[0], true, pick(0, 1));
    for (int k = 1; k <= p.inputs; ++k) {
        if (inside && k == 1) {
            std::copy(p.stride[0], p.stride[0] + QA_POINT_DIMS, p.stride[k]);
            made.at.push_back({program.input(span), 0});
            Buffer& b = program.buffers[made.at.back().buffer];
            b.given = false;  // copied into a buffer of the step, so that it may be written
            const int to = made.at.back().buffer;
            Operation copy;
            QaPointwise plain{};
            std::fill(plain.size, plain.size + QA_POINT_DIMS, 1);
            plain.size[QA_POINT_DIMS - 1] = span;
            plain.stride[0][QA_POINT_DIMS - 1] = plain.stride[1][QA_POINT_DIMS - 1] = 1;
            plain.inputs = 1;
            copy.kernel = 0;
            copy.op.params = program.keep(plain);
            copy.at = {{to, 0}, program.read(span)};
            if (copy.at[1].buffer == to) copy.at[1] = {program.input(span), 0};
            program.buffers[to].value.clear();
            const Place source = copy.at[1];
            copy.check = [=](const std::vector<char*>& m) {
                return std::memcmp(m[to], floats(m, source), sizeof(float) * span) == 0;
            };
            program.add(copy);
            continue;
        }
        p.integer[k] = pick(0, 9) == 0;
        const int64_t needed = strides(p.size, p.stride[k], false, pick(0, 1));
        if (p.integer[k]) {
            const int index = program.buffer(needed, true);
            Buffer& b = program.buffers[index];
            b.given = true;
            b.value.resize(b.bytes());
            for (int64_t i = 0; i < needed; ++i) {
                const int64_t v = pick(-1000, 1000);
                std::memcpy(b.value.data() + 8 * i, &v, 8);
            }
            made.at.push_back({index, 0});
        } else {
            Place from = program.read(needed);
            if (inside && from.buffer == made.at[0].buffer) from = {program.input(needed), 0};
            made.at.push_back(from);
        }
    }
    bool exact = true;
    for (int k = 0; k < p.count; ++k) {
        const bool last = k == p.count - 1;
        const int op =
            last && pick(0, 2) == 0 ? pick(QA_POINT_EXP, QA_POINT_GELU_TANH) : pick(0, QA_POINT_NEGATE);
        exact &= op < QA_POINT_EXP;
        p.code[k] = {op, pick(0, p.inputs + k - 1), pick(0, p.inputs + k - 1), 0.25f * pick(-9, 9)};
    }
    const int64_t shift = parted ? span : 0;
    const int to = inside ? made.at[0].buffer : program.buffer(span + shift);
    for (int half = 0; half <= parted; ++half) {
        Operation one = made;
        const Place result = {to, half * shift};
        one.at.insert(one.at.begin(), result);
        one.kernel = 0;
        one.op.params = program.keep(p);
        const std::vector<Place> at = one.at;
        one.check = [=](const std::vector<char*>& m) {
            int64_t index[QA_POINT_DIMS] = {};
            for (int64_t i = 0; i < total; ++i) {
                float value[QA_POINT_INPUTS + QA_POINT_CODES] = {};
                double wide = 0;
                int64_t y = 0;
                for (int d = 0; d < QA_POINT_DIMS; ++d) y += index[d] * p.stride[0][d];
                for (int k = 1; k <= p.inputs; ++k) {
                    int64_t x = 0;
                    for (int d = 0; d < QA_POINT_DIMS; ++d) x += index[d] * p.stride[k][d];
                    if (p.integer[k]) {
                        int64_t v;
                        std::memcpy(&v, m[at[k].buffer] + 8 * x, 8);
                        value[k - 1] = static_cast<float>(v);
                    } else if (inside && at[k].buffer == to) {
                        std::memcpy(&value[k - 1], m[m.size() / 2 + to] + 4 * (at[k].offset + x), 4);
                    } else {
                        value[k - 1] = floats(m, at[k])[x];
                    }
                }
                int last = p.inputs - 1;
                for (int k = 0; k < p.count; ++k) {
                    const QaPointCode& c = p.code[k];
                    last = p.inputs + k;
                    if (c.op >= QA_POINT_EXP) {
                        wide = function(c.op, value[c.a]);
                        value[last] = std::isfinite(value[c.a]) && std::fabs(value[c.a]) < 1e4f
                                          ? static_cast<float>(wide)
                                          : NAN;
                    } else {
                        value[last] = arithmetic(c.op, value[c.a], value[c.b], c.value);
                    }
                }
                const float found = floats(m, result)[y];
                const bool right =
                    exact ? same(found, value[last])
                          : !std::isfinite(value[last]) || near(found, static_cast<double>(value[last]));
                if (!right) return false;
                for (int d = QA_POINT_DIMS - 1; d >= 0 && ++index[d] == p.size[d]; --d) index[d] = 0;
            }
            return true;
        };
        program.add(std::move(one));
    }
}

}  // namespace

#endif
