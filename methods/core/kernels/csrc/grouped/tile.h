// Tiles of up to 6 pixels by 16 outputs whose K axis has groups with scales of their own.  Sums of a
// group leave as float32 while they are in registers or in the first-level cache:
//     f[r, n] += scale[g, n] * (T[r, g, n] - what zero points add)
#ifndef QUANTARENA_GROUPED_TILE_H
#define QUANTARENA_GROUPED_TILE_H

#include <type_traits>

#include "call.h"
#include "lanes.h"

namespace {

// Constants of a tile.
struct GroupTile {
    int count;               // groups
    const int32_t* steps;    // [count], 32-bit steps of each
    const int32_t* start;    // [count][16], leaves the sums; by row that many times the row's zero point
    const float* scale;      // [count][16]
    const float* row_scale;  // [rows][count] at a pitch, or null: all rows alike
    const int32_t* row_zero;
    int64_t pitch;
    const int32_t* sums;  // [rows][count], sums of activation codes, or null where no zero point is left
    const int32_t* zero;  // [count][16], zero points of weights that no code has lost, see Fold
    int32_t* totals;      // [count][rows][16] receives the integers instead of f, or null
    const uint16_t* chunk;       // what int16 accumulators survive, in units
    const int32_t* chunk_start;  // [count] at a pitch, where a group's chunks begin
    int64_t chunk_pitch;
};

// Whether a unit has a micro-kernel of its own, and the steps of a group are then a multiple of what.
template <class Isa, class = void>
struct GroupStep : std::integral_constant<int, 0> {};
template <class Isa>
struct GroupStep<Isa, std::void_t<decltype(Isa::kGroupStep)>> : std::integral_constant<int, Isa::kGroupStep> {};

QA_INLINE void load_bits(LaneBits& to, const int32_t* from) { std::memcpy(&to, from, sizeof to); }

// Sums of one group less what zero points add to them, for eight outputs.
QA_INLINE void settle(LaneBits& total, const GroupTile& t, int g, int r, int at) {
    LaneBits start;
    load_bits(start, t.start + 16 * g + at);
    total -= t.row_zero ? start * t.row_zero[r * t.pitch + g] : start;
    if (t.sums == nullptr) return;
    LaneBits zero;
    load_bits(zero, t.zero + 16 * g + at);
    total -= zero * t.sums[static_cast<int64_t>(r) * t.count + g];
}

// What becomes of a group's sums: integers, or floats that are added to f.
template <int ROWS>
inline void finish_group(const int32_t* tile, const GroupTile& t, int g, float* f) {
    for (int r = 0; r < ROWS; ++r)
        for (int at = 0; at < 16; at += 8) {
            LaneBits total;
            load_bits(total, tile + 16 * r + at);
            settle(total, t, g, r, at);
            if (t.totals) {
                std::memcpy(t.totals + 16 * (static_cast<int64_t>(g) * ROWS + r) + at, &total, sizeof total);
                continue;
            }
            Lanes scale, sum;
            load_lanes(scale, t.scale + 16 * g + at);
            load_lanes(sum, f + 16 * r + at);
            if (t.row_scale) scale = scale * t.row_scale[r * t.pitch + g];
            multiply_add(scale, __builtin_convertvector(total, Lanes), sum);
            store_lanes(f + 16 * r + at, scale);
        }
}

// The tile by way of the unit's plain micro-kernel, a group at a time.
template <class Isa, bool PAIR, int ROWS>
void plain_groups(const uint8_t* const* rows, const int32_t* offset, const void* panel, const GroupTile& t,
                  float* f) {
    const uint8_t* w = static_cast<const uint8_t*>(panel);
    alignas(64) int32_t tile[ROWS * 16];
    for (int g = 0; g < t.count; ++g) {
        const int32_t* chunk = t.chunk_start + g * t.chunk_pitch;
        Isa::template dense<PAIR, ROWS>(rows, offset, w, t.chunk + chunk[0], chunk[1] - chunk[0], tile);
        offset += t.steps[g];
        w += 64 * static_cast<int64_t>(t.steps[g]);
        finish_group<ROWS>(tile, t, g, f);
    }
}

template <class Isa, bool PAIR, int ROWS>
void groups_of_rows(const uint8_t* const* rows, const int32_t* offset, const void* panel, const GroupTile& t,
                    float* f) {
    if constexpr (!PAIR && GroupStep<Isa>::value > 0) {
        if (t.totals == nullptr && t.sums == nullptr) {
            if (t.row_scale) {
                Isa::template grouped<ROWS, true>(rows, offset, panel, t, f);
            } else {
                Isa::template grouped<ROWS, false>(rows, offset, panel, t, f);
            }
            return;
        }
        Isa::template group_totals<ROWS>(rows, offset, panel, t, f);
    } else {
        plain_groups<Isa, PAIR, ROWS>(rows, offset, panel, t, f);
    }
}

// One tile; f is [rows][16] and begins with what is added to the sums.
template <class Isa, bool PAIR>
void group_tile(int count, const uint8_t* const* rows, const int32_t* offset, const void* panel,
                const GroupTile& t, float* f) {
    switch (count) {
        case 6: groups_of_rows<Isa, PAIR, 6>(rows, offset, panel, t, f); break;
        case 5: groups_of_rows<Isa, PAIR, 5>(rows, offset, panel, t, f); break;
        case 4: groups_of_rows<Isa, PAIR, 4>(rows, offset, panel, t, f); break;
        case 3: groups_of_rows<Isa, PAIR, 3>(rows, offset, panel, t, f); break;
        case 2: groups_of_rows<Isa, PAIR, 2>(rows, offset, panel, t, f); break;
        default: groups_of_rows<Isa, PAIR, 1>(rows, offset, panel, t, f);
    }
}

}  // namespace

#endif
