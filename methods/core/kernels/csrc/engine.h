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

#include <cmath>
#include <cstdint>
#include <cstring>

#include "quantarena.h"

namespace {

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
template <class T>
inline T smaller(T a, T b) {
    return a < b ? a : b;
}
template <class T>
inline T larger(T a, T b) {
    return a > b ? a : b;
}

// code = clamp(round(x * inv), lo, hi) + zero, in float until after the clamp; NaN gives lo.
struct Quantizer {
    float inv, lo, hi;
    int32_t zero;
};

inline uint32_t quantize_one(float value, const Quantizer& q) {
    float v = value > q.lo ? value : q.lo;  // false for NaN
    v = v < q.hi ? v : q.hi;
    return static_cast<uint32_t>(static_cast<int32_t>(lrintf(v)) + q.zero);
}

// Eight neighbouring output pixels as two groups of four; `lo`, `hi` are byte offsets into the
// activation image, `y_lo`, `y_hi` element offsets into the output.
struct PixelVector {
    int32_t lo, hi;
    int64_t y_lo, y_hi;
    int32_t count_lo, count_hi;
    bool whole() const { return hi == lo + 16; }
};

// Per-channel constants of the epilogue, padded to whole panels.
struct Epilogue {
    const float* scale;
    const float* bias;
    const int32_t* correction;
    const int32_t* weight_zero;  // null for symmetric weights
    int32_t flags;
};

struct Call {
    const QaLayer* layer;
    QaGeometry geo;
    const float* x;
    void* y;
    int32_t flags;
    Quantizer quant;
    bool planar;
    int tap_steps;    // 32-bit steps per kernel tap
    int total_steps;  // padded to whole units
    int image_cols;   // dwords per (row, step, phase) when planar, pixels per row when dense
    int64_t row_pitch, image_pitch;  // bytes
    int block_images, block_rows, block_cols;
    int grid_images, grid_rows, grid_cols;
    int splits;  // groups of panels per block
    int items;
    int next;
    int failed;
    const int32_t* step_offset;
    Epilogue epilogue;
};

template <class Isa, bool PAIR>
class Engine {
    static constexpr int kLanes = PAIR ? 2 : 4;             // k per 32-bit step
    static constexpr int kStepsPerUnit = 16 / kLanes;
    static constexpr int kWideBytes = 256;  // channel bytes under a tile that strain the L1 cache
    static constexpr int64_t kPanelBytes = PAIR ? 512 : 256;  // per unit, unpacked

  public:
    static int run(const QaLayer* layer, const QaGeometry* geometry, const float* x, void* y,
                   int32_t step, int32_t threads, int32_t flags) {
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
        const int32_t zero = layer->act_zero[step];
        call.quant.inv = 1.0f / layer->act_scale[step];
        call.quant.zero = zero;
        call.quant.lo = static_cast<float>(-zero);
        call.quant.hi = static_cast<float>(layer->act_max - zero);
        flatten(call);
        shape_image(call);
        const QaGeometry& g = call.geo;
        const int64_t work = g.batch * g.out_height * g.out_width * layer->groups * layer->panels *
                             layer->units * 256;
        if (work < Isa::kThreadWork) threads = 1;
        plan_blocks(call, threads);
        if (!prepare(call, step)) return QA_NO_MEMORY;
        qa_parallel(smaller<int64_t>(threads, call.items), worker, &call);
        return call.failed ? QA_NO_MEMORY : QA_OK;
    }

