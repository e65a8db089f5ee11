// AVX-512-VNNI unit, on 256-bit registers (VL): for processors that lower their clock for wide ones.
#define QA_UNIT Avx512Vnni
#define QA_PIN "v"
#define QA_DOT(acc, a, w) __asm__("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(a), "v"(w))
#include "units/vec256.h"
#include "attention/attention.h"

extern const QaUnit qa_unit_avx512vnni = {QuadForm<Avx512Vnni>::run, QuadForm<Avx512Vnni>::peak, run_norm,
                                 run_activation, run_extremes, run_attention, run_rotation,
                                 run_groups<Avx512Vnni, false>};
