// The driver of a layer whose K axis has groups: one call, whatever their number.
#ifndef QUANTARENA_GROUPED_H
#define QUANTARENA_GROUPED_H

#include "grouped/branch.h"
#include "grouped/group_image.h"
#include "panels.h"

namespace {

template <class Isa, bool PAIR>
class GroupEngine {
    using Cut = Plan<Isa, PAIR>;
    using Codes = GroupImage<Isa, PAIR>;
    using Tables = GroupPlan<Isa, PAIR>;
    using Whole = Image<Isa, PAIR>;
    using Panel = PanelRun<Isa, PAIR>;

  public:
    static int run(const QaLayer* layer, const QaGroups* groups, const QaGeometry* geometry, const float* x,
                   void* y, int32_t step, int32_t threads, int32_t flags, const QaRowScales* rows) {
        const QaLayer& l = *layer;
        const bool by_call = groups->ranges == QA_BY_CALL, apart = l.sum_groups != 0;
        const QaGeometry& g = *geometry;
        const bool matrix = l.kernel_h * l.kernel_w == 1 && g.batch == 1 && g.height == 1 && g.out_width == g.width;
        if (l.parts || g.x_channel != 1 || groups->count < 1 || apart != (l.groups > 1) ||
            (apart && l.groups != groups->count) || (!by_call && !matrix) ||
            (!by_call && !apart && groups->count > 1) || (apart && (by_call || groups->order)) ||
            (by_call && (step < 0 || step >= groups->table_size)) ||
            (groups->ranges == QA_BY_ROW) != (rows != nullptr))
            return QA_BAD_ARGUMENT;
        if (g.batch == 0 || g.out_height == 0 || g.out_width == 0) return QA_OK;
        GroupCall c;
        c.layer = layer;
        c.groups = groups;
        c.geo = g;
        c.x = x;
        c.y = y;
        c.flags = flags;
        c.next = c.failed = c.not_finite = 0;
        c.rows = nullptr;
        c.step = step;
        if (by_call) {
            const int64_t at = static_cast<int64_t>(step) * groups->count;
            c.quant = make_quantizer(groups->act_scale[at], groups->act_zero[at], l.act_max);
        }
        Cut::flatten(c);
        c.planar = false;
        c.rows = rows;
        Tables::shape(c);
        const int64_t work = g.batch * g.out_height * g.out_width * l.groups * l.panels * l.units * 256;
        if (work < Isa::kThreadWork && !kShareAll) threads = 1;
        Cut::plan_blocks(c, threads);
        if (!Tables::prepare(c)) return QA_NO_MEMORY;
        qa_parallel(smaller<int64_t>(threads, c.items), worker, &c);
        return c.failed ? QA_NO_MEMORY : c.not_finite ? QA_NOT_FINITE : QA_OK;
    }

  private:
    static void worker(void* argument) {
        GroupCall& c = *static_cast<GroupCall*>(argument);
        for (;;) {
            const int item = __atomic_fetch_add(&c.next, 1, __ATOMIC_RELAXED);
            if (item >= c.items) return;
            block(c, item / c.splits, item % c.splits);
        }
    }

    // The first input pixel under an output pixel, which may lie beyond the border.
    struct Corner {
        int64_t offset, y, x;
    };

    // What a thread holds of a block, in one piece of scratch.
    struct Desk {
        int64_t* to;
        int32_t *from, *sums, *row_zero, *start, *zero, *probe, *totals;
        float *row_scale, *down, *up, *bias, *scale;
        uint8_t* spare;
        Corner* corner;
        int64_t rank_pitch;
        Desk(const GroupCall& c, int pixels, char* block, size_t* bytes) {
            const QaGroups& k = *c.groups;
            const int64_t own = k.ranges == QA_BY_CALL ? 0 : static_cast<int64_t>(pixels) * c.count;
            rank_pitch = (k.rank + 7) / 8 * 8;
            typename Tables::Carve carve{block};
            carve.take(to, pixels), carve.take(from, pixels);
            carve.take(sums, static_cast<int64_t>(pixels) * c.count);
            carve.take(row_scale, own), carve.take(row_zero, own);
            carve.take(down, pixels * rank_pitch), carve.take(up, 16 * static_cast<int64_t>(k.rank));
            carve.take(bias, 16);
            carve.take(start, 16 * c.count), carve.take(zero, 16 * c.count);
            carve.take(scale, 16 * c.count), carve.take(probe, 16 * c.count);
            carve.take(totals, c.flags & QA_INTEGER ? 6 * 16 * c.count : 0);
            carve.take(corner, k.rank ? pixels : 0);
            carve.take(spare, static_cast<int64_t>(Codes::spare(c)));
            *bytes = carve.used;
        }
    };

