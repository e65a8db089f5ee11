// AVX-512-VNNI unit on 512-bit registers.
#define QA_UNIT Narrow
#define QA_PIN "v"
#define QA_DOT(acc, a, w) __asm__("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(a), "v"(w))
#include "units/vec256.h"
#include "units/vec512.h"
#include "attention/attention.h"

extern const QaUnit qa_unit_avx512wide = {QuadForm<Wide512>::run, QuadForm<Wide512>::peak, run_norm,
                                 run_activation, run_extremes, run_attention, run_rotation,
                                 run_groups<Narrow, false>};  // groups of K: on 256 bits
