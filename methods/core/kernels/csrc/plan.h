// Planning of a call: orientation, blocks, and the tables that all its threads read.
#ifndef QUANTARENA_PLAN_H
#define QUANTARENA_PLAN_H

#include "call.h"

namespace {

// How a call is cut, and the tables that its threads share.
template <class Isa, bool PAIR>
struct Plan {
    static constexpr int kLanes = PAIR ? 2 : 4;             // k per 32-bit step
    static constexpr int kStepsPerUnit = 16 / kLanes;
    static constexpr int kWideBytes = 256;  // channel bytes under a tile that strain the L1 cache

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
        call.tiles = false;
        if constexpr (Isa::kTiles) call.tiles = Isa::takes(l, g);
        if (call.tiles) call.planar = false;  // the codes of a pixel have to lie side by side
    }

    static void shape_image(Call& call) {
        call.tap_steps = call.layer->in_padded / kLanes;
        call.real_steps = call.tap_steps * call.layer->kernel_h * call.layer->kernel_w;
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
        const int panels = l.sum_groups ? l.panels : l.groups * l.panels;
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
        // rows with scales of their own multiply them in when they are stored
        const float sx = call.rows ? 1.0f : l.act_scale[step];
        const uint32_t zx = call.rows ? 1u : static_cast<uint32_t>(l.act_zero[step]);
        const uint32_t depth =
            static_cast<uint32_t>(l.in_channels) * static_cast<uint32_t>(l.kernel_h * l.kernel_w);
        bool sums = false;
        for (int g = 0; g < l.groups; ++g) {
            for (int n = 0; n < l.panels * 16; ++n) {
                const int to = g * l.panels * 16 + n;
                const bool real = n < l.out_channels;
                const Channel at = channel_of(l, real ? n : 0);
                const QaLayer& part = *at.part;
                const int from = g * part.out_channels + at.row;
                const uint32_t zw =
                    real && part.weight_zero ? static_cast<uint32_t>(part.weight_zero[from]) : 0u;
                const uint32_t sum = real ? static_cast<uint32_t>(part.weight_sum[from]) : 0u;
                scale[to] = real ? sx * part.weight_scale[from] : 0.0f;
                const bool biased = real && part.bias && !(l.sum_groups && g > 0);
                bias[to] = biased ? part.bias[from] : 0.0f;
                correction[to] = static_cast<int32_t>(zx * (sum - depth * zw));
                weight_zero[to] = Fold::folds(part, PAIR) ? 0 : static_cast<int32_t>(zw);
                sums |= weight_zero[to] != 0;
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
        call.epilogue = {scale, bias, correction, sums ? weight_zero : nullptr, call.flags};
        return true;
    }
};

}  // namespace

#endif
