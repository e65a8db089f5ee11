// The eight tile registers of AMX: 16 rows of 64 bytes each.  With QA_EMULATE_AMX plain loops do the
// same, with checks that the hardware has not, so that sanitizers see every row that is read.
//
// A configuration belongs to the thread, and any other library in it may set its own: whoever uses tiles
// holds a `Tiles`.  Products of u8 by s8 wrap in int32; callers have the proof that they never do.
#ifndef QUANTARENA_TILES_H
#define QUANTARENA_TILES_H

#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "call.h"

namespace {

constexpr int kTileRows = 16, kTileBytes = 64, kTileSize = kTileRows * kTileBytes;

// Operand of ldtilecfg.
struct TileConfiguration {
    uint8_t palette, start_row, reserved[14];
    uint16_t bytes[16];  // of a row
    uint8_t rows[16];
};
static_assert(sizeof(TileConfiguration) == 64, "64 bytes are read");

#if defined(QA_EMULATE_AMX)

struct TileState {
    uint8_t tile[8][kTileRows][kTileBytes];
    int rows[8], bytes[8];
    bool ready = false;
};
thread_local TileState tile_state;

inline void tile_check(bool right) {
    if (!right) std::abort();
}

inline void tile_configure(const TileConfiguration& c) {
    tile_check(c.palette == 1 && c.start_row == 0);
    for (uint8_t byte : c.reserved) tile_check(byte == 0);
    for (int t = 0; t < 16; ++t) {
        tile_check(c.rows[t] <= kTileRows && c.bytes[t] <= kTileBytes && (t < 8 || c.rows[t] + c.bytes[t] == 0));
        if (t >= 8) continue;
        tile_state.rows[t] = c.rows[t];
        tile_state.bytes[t] = c.bytes[t];
    }
    std::memset(tile_state.tile, 0xa5, sizeof tile_state.tile);  // nobody may rely on zeros
    tile_state.ready = true;
}
inline void tile_release() {
    tile_check(tile_state.ready);
    tile_state.ready = false;
}
template <int T>
void tile_zero() {
    tile_check(tile_state.ready && tile_state.rows[T] > 0);
    std::memset(tile_state.tile[T], 0, kTileSize);
}
template <int T>
void tile_load(const void* from, int64_t stride) {
    tile_zero<T>();
    for (int r = 0; r < tile_state.rows[T]; ++r)
        std::memcpy(tile_state.tile[T][r], static_cast<const uint8_t*>(from) + r * stride,
                    static_cast<size_t>(tile_state.bytes[T]));
}
template <int T>
void tile_store(void* to, int64_t stride) {
    tile_check(tile_state.ready && tile_state.rows[T] > 0);
    for (int r = 0; r < tile_state.rows[T]; ++r)
        std::memcpy(static_cast<uint8_t*>(to) + r * stride, tile_state.tile[T][r],
                    static_cast<size_t>(tile_state.bytes[T]));
}
// C += A * B, A unsigned and B signed bytes.
template <int C, int A, int B>
void tile_dot() {
    TileState& s = tile_state;
    tile_check(s.ready && s.rows[C] == s.rows[A] && s.bytes[C] == s.bytes[B] && s.bytes[A] == 4 * s.rows[B]);
    tile_check(s.bytes[C] % 4 == 0 && C != A && C != B && A != B);
    for (int m = 0; m < s.rows[C]; ++m)
        for (int n = 0; n < s.bytes[C] / 4; ++n) {
            uint32_t sum;
            std::memcpy(&sum, s.tile[C][m] + 4 * n, 4);
            for (int k = 0; k < s.rows[B]; ++k)
                for (int j = 0; j < 4; ++j)
                    sum += static_cast<uint32_t>(s.tile[A][m][4 * k + j] *
                                                 static_cast<int8_t>(s.tile[B][k][4 * n + j]));
            std::memcpy(s.tile[C][m] + 4 * n, &sum, 4);
        }
}

#else

// Assembly instead of intrinsics, whose declarations name no memory: stores to operands before a load
// could be moved behind it.
inline void tile_configure(const TileConfiguration& c) {
    __asm__ volatile("ldtilecfg %0" ::"m"(c) : "memory");
}
inline void tile_release() { __asm__ volatile("tilerelease" ::: "memory"); }
template <int T>
QA_INLINE void tile_zero() {
    __asm__ volatile("tilezero %%tmm%c0" ::"i"(T));
}
template <int T>
QA_INLINE void tile_load(const void* from, int64_t stride) {
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(stride), "i"(T) : "memory");
}
template <int T>
QA_INLINE void tile_store(void* to, int64_t stride) {
    __asm__ volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(stride), "i"(T) : "memory");
}
template <int C, int A, int B>
QA_INLINE void tile_dot() {
    __asm__ volatile("tdpbusd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B));
}

#endif

// Eight whole tiles, for as long as it lives.
struct Tiles {
    Tiles() {
        TileConfiguration c = {};
        c.palette = 1;
        for (int t = 0; t < 8; ++t) c.bytes[t] = kTileBytes, c.rows[t] = kTileRows;
        tile_configure(c);
    }
    ~Tiles() { tile_release(); }  // context switches then have nothing to save
    Tiles(const Tiles&) = delete;
    Tiles& operator=(const Tiles&) = delete;
};

}  // namespace

#endif
