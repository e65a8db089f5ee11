// AdaRound's soft weight and its gradient, each in one sweep over memory.
//
//   weight = base + reach * clamp(sigmoid(alpha), cut)
//
// Weights of small networks lie in cache, so what counts is the number of passes and the cost of
// the transcendental functions. Both are polynomials here that compilers turn into vector code:
// plain loops without calls or branches. Relative errors stay below 1e-6, which learning does not
// see; exported codes depend on the sign of alpha alone.

#include <cstdint>
#include <cstring>

#define QA_EXPORT extern "C" __attribute__((visibility("default")))
// The library runs on any x86-64; the loader picks the clone that this machine can run.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 12
#define QA_CLONES __attribute__((target_clones("arch=x86-64-v3", "default")))
#elif defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define QA_CLONES __attribute__((target_clones("avx2", "default")))  // no fused multiply-add
#else
#define QA_CLONES
#endif

namespace {

const float kLog2e = 1.44269504f;

inline __attribute__((always_inline)) float from_bits(int32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline __attribute__((always_inline)) int32_t to_bits(float value) {
  int32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

// 2**x, x limited so that products with the result stay clear of denormal numbers, which are slow.
inline __attribute__((always_inline)) float exp2_of(float x) {
  x = x < -80.f ? -80.f : x;
  x = x > 80.f ? 80.f : x;
  const float shifted = x + 12582912.f;  // 1.5 * 2**23: the sum has no fraction bits left
  const float whole = shifted - 12582912.f;
  const float f = x - whole;  // in [-0.5, 0.5]
  float p = 1.5403530e-4f;
  p = p * f + 1.3333558e-3f;
  p = p * f + 9.6181291e-3f;
  p = p * f + 5.5504109e-2f;
  p = p * f + 2.4022651e-1f;
  p = p * f + 6.9314718e-1f;
  p = p * f + 1.f;
  return p * from_bits((static_cast<int32_t>(whole) + 127) << 23);
}

// log2(x) of a positive normal number.
inline __attribute__((always_inline)) float log2_of(float x) {
  const int32_t bits = to_bits(x);
  // an exponent such that the mantissa lies in [sqrt(1/2), sqrt(2))
  const int32_t exponent = (bits - 0x3f3504f3) & ~0x7fffff;
  const float m = from_bits(bits - exponent);
  const float t = (m - 1.f) / (m + 1.f), s = t * t;
  float p = 0.32059889f;  // 2 / (9 ln 2)
  p = p * s + 0.41219858f;
  p = p * s + 0.57707802f;
  p = p * s + 0.96179669f;
  p = p * s + 2.88539008f;
  return static_cast<float>(exponent >> 23) + t * p;
}

inline __attribute__((always_inline)) float sigmoid_of(float x) {
  return 1.f / (1.f + exp2_of(-kLog2e * x));
}

}  // namespace

QA_EXPORT QA_CLONES void qa_soft_weight(int64_t count, const float* __restrict alpha,
                                        const float* __restrict base,
                                        const float* __restrict reach, float low, float high,
                                        float* __restrict weight) {
  for (int64_t i = 0; i < count; ++i) {
    float gate = sigmoid_of(alpha[i]);
    gate = gate < low ? low : gate;
    gate = gate > high ? high : gate;
    weight[i] = base[i] + reach[i] * gate;
  }
}

// grad = d/d alpha of (loss + strength * sum(1 - |h| ** beta)), h = slope * gate + offset in
// [-1, 1], where d loss / d weight is given.
QA_EXPORT QA_CLONES void qa_soft_gradient(int64_t count, const float* __restrict alpha,
                                          const float* __restrict reach,
                                          const float* __restrict grad_weight, float low,
                                          float high, float slope, float offset, float strength,
                                          float beta, float* __restrict grad) {
  const float power = 0.5f * (beta - 2.f), pull = -beta * strength * slope;
  if (strength == 0.f) {
    for (int64_t i = 0; i < count; ++i) {
      const float gate = sigmoid_of(alpha[i]);
      const float inside = (gate > low) & (gate < high) ? gate * (1.f - gate) : 0.f;
      grad[i] = grad_weight[i] * reach[i] * inside;
    }
    return;
  }
  for (int64_t i = 0; i < count; ++i) {
    const float gate = sigmoid_of(alpha[i]);
    const float inside = (gate > low) & (gate < high) ? gate * (1.f - gate) : 0.f;
    const float h = slope * gate + offset;
    float square = h * h;
    square = square < 1e-30f ? 1e-30f : square;
    const float size = exp2_of(power * log2_of(square));  // |h| ** (beta - 2)
    grad[i] = (grad_weight[i] * reach[i] + pull * size * h) * inside;
  }
}
