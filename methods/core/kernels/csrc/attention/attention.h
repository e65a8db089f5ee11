// Integer attention: softmax(Q K^T) V of operands that are codes, one call for all samples and heads.
//
// A head's keys and values become panels once; its queries go by in tiles whose scores stay in the
// second-level cache: codes of queries, integer products, softmax in floating point, codes of its
// rows, integer products.  Logarithmic codes whose range is found at run time need all rows of a
// sample before the first code, so their rows wait in memory that the caller brings.
#ifndef QUANTARENA_ATTENTION_H
#define QUANTARENA_ATTENTION_H

#include "attention/attention_call.h"
#include "attention/attention_parts.h"
#include "float_ops.h"

namespace {

struct Attention {
    static constexpr int64_t kTileFloats = 24 * 1024;  // scores of one tile
    static constexpr int64_t kChunk = 256;             // keys: 256 * 2^15 * 255 < 2^31

    const QaAttention& a;
    int64_t inside, depth, panels, pitch, value_panels, value_pitch, tile;
    float* scale = nullptr;  // run-time scale by item
    int failed = QA_OK;

    explicit Attention(const QaAttention& given) : a(given) {
        inside = a.keys - a.excluded;
        depth = ceil_div(a.width, 8) * 8;
        panels = ceil_div(inside, 16);
        pitch = panels * 16;
        value_panels = ceil_div(a.value_width, 16);
        value_pitch = value_panels * 16;
        tile = smaller(a.queries, larger<int64_t>(6, kTileFloats / larger<int64_t>(pitch, 1) / 6 * 6));
    }

    bool logarithmic() const { return a.per_octave != 0; }
    bool waits() const { return logarithmic() && a.log_scale == nullptr && a.stage != QA_SCORES; }

    void grids(Head& h) const {
        for (int i = 0; i < 4; ++i) {
            const QaGrid& g = a.grid[i];
            if (g.scale == nullptr) continue;
            const int64_t entry = g.entry ? g.entry[h.sample] : g.first;
            const int64_t at = entry * g.groups + (g.group ? g.group[h.head] : 0);
            h.scale[i] = g.scale[at];
            h.q[i] = make_quantizer(g.scale[at], static_cast<int32_t>(lrintf(g.zero[at])),
                                    static_cast<int32_t>(g.most));
        }
    }

    template <class T>
    static T* cut(char*& from, int64_t count) {
        T* found = reinterpret_cast<T*>(from);
        from += ceil_div(count * static_cast<int64_t>(sizeof(T)), 64) * 64;
        return found;
    }

    bool open(Head& h, int64_t item) const {
        h.item = item;
        h.sample = item / a.heads;
        h.head = item % a.heads;
        grids(h);
        h.query = a.query + h.sample * a.q_sample + h.head * a.q_head;
        h.key = a.key + h.sample * a.k_sample + h.head * a.k_head;
        h.value = a.value + h.sample * a.v_sample + h.head * a.v_head;
        h.probs = a.probs ? a.probs + item * a.queries * a.keys : nullptr;
        const int64_t wide = larger(larger(depth, pitch), value_pitch), logs = logarithmic();
        const int64_t panel = panels * 16 * depth + pitch * value_pitch;
        const int64_t codes = larger<int64_t>(16, tile) * wide, out = tile * value_pitch;
        char* one = static_cast<char*>(qa_scratch(QA_SLOT_PANEL, 2 * panel + 128));
        char* two = static_cast<char*>(
            qa_scratch(QA_SLOT_ACTIVATIONS, 2 * codes + logs * (6 * tile * pitch + 16 * out) + 512));
        char* three = static_cast<char*>(qa_scratch(
            QA_SLOT_BLOCK, 4 * (tile * (pitch + value_pitch + a.excluded + 1)) + 512));
        if (one == nullptr || two == nullptr || three == nullptr) return false;
        h.keys = cut<int16_t>(one, panels * 16 * depth);
        h.values = cut<int16_t>(one, pitch * value_pitch);
        h.codes = cut<int16_t>(two, codes);
        h.weight = cut<int16_t>(two, logs * tile * pitch);
        h.logs = cut<int32_t>(two, logs * tile * pitch);
        h.sums = cut<int64_t>(two, logs * 2 * out);
        h.scores = cut<float>(three, tile * pitch);
        h.mixed = cut<float>(three, out);
        h.outside = cut<float>(three, tile * a.excluded);
        h.norm = cut<float>(three, tile);
        return true;
    }