    static int peak(int32_t units, int64_t repeats) {
        const size_t depth = static_cast<size_t>(units) * kPanelBytes;
        uint8_t* rows = static_cast<uint8_t*>(qa_scratch(QA_SLOT_ACTIVATIONS, depth));
        void* panel = qa_scratch(QA_SLOT_PANEL, depth);
        const int steps = units * kStepsPerUnit;
        int32_t* offset =
            static_cast<int32_t*>(qa_scratch(QA_SLOT_CALL, sizeof(int32_t) * steps));
        if (rows == nullptr || panel == nullptr || offset == nullptr) return QA_NO_MEMORY;
        for (int s = 0; s < steps; ++s) offset[s] = 4 * s;
        const uint8_t* row[6];
        for (int r = 0; r < 6; ++r) row[r] = rows + r * 4 * static_cast<int64_t>(steps);
        const uint16_t chunk = static_cast<uint16_t>(units);
        alignas(64) int32_t tile[6 * 16];
        for (int64_t i = 0; i < repeats; ++i)
            Isa::template dense<PAIR, 6>(row, offset, panel, &chunk, 1, tile);
        return QA_OK;
    }

  private:
    // A pointwise convolution does not care where rows and images end.
    static void flatten(Call& call) {
        const QaLayer& l = *call.layer;
        QaGeometry& g = call.geo;
        const bool dense = g.x_channel == 1;
        call.planar = !dense && g.x_pixel == 1 && g.y_pixel == 1;
        const bool pointwise = l.kernel_h == 1 && l.kernel_w == 1 && l.stride_h == 1 &&
                               l.stride_w == 1 && l.pad_h == 0 && l.pad_w == 0;
        if (pointwise && (g.height == 1 || (g.x_row == g.width * g.x_pixel &&
                                            g.y_row == g.width * g.y_pixel))) {
            g.width = g.out_width = g.width * g.height;
            g.height = g.out_height = 1;
            if (!call.planar && (g.batch == 1 || (g.x_batch == g.width * g.x_pixel &&
                                                  g.y_batch == g.width * g.y_pixel))) {
                g.width = g.out_width = g.width * g.batch;
                g.batch = 1;
            }
        }
        if (g.out_width < 4) call.planar = false;
    }

    static void shape_image(Call& call) {
        call.tap_steps = call.layer->in_padded / kLanes;
        call.total_steps = call.layer->units * kStepsPerUnit;
    }

    static int image_rows(const QaLayer& l, int rows) {
        return (rows - 1) * l.stride_h + (l.kernel_h - 1) * l.dilation_h + 1;
    }
    static int image_pixels(const QaLayer& l, int cols) {
        return (cols - 1) * l.stride_w + (l.kernel_w - 1) * l.dilation_w + 1;
    }

    static void plan_blocks(Call& call, int32_t threads) {
        const QaLayer& l = *call.layer;
        const QaGeometry& g = call.geo;
        const int64_t pixel_bytes =
            static_cast<int64_t>(call.tap_steps) * 4 * l.stride_h * l.stride_w;
        const int64_t total = g.batch * g.out_height * g.out_width;
        int64_t target = (Isa::kBlockBytes * (PAIR ? 2 : 1)) / larger<int64_t>(pixel_bytes, 1);
        target = smaller<int64_t>(larger<int64_t>(target, 96), 768);
        if (threads > 1) target = smaller<int64_t>(target, larger<int64_t>(ceil_div(total, threads), 48));
        int64_t images = 1, rows = 1, cols = g.out_width;
        const int64_t area = g.out_height * g.out_width;
        if (area <= target) {
            rows = g.out_height;
            images = smaller<int64_t>(larger<int64_t>(target / area, 1), g.batch);
            images = ceil_div(g.batch, ceil_div(g.batch, images));
        } else if (g.out_height > 1) {
            // a planar tile reads 16 pixels of every channel row: short rows waste no cache lines
            if (call.planar && g.out_width >= 32 && call.tap_steps * 4 * l.kernel_h >= kWideBytes)
                cols = 16;
            rows = larger<int64_t>(target / cols, 1);
            rows = ceil_div(g.out_height, ceil_div(g.out_height, rows));
        } else {
            cols = ceil_div(g.out_width, ceil_div(g.out_width, target));
            cols = smaller<int64_t>(ceil_div(cols, 48) * 48, g.out_width);
        }
        call.block_images = static_cast<int>(images);
        call.block_rows = static_cast<int>(rows);
        call.block_cols = static_cast<int>(cols);
        call.grid_images = static_cast<int>(ceil_div(g.batch, images));
        call.grid_rows = static_cast<int>(ceil_div(g.out_height, rows));
        call.grid_cols = static_cast<int>(ceil_div(g.out_width, cols));
        const int blocks = call.grid_images * call.grid_rows * call.grid_cols;
        const int panels = l.groups * l.panels;
        call.splits = blocks >= threads ? 1 : smaller(panels, static_cast<int>(ceil_div(threads, blocks)));
        call.items = blocks * call.splits;
        const int pixels = image_pixels(l, call.block_cols);
        call.image_cols = call.planar ? static_cast<int>(ceil_div(pixels, l.stride_w)) : pixels;
        call.row_pitch = static_cast<int64_t>(call.image_cols) * call.tap_steps * 4 *
                         (call.planar ? l.stride_w : 1);
        call.image_pitch = call.row_pitch * image_rows(l, call.block_rows);
    }

