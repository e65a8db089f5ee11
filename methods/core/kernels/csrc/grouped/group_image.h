// Codes of a block whose channels have ranges by group, or whose rows have ranges of their own.
#ifndef QUANTARENA_GROUP_IMAGE_H
#define QUANTARENA_GROUP_IMAGE_H

#include "float_ops.h"
#include "grouped/group_plan.h"
#include "image.h"

namespace {

template <class Isa, class = void>
struct MovesBytes : std::false_type {};
template <class Isa>
struct MovesBytes<Isa, std::void_t<decltype(Isa::kMovesBytes)>> : std::true_type {};

template <class Isa, bool PAIR>
struct GroupImage {
    using Cut = Plan<Isa, PAIR>;
    using Whole = Image<Isa, PAIR>;
    using Tables = GroupPlan<Isa, PAIR>;
    static constexpr int kRun = 16;  // pixels whose codes are put in order together
    static constexpr int kBytes = PAIR ? 2 : 1;

    static int64_t pitch_of(const GroupCall& c) { return (c.inputs + 31) / 32 * 32 * kBytes; }
    // Scratch of a thread besides the image, in bytes.
    static size_t spare(const GroupCall& c) {
        const int64_t floats = static_cast<int64_t>(kRun) * (c.inputs + 2 * c.count) + 16;
        if (c.groups->ranges != QA_BY_CALL) return sizeof(float) * static_cast<size_t>(floats);
        return static_cast<size_t>(kRun * pitch_of(c)) + 64;
    }

    // Codes of channels in the order of the input.
    static void each(const GroupCall& c, const float* from, uint8_t* to) {
        const float* mult = c.layer->in_mult ? c.mult : nullptr;
        if constexpr (MovesBytes<Isa>::value) {
            Isa::template quantize_each<PAIR>(from, mult, c.inv, c.zero, c.layer->act_max, c.inputs, to);
        } else {
            const int32_t most = c.layer->act_max;
            for (int i = 0; i < c.inputs; ++i) {
                float v = from[i] * c.inv[i];
                if (mult) v *= mult[i];
                const Quantizer q = {c.inv[i], static_cast<float>(-c.zero[i]),
                                     static_cast<float>(most - c.zero[i]), c.zero[i]};
                Tables::put(to, i, static_cast<int>(quantize_one(v, q)));
            }
        }
    }

    // From the order of the input to that of the groups.
    static void sort(const GroupCall& c, const uint8_t* codes, int pixels, uint8_t* to) {
        const int64_t pitch = static_cast<int64_t>(c.tap_steps) * 4;
        if constexpr (!PAIR && MovesBytes<Isa>::value) {
            if (Tables::moved(c)) {
                Isa::move_bytes(codes, pitch_of(c), pixels, c.moves, Tables::sources(c), Tables::move_blocks(c),
                                to, pitch);
                return;
            }
        }
        for (int m = 0; m < pixels; ++m, codes += pitch_of(c), to += pitch)
            for (int i = 0; i < c.lanes; ++i) {
                if (PAIR) {
                    uint16_t code = 0;
                    if (c.from[i] >= 0) std::memcpy(&code, codes + 2 * c.from[i], 2);
                    std::memcpy(to + 2 * i, &code, 2);
                } else {
                    to[i] = c.from[i] >= 0 ? codes[c.from[i]] : uint8_t{0};
                }
            }
    }

    static void by_channel(const GroupCall& c, const Block& b, uint8_t* image, uint8_t* codes) {
        const QaLayer& l = *c.layer;
        const QaGeometry& g = c.geo;
        const int rows = Cut::image_rows(l, b.rows), cols = Cut::image_pixels(l, b.cols);
        const int64_t y0 = static_cast<int64_t>(b.row0) * l.stride_h - l.pad_h;
        const int64_t x0 = static_cast<int64_t>(b.col0) * l.stride_w - l.pad_w;
        const int64_t pitch = static_cast<int64_t>(c.tap_steps) * 4;
        const int left = static_cast<int>(smaller<int64_t>(larger<int64_t>(-x0, 0), cols));
        const int right = static_cast<int>(larger<int64_t>(smaller<int64_t>(g.width - x0, cols), left));
        for (int i = 0; i < b.images; ++i)
            for (int qy = 0; qy < rows; ++qy) {
                const int64_t y = y0 + qy;
                uint8_t* row = image + i * c.image_pitch + qy * c.row_pitch;
                const bool inside = y >= 0 && y < g.height;
                for (int x = 0; x < (inside ? left : cols); ++x)
                    std::memcpy(row + x * pitch, c.edge_pixel, static_cast<size_t>(pitch));
                if (!inside) continue;
                for (int x = left; x < right; x += kRun) {
                    const int run = smaller(kRun, right - x);
                    const float* from = c.x + (b.image0 + i) * g.x_batch + y * g.x_row + (x0 + x) * g.x_pixel;
                    for (int k = 0; k < run; ++k) each(c, from + k * g.x_pixel, codes + k * pitch_of(c));
                    sort(c, codes, run, row + x * pitch);  // may write a little beyond
                }
                for (int x = right; x < cols; ++x)
                    std::memcpy(row + x * pitch, c.edge_pixel, static_cast<size_t>(pitch));
            }
    }