    void key_panels(Head& h) const {
        for (int64_t p = 0; p < panels; ++p) {
            const int64_t rows = smaller<int64_t>(16, inside - 16 * p);
            for (int64_t r = 0; r < rows; ++r)
                code_row(h.key + (a.excluded + 16 * p + r) * a.k_row, a.width, depth, h.q[1],
                         h.codes + r * depth, a.k_head);
            std::memset(h.codes + rows * depth, 0, sizeof(int16_t) * (16 - rows) * depth);
            turn_panel(h.codes, depth, depth / 2, h.keys + p * 16 * depth);
        }
    }

    void value_panels_of(Head& h) const {
        int16_t *one = h.codes, *other = one + value_pitch;
        for (int64_t k = 0; k < pitch; k += 2) {
            for (int64_t i = 0; i < 2; ++i) {
                int16_t* to = i ? other : one;
                if (k + i < inside) {
                    const float* from = h.value + (a.excluded + k + i) * a.v_row;
                    code_row(from, a.value_width, value_pitch, h.q[2], to, a.v_head);
                } else {
                    std::memset(to, 0, sizeof(int16_t) * value_pitch);
                }
            }
            pair_rows(one, other, value_pitch, 16 * pitch, h.values + 16 * k);
        }
    }

    // Scores of excluded keys: queries as their codes stand for, keys as they come.
    void outside(Head& h, int64_t rows) const {
        for (int64_t r = 0; r < rows; ++r)
            for (int64_t k = 0; k < a.excluded; ++k) {
                const float* key = h.key + k * a.k_row;
                const int16_t* code = h.codes + r * depth;
                float sum = 0.0f;
                for (int64_t c = 0; c < a.width; ++c)
                    sum += static_cast<float>(code[c]) * h.scale[0] * key[c];
                h.outside[r * a.excluded + k] = sum;
            }
    }

    void tile_scores(Head& h, int64_t first, int64_t rows) const {
        for (int64_t r = 0; r < rows; ++r)
            code_row(h.query + (first + r) * a.q_row, a.width, depth, h.q[0], h.codes + r * depth,
                     a.q_head);
        const bool alone = a.stage == QA_SCORES;
        const Outlet outlet = {{h.scale[0], h.scale[1], alone ? 1.0f : a.factor}, alone && a.integer};
        product(h.codes, rows, depth, h.keys, panels, 16 * depth, depth / 2, outlet, h.scores, pitch);
        outside(h, rows);
    }

    void write_scores(const Head& h, int64_t first, int64_t rows) const {
        const int64_t skip = a.integer ? 0 : a.excluded, line = inside + skip;
        float* y = static_cast<float*>(a.y) + (h.item * a.queries + first) * line;
        for (int64_t r = 0; r < rows; ++r, y += line) {
            std::memcpy(y, h.outside + r * a.excluded, sizeof(float) * skip);
            std::memcpy(y + skip, h.scores + r * pitch, sizeof(float) * inside);
        }
    }

    void add_mask(Head& h, int64_t first, int64_t rows) const {
        const float* from = a.mask + h.sample * a.mask_sample + h.head * a.mask_head;
        for (int64_t r = 0; r < rows; ++r) {
            const float* row = from + (first + r) * a.mask_row;
            float *out = h.outside + r * a.excluded, *in = h.scores + r * pitch;
            for (int64_t k = 0; k < a.excluded; ++k) out[k] += row[k * a.mask_key];
            row += a.excluded * a.mask_key;
            for (int64_t k = 0; k < inside; ++k) in[k] += row[k * a.mask_key];
        }
    }

