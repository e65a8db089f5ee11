// AVX-VNNI unit: dpbusd accumulates in int32, so every width takes the dword = 4 k form.
#define QA_UNIT AvxVnni
#if defined(QA_EMULATE_VNNI)
#include <immintrin.h>
namespace {
// What dpbusd computes, for the fuzz driver on machines without it.
inline __m256i emulated_dot(__m256i acc, __m256i a, __m256i w) {
    const __m256i even = _mm256_madd_epi16(_mm256_and_si256(a, _mm256_set1_epi16(255)),
                                           _mm256_srai_epi16(_mm256_slli_epi16(w, 8), 8));
    const __m256i odd = _mm256_madd_epi16(_mm256_srli_epi16(a, 8), _mm256_srai_epi16(w, 8));
    return _mm256_add_epi32(acc, _mm256_add_epi32(even, odd));
}
}  // namespace
#define QA_DOT(acc, a, w) acc = emulated_dot(acc, a, w)
#else
#define QA_PIN "x"
#define QA_DOT(acc, a, w) __asm__("%{vex%} vpdpbusd %2, %1, %0" : "+x"(acc) : "x"(a), "x"(w))
#endif
#include "units/vec256.h"
#include "attention/attention.h"

extern const QaUnit qa_unit_avxvnni = {QuadForm<AvxVnni>::run, QuadForm<AvxVnni>::peak, run_norm,
                                 run_activation, run_extremes, run_attention, run_rotation,
                                 run_groups<AvxVnni, false>};
