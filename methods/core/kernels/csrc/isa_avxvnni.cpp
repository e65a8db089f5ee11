// AVX-VNNI unit: dpbusd accumulates in int32, so every width takes the dword = 4 k form.
#define QA_UNIT AvxVnni
#define QA_DOT _mm256_dpbusd_avx_epi32
#include "vec256.h"

extern const QaUnit qa_unit_avxvnni = {QuadForm<AvxVnni>::run, QuadForm<AvxVnni>::peak};