    // Scores become exponentials, and `norm` what makes probabilities of them; 0 without any key.
    void softmax(Head& h, int64_t first, int64_t rows) const {
        const float none = -std::numeric_limits<float>::infinity();
        for (int64_t i = 0; i < rows * a.excluded; ++i) h.outside[i] *= a.factor;
        if (a.mask) add_mask(h, first, rows);
        for (int64_t r = 0; r < rows; ++r) {
            float *out = h.outside + r * a.excluded, *in = h.scores + r * pitch;
            for (int64_t k = inside; k < pitch; ++k) in[k] = none;
            float top = row_top(in, pitch);
            for (int64_t k = 0; k < a.excluded; ++k)
                top = top < out[k] || out[k] != out[k] ? out[k] : top;  // NaN stays
            if (top == none) {
                std::memset(in, 0, sizeof(float) * pitch);
                std::memset(out, 0, sizeof(float) * a.excluded);
                h.norm[r] = 0.0f;
                continue;
            }
            float sum = row_exp(in, pitch, top);
            for (int64_t k = 0; k < a.excluded; ++k) sum += out[k] = std::exp(out[k] - top);
            h.norm[r] = 1.0f / sum;
        }
    }

    // Probabilities as the caller keeps them; gives the largest of those that get codes.
    float keep(Head& h, int64_t first, int64_t rows) const {
        float top = 0.0f;
        for (int64_t r = 0; r < rows; ++r) {
            const float* in = h.scores + r * pitch;
            float* to = h.probs + (first + r) * a.keys;
            const float norm = h.norm[r];
            for (int64_t k = 0; k < a.excluded; ++k) to[k] = h.outside[r * a.excluded + k] * norm;
            to += a.excluded;
            Lanes v;
            for (int64_t k = 0; k < inside; k += 8) {
                load_lanes(v, in + k);
                v = v * norm;
                store_some(to + k, v, inside - k);
            }
            const float most = row_top(in, pitch) * norm;
            top = top < most || most != most ? most : top;  // NaN stays
        }
        return top;
    }

    float given_top(const Head& h) const {
        float top = 0.0f;
        for (int64_t r = 0; r < a.queries; ++r)
            for (int64_t k = a.excluded; k < a.keys; ++k) {
                const float p = h.probs[r * a.keys + k];
                if (!(p <= top)) top = p;
                if (p != p) return p;
            }
        return top;
    }

    void fetch(Head& h, int64_t first, int64_t rows) const {
        for (int64_t r = 0; r < rows; ++r) {
            const float* from = h.probs + (first + r) * a.keys;
            std::memcpy(h.outside + r * a.excluded, from, sizeof(float) * a.excluded);
            std::memcpy(h.scores + r * pitch, from + a.excluded, sizeof(float) * inside);
            std::memset(h.scores + r * pitch + inside, 0, sizeof(float) * (pitch - inside));
            h.norm[r] = 1.0f;
        }
    }

    void mix_uniform(Head& h, int64_t first, int64_t rows) const {
        const Quantizer& q = h.q[3];
        Lanes v;
        for (int64_t r = 0; r < rows; ++r)
            for (int64_t k = 0; k < pitch; k += 8) {
                load_lanes(v, h.scores + r * pitch + k);
                v = v * h.norm[r];
                code_lanes(v, q, q.inv, h.codes + r * pitch + k);
            }
        const Outlet outlet = {{h.scale[3], h.scale[2], 1.0f}, a.integer != 0};
        product(h.codes, rows, pitch, h.values, value_panels, 16 * pitch, pitch / 2, outlet,
                direct() ? place(h, first) : h.mixed, direct() ? a.y_row : value_pitch);
    }