    // Tables shared by all threads of the call, in the caller's scratch.
    static bool prepare(Call& call, int32_t step) {
        const QaLayer& l = *call.layer;
        const int channels = l.groups * l.panels * 16;
        const size_t bytes = sizeof(int32_t) * (call.total_steps + 4 * static_cast<size_t>(channels));
        char* block = static_cast<char*>(qa_scratch(QA_SLOT_CALL, bytes));
        if (block == nullptr) return false;
        float* scale = reinterpret_cast<float*>(block);
        float* bias = scale + channels;
        int32_t* correction = reinterpret_cast<int32_t*>(bias + channels);
        int32_t* weight_zero = correction + channels;
        int32_t* offset = weight_zero + channels;
        const float sx = l.act_scale[step];
        const uint32_t zx = static_cast<uint32_t>(l.act_zero[step]);
        const uint32_t depth =
            static_cast<uint32_t>(l.in_channels) * static_cast<uint32_t>(l.kernel_h * l.kernel_w);
        for (int g = 0; g < l.groups; ++g) {
            for (int n = 0; n < l.panels * 16; ++n) {
                const int to = g * l.panels * 16 + n, from = g * l.out_channels + n;
                const bool real = n < l.out_channels;
                const uint32_t zw =
                    real && l.weight_zero ? static_cast<uint32_t>(l.weight_zero[from]) : 0u;
                const uint32_t sum = real ? static_cast<uint32_t>(l.weight_sum[from]) : 0u;
                scale[to] = real ? sx * l.weight_scale[from] : 0.0f;
                bias[to] = real && l.bias ? l.bias[from] : 0.0f;
                correction[to] = static_cast<int32_t>(zx * (sum - depth * zw));
                weight_zero[to] = static_cast<int32_t>(zw);
            }
        }
        int s = 0;
        const int64_t cell = static_cast<int64_t>(call.image_cols) * 4;
        for (int ky = 0; ky < l.kernel_h; ++ky) {
            for (int kx = 0; kx < l.kernel_w; ++kx) {
                const int shift = kx * l.dilation_w;
                int64_t at = ky * l.dilation_h * call.row_pitch;
                int64_t pitch = 4;
                if (call.planar) {
                    at += (shift % l.stride_w) * cell + (shift / l.stride_w) * 4;
                    pitch = cell * l.stride_w;
                } else {
                    at += static_cast<int64_t>(shift) * call.tap_steps * 4;
                }
                for (int c = 0; c < call.tap_steps; ++c)
                    offset[s++] = static_cast<int32_t>(at + c * pitch);
            }
        }
        while (s < call.total_steps) offset[s++] = 0;  // weights are zero there
        call.step_offset = offset;
        call.epilogue = {scale, bias, correction, l.weight_zero ? weight_zero : nullptr, call.flags};
        return true;
    }

    static void worker(void* argument) {
        Call& call = *static_cast<Call*>(argument);
        for (;;) {
            const int item = __atomic_fetch_add(&call.next, 1, __ATOMIC_RELAXED);
            if (item >= call.items) return;
            if (!block(call, item / call.splits, item % call.splits))
                __atomic_store_n(&call.failed, 1, __ATOMIC_RELAXED);
        }
    }

