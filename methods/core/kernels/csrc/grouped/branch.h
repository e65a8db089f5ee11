// The branch of small rank beside the integers: products of float32 rows and float32 weights.
#ifndef QUANTARENA_GROUPED_BRANCH_H
#define QUANTARENA_GROUPED_BRANCH_H

#include "call.h"
#include "lanes.h"

namespace {

QA_INLINE void spread_lanes(Lanes& to, const float* from) {
#if defined(__AVX2__) && defined(__FMA__)
    to = _mm256_broadcast_ss(from);
#else
    for (int i = 0; i < 8; ++i) to[i] = *from;
#endif
}

// sum[r][v] += rows[r][k] * weights[k][8 v ..], for k below depth.  One vector of outputs has too few
// sums for the latency of additions: those of odd k are kept apart.
template <int ROWS, int VECTORS>
QA_NOINLINE void float_tile(const float* const* rows, int depth, const float* weights, int64_t pitch,
                            Lanes* sum) {
    constexpr int kApart = VECTORS == 1 ? 2 : 1;
    const float* row[ROWS];
    Lanes acc[kApart][ROWS][VECTORS];
#pragma GCC unroll 6
    for (int r = 0; r < ROWS; ++r) {
        row[r] = rows[r];
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; ++v) {
            acc[0][r][v] = sum[r * VECTORS + v];
            if (kApart == 2) acc[1][r][v] = Lanes{};
        }
    }
    int k = 0;
    for (; k + kApart <= depth; k += kApart, weights += kApart * pitch) {
#pragma GCC unroll 2
        for (int a = 0; a < kApart; ++a) {
            Lanes w[VECTORS];
#pragma GCC unroll 4
            for (int v = 0; v < VECTORS; ++v) load_lanes(w[v], weights + a * pitch + 8 * v);
#pragma GCC unroll 6
            for (int r = 0; r < ROWS; ++r) {
                Lanes x;
                spread_lanes(x, row[r] + k + a);
#pragma GCC unroll 4
                for (int v = 0; v < VECTORS; ++v) {
                    Lanes product = x;
                    multiply_add(product, w[v], acc[a][r][v]);
                    acc[a][r][v] = product;
                }
            }
        }
    }
    for (; k < depth; ++k, weights += pitch)
        for (int r = 0; r < ROWS; ++r)
            for (int v = 0; v < VECTORS; ++v) {
                Lanes w, x;
                load_lanes(w, weights + 8 * v);
                spread_lanes(x, row[r] + k);
                multiply_add(x, w, acc[0][r][v]);
                acc[0][r][v] = x;
            }
#pragma GCC unroll 6
    for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; ++v)
            sum[r * VECTORS + v] = kApart == 2 ? acc[0][r][v] + acc[1][r][v] : acc[0][r][v];
}

// What the branch makes of a block's pixels: down[pixel][rank], rows padded to whole vectors.
template <int ROWS, int VECTORS, class Row>
void project(int pixels, int kernel_h, int kernel_w, int channels, const float* weights, int64_t rank, int first,
             int64_t pitch, float* to, Row row_of) {
    for (int m = 0; m < pixels; m += ROWS) {
        const int rows = smaller(pixels - m, ROWS);
        Lanes sum[ROWS * VECTORS] = {};
        const float* w = weights + first;
        for (int ky = 0; ky < kernel_h; ++ky)
            for (int kx = 0; kx < kernel_w; ++kx, w += channels * rank) {
                const float* row[ROWS];
                for (int r = 0; r < ROWS; ++r) row[r] = row_of(m + smaller(r, rows - 1), ky, kx);
                float_tile<ROWS, VECTORS>(row, channels, w, rank, sum);
            }
        for (int r = 0; r < rows; ++r)
            std::memcpy(to + (m + r) * pitch + first, sum + r * VECTORS, 32 * VECTORS);
    }
}

// All columns of the branch.  Weights are [taps][channels][rank] and 7 floats more; the output's rows
// lie `pitch` apart, a multiple of 8 and at least the rank.
template <class Row>
void project_all(int pixels, int kernel_h, int kernel_w, int channels, const float* weights, int rank,
                 int64_t pitch, float* to, Row row_of) {
    const int h = kernel_h, w = kernel_w;
    for (int first = 0; first < rank; first += 32) {
        switch (smaller(static_cast<int>(ceil_div(rank - first, 8)), 4)) {
            case 1: project<6, 1>(pixels, h, w, channels, weights, rank, first, pitch, to, row_of); break;
            case 2: project<6, 2>(pixels, h, w, channels, weights, rank, first, pitch, to, row_of); break;
            case 3: project<4, 3>(pixels, h, w, channels, weights, rank, first, pitch, to, row_of); break;
            default: project<3, 4>(pixels, h, w, channels, weights, rank, first, pitch, to, row_of);
        }
    }
}

}  // namespace

#endif