    // Ranges from the extremes of slices, eight at a time, bit for bit as torch makes them; `low` and
    // `high` have room for whole vectors.  Returns false where one is not finite.
    static bool found(const GroupCall& c, float* low, float* high, int64_t count, float* scale, int32_t* zero) {
        constexpr float kFloor = 1e-8f, kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
        const float top = static_cast<float>(c.layer->act_max);
        const float half = static_cast<float>((c.layer->act_max + 1) / 2);
        for (int64_t i = count; i % 8 != 0; ++i) low[i] = high[i] = 0.0f;
        Lanes odd = {};
        for (int64_t i = 0; i < count; i += 8) {
            Lanes l, h, s, z;
            load_lanes(l, low + i);
            load_lanes(h, high + i);
            odd += (l - l) + (h - h);  // NaN for NaN and infinities
            l = l < 0.0f ? l : Lanes{};
            h = h > 0.0f ? h : Lanes{};
            const Lanes width = h - l;
            odd += width - width;
            if (c.groups->ranges == QA_FOUND_SYMMETRIC) {
                const Lanes up = h / (half - 1.0f), down = -l / half;
                s = up > down ? up : down;
                z = Lanes{} + half;
            } else {
                s = width / top;
                z = Lanes{};
            }
            s = s > kFloor ? s : Lanes{} + kFloor;
            if (c.groups->ranges == QA_FOUND) {
                z = (-l / s + kRound) - kRound;
                clamp_lanes(z, 0.0f, top);
            }
            const int size = static_cast<int>(smaller<int64_t>(8, count - i));
            std::memcpy(scale + i, &s, sizeof(float) * static_cast<size_t>(size));
            const LaneBits whole = __builtin_convertvector(z, LaneBits);
            std::memcpy(zero + i, &whole, sizeof(int32_t) * static_cast<size_t>(size));
        }
        return add_up(odd) == 0.0f;
    }

    // Rows of a matrix; `scale` and `zero` receive their ranges.
    static bool by_row(const GroupCall& c, const Block& b, uint8_t* image, float* spare, float* scale,
                       int32_t* zero) {
        const QaLayer& l = *c.layer;
        const int width = l.in_channels;
        const int64_t group_bytes = static_cast<int64_t>(l.in_padded) * kBytes;
        const bool given = c.groups->ranges == QA_BY_ROW;
        const bool multiplied = l.in_mult && !given;  // ranges are then those of the product
        const float* mult = given ? l.in_mult : nullptr;
        float* const low = spare + static_cast<int64_t>(kRun) * c.inputs;
        float* const high = low + kRun * c.count + 8;
        for (int m = 0; m < b.cols; m += kRun) {
            const int rows = smaller(kRun, b.cols - m);
            const int64_t first = static_cast<int64_t>(m) * c.count, there = static_cast<int64_t>(b.col0) * c.count;
            const float* from = c.x + static_cast<int64_t>(b.col0 + m) * c.geo.x_pixel;
            int64_t pitch = c.geo.x_pixel;
            for (int r = 0; multiplied && r < rows; ++r)
                multiply(from + r * pitch, l.in_mult, c.inputs, spare + static_cast<int64_t>(r) * c.inputs);
            if (multiplied) from = spare, pitch = c.inputs;
            if (given) {
                std::memcpy(scale + first, c.rows->scale + there + first, sizeof(float) * static_cast<size_t>(rows * c.count));
                std::memcpy(zero + first, c.rows->zero + there + first, sizeof(int32_t) * static_cast<size_t>(rows * c.count));
            } else {
                for (int r = 0; r < rows; ++r)
                    for (int g = 0; g < c.count; ++g)
                        slice_extremes(from + r * pitch + g * width, width, low[r * c.count + g], high[r * c.count + g]);
                if (!found(c, low, high, rows * c.count, scale + first, zero + first)) return false;
            }
            for (int r = 0; r < rows; ++r) {
                uint8_t* to = image + (m + r) * static_cast<int64_t>(c.tap_steps) * 4;
                for (int g = 0; g < c.count; ++g, to += group_bytes) {
                    const int64_t at = first + r * c.count + g;
                    const Quantizer own = make_quantizer(scale[at], zero[at], l.act_max);
                    Isa::template quantize_dense<PAIR>(from + r * pitch + g * width, mult ? mult + g * width : nullptr,
                                                       width, own, to);
                    for (int k = width; k < l.in_padded; ++k) Tables::put(to, k, 0);
                }
            }
        }
        return true;
    }

    static void multiply(const float* from, const float* mult, int count, float* to) {
        map_lanes(from, to, count, [&](Lanes& v, int64_t at, int lanes) QA_ALWAYS {
            Lanes factor = {};
            if (lanes == 8) load_lanes(factor, mult + at);
            else std::memcpy(&factor, mult + at, sizeof(float) * static_cast<size_t>(lanes));
            v = v * factor;
        });
    }

    // Sums of the codes of each group under each output pixel, for weights that keep their zero points.
    static void sum_codes(const GroupCall& c, const uint8_t* image, const int32_t* from, int pixels,
                          int32_t* sums) {
        const QaLayer& l = *c.layer;
        const int taps = Tables::taps(l);
        for (int m = 0; m < pixels; ++m)
            for (int g = 0; g < c.count; ++g) {
                // lanes without a channel hold zero, but beyond the border of a plain image
                const int bytes = c.apart || c.plain ? l.in_channels : 4 * c.wide[g];
                int32_t sum = 0;
                for (int t = 0; t < taps; ++t) {
                    const int32_t at = c.step_offset[c.begin[g] + t * c.wide[g]];
                    sum += Isa::sum_dense(image + from[m] + at, bytes);
                }
                sums[static_cast<int64_t>(m) * c.count + g] = sum;
            }
    }
};

}  // namespace

#endif
