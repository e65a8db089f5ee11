// What networks compute between packed layers: group normalization with an activation in the same
// pass, activations, and gated activations.  Plain float arithmetic.
#ifndef QUANTARENA_FLOAT_OPS_H
#define QUANTARENA_FLOAT_OPS_H

#include <cmath>

#include "call.h"
#include "lanes.h"

namespace {

constexpr int64_t kFloatThreadWork = 256 * 1024;  // elements below which one thread is faster

// Calls body(i) for all i below `count`, on several threads where there is enough work.
template <class Body>
struct Loop {
    const Body* body;
    int64_t count, next;
    static void work(void* argument) {
        Loop& loop = *static_cast<Loop*>(argument);
        for (;;) {
            const int64_t i = __atomic_fetch_add(&loop.next, 1, __ATOMIC_RELAXED);
            if (i >= loop.count) return;
            (*loop.body)(i);
        }
    }
};

template <class Body>
void for_all(int64_t count, int64_t elements, int32_t threads, const Body& body) {
    if (threads <= 1 || (elements < kFloatThreadWork && !kShareAll)) {
        for (int64_t i = 0; i < count; ++i) body(i);
        return;
    }
    Loop<Body> loop{&body, count, 0};
    qa_parallel(static_cast<int>(smaller<int64_t>(threads, count)), Loop<Body>::work, &loop);
}

struct Moments {
    float mean, inverse;
};
inline Moments moments(const float* x, int64_t count, float eps) {
    const float mean = sum_lanes<1>(x, count, 0.0f) / static_cast<float>(count);
    const float variance = sum_lanes<2>(x, count, mean) / static_cast<float>(count);
    return {mean, 1.0f / std::sqrt(variance + eps)};
}

template <int ACTIVATION>
struct Norm {
    // Pixels of a channel lie side by side, and so do the channels of a group.
    static void planes(const QaNorm& n, const float* x, float* y) {
        const int64_t width = n.channels / n.groups;
        for (int64_t g = 0; g < n.groups; ++g) {
            const Moments m = moments(x + g * width * n.pixels, width * n.pixels, n.eps);
            for (int64_t c = g * width; c < (g + 1) * width; ++c) {
                const float a = (n.weight ? n.weight[c] : 1.0f) * m.inverse;
                const float b = n.bias ? n.bias[c] : 0.0f;
                map_lanes(x + c * n.pixels, y + c * n.pixels, n.pixels, [&](Lanes& v, int64_t, int) QA_ALWAYS {
                    v = v - m.mean;
                    multiply_add(v, Lanes{} + a, b);
                    activate_lanes<ACTIVATION>(v);
                });
            }
        }
    }

    // Sum over pixels of (x - centre[c])^power for channels from `c` on, VECTORS times eight: whole cache
    // lines of a pixel at a time.
    template <int POWER, int VECTORS>
    static void by_channel(const QaNorm& n, const float* x, const float* centre, float* sum, int64_t c) {
        Lanes total[VECTORS] = {}, middle[VECTORS], v;
        for (int k = 0; k < VECTORS; ++k) load_lanes(middle[k], centre + c + 8 * k);
        for (int64_t p = 0; p < n.pixels; ++p)
#pragma GCC unroll 4
            for (int k = 0; k < VECTORS; ++k) {
                load_lanes(v, x + p * n.channels + c + 8 * k);
                v = v - middle[k];
                total[k] += POWER == 2 ? v * v : v;
            }
        for (int k = 0; k < VECTORS; ++k) store_lanes(sum + c + 8 * k, total[k]);
    }
    template <int POWER>
    static void by_channel(const QaNorm& n, const float* x, const float* centre, float* sum) {
        int64_t c = 0;
        for (; c + 32 <= n.channels; c += 32) by_channel<POWER, 4>(n, x, centre, sum, c);
        for (; c + 8 <= n.channels; c += 8) by_channel<POWER, 1>(n, x, centre, sum, c);
        for (; c < n.channels; ++c) {
            sum[c] = 0.0f;
            for (int64_t p = 0; p < n.pixels; ++p) {
                const float d = x[p * n.channels + c] - centre[c];
                sum[c] += POWER == 2 ? d * d : d;
            }
        }
    }

    // Every channel gets the mean of `sum` over its group.
    static void spread(const QaNorm& n, const float* sum, float* to) {
        const int64_t width = n.channels / n.groups;
        for (int64_t g = 0; g < n.groups; ++g) {
            float total = 0.0f;
            for (int64_t k = 0; k < width; ++k) total += sum[g * width + k];
            total /= static_cast<float>(width * n.pixels);
            for (int64_t k = 0; k < width; ++k) to[g * width + k] = total;
        }
    }