    // Whether products of uniform codes go where the caller wants them, without a copy between.
    bool direct() const {
        return !logarithmic() && !a.integer && a.value_width == value_pitch && a.excluded == 0;
    }
    float* place(const Head& h, int64_t row) const {
        return static_cast<float*>(a.y) + h.sample * a.y_sample + h.head * a.y_head + row * a.y_row;
    }

    // Sums of one plane and parity over a chunk of keys, added in units of 2^-32.
    void add_plane(Head& h, int64_t rows, int64_t from, int64_t keys, int plane, int parity) const {
        const int zero = a.zero_code ? static_cast<int>(a.top) : -1;
        for (int64_t r = 0; r < rows; ++r)
            weigh_row(h.logs + r * pitch + from, keys, plane, parity, static_cast<int>(a.per_octave),
                      zero, h.weight + r * keys);
        const Outlet outlet = {{1.0f, 1.0f, 1.0f}, true};
        product(h.weight, rows, keys, h.values + 16 * from, value_panels, 16 * pitch, keys / 2, outlet,
                h.mixed, value_pitch);
        int64_t* sums = h.sums + parity * tile * value_pitch;
        subtract_shifted(sums, h.mixed, rows * value_pitch, plane_shift(plane));
    }

    void mix_logs(Head& h, int64_t rows) const {
        const float scale = a.log_scale ? *a.log_scale : this->scale[h.item];
        const int per_octave = static_cast<int>(a.per_octave), top = static_cast<int>(a.top);
        for (int parity = 0; parity < per_octave; ++parity)
            std::memset(h.sums + parity * tile * value_pitch, 0, sizeof(int64_t) * rows * value_pitch);
        LaneBits used = {};
        for (int64_t r = 0; r < rows; ++r) {
            for (int64_t k = inside; k < pitch; ++k)  // code 0, which calls for no plane
                h.scores[r * pitch + k] = std::numeric_limits<float>::infinity();
            for (int64_t k = 0; k < pitch; k += 8) {
                Lanes v;
                load_lanes(v, h.scores + r * pitch + k);
                LaneBits code;
                log_lanes(v * h.norm[r] / scale, per_octave, top, code);
                std::memcpy(h.logs + r * pitch + k, &code, sizeof code);
                const LaneBits plane = (code + (per_octave - 1)) >> (per_octave + 3);
                used |= (LaneBits{} + 1) << plane;
            }
        }
        for (int plane = 0; plane < kPlanes; ++plane) {
            int any = 0;
            for (int i = 0; i < 8; ++i) any |= used[i] >> plane & 1;
            for (int64_t from = 0; any && from < pitch; from += kChunk)
                for (int parity = 0; parity < per_octave; ++parity)
                    add_plane(h, rows, from, smaller(kChunk, pitch - from), plane, parity);
        }
        if (a.integer) return;
        const double unit = static_cast<double>(scale) * h.scale[2] / 4294967296.0;
        const int64_t* odd = h.sums + tile * value_pitch;
        for (int64_t i = 0; i < rows * value_pitch; ++i) {
            double sum = static_cast<double>(h.sums[i]);
            if (per_octave == 2) sum += 1.4142135623730951 * static_cast<double>(odd[i]);
            h.mixed[i] = static_cast<float>(sum * unit);
        }
    }

    void write(const Head& h, int64_t first, int64_t rows) const {
        for (int64_t r = 0; r < rows; ++r) {
            const int64_t at = (h.item * a.queries + first + r) * a.value_width;
            if (a.integer && logarithmic()) {
                const int64_t size = a.samples * a.heads * a.queries * a.value_width;
                for (int64_t p = 0; p < a.per_octave; ++p)
                    std::memcpy(static_cast<int64_t*>(a.y) + p * size + at,
                                h.sums + (p * tile + r) * value_pitch, sizeof(int64_t) * a.value_width);
            } else if (a.integer) {
                std::memcpy(static_cast<int32_t*>(a.y) + at, h.mixed + r * value_pitch,
                            sizeof(int32_t) * a.value_width);
            } else {
                float* y = place(h, first + r);
                std::memcpy(y, h.mixed + r * value_pitch, sizeof(float) * a.value_width);
                for (int64_t k = 0; k < a.excluded; ++k) add_outside(h, r, k, y);
            }
        }
    }

