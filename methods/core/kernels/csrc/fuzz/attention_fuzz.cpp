// Random attention products on every usable instruction set, operands in heap blocks of exactly their
// size, integers against a naive loop.  Part of the fuzz driver.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "attention/attention.h"

extern "C" {
const char* qa_isa_name(int32_t);
void* qa_entry(const char*, int32_t);
}

namespace {

typedef int (*Attend)(const QaAttention*, int32_t);

struct Trial {
    std::mt19937_64 generator;
    QaAttention a{};
    std::unique_ptr<float[]> operand[3], mask, probs;
    float scale[4][4], zero[4][4];
    int64_t group[8], entry[4];
    float log_scale = 1.0f;

    int pick(int low, int high) { return std::uniform_int_distribution<int>(low, high)(generator); }

    explicit Trial(uint64_t seed) {
        generator.seed(seed);
        a.samples = pick(1, 3), a.heads = pick(1, 4);
        a.queries = pick(1, 20), a.keys = pick(0, 4) ? pick(1, 40) : pick(250, 540);
        a.width = pick(1, 40), a.value_width = pick(1, 40);
        a.excluded = pick(0, 2) ? 0 : pick(0, static_cast<int>(std::min<int64_t>(a.keys, 3)));
        a.factor = 0.05f * pick(1, 9);
        if (pick(0, 1)) {
            a.per_octave = pick(1, 2), a.kept = pick(1, 2), a.zero_code = pick(0, 1);
            a.top = std::min(32 * static_cast<int>(a.per_octave), (1 << pick(1, 8)) - 1);
            log_scale = 0.25f * pick(1, 9);
            a.log_scale = pick(0, 1) ? &log_scale : nullptr;
        }
        for (int i = 0; i < 8; ++i) group[i] = pick(0, 1);
        for (int i = 0; i < 4; ++i) entry[i] = pick(0, 1);
        for (int i = 0; i < 4; ++i) {
            QaGrid& g = a.grid[i];
            g.most = (1 << pick(1, 8)) - 1;
            for (int k = 0; k < 4; ++k) {
                scale[i][k] = i == 3 ? 0.01f * pick(1, 9) : 0.05f * pick(1, 9);
                zero[i][k] = static_cast<float>(pick(0, static_cast<int>(g.most)));
            }
            g.scale = scale[i], g.zero = zero[i];
            g.group = pick(0, 1) ? group : nullptr;
            g.entry = pick(0, 1) ? entry : nullptr;
            g.groups = g.group ? 2 : 1;
            g.first = pick(0, 1);
        }
        const int64_t rows[3] = {a.queries, a.keys, a.keys};
        const int64_t width[3] = {a.width, a.width, a.value_width};
        int64_t* stride[3] = {&a.q_sample, &a.k_sample, &a.v_sample};
        const int style = pick(0, 2);
        for (int i = 0; i < 3; ++i) {
            const int64_t size = a.samples * a.heads * rows[i] * width[i];
            operand[i].reset(new float[size]);
            const float special[] = {NAN, INFINITY, -INFINITY, 1e30f, -0.0f};
            for (int64_t k = 0; k < size; ++k)
                operand[i][k] = style == 0 ? (pick(0, 1) ? 1e9f : -1e9f)
                                : style == 1 || pick(0, 20) ? 0.01f * pick(-900, 900) : special[pick(0, 4)];
            stride[i][0] = a.heads * rows[i] * width[i];
            const bool tokens = pick(0, 1);  // heads of a token side by side
            stride[i][1] = tokens ? width[i] : rows[i] * width[i];
            stride[i][2] = tokens ? a.heads * width[i] : width[i];
        }
        a.query = operand[0].get(), a.key = operand[1].get(), a.value = operand[2].get();
        const int64_t scores = a.samples * a.heads * a.queries * a.keys;
        probs.reset(new float[scores]);
        for (int64_t i = 0; i < scores; ++i)
            probs[i] = pick(0, 9) ? std::ldexp(0.001f * pick(0, 1000), -pick(0, 35)) : 0.0f;
        mask.reset(new float[a.queries * a.keys]);
        for (int64_t i = 0; i < a.queries * a.keys; ++i) mask[i] = pick(0, 3) ? 0.1f * pick(-9, 9) : -INFINITY;
        if (pick(0, 1)) a.mask = mask.get(), a.mask_row = a.keys, a.mask_key = 1;
    }

    int64_t slot(int i, int64_t sample, int64_t head) const {
        const QaGrid& g = a.grid[i];
        return (g.entry ? g.entry[sample] : g.first) * g.groups + (g.group ? g.group[head] : 0);
    }

    // A code less its zero point.
    int64_t code(int i, float x, int64_t sample, int64_t head) const {
        const int64_t at = slot(i, sample, head);
        const float low = -zero[i][at], high = static_cast<float>(a.grid[i].most) + low;
        const float v = x * (1.0f / scale[i][at]);
        return static_cast<int64_t>(std::nearbyint(v > low ? (v < high ? v : high) : low));
    }

    float at(int i, int64_t sample, int64_t head, int64_t row, int64_t c) const {
        const int64_t* s = i == 0 ? &a.q_sample : i == 1 ? &a.k_sample : &a.v_sample;
        return operand[i][sample * s[0] + head * s[1] + row * s[2] + c];
    }

    const float* row(int64_t sample, int64_t head, int64_t q) const {
        return probs.get() + ((sample * a.heads + head) * a.queries + q) * a.keys;
    }

