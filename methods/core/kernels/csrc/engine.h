// The driver of one packed layer, instantiated by each instruction-set unit with its own trait
// class.  Everything lives in an unnamed namespace, so that the linker can never merge a function
// compiled for a newer machine into the path of an older one.
//
// A call is cut into blocks of output pixels.  Per block the input is quantized once into a small
// activation image; per panel of 16 output channels the weights are unpacked once; the micro-kernel
// then walks the K axis through a table of byte offsets (one per 32-bit step), which expresses taps,
// dilation and padding alike, so no im2col buffer exists.  Two orientations share the panels:
//   dense   (channels contiguous): broadcast 6 pixels, vectors of 2 x 8 channels;
//   planar  (pixels contiguous):   broadcast 6 channels, vectors of 2 x 8 pixels.
#ifndef QUANTARENA_ENGINE_H
#define QUANTARENA_ENGINE_H

#include "float_ops.h"
#include "grouped/grouped.h"
#include "image.h"
#include "mixed.h"
#include "panels.h"
#include "plan.h"
#include "wide/pairs.h"
#include "wide/tile_run.h"

namespace {

template <class Isa, bool PAIR>
class Engine {
    using Cut = Plan<Isa, PAIR>;
    using Codes = Image<Isa, PAIR>;
    using Panel = PanelRun<Isa, PAIR>;
    using Mixed = MixedPanels<Isa, PAIR>;
    static constexpr int kStepsPerUnit = Cut::kStepsPerUnit;
    static constexpr int64_t kPanelBytes = PAIR ? 512 : 256;  // per unit, unpacked
    static constexpr int kUnpacked = Isa::kPairs ? 2 : 1;     // panels at a time

  public:
    static int run(const QaLayer* layer, const QaGeometry* geometry, const float* x, void* y,
                   int32_t step, int32_t threads, int32_t flags, const QaRowScales* rows) {
        if (step < 0 || step >= layer->table_size) return QA_BAD_ARGUMENT;
        if (geometry->batch == 0 || geometry->out_height == 0 || geometry->out_width == 0)
            return QA_OK;
        Call call;
        call.layer = layer;
        call.geo = *geometry;
        call.x = x;
        call.y = y;
        call.flags = flags;
        call.next = 0;
        call.failed = 0;
        call.rows = rows;
        call.quant =
            make_quantizer(layer->act_scale[step], layer->act_zero[step], layer->act_max);
        Cut::flatten(call);
        Cut::shape_image(call);
        const QaGeometry& g = call.geo;
        if (rows && (call.planar || g.x_channel != 1 || g.batch != 1 || g.height != 1 ||
                     layer->kernel_h != 1 || layer->kernel_w != 1))
            return QA_BAD_ARGUMENT;
        if (layer->sum_groups && (flags & QA_INTEGER)) return QA_BAD_ARGUMENT;
        const int64_t work = g.batch * g.out_height * g.out_width * layer->groups * layer->panels *
                             layer->units * 256;
        if (work < Isa::kThreadWork && !kShareAll) threads = 1;
        Cut::plan_blocks(call, threads);
        if (!Cut::prepare(call, step)) return QA_NO_MEMORY;
        qa_parallel(smaller<int64_t>(threads, call.items), worker, &call);
        return call.failed ? QA_NO_MEMORY : QA_OK;
    }

    static int peak(int32_t units, int64_t repeats) {
        if constexpr (Isa::kTiles) return TileRun<Isa>::peak(units, repeats);
        if (units == 0) {
            if constexpr (!Isa::kResident) return QA_BAD_ARGUMENT;
            else return Isa::template resident<PAIR>(repeats), QA_OK;
        }
        const size_t depth = static_cast<size_t>(units) * kPanelBytes * kUnpacked;
        uint8_t* rows = static_cast<uint8_t*>(qa_scratch(QA_SLOT_ACTIVATIONS, depth));
        void* panel = qa_scratch(QA_SLOT_PANEL, depth);
        const int steps = units * kStepsPerUnit;
        int32_t* offset =
            static_cast<int32_t*>(qa_scratch(QA_SLOT_CALL, sizeof(int32_t) * steps));
        if (rows == nullptr || panel == nullptr || offset == nullptr) return QA_NO_MEMORY;
        for (int s = 0; s < steps; ++s) offset[s] = 4 * s;
        const uint8_t* row[8];
        for (int r = 0; r < 8; ++r) row[r] = rows + r * 4 * static_cast<int64_t>(steps);
        if constexpr (Isa::kPairs) {
            PairRun<Isa>::peak(row, offset, static_cast<const uint8_t*>(panel), steps, repeats);
            return QA_OK;
        }
        const uint16_t chunk = static_cast<uint16_t>(units);
        alignas(64) int32_t tile[6 * 16];
        for (int64_t i = 0; i < repeats; ++i)
            Isa::template dense<PAIR, 6>(row, offset, panel, &chunk, 1, tile);
        return QA_OK;
    }