    struct Block {
        int image0, images, row0, rows, col0, cols;
    };

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
        void* panel = qa_scratch(QA_SLOT_PANEL, static_cast<size_t>(l.units) * kPanelBytes);
        const int pixels = b.images * b.rows * b.cols;
        const int halves = b.images * b.rows * static_cast<int>(ceil_div(b.cols, 4));
        const size_t list_bytes = call.planar ? sizeof(PixelVector) * (halves + 2)
                                              : (sizeof(int64_t) + sizeof(int32_t)) * pixels;
        const size_t sum_count = call.planar ? 8 * static_cast<size_t>(halves + 2) : pixels;
        const size_t row_bytes = sizeof(uint32_t) * (image_pixels(l, b.cols) + 16);
        char* scratch = static_cast<char*>(
            qa_scratch(QA_SLOT_BLOCK, list_bytes + sizeof(int32_t) * sum_count + row_bytes + 192));
        if (image == nullptr || panel == nullptr || scratch == nullptr) return false;
        void* list = scratch;
        int32_t* sums = reinterpret_cast<int32_t*>(scratch + (list_bytes + 63) / 64 * 64);
        uint32_t* row = reinterpret_cast<uint32_t*>(
            scratch + ((list_bytes + 63) / 64 + (sizeof(int32_t) * sum_count + 63) / 64) * 64);

        const int count = call.planar
                              ? list_vectors(call, b, static_cast<PixelVector*>(list))
                              : list_pixels(call, b, static_cast<int64_t*>(list), pixels);
        const int all = l.groups * l.panels;
        const int first = static_cast<int>(static_cast<int64_t>(all) * part / call.splits);
        const int last = static_cast<int>(static_cast<int64_t>(all) * (part + 1) / call.splits);
        int group = -1;
        for (int p = first; p < last; ++p) {
            if (p / l.panels != group) {
                group = p / l.panels;
                if (call.planar) {
                    quantize_planar(call, b, group, image, row);
                } else {
                    quantize_dense(call, b, group, image);
                }
                if (l.weight_zero) sum_activations(call, image, list, count, sums);
            }
            const uint8_t* codes =
                l.codes + static_cast<int64_t>(p) * l.units * 32 * l.weight_bits;
            // a handful of rows would not pay for unpacking 8-bit codes first
            if constexpr (PAIR && Isa::kDirect) {
                if (!call.planar && count <= 6 && l.weight_bits == 8) {
                    dense_panel<true>(call, p, image, codes, static_cast<int64_t*>(list), count, sums);
                    continue;
                }
            }
            Isa::template unpack<PAIR>(codes, l.weight_bits, l.units, panel);
            if (call.planar) {
                planar_panel(call, p, image, panel, static_cast<PixelVector*>(list), count, sums);
            } else {
                dense_panel<false>(call, p, image, panel, static_cast<int64_t*>(list), count, sums);
            }
        }
        return true;
    }

    // ---- activation images -------------------------------------------------------------------

    static int64_t image_offset(const Call& call, int image, int y, int x) {
        const QaLayer& l = *call.layer;
        const int64_t at = image * call.image_pitch + y * l.stride_h * call.row_pitch;
        if (call.planar) return at + x * 4;
        return at + static_cast<int64_t>(x) * l.stride_w * call.tap_steps * 4;
    }

    static int64_t output_offset(const Call& call, const Block& b, int image, int y, int x) {
        const QaGeometry& g = call.geo;
        return (b.image0 + image) * g.y_batch + (b.row0 + y) * g.y_row + (b.col0 + x) * g.y_pixel;
    }