    float run_time_scale(int64_t sample, int64_t head) const {
        float top = std::numeric_limits<float>::min();
        for (int64_t h = 0; h < a.heads; ++h)
            for (int64_t q = 0; q < a.queries; ++q)
                for (int64_t k = a.excluded; k < a.keys; ++k)
                    if (a.kept == 1 || h == head) top = std::max(top, row(sample, h, q)[k]);
        return top;
    }

    // What one probability adds for a value of 1: to the sum of its parity.
    int64_t weight(float p, int64_t sample, int64_t head, int parity, float range) const {
        if (!a.per_octave) return code(3, p, sample, head);
        float ratio = p / range;
        if (a.per_octave == 2) ratio *= ratio;
        int power = -200;
        if (ratio >= std::numeric_limits<float>::min()) {
            const float m = std::frexp(ratio, &power) * 2.0f;  // [1, 2)
            power -= m < 1.41421354f ? 1 : 0;
        }
        const int64_t q = std::min<int64_t>(std::max(-power, 0), a.top);
        if ((a.zero_code && q == a.top) || q % a.per_octave != parity) return 0;
        return int64_t{1} << (32 - (q + a.per_octave - 1) / a.per_octave);
    }

    bool complain(const char* isa, const char* what, int64_t found, int64_t want) const {
        std::printf("attention: %s has %s %lld instead of %lld\n", isa, what,
                    static_cast<long long>(found), static_cast<long long>(want));
        return false;
    }

    bool scores(const char* name, Attend attend, int threads) {
        const int64_t inside = a.keys - a.excluded, size = a.samples * a.heads * a.queries * inside;
        const std::unique_ptr<int32_t[]> y(new int32_t[size]);
        a.stage = QA_SCORES, a.integer = 1, a.y = y.get();
        if (attend(&a, threads) != QA_OK) return complain(name, "an error", 1, 0);
        for (int64_t i = 0; i < size; ++i) {
            const int64_t k = i % inside + a.excluded, q = i / inside % a.queries;
            const int64_t h = i / inside / a.queries % a.heads, b = i / inside / a.queries / a.heads;
            int64_t want = 0;
            for (int64_t c = 0; c < a.width; ++c)
                want += code(0, at(0, b, h, q, c), b, h) * code(1, at(1, b, h, k, c), b, h);
            if (y[i] != want) return complain(name, "a score of", y[i], want);
        }
        return true;
    }

    template <class T>
    bool mix(const char* name, Attend attend, int threads) {
        const int parities = a.per_octave ? static_cast<int>(a.per_octave) : 1;
        const int64_t size = a.samples * a.heads * a.queries * a.value_width;
        const std::unique_ptr<T[]> y(new T[size * parities]);
        a.stage = QA_MIX, a.integer = 1, a.y = y.get(), a.probs = probs.get();
        if (attend(&a, threads) != QA_OK) return complain(name, "an error", 1, 0);
        for (int64_t i = 0; i < size * parities; ++i) {
            const int64_t c = i % a.value_width, q = i / a.value_width % a.queries;
            const int64_t head = i / a.value_width / a.queries;
            const int64_t h = head % a.heads, b = head / a.heads % a.samples;
            const float range = a.log_scale ? log_scale : a.per_octave ? run_time_scale(b, h) : 1.0f;
            int64_t want = 0;
            for (int64_t k = a.excluded; k < a.keys; ++k)
                want += weight(row(b, h, q)[k], b, h, static_cast<int>(i / size), range) *
                        code(2, at(2, b, h, k, c), b, h);
            if (y[i] != want) return complain(name, "a sum of", static_cast<int64_t>(y[i]), want);
        }
        return true;
    }

    // All at once: memory, and the size of the result where no operand is odd.
    bool whole(const char* name, Attend attend, int threads) {
        const int64_t row = a.heads * a.value_width, size = a.samples * a.queries * row;
        const std::unique_ptr<float[]> y(new float[size]);
        const std::unique_ptr<float[]> room(new float[a.samples * a.heads * a.queries * a.keys]);
        a.stage = QA_ATTEND, a.integer = 0, a.y = y.get(), a.probs = room.get();
        a.y_sample = a.queries * row, a.y_head = a.value_width, a.y_row = row;
        std::fill(y.get(), y.get() + size, NAN);
        const int code = attend(&a, threads);
        if (code == QA_BAD_ARGUMENT && a.excluded) return true;  // an excluded key was no number
        if (code != QA_OK) return complain(name, "an error", code, 0);
        for (int64_t i = 0; i < size; ++i)
            if (y[i] != y[i] && a.excluded == 0) return complain(name, "no number at", i, 0);
        return true;
    }

    bool run() {
        for (int i = 0; qa_isa_name(i) != nullptr; ++i) {
            const char* name = qa_isa_name(i);
            const Attend attend = reinterpret_cast<Attend>(qa_entry(name, 5));
            const int threads = pick(1, 3);
            if (!scores(name, attend, threads) || !whole(name, attend, threads)) return false;
            if (!(a.per_octave ? mix<int64_t>(name, attend, threads) : mix<int32_t>(name, attend, threads)))
                return false;
        }
        return true;
    }
};

}  // namespace

bool attention_trial(uint64_t seed) {
    if (Trial(seed).run()) return true;
    std::printf("attention seed %llu\n", static_cast<unsigned long long>(seed));
    return false;
}