  private:
    static void worker(void* argument) {
        Call& call = *static_cast<Call*>(argument);
        for (;;) {
            const int item = __atomic_fetch_add(&call.next, 1, __ATOMIC_RELAXED);
            if (item >= call.items) return;
            if (!block(call, item / call.splits, item % call.splits))
                __atomic_store_n(&call.failed, 1, __ATOMIC_RELAXED);
        }
    }

    static bool block(const Call& call, int index, int part) {
        const QaLayer& l = *call.layer;
        const QaGeometry& g = call.geo;
        Block b;
        const int bx = index % call.grid_cols, by = index / call.grid_cols % call.grid_rows;
        b.image0 = index / call.grid_cols / call.grid_rows * call.block_images;
        b.images = static_cast<int>(smaller<int64_t>(call.block_images, g.batch - b.image0));
        b.row0 = by * call.block_rows;
        b.rows = static_cast<int>(smaller<int64_t>(call.block_rows, g.out_height - b.row0));
        b.col0 = bx * call.block_cols;
        b.cols = static_cast<int>(smaller<int64_t>(call.block_cols, g.out_width - b.col0));

        // 512 spare bytes: the last vector of a planar row may read past its end
        const size_t image_bytes =
            static_cast<size_t>(call.image_pitch) * b.images + 512 + 4 * static_cast<size_t>(call.image_cols);
        uint8_t* image = static_cast<uint8_t*>(qa_scratch(QA_SLOT_ACTIVATIONS, image_bytes));
        const int pixels = b.images * b.rows * b.cols;
        const size_t panel_bytes = static_cast<size_t>(l.units) * kPanelBytes;
        const size_t more = l.parts ? Mixed::bytes(call, pixels) : panel_bytes;
        const bool few = Mixed::few(call, pixels);
        bool tiles = false;
        if constexpr (Isa::kTiles) tiles = call.tiles && !few && pixels >= Isa::kRows;
        size_t ahead = panel_bytes * (kUnpacked - 1);
        if constexpr (Isa::kTiles) {
            if (tiles) ahead = TileRun<Isa>::bytes(call, pixels);
        }
        void* panel = qa_scratch(QA_SLOT_PANEL, ahead + more);
        const int halves = b.images * b.rows * static_cast<int>(ceil_div(b.cols, 4));
        const size_t list_bytes = call.planar ? sizeof(PixelVector) * (halves + 2)
                                              : (sizeof(int64_t) + sizeof(int32_t)) * pixels;
        const size_t sum_count = call.planar ? 8 * static_cast<size_t>(halves + 2) : pixels;
        const bool planes = !call.planar && g.x_channel != 1 && g.x_pixel == 1;
        const size_t row_bytes = sizeof(uint32_t) * (Cut::image_pixels(l, b.cols) + 16) *
                                 (planes ? Cut::image_rows(l, b.rows) : 1);
        char* scratch = static_cast<char*>(
            qa_scratch(QA_SLOT_BLOCK, list_bytes + sizeof(int32_t) * sum_count + row_bytes + 192));
        if (image == nullptr || panel == nullptr || scratch == nullptr) return false;
        void* list = scratch;
        int32_t* sums = reinterpret_cast<int32_t*>(scratch + (list_bytes + 63) / 64 * 64);
        uint32_t* row = reinterpret_cast<uint32_t*>(
            scratch + ((list_bytes + 63) / 64 + (sizeof(int32_t) * sum_count + 63) / 64) * 64);

        const int count = call.planar
                              ? Codes::list_vectors(call, b, static_cast<PixelVector*>(list))
                              : Codes::list_pixels(call, b, static_cast<int64_t*>(list), pixels);
        // parts of a sum are panels of all groups, which one thread adds up
        const int all = l.sum_groups ? l.panels : l.groups * l.panels;
        const int first = static_cast<int>(static_cast<int64_t>(all) * part / call.splits);
        const int last = static_cast<int>(static_cast<int64_t>(all) * (part + 1) / call.splits);
        int group = -1;
        Mixed mixed(call, static_cast<uint8_t*>(panel) + ahead);
        const auto fill = [&](int p, uint8_t* to) {
            if (l.parts) {
                mixed.fill(p / l.panels, p % l.panels, to);
            } else {
                Panel::unpack(call, l, p / l.panels, p % l.panels, to);
            }
        };
        const int count_each = last - first;
        for (int i = 0; i < count_each * (l.sum_groups ? l.groups : 1); ++i) {
            const int p = i / larger(count_each, 1) * l.panels + first + i % larger(count_each, 1);
            if (p / l.panels != group) {
                group = p / l.panels;
                if (call.planar) {
                    Codes::quantize_planar(call, b, group, image, row);
                } else if (planes) {
                    Codes::quantize_planes(call, b, group, image, row);
                } else {
                    Codes::quantize_dense(call, b, group, image);
                }
                if (call.epilogue.weight_zero) Codes::sum_activations(call, image, list, count, sums);
                if (few) {
                    const int skip = l.sum_groups ? 0 : group * l.panels;
                    mixed.multiply(group, larger(first - skip, 0), smaller(last - skip, l.panels), image,
                                   reinterpret_cast<int32_t*>(static_cast<int64_t*>(list) + count), count);
                }
            }
            if (few) {
                mixed.store(p, static_cast<int64_t*>(list), b.col0, count, sums);
                continue;
            }
            if constexpr (PAIR && Isa::kDirect) {
                if (!l.parts && Panel::direct(call, l, count)) {
                    const uint8_t* codes = l.codes + static_cast<int64_t>(p) * l.units * 32 * l.weight_bits;
                    const Fold fold(l, PAIR, group, p % l.panels);
                    Panel::template dense_panel<true>(call, p, image, codes, fold.zero, static_cast<int64_t*>(list), b.col0, count, sums);
                    continue;
                }
            }
            if constexpr (Isa::kTiles) {
                if (tiles) {  // all panels of this pass and group
                    const int n = smaller(l.panels - p % l.panels, count_each - i % count_each);
                    TileRun<Isa>::run(call, p, n, image, panel, static_cast<int64_t*>(list), b.col0, count, sums, fill);
                    i += n - 1;
                    continue;
                }
            }
            if constexpr (Isa::kPairs) {
                // the next panel too, where this pass has one of the same group
                const bool two = !call.planar && (i + 1) % count_each != 0 && (p + 1) % l.panels != 0;
                const uint8_t* weights = PairRun<Isa>::stored(l, p);
                if (weights == nullptr) {
                    uint8_t* to = static_cast<uint8_t*>(panel);
                    for (int k = 0; k <= two; ++k) fill(p + k, to + k * panel_bytes);
                    weights = to;
                }
                PairRun<Isa>::run(call, p, two, image, weights, list, b.col0, count, sums);
                i += two;
            } else {
                fill(p, static_cast<uint8_t*>(panel));
                if (call.planar) {
                    Panel::planar_panel(call, p, image, panel, static_cast<PixelVector*>(list), count, sums);
                } else {
                    Panel::template dense_panel<false>(call, p, image, panel, nullptr, static_cast<int64_t*>(list), b.col0, count, sums);
                }
            }
        }
        return true;
    }
};

// Both forms of a trait class, or only the dword = 4 k form for units that never need the other.
template <class Isa>
struct BothForms {
    static int run(const QaLayer* layer, const QaGeometry* geometry, const float* x, void* y,
                   int32_t step, int32_t threads, int32_t flags, const QaRowScales* rows) {
        return layer->pair ? Engine<Isa, true>::run(layer, geometry, x, y, step, threads, flags, rows)
                           : Engine<Isa, false>::run(layer, geometry, x, y, step, threads, flags, rows);
    }
    static int peak(int32_t pair, int32_t units, int64_t repeats) {
        return pair ? Engine<Isa, true>::peak(units, repeats) : Engine<Isa, false>::peak(units, repeats);
    }
};

template <class Isa>
struct QuadForm {
    static int run(const QaLayer* layer, const QaGeometry* geometry, const float* x, void* y,
                   int32_t step, int32_t threads, int32_t flags, const QaRowScales* rows) {
        if (layer->pair) return QA_BAD_ARGUMENT;
        return Engine<Isa, false>::run(layer, geometry, x, y, step, threads, flags, rows);
    }
    static int peak(int32_t pair, int32_t units, int64_t repeats) {
        return pair ? static_cast<int>(QA_BAD_ARGUMENT) : Engine<Isa, false>::peak(units, repeats);
    }
};

}  // namespace

#endif
