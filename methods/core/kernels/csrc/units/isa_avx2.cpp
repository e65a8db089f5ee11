// AVX2 + FMA unit.
#define QA_UNIT Avx2
#include "units/vec256.h"
#include "attention/attention.h"

extern const QaUnit qa_unit_avx2 = {BothForms<Avx2>::run, BothForms<Avx2>::peak, run_norm,
                                 run_activation, run_extremes, run_attention, run_rotation,
                                 run_groups<Avx2, true>};
