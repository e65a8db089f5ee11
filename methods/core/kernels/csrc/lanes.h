// Eight floats at a time in the compiler's own vector type, which every unit can compile, and the
// functions that networks apply element by element.
#ifndef QUANTARENA_LANES_H
#define QUANTARENA_LANES_H

#include <cstdint>
#include <cstring>

#include "quantarena.h"

#if defined(__AVX2__) && defined(__FMA__)
#include <immintrin.h>

// Plain additions, hidden from the optimizer: gcc would re-associate them across unrolled steps,
// run out of registers and spill the accumulators.
#define QA_ADD16(acc, value) __asm__("vpaddw %2, %1, %0" : "=x"(acc) : "x"(acc), "x"(value))
#define QA_ADD32(acc, value) __asm__("vpaddd %2, %1, %0" : "=x"(acc) : "x"(acc), "x"(value))
#endif

#define QA_ALWAYS __attribute__((always_inline))
#define QA_INLINE inline QA_ALWAYS

namespace {

typedef float Lanes __attribute__((vector_size(32)));
typedef int32_t LaneBits __attribute__((vector_size(32)));

QA_INLINE void load_lanes(Lanes& to, const float* from) { std::memcpy(&to, from, sizeof to); }
QA_INLINE void store_lanes(float* to, const Lanes& from) { std::memcpy(to, &from, sizeof from); }

// x = x * factor + term, rounded once where the unit can.
QA_INLINE void multiply_add(Lanes& x, const Lanes& factor, const Lanes& term) {
#if defined(__AVX2__) && defined(__FMA__)
    x = _mm256_fmadd_ps(x, factor, term);
#else
    x = x * factor + term;
#endif
}
QA_INLINE void multiply_add(Lanes& x, const Lanes& factor, float term) {
    multiply_add(x, factor, Lanes{} + term);
}

// NaN stays.
QA_INLINE void clamp_lanes(Lanes& x, float low, float high) {
#if defined(__AVX2__) && defined(__FMA__)
    x = _mm256_min_ps(_mm256_set1_ps(high), _mm256_max_ps(_mm256_set1_ps(low), x));
#else
    x = x < low ? Lanes{} + low : x;
    x = x > high ? Lanes{} + high : x;
#endif
}

// exp within two units in the last place; NaN stays, ends saturate at the float range.
QA_INLINE void exp_lanes(Lanes& x) {
    constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
    clamp_lanes(x, -87.0f, 88.0f);
    Lanes shifted = x;
    multiply_add(shifted, Lanes{} + 1.44269504f, kRound);
    const Lanes n = shifted - kRound;
    Lanes r = n, p = n;
    multiply_add(r, Lanes{} - 0.693359375f, x);
    multiply_add(p, Lanes{} + 2.12194440e-4f, r);
    r = p;
    p = r;
    multiply_add(p, Lanes{} + 1.9875691500e-4f, Lanes{} + 1.3981999507e-3f);
    multiply_add(p, r, 8.3334519073e-3f);
    multiply_add(p, r, 4.1665795894e-2f);
    multiply_add(p, r, 1.6666665459e-1f);
    multiply_add(p, r, 5.0000001201e-1f);
    multiply_add(p, r * r, r + 1.0f);
    LaneBits power;
    std::memcpy(&power, &shifted, sizeof power);
    power = (power << 23) + 0x3f800000;
    Lanes scale;
    std::memcpy(&scale, &power, sizeof scale);
    x = p * scale;
}

// Infinities go to the function's limits, NaN stays.
template <int ACTIVATION>
QA_INLINE void activate_lanes(Lanes& x) {
    if (ACTIVATION == QA_PLAIN) return;
    // The formulas give -inf / (e + 1) or -inf * 0 there; the limit of all three functions is 0.
    const LaneBits bottom = x == -__builtin_inff();
    if (ACTIVATION == QA_SILU) {
        Lanes e = -x;
        exp_lanes(e);
        x = x / (e + 1.0f);
    } else if (ACTIVATION == QA_GELU) {
        // the normal tail by Abramowitz and Stegun 7.1.26, absolute error below 1e-7
        const Lanes z = (x < 0.0f ? -x : x) * 0.70710678f;
        Lanes e = -z * z;
        exp_lanes(e);
        Lanes t = z;
        multiply_add(t, Lanes{} + 0.3275911f, 1.0f);
        t = 1.0f / t;
        Lanes p = t;
        multiply_add(p, Lanes{} + 1.061405429f, -1.453152027f);
        multiply_add(p, t, 1.421413741f);
        multiply_add(p, t, -0.284496736f);
        multiply_add(p, t, 0.254829592f);
        const Lanes tail = p * t * e * 0.5f;
        x = x * (x < 0.0f ? tail : 1.0f - tail);
    } else if (ACTIVATION == QA_GELU_TANH) {
        // 0.5 (1 + tanh u) = 1 / (1 + exp(-2 u))
        Lanes e = x * x;
        multiply_add(e, Lanes{} + 0.044715f, 1.0f);
        e = e * x * -1.5957691216f;
        exp_lanes(e);
        x = x / (e + 1.0f);
    }
    x = bottom ? Lanes{} : x;
}

// f(from[i], i) for eight elements at a time; the last ones are padded with zeros.
template <class Function>
QA_INLINE void map_lanes(const float* from, float* to, int64_t count, Function f) {
    int64_t i = 0;
    Lanes v;
    for (; i + 8 <= count; i += 8) {
        load_lanes(v, from + i);
        f(v, i, 8);
        store_lanes(to + i, v);
    }
    if (i == count) return;
    v = Lanes{};
    std::memcpy(&v, from + i, sizeof(float) * (count - i));
    f(v, i, static_cast<int>(count - i));
    std::memcpy(to + i, &v, sizeof(float) * (count - i));
}

QA_INLINE float add_up(const Lanes& v) {
    return ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7]));
}

// Sum of (from[i] - centre)^power, power 1 or 2.
template <int POWER>
QA_INLINE float sum_lanes(const float* from, int64_t count, float centre) {
    Lanes part[4] = {}, v;
    int64_t i = 0;
    for (; i + 32 <= count; i += 32) {
#pragma GCC unroll 4
        for (int k = 0; k < 4; ++k) {
            load_lanes(v, from + i + 8 * k);
            v = v - centre;
            part[k] += POWER == 2 ? v * v : v;
        }
    }
    for (; i + 8 <= count; i += 8) {
        load_lanes(v, from + i);
        v = v - centre;
        part[0] += POWER == 2 ? v * v : v;
    }
    float sum = add_up((part[0] + part[1]) + (part[2] + part[3]));
    for (; i < count; ++i) {
        const float d = from[i] - centre;
        sum += POWER == 2 ? d * d : d;
    }
    return sum;
}

}  // namespace

#endif
