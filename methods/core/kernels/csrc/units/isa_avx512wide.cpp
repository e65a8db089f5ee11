// AVX-512-VNNI unit on 512-bit registers.
#include "units/vec512.h"
#include "attention/attention.h"

extern const QaUnit qa_unit_avx512wide = {QuadForm<Wide512>::run, QuadForm<Wide512>::peak, run_norm,
                                 run_activation, run_extremes, run_attention, run_rotation};
