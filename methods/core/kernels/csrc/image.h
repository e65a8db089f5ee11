// Quantization of a block's input into a small image of codes, and addresses within it.
#ifndef QUANTARENA_IMAGE_H
#define QUANTARENA_IMAGE_H

#include "plan.h"

namespace {

// The activation image of a block: codes of its input pixels, and where output pixels find them.
template <class Isa, bool PAIR>
struct Image {
    using Cut = Plan<Isa, PAIR>;
    static constexpr int kLanes = Cut::kLanes;

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
        const int rows = Cut::image_rows(l, b.rows), cols = Cut::image_pixels(l, b.cols);
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
        const int rows = Cut::image_rows(l, b.rows), cols = Cut::image_pixels(l, b.cols);
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
                            l.in_padded == l.in_channels && call.rows == nullptr;
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
                    if (call.rows) {
                        const int64_t at = (x0 + x) * l.groups + group;
                        const Quantizer own =
                            make_quantizer(call.rows->scale[at], call.rows->zero[at], l.act_max);
                        Isa::template quantize_dense<PAIR>(from, mult, l.in_channels, own, out);
                    } else if (g.x_channel == 1) {
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

    // The image of `quantize_dense` from planes of pixels: whole runs of a plane are quantized, then
    // each pixel's dword goes to its place.  `spare` has room for all rows of an image.
    static void quantize_planes(const Call& call, const Block& b, int group, uint8_t* image,
                                uint32_t* spare) {
        const QaLayer& l = *call.layer;
        const QaGeometry& g = call.geo;
        const int rows = Cut::image_rows(l, b.rows), cols = Cut::image_pixels(l, b.cols);
        const int64_t y0 = static_cast<int64_t>(b.row0) * l.stride_h - l.pad_h;
        const int64_t x0 = static_cast<int64_t>(b.col0) * l.stride_w - l.pad_w;
        const uint32_t zero =
            static_cast<uint32_t>(call.quant.zero) * (PAIR ? 0x00010001u : 0x01010101u);
        const int64_t pitch = static_cast<int64_t>(call.tap_steps) * 4;
        const int left = static_cast<int>(smaller<int64_t>(larger<int64_t>(-x0, 0), cols));
        const int right =
            static_cast<int>(larger<int64_t>(smaller<int64_t>(g.width - x0, cols), left));
        const int top = static_cast<int>(smaller<int64_t>(larger<int64_t>(-y0, 0), rows));
        const int bottom =
            static_cast<int>(larger<int64_t>(smaller<int64_t>(g.height - y0, rows), top));
        const int width = right - left;
        const int run = width == g.width && g.x_row == g.width ? bottom - top : 1;  // rows at once
        for (int i = 0; i < b.images; ++i) {
            uint8_t* base = image + i * call.image_pitch;
            for (int qy = 0; qy < rows; ++qy) {
                uint8_t* row = base + qy * call.row_pitch;
                const bool inside = qy >= top && qy < bottom;
                fill(row, inside ? left * call.tap_steps : cols * call.tap_steps, zero);
                if (inside) fill(row + right * pitch, (cols - right) * call.tap_steps, zero);
            }
            if (width == 0) continue;
            for (int c = 0; c < call.tap_steps; ++c) {
                const float* plane[kLanes];
                float mult[kLanes];
                for (int k = 0; k < kLanes; ++k) {
                    const int channel = smaller(c * kLanes + k, l.in_channels - 1);
                    const int64_t wide = static_cast<int64_t>(group) * l.in_channels + channel;
                    plane[k] = call.x + (b.image0 + i) * g.x_batch + wide * g.x_channel + x0 + left;
                    mult[k] = l.in_mult ? l.in_mult[wide] : 1.0f;
                }
                for (int qy = top; qy < bottom; qy += run) {
                    const float* line[kLanes];
                    for (int k = 0; k < kLanes; ++k) line[k] = plane[k] + (y0 + qy) * g.x_row;
                    Isa::template quantize_planar<PAIR>(line, l.in_mult ? mult : nullptr, run * width,
                                                        call.quant, spare);
                    const uint32_t* from = spare;
                    for (int r = 0; r < run; ++r) {
                        uint8_t* to = base + (qy + r) * call.row_pitch + left * pitch + c * 4;
                        for (int k = 0; k < width; ++k, to += pitch) std::memcpy(to, from++, 4);
                    }
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

    // Sum of the byte codes under each output pixel, for weights that keep their zero points.
    static void sum_activations(const Call& call, const uint8_t* image, const void* list, int count,
                                int32_t* sums) {
        const QaLayer& l = *call.layer;
        const int taps = l.kernel_h * l.kernel_w;
        const int spare = l.in_padded - l.in_channels;  // 0..3 lanes without a channel
        if (call.planar) {
            const PixelVector* v = static_cast<const PixelVector*>(list);
            for (int i = 0; i < count; ++i)
                Isa::sum_planar(image + v[i].lo, image + v[i].hi, call.step_offset,
                                               taps, call.tap_steps, spare, sums + 8 * i);
            return;
        }
        const int32_t* from =
            reinterpret_cast<const int32_t*>(static_cast<const int64_t*>(list) + count);
        for (int m = 0; m < count; ++m) {
            int32_t sum = 0;  // lanes without a channel hold zero in a dense image, or the zero point
            for (int t = 0; t < taps; ++t)
                sum += Isa::sum_dense(
                    image + from[m] + call.step_offset[t * call.tap_steps], l.in_channels);
            sums[m] = sum;
        }
    }
};

}  // namespace

#endif