    static int list_pixels(const Call& call, const Block& b, int64_t* to, int count) {
        int32_t* from = reinterpret_cast<int32_t*>(to + count);
        int m = 0;
        for (int i = 0; i < b.images; ++i)
            for (int y = 0; y < b.rows; ++y)
                for (int x = 0; x < b.cols; ++x, ++m) {
                    to[m] = output_offset(call, b, i, y, x);
                    from[m] = static_cast<int32_t>(image_offset(call, i, y, x));
                }
        return m;
    }

    // Whole vectors of eight first, then pairs of left-over groups of four.
    static int list_vectors(const Call& call, const Block& b, PixelVector* list) {
        int n = 0;
        const int tail = b.cols % 8, whole = tail > 4 ? b.cols + 8 - tail : b.cols - tail;
        for (int i = 0; i < b.images; ++i)
            for (int y = 0; y < b.rows; ++y)
                for (int x = 0; x < whole; x += 8) {
                    const int32_t at = static_cast<int32_t>(image_offset(call, i, y, x));
                    const int64_t to = output_offset(call, b, i, y, x);
                    const int left = smaller(b.cols - x, 8);
                    list[n++] = {at, at + 16, to, to + 4 * call.geo.y_pixel, smaller(left, 4),
                                 left - smaller(left, 4)};
                }
        if (whole >= b.cols) return n;
        bool open = false;
        for (int i = 0; i < b.images; ++i)
            for (int y = 0; y < b.rows; ++y) {
                const int32_t at = static_cast<int32_t>(image_offset(call, i, y, whole));
                const int64_t to = output_offset(call, b, i, y, whole);
                if (open) {
                    list[n - 1].hi = at;
                    list[n - 1].y_hi = to;
                    list[n - 1].count_hi = tail;
                } else {
                    list[n++] = {at, at, to, to, tail, 0};
                }
                open = !open;
            }
        return n;
    }

    static void quantize_planar(const Call& call, const Block& b, int group, uint8_t* image,
                                uint32_t* spare) {
        const QaLayer& l = *call.layer;
        const QaGeometry& g = call.geo;
        const int rows = image_rows(l, b.rows), cols = image_pixels(l, b.cols);
        const int64_t y0 = static_cast<int64_t>(b.row0) * l.stride_h - l.pad_h;
        const int64_t x0 = static_cast<int64_t>(b.col0) * l.stride_w - l.pad_w;
        const int left = static_cast<int>(smaller<int64_t>(larger<int64_t>(-x0, 0), cols));
        const int right =
            static_cast<int>(larger<int64_t>(smaller<int64_t>(g.width - x0, cols), left));
        const uint32_t zero =
            static_cast<uint32_t>(call.quant.zero) * (PAIR ? 0x00010001u : 0x01010101u);
        const int64_t cell = call.image_cols;
        const int64_t pitch = cell * l.stride_w;
        // channels outermost: planes are read front to back, as the prefetcher likes it
        for (int i = 0; i < b.images; ++i) {
            for (int c = 0; c < call.tap_steps; ++c) {
                const float* plane[kLanes];
                float mult[kLanes];
                for (int k = 0; k < kLanes; ++k) {
                    const int channel = smaller(c * kLanes + k, l.in_channels - 1);
                    const int64_t wide = static_cast<int64_t>(group) * l.in_channels + channel;
                    plane[k] = call.x + (b.image0 + i) * g.x_batch + wide * g.x_channel + x0 + left;
                    mult[k] = l.in_mult ? l.in_mult[wide] : 1.0f;
                }
                uint8_t* at = image + i * call.image_pitch + c * pitch * 4;
                for (int qy = 0; qy < rows; ++qy, at += call.row_pitch) {
                    const int64_t y = y0 + qy;
                    uint32_t* out = reinterpret_cast<uint32_t*>(at);
                    uint32_t* to = l.stride_w == 1 ? out : spare;
                    if (y < 0 || y >= g.height) {
                        for (int k = 0; k < cols; ++k) to[k] = zero;
                    } else {
                        const float* line[kLanes];
                        for (int k = 0; k < kLanes; ++k) line[k] = plane[k] + y * g.x_row;
                        for (int k = 0; k < left; ++k) to[k] = zero;
                        Isa::template quantize_planar<PAIR>(line, l.in_mult ? mult : nullptr,
                                                            right - left, call.quant, to + left);
                        for (int k = right; k < cols; ++k) to[k] = zero;
                    }
                    if (l.stride_w == 1) continue;
                    for (int phase = 0; phase < l.stride_w; ++phase) {
                        uint32_t* lane = out + phase * cell;
                        for (int k = phase; k < cols; k += l.stride_w) *lane++ = spare[k];
                    }
                }
            }
        }
    }