    // Channels of a pixel lie side by side; `table` has room for three floats a channel.
    static void pixels(const QaNorm& n, const float* x, float* y, float* table) {
        float *mean = table, *scale = mean + n.channels, *shift = scale + n.channels;
        for (int64_t c = 0; c < n.channels; ++c) mean[c] = 0.0f;
        by_channel<1>(n, x, mean, scale);
        spread(n, scale, mean);
        by_channel<2>(n, x, mean, scale);
        spread(n, scale, shift);
        for (int64_t c = 0; c < n.channels; ++c) {
            scale[c] = (n.weight ? n.weight[c] : 1.0f) / std::sqrt(shift[c] + n.eps);
            shift[c] = n.bias ? n.bias[c] : 0.0f;
        }
        for (int64_t p = 0; p < n.pixels; ++p)
            map_lanes(x + p * n.channels, y + p * n.channels, n.channels,
                      [&](Lanes& v, int64_t c, int real) QA_ALWAYS {
                          Lanes part[3] = {};
                          std::memcpy(&part[0], mean + c, sizeof(float) * real);
                          std::memcpy(&part[1], scale + c, sizeof(float) * real);
                          std::memcpy(&part[2], shift + c, sizeof(float) * real);
                          v = v - part[0];
                          multiply_add(v, part[1], part[2]);
                          activate_lanes<ACTIVATION>(v);
                      });
    }