    static void block(GroupCall& c, int index, int part) {
        const QaLayer& l = *c.layer;
        const QaGeometry& g = c.geo;
        Block b;
        const int bx = index % c.grid_cols, by = index / c.grid_cols % c.grid_rows;
        b.image0 = index / c.grid_cols / c.grid_rows * c.block_images;
        b.images = static_cast<int>(smaller<int64_t>(c.block_images, g.batch - b.image0));
        b.row0 = by * c.block_rows;
        b.rows = static_cast<int>(smaller<int64_t>(c.block_rows, g.out_height - b.row0));
        b.col0 = bx * c.block_cols;
        b.cols = static_cast<int>(smaller<int64_t>(c.block_cols, g.out_width - b.col0));
        const int pixels = b.images * b.rows * b.cols;

        size_t bytes = 0;
        Desk(c, pixels, nullptr, &bytes);
        char* scratch = static_cast<char*>(qa_scratch(QA_SLOT_BLOCK, bytes));
        // 512 spare bytes: the last codes of a row may be written with some beyond
        const size_t image_bytes = static_cast<size_t>(c.image_pitch) * b.images + 512;
        uint8_t* image = static_cast<uint8_t*>(qa_scratch(QA_SLOT_ACTIVATIONS, image_bytes));
        const size_t stored = c.apart || c.plain ? 0 : 64 * static_cast<size_t>(c.of_panels.total_steps);
        uint8_t* panel = static_cast<uint8_t*>(
            qa_scratch(QA_SLOT_PANEL, 64 * static_cast<size_t>(c.total_steps) + stored));
        if (scratch == nullptr || image == nullptr || panel == nullptr) {
            __atomic_store_n(&c.failed, 1, __ATOMIC_RELAXED);
            return;
        }
        const Desk desk(c, pixels, scratch, &bytes);
        list_pixels(c, b, desk);
        if (c.groups->ranges != QA_BY_CALL) {
            if (!Codes::by_row(c, b, image, reinterpret_cast<float*>(desk.spare), desk.row_scale, desk.row_zero)) {
                __atomic_store_n(&c.not_finite, 1, __ATOMIC_RELAXED);
                return;
            }
        } else if (c.plain) {
            Whole::quantize_dense(c, b, 0, image);
        } else {
            Codes::by_channel(c, b, image, desk.spare);
        }
        const bool keeps = l.weight_zero != nullptr && !Fold::folds(l, PAIR);
        if (keeps) Codes::sum_codes(c, image, desk.from, pixels, desk.sums);
        const bool branch = c.groups->rank && !(c.flags & QA_INTEGER);
        if (branch) project_block(c, b, desk, pixels);
        const int first = static_cast<int>(static_cast<int64_t>(l.panels) * part / c.splits);
        const int last = static_cast<int>(static_cast<int64_t>(l.panels) * (part + 1) / c.splits);
        for (int p = first; p < last; ++p) {
            unpack(c, p, panel, panel + 64 * static_cast<int64_t>(c.total_steps));
            constants(c, p, panel, keeps, branch, desk);
            multiply(c, p, image, panel, keeps, branch, pixels, desk);
        }
    }

    static void list_pixels(const GroupCall& c, const Block& b, const Desk& desk) {
        int m = 0;
        for (int i = 0; i < b.images; ++i)
            for (int y = 0; y < b.rows; ++y)
                for (int x = 0; x < b.cols; ++x, ++m) {
                    desk.to[m] = Whole::output_offset(c, b, i, y, x);
                    desk.from[m] = static_cast<int32_t>(Whole::image_offset(c, i, y, x));
                }
    }

