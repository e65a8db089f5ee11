// AVX-VNNI unit: dpbusd accumulates in int32, so every width takes the dword = 4 k form.
#define QA_UNIT AvxVnni
#define QA_DOT _mm256_dpbusd_avx_epi32
#include "vec256.h"

int qa_run_avxvnni(const QaLayer* layer, const QaGeometry* geometry, const float* x, void* y,
                   int32_t step, int32_t threads, int32_t flags) {
    if (layer->pair) return QA_BAD_ARGUMENT;
    return Engine<AvxVnni, false>::run(layer, geometry, x, y, step, threads, flags);
}