    static int run(const QaNorm& n, const float* x, float* y, int32_t threads) {
        const int64_t size = n.channels * n.pixels;
        int failed = 0;
        for_all(n.batch, n.batch * size, threads, [&](int64_t i) {
            if (!n.last) return planes(n, x + i * size, y + i * size);
            void* table = qa_scratch(QA_SLOT_BLOCK, sizeof(float) * 3 * n.channels);
            if (table == nullptr) {
                __atomic_store_n(&failed, 1, __ATOMIC_RELAXED);
            } else {
                pixels(n, x + i * size, y + i * size, static_cast<float*>(table));
            }
        });
        return failed ? QA_NO_MEMORY : QA_OK;
    }
};

// y = activation(x), or activation(x) * gate.
template <int ACTIVATION>
int activate(const QaRows& r, const float* x, const float* gate, float* y, int32_t threads) {
    for_all(r.rows, r.rows * r.columns, threads, [&](int64_t i) {
        const float* other = gate ? gate + i * r.gate_row : nullptr;
        map_lanes(x + i * r.x_row, y + i * r.columns, r.columns, [&](Lanes& v, int64_t at, int real) QA_ALWAYS {
            activate_lanes<ACTIVATION>(v);
            if (other == nullptr) return;
            Lanes part = {};
            std::memcpy(&part, other + at, sizeof(float) * real);
            v = v * part;
        });
    });
    return QA_OK;
}

// f of all lanes, as a tree: a chain of eight would take its latency eight times.
template <class Function>
QA_INLINE float fold_lanes(const Lanes& v, Function f) {
    return f(f(f(v[0], v[4]), f(v[2], v[6])), f(f(v[1], v[5]), f(v[3], v[7])));
}

// Least and largest value of a slice; NaN where it holds one, or an infinity.
inline void slice_extremes(const float* from, int64_t width, float& low, float& high) {
    Lanes least = Lanes{} + from[0], most = least, odd = {}, v;
    const auto take = [&]() QA_ALWAYS {
        least = v < least ? v : least;
        most = v > most ? v : most;
        odd += v - v;  // NaN for NaN and infinities
    };
    int64_t k = 0;
    for (; k + 8 <= width; k += 8) {
        load_lanes(v, from + k);
        take();
    }
    if (k < width) {
        v = Lanes{} + from[0];
        std::memcpy(&v, from + k, sizeof(float) * (width - k));
        take();
    }
    low = fold_lanes(least, [](float a, float b) QA_ALWAYS { return smaller(a, b); });
    high = fold_lanes(most, [](float a, float b) QA_ALWAYS { return larger(a, b); });
    const float poison = add_up(odd);
    low += poison;
    high += poison;
}

// Least and largest value of each of `count` slices of `width`.
int run_extremes(const float* x, float* low, float* high, int64_t count, int64_t width,
                 int32_t threads) {
    constexpr int64_t slices = 64;
    for_all(ceil_div(count, slices), count * width, threads, [&](int64_t part) {
        const int64_t end = smaller(count, (part + 1) * slices);
        for (int64_t i = part * slices; i < end; ++i) slice_extremes(x + i * width, width, low[i], high[i]);
    });
    return QA_OK;
}

// (a, b) -> (a + b, a - b) for two runs of `count` floats, a multiple of eight.
inline void butterfly(float* a, float* b, int64_t count) {
    Lanes u, v;
    for (int64_t k = 0; k < count; k += 8) {
        load_lanes(u, a + k);
        load_lanes(v, b + k);
        store_lanes(a + k, u + v);
        store_lanes(b + k, u - v);
    }
}

// The same within eight floats, for neighbours that are HALF apart: the other one is added to each, which
// is negated where it is the second.
template <int HALF>
QA_INLINE void butterfly_within(Lanes& v) {
    LaneBits from;
    Lanes sign;
    for (int k = 0; k < 8; ++k) {
        from[k] = k ^ HALF;
        sign[k] = k & HALF ? -1.0f : 1.0f;
    }
    Lanes other;
#if defined(__clang__)
    for (int k = 0; k < 8; ++k) other[k] = v[from[k]];
#else
    other = __builtin_shuffle(v, from);
#endif
    v = other + v * sign;
}

// Walsh-Hadamard of every slice of `size` floats in place, the highest bit of the index first.
inline void walsh_hadamard(float* x, int64_t count, int64_t size) {
    int64_t half = size / 2;
    for (; half >= 8; half /= 2)
        for (int64_t at = 0; at < count; at += 2 * half) butterfly(x + at, x + at + half, half);
    if (half == 4) {
        Lanes v;
        for (int64_t at = 0; at < count; at += 8) {
            load_lanes(v, x + at);
            butterfly_within<4>(v);
            butterfly_within<2>(v);
            butterfly_within<1>(v);
            store_lanes(x + at, v);
        }
        return;
    }
    for (; half > 0; half /= 2)  // slices shorter than eight
        for (int64_t at = 0; at < count; at += 2 * half)
            for (int64_t k = at; k < at + half; ++k) {
                const float u = x[k], v = x[k + half];
                x[k] = u + v;
                x[k + half] = u - v;
            }
}

// y[i] = sum over j of table[j][i] * x[j], for slices of r.size.
inline void hartley(const QaRotation& r, const float* x, float* y) {
    for (int64_t i = 0; i < r.order; ++i) {
        const float* column = r.table + i;
        map_lanes(x, y + i * r.size, r.size, [&](Lanes& v, int64_t at, int real) QA_ALWAYS {
            v = v * column[0];
            Lanes part = {};
            for (int64_t j = 1; j < r.order; ++j) {
                std::memcpy(&part, x + j * r.size + at, sizeof(float) * real);
                v = v + part * column[j * r.order];
            }
        });
    }
}

// Sums and products one at a time and in the order of core/rotation.py, so that the results are
// equal bit for bit: the highest bit of the index first, and no fused multiply-add.
int run_rotation(const QaRotation* r, const float* x, float* y, int32_t threads) {
    constexpr int64_t rows = 16;
    const int64_t channels = r->order * r->size;
    int failed = 0;
    for_all(ceil_div(r->rows, rows), r->rows * channels, threads, [&](int64_t part) {
        float* row = static_cast<float*>(qa_scratch(QA_SLOT_BLOCK, sizeof(float) * channels));
        if (row == nullptr) return __atomic_store_n(&failed, 1, __ATOMIC_RELAXED);
        const int64_t end = smaller(r->rows, (part + 1) * rows);
        for (int64_t i = part * rows; i < end; ++i) {
            float* to = r->order > 1 ? row : y + i * channels;
            map_lanes(x + i * channels, to, channels, [&](Lanes& v, int64_t at, int real) QA_ALWAYS {
                Lanes part = {};
                std::memcpy(&part, r->factor + at, sizeof(float) * real);
                v = v * part;
            });
            walsh_hadamard(to, channels, r->size);
            if (r->order > 1) hartley(*r, row, y + i * channels);
        }
    });
    return failed ? QA_NO_MEMORY : QA_OK;
}

int run_norm(const QaNorm* norm, const float* x, float* y, int32_t threads) {
    switch (norm->activation) {
        case QA_PLAIN: return Norm<QA_PLAIN>::run(*norm, x, y, threads);
        case QA_SILU: return Norm<QA_SILU>::run(*norm, x, y, threads);
        case QA_GELU: return Norm<QA_GELU>::run(*norm, x, y, threads);
        case QA_GELU_TANH: return Norm<QA_GELU_TANH>::run(*norm, x, y, threads);
        default: return QA_BAD_ARGUMENT;
    }
}

int run_activation(const QaRows* rows, const float* x, const float* gate, float* y,
                   int32_t threads) {
    switch (rows->activation) {
        case QA_SILU: return activate<QA_SILU>(*rows, x, gate, y, threads);
        case QA_GELU: return activate<QA_GELU>(*rows, x, gate, y, threads);
        case QA_GELU_TANH: return activate<QA_GELU_TANH>(*rows, x, gate, y, threads);
        default: return QA_BAD_ARGUMENT;
    }
}

}  // namespace

#endif