    static void project_block(const GroupCall& c, const Block& b, const Desk& desk, int pixels) {
        const QaLayer& l = *c.layer;
        const QaGeometry& g = c.geo;
        int m = 0;
        for (int i = 0; i < b.images; ++i)
            for (int oy = 0; oy < b.rows; ++oy)
                for (int ox = 0; ox < b.cols; ++ox, ++m) {
                    const int64_t y = static_cast<int64_t>(b.row0 + oy) * l.stride_h - l.pad_h;
                    const int64_t x = static_cast<int64_t>(b.col0 + ox) * l.stride_w - l.pad_w;
                    desk.corner[m] = {(b.image0 + i) * g.x_batch + y * g.x_row + x * g.x_pixel, y, x};
                }
        const auto row_of = [&](int pixel, int ky, int kx) -> const float* {
            const Corner& at = desk.corner[pixel];
            const int64_t dy = ky * l.dilation_h, dx = kx * l.dilation_w;
            // one comparison each: what is negative is large without a sign
            const bool inside = static_cast<uint64_t>(at.y + dy) < static_cast<uint64_t>(g.height) &&
                                static_cast<uint64_t>(at.x + dx) < static_cast<uint64_t>(g.width);
            return inside ? c.x + at.offset + dy * g.x_row + dx * g.x_pixel : c.nothing;
        };
        project_all(pixels, l.kernel_h, l.kernel_w, c.inputs, c.groups->down, c.groups->rank, desk.rank_pitch,
                    desk.down, row_of);
    }

    // The weights of 16 outputs, group after group.
    static void unpack(const GroupCall& c, int p, uint8_t* panel, uint8_t* stored) {
        const QaLayer& l = *c.layer;
        if (c.apart || c.plain) {
            for (int g = 0; g < l.groups; ++g)
                Panel::unpack(c.of_panels, l, g, p, panel + 64 * static_cast<int64_t>(c.begin[g]));
            return;
        }
        Panel::unpack(c.of_panels, l, 0, p, stored);
        for (int s = 0; s < c.total_steps; ++s, panel += 64) {
            if (c.stored[s] < 0) {
                std::memset(panel, 0, 64);
            } else {
                std::memcpy(panel, stored + 64 * static_cast<int64_t>(c.stored[s]), 64);
            }
        }
    }

    static GroupTile tile_of(const GroupCall& c, int p, const Desk& desk) {
        const QaLayer& l = *c.layer;
        GroupTile t{};
        t.count = c.count;
        t.steps = c.steps;
        t.start = desk.start;
        t.scale = desk.scale;
        t.zero = desk.zero;
        t.pitch = c.count;
        t.chunk = l.chunk_units;
        t.chunk_start = l.chunk_start + (c.apart ? p : p * c.count);
        t.chunk_pitch = c.apart ? l.panels : 1;
        return t;
    }

    // Constants of a panel.  What zero points add is found by a row of the micro-kernel: the sums of
    // zero points, or of ones where each row has its own.
    static void constants(const GroupCall& c, int p, const uint8_t* panel, bool keeps, bool branch,
                          const Desk& desk) {
        const QaLayer& l = *c.layer;
        const QaGroups& k = *c.groups;
        const bool by_call = k.ranges == QA_BY_CALL;
        const int width = smaller(16, l.out_channels - 16 * p);
        std::memset(desk.start, 0, 64 * static_cast<size_t>(c.count));
        GroupTile t = tile_of(c, p, desk);
        t.totals = desk.probe;
        const uint8_t* row[1] = {c.probe};
        groups_of_rows<Isa, PAIR, 1>(row, c.flat, panel, t, nullptr);
        for (int g = 0; g < c.count; ++g) {
            const int64_t row0 = c.apart ? static_cast<int64_t>(g) * l.out_channels : 0;
            const float sx = by_call ? k.act_scale[static_cast<int64_t>(c.step) * c.count + g] : 1.0f;
            const int zx = by_call ? k.act_zero[static_cast<int64_t>(c.step) * c.count + g] : 1;
            const int depth = (c.apart ? l.in_channels : k.edge[g + 1] - k.edge[g]) * Tables::taps(l);
            for (int n = 0; n < 16; ++n) {
                const bool real = n < width;
                const int64_t at = row0 + 16 * p + (real ? n : 0);
                const int64_t by_group = static_cast<int64_t>(g) * l.out_channels + 16 * p + (real ? n : 0);
                const float sw = k.weight_scale ? k.weight_scale[by_group] : l.weight_scale[at];
                const uint32_t zw = keeps && real ? static_cast<uint32_t>(l.weight_zero[at]) : 0u;
                const uint32_t all = static_cast<uint32_t>(depth) * static_cast<uint32_t>(zx);
                desk.scale[16 * g + n] = real ? sx * sw : 0.0f;
                desk.zero[16 * g + n] = static_cast<int32_t>(zw);
                desk.start[16 * g + n] = static_cast<int32_t>(static_cast<uint32_t>(desk.probe[16 * g + n]) - all * zw);
            }
        }
        for (int n = 0; n < 16; ++n) desk.bias[n] = n < width && l.bias ? l.bias[16 * p + n] : 0.0f;
        if (!branch) return;
        std::memset(desk.up, 0, width < 16 ? sizeof(float) * 16 * static_cast<size_t>(k.rank) : 0);
        for (int r = 0; r < k.rank; ++r)
            std::memcpy(desk.up + 16 * r, k.up + static_cast<int64_t>(r) * l.out_channels + 16 * p,
                        sizeof(float) * static_cast<size_t>(width));
    }