    static void quantize_dense(const Call& call, const Block& b, int group, uint8_t* image) {
        const QaLayer& l = *call.layer;
        const QaGeometry& g = call.geo;
        const int rows = image_rows(l, b.rows), cols = image_pixels(l, b.cols);
        const int64_t y0 = static_cast<int64_t>(b.row0) * l.stride_h - l.pad_h;
        const int64_t x0 = static_cast<int64_t>(b.col0) * l.stride_w - l.pad_w;
        const uint32_t zero =
            static_cast<uint32_t>(call.quant.zero) * (PAIR ? 0x00010001u : 0x01010101u);
        const int64_t first = static_cast<int64_t>(group) * l.in_channels;
        const float* mult = l.in_mult ? l.in_mult + first : nullptr;
        const int64_t pitch = static_cast<int64_t>(call.tap_steps) * 4;
        const int left = static_cast<int>(smaller<int64_t>(larger<int64_t>(-x0, 0), cols));
        const int right =
            static_cast<int>(larger<int64_t>(smaller<int64_t>(g.width - x0, cols), left));
        // pixels that follow each other without a gap are one long row to the quantizer
        const bool packed = g.x_channel == 1 && g.x_pixel == l.in_channels && mult == nullptr &&
                            l.in_padded == l.in_channels;
        for (int i = 0; i < b.images; ++i) {
            for (int qy = 0; qy < rows; ++qy) {
                const int64_t y = y0 + qy;
                uint8_t* row = image + i * call.image_pitch + qy * call.row_pitch;
                const bool inside = y >= 0 && y < g.height;
                fill(row, inside ? left * call.tap_steps : cols * call.tap_steps, zero);
                if (!inside) continue;
                fill(row + right * pitch, (cols - right) * call.tap_steps, zero);
                const float* from = call.x + (b.image0 + i) * g.x_batch + y * g.x_row +
                                    (x0 + left) * g.x_pixel + first * g.x_channel;
                uint8_t* out = row + left * pitch;
                if (packed) {
                    Isa::template quantize_dense<PAIR>(from, nullptr, (right - left) * l.in_channels,
                                                       call.quant, out);
                    continue;
                }
                for (int x = left; x < right; ++x, out += pitch, from += g.x_pixel) {
                    if (g.x_channel == 1) {
                        Isa::template quantize_dense<PAIR>(from, mult, l.in_channels, call.quant, out);
                    } else {
                        for (int c = 0; c < l.in_channels; ++c) {
                            float v = from[c * g.x_channel] * call.quant.inv;
                            if (mult) v *= mult[c];
                            store_code(out, c, quantize_one(v, call.quant));
                        }
                    }
                    for (int c = l.in_channels; c < l.in_padded; ++c) store_code(out, c, 0);
                }
            }
        }
    }

    static void fill(uint8_t* at, int dwords, uint32_t value) {
        uint32_t* to = reinterpret_cast<uint32_t*>(at);
        for (int i = 0; i < dwords; ++i) to[i] = value;
    }

    static void store_code(uint8_t* out, int c, uint32_t code) {
        if (PAIR) {
            const uint16_t wide = static_cast<uint16_t>(code);
            std::memcpy(out + 2 * c, &wide, 2);
        } else {
            out[c] = static_cast<uint8_t>(code);
        }
    }