    // An excluded key's probability times its value as the codes stand for it.
    void add_outside(const Head& h, int64_t r, int64_t k, float* y) const {
        const float p = h.outside[r * a.excluded + k] * h.norm[r], *value = h.value + k * a.v_row;
        for (int64_t c = 0; c < a.value_width; c += 8) {
            Lanes v, sum;
            load_some(v, value + c, a.value_width - c);
            int16_t code[8];
            code_lanes(v, h.q[2], h.q[2].inv, code);
            load_some(sum, y + c, a.value_width - c);
            for (int i = 0; i < 8; ++i) sum[i] += p * (static_cast<float>(code[i]) * h.scale[2]);
            store_some(y + c, sum, a.value_width - c);
        }
    }

    // One head.  `before` only finds probabilities and their largest, `after` starts from them.
    void run(int64_t item, bool before, bool after) {
        Head h;
        if (!open(h, item)) return fail(QA_NO_MEMORY);
        const bool given = after || a.stage == QA_MIX;
        if (before && given) return note(item, given_top(h));
        if (!given) key_panels(h);
        if (!before && a.stage != QA_SCORES) value_panels_of(h);
        float top = 0.0f;
        for (int64_t first = 0; first < a.queries; first += tile) {
            const int64_t rows = smaller(tile, a.queries - first);
            if (given) {
                fetch(h, first, rows);
            } else {
                tile_scores(h, first, rows);
                if (a.stage == QA_SCORES) {
                    write_scores(h, first, rows);
                    continue;
                }
                softmax(h, first, rows);
            }
            if (before) {
                const float most = keep(h, first, rows);
                top = top < most || most != most ? most : top;
                continue;
            }
            if (logarithmic())
                mix_logs(h, rows);
            else
                mix_uniform(h, first, rows);
            if (!direct()) write(h, first, rows);
        }
        if (before) note(item, top);
    }

    void note(int64_t item, float top) {
        scale[item] = top;
        if (!(top <= std::numeric_limits<float>::max())) fail(QA_BAD_ARGUMENT);
    }
    void fail(int why) { __atomic_store_n(&failed, why, __ATOMIC_RELAXED); }

    int run_all(int32_t threads) {
        const int64_t items = a.samples * a.heads;
        const int64_t work = items * a.queries * a.keys * 4;
        if (!waits()) {
            for_all(items, work, threads, [&](int64_t i) { run(i, false, false); });
            return failed;
        }
        scale = static_cast<float*>(qa_scratch(QA_SLOT_CALL, sizeof(float) * items));
        if (scale == nullptr) return QA_NO_MEMORY;
        for_all(items, work, threads, [&](int64_t i) { run(i, true, false); });
        if (failed) return failed;
        const int64_t group = a.kept == 1 ? a.heads : 1;
        for (int64_t i = 0; i < items; i += group) {
            float top = std::numeric_limits<float>::min();
            for (int64_t k = 0; k < group; ++k) top = larger(top, scale[i + k]);
            for (int64_t k = 0; k < group; ++k) scale[i + k] = top;
        }
        for_all(items, work, threads, [&](int64_t i) { run(i, false, true); });
        return failed;
    }
};

int run_attention(const QaAttention* given, int32_t threads) {
    if (given->samples * given->heads * given->queries == 0) return QA_OK;
    Attention attention(*given);
    return attention.run_all(threads);
}

}  // namespace

#endif