    static void multiply(const GroupCall& c, int p, const uint8_t* image, const uint8_t* panel, bool keeps,
                         bool branch, int pixels, const Desk& desk) {
        const QaLayer& l = *c.layer;
        const int width = smaller(16, l.out_channels - 16 * p);
        const int64_t shift = 16 * static_cast<int64_t>(p) * c.geo.y_channel;
        GroupTile t = tile_of(c, p, desk);
        const bool own = c.groups->ranges != QA_BY_CALL;
        t.totals = c.flags & QA_INTEGER ? desk.totals : nullptr;
        Lanes f[12], bias[2];
        load_lanes(bias[0], desk.bias);
        load_lanes(bias[1], desk.bias + 8);
        for (int m = 0; m < pixels; m += 6) {
            const int rows = smaller(6, pixels - m);
            const uint8_t* row[6];
            const float* down[6];
            for (int r = 0; r < 6; ++r) {
                const int at = m + smaller(r, rows - 1);
                if (r < rows) Panel::prefetch(c, desk.to[at] + shift);
                row[r] = image + desk.from[at];
                down[r] = desk.down + at * desk.rank_pitch;
                f[2 * r] = bias[0];
                f[2 * r + 1] = bias[1];
            }
            if (branch) float_tile<6, 2>(down, c.groups->rank, desk.up, 16, f);
            if (own) {
                t.row_scale = desk.row_scale + static_cast<int64_t>(m) * c.count;
                t.row_zero = desk.row_zero + static_cast<int64_t>(m) * c.count;
            }
            if (keeps) t.sums = desk.sums + static_cast<int64_t>(m) * c.count;
            group_tile<Isa, PAIR>(rows, row, c.step_offset, panel, t, reinterpret_cast<float*>(f));
            if (t.totals) {
                store_totals(c, rows, width, desk.to + m, shift, desk.totals);
            } else {
                store(c, rows, width, desk.to + m, shift, reinterpret_cast<const float*>(f));
            }
        }
    }

    static void store(const GroupCall& c, int rows, int width, const int64_t* to, int64_t shift, const float* f) {
        const int64_t pitch = c.geo.y_channel;
        for (int r = 0; r < rows; ++r, f += 16) {
            float* out = static_cast<float*>(c.y) + to[r] + shift;
            if (pitch == 1 && width == 16) {
                Lanes v[2], old;
                for (int h = 0; h < 2; ++h) {
                    load_lanes(v[h], f + 8 * h);
                    if (c.flags & QA_ACCUMULATE) {
                        load_lanes(old, out + 8 * h);
                        v[h] += old;
                    }
                    store_lanes(out + 8 * h, v[h]);
                }
                continue;
            }
            for (int n = 0; n < width; ++n)
                out[n * pitch] = c.flags & QA_ACCUMULATE ? out[n * pitch] + f[n] : f[n];
        }
    }

    static void store_totals(const GroupCall& c, int rows, int width, const int64_t* to, int64_t shift,
                             const int32_t* totals) {
        const int64_t size = c.geo.batch * c.geo.out_height * c.geo.out_width * c.layer->out_channels;
        for (int g = 0; g < c.count; ++g)
            for (int r = 0; r < rows; ++r)
                for (int n = 0; n < width; ++n)
                    static_cast<int32_t*>(c.y)[g * size + to[r] + shift + n * c.geo.y_channel] =
                        totals[16 * (g * rows + r) + n];
    }
};

template <class Isa, bool BOTH>
int run_groups(const QaLayer* layer, const QaGroups* groups, const QaGeometry* geometry, const float* x, void* y,
               int32_t step, int32_t threads, int32_t flags, const QaRowScales* rows) {
    if (!layer->pair)
        return GroupEngine<Isa, false>::run(layer, groups, geometry, x, y, step, threads, flags, rows);
    if constexpr (BOTH) {
        return GroupEngine<Isa, true>::run(layer, groups, geometry, x, y, step, threads, flags, rows);
    } else {
        return QA_BAD_ARGUMENT;
    }
}

}  // namespace

#endif