    // Sum of the activation codes under each output pixel, for asymmetric weights.
    static void sum_activations(const Call& call, const uint8_t* image, const void* list, int count,
                                int32_t* sums) {
        const QaLayer& l = *call.layer;
        const int taps = l.kernel_h * l.kernel_w;
        const int spare = l.in_padded - l.in_channels;  // 0..3 lanes without a channel
        if (call.planar) {
            const PixelVector* v = static_cast<const PixelVector*>(list);
            for (int i = 0; i < count; ++i)
                Isa::template sum_planar<PAIR>(image + v[i].lo, image + v[i].hi, call.step_offset,
                                               taps, call.tap_steps, spare, sums + 8 * i);
            return;
        }
        const int32_t* from =
            reinterpret_cast<const int32_t*>(static_cast<const int64_t*>(list) + count);
        for (int m = 0; m < count; ++m) {
            int32_t sum = 0;  // lanes without a channel hold zero in a dense image, or the zero point
            for (int t = 0; t < taps; ++t)
                sum += Isa::template sum_dense<PAIR>(
                    image + from[m] + call.step_offset[t * call.tap_steps], l.in_channels);
            sums[m] = sum;
        }
    }

    // ---- panels ------------------------------------------------------------------------------

    static void prefetch(const Call& call, int64_t at) {
        __builtin_prefetch(static_cast<const char*>(call.y) + 4 * at, 1);
    }

    template <int ROWS, bool DIRECT>
    static void dense_rows(const Call& call, const uint8_t* image, const void* panel,
                           const uint16_t* chunk, int chunks, const int32_t* from, int32_t* tile) {
        const uint8_t* row[ROWS];
        for (int r = 0; r < ROWS; ++r) row[r] = image + from[r];
        if constexpr (DIRECT) {
            Isa::template dense_direct<ROWS>(row, call.step_offset, panel, call.total_steps, tile);
        } else {
            Isa::template dense<PAIR, ROWS>(row, call.step_offset, panel, chunk, chunks, tile);
        }
    }

    // DIRECT: `panel` are 8-bit codes in pair order, still packed.
    template <bool DIRECT>
    static void dense_panel(const Call& call, int p, const uint8_t* image, const void* panel,
                            const int64_t* to, int count, const int32_t* sums) {
        const QaLayer& l = *call.layer;
        const int32_t* from = reinterpret_cast<const int32_t*>(to + count);
        const int group = p / l.panels, n0 = p % l.panels * 16;
        const int width = smaller(16, l.out_channels - n0);
        const int64_t channel = static_cast<int64_t>(group) * l.out_channels + n0;
        const uint16_t* chunk = l.chunk_units + l.chunk_start[p];
        const int chunks = l.chunk_start[p + 1] - l.chunk_start[p];
        const int64_t shift = channel * call.geo.y_channel;
        alignas(64) int32_t tile[6 * 16];
        for (int m = 0; m < count;) {
            const int left = count - m;
            int rows = 6;
            // the micro-kernel hides the time that the output lines take to arrive
            for (int r = 0; r < smaller(left, 6); ++r)
                prefetch(call, to[m + r] + shift);
            if (left >= 6) {
                dense_rows<6, DIRECT>(call, image, panel, chunk, chunks, from + m, tile);
            } else {
                rows = left;
                switch (left) {
                    case 5: dense_rows<5, DIRECT>(call, image, panel, chunk, chunks, from + m, tile); break;
                    case 4: dense_rows<4, DIRECT>(call, image, panel, chunk, chunks, from + m, tile); break;
                    case 3: dense_rows<3, DIRECT>(call, image, panel, chunk, chunks, from + m, tile); break;
                    case 2: dense_rows<2, DIRECT>(call, image, panel, chunk, chunks, from + m, tile); break;
                    default: dense_rows<1, DIRECT>(call, image, panel, chunk, chunks, from + m, tile);
                }
            }
            Isa::store_dense(tile, rows, call.epilogue, p * 16, width,
                             l.weight_zero ? sums + m : nullptr, call.y, to + m, shift,
                             call.geo.y_channel);
            m += rows;
        }
    }

