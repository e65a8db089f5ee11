// AVX-512-VNNI unit, on 256-bit registers (VL): the wide clock penalty is not worth it here.
#define QA_UNIT Avx512Vnni
#define QA_DOT _mm256_dpbusd_epi32
#include "vec256.h"

int qa_run_avx512vnni(const QaLayer* layer, const QaGeometry* geometry, const float* x, void* y,
                      int32_t step, int32_t threads, int32_t flags) {
    if (layer->pair) return QA_BAD_ARGUMENT;
    return Engine<Avx512Vnni, false>::run(layer, geometry, x, y, step, threads, flags);
}