    template <int CHANNELS>
    static void planar_block(const Call& call, const uint8_t* image, const uint8_t* panel,
                             const uint16_t* chunk, int chunks, const PixelVector* v, int32_t* tile) {
        const uint8_t* at[4] = {image + v[0].lo, image + v[0].hi, image + v[1].lo, image + v[1].hi};
        if (v[0].whole() && v[1].whole()) {
            Isa::template planar<PAIR, CHANNELS, false>(at, call.step_offset, panel, chunk, chunks,
                                                        tile);
        } else {
            Isa::template planar<PAIR, CHANNELS, true>(at, call.step_offset, panel, chunk, chunks,
                                                       tile);
        }
    }

    static void planar_panel(const Call& call, int p, const uint8_t* image, const void* panel,
                             const PixelVector* list, int count, const int32_t* sums) {
        const QaLayer& l = *call.layer;
        const int group = p / l.panels, n0 = p % l.panels * 16;
        const int width = smaller(16, l.out_channels - n0);
        const int64_t channel = static_cast<int64_t>(group) * l.out_channels + n0;
        const uint16_t* chunk = l.chunk_units + l.chunk_start[p];
        const int chunks = l.chunk_start[p + 1] - l.chunk_start[p];
        alignas(64) int32_t tile[6 * 16];
        for (int m = 0; m < count; m += 2) {
            const PixelVector pair[2] = {list[m], list[m + 1 < count ? m + 1 : m]};
            for (int n = 0; n < width;) {
                const int left = width - n;
                const uint8_t* weights = static_cast<const uint8_t*>(panel) + 4 * n;
                for (int c = 0; c < smaller(left, 6); ++c) {
                    const int64_t plane = (channel + n + c) * call.geo.y_channel;
                    prefetch(call, pair[0].y_lo + plane);
                    prefetch(call, pair[1].y_hi + plane);
                }
                int channels;
                if (left >= 9 || left == 5 || left == 6) {
                    channels = 6;
                    planar_block<6>(call, image, weights, chunk, chunks, pair, tile);
                } else if (left >= 3) {
                    channels = 4;
                    planar_block<4>(call, image, weights, chunk, chunks, pair, tile);
                } else {
                    channels = 2;
                    planar_block<2>(call, image, weights, chunk, chunks, pair, tile);
                }
                const int real = smaller(channels, left);
                for (int v = 0; v < 2 && m + v < count; ++v)
                    Isa::store_planar(tile + 8 * v, real, call.epilogue, p * 16 + n, pair[v],
                                      sums + 8 * (m + v), call.y,
                                      (channel + n) * call.geo.y_channel, call.geo.y_channel);
                n += channels;
            }
        }
    }
};

// Both forms of a trait class, or only the dword = 4 k form for units that never need the other.
template <class Isa>
struct BothForms {
    static int run(const QaLayer* layer, const QaGeometry* geometry, const float* x, void* y,
                   int32_t step, int32_t threads, int32_t flags) {
        return layer->pair ? Engine<Isa, true>::run(layer, geometry, x, y, step, threads, flags)
                           : Engine<Isa, false>::run(layer, geometry, x, y, step, threads, flags);
    }
    static int peak(int32_t pair, int32_t units, int64_t repeats) {
        return pair ? Engine<Isa, true>::peak(units, repeats)
                    : Engine<Isa, false>::peak(units, repeats);
    }
};

template <class Isa>
struct QuadForm {
    static int run(const QaLayer* layer, const QaGeometry* geometry, const float* x, void* y,
                   int32_t step, int32_t threads, int32_t flags) {
        if (layer->pair) return QA_BAD_ARGUMENT;
        return Engine<Isa, false>::run(layer, geometry, x, y, step, threads, flags);
    }
    static int peak(int32_t pair, int32_t units, int64_t repeats) {
        return pair ? static_cast<int>(QA_BAD_ARGUMENT) : Engine<Isa, false>::peak(units, repeats);
    }
};

}  // namespace

#endif
