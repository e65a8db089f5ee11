// AVX2 + FMA unit.
#define QA_UNIT Avx2
#include "vec256.h"

int qa_run_avx2(const QaLayer* layer, const QaGeometry* geometry, const float* x, void* y,
                int32_t step, int32_t threads, int32_t flags) {
    return layer->pair ? Engine<Avx2, true>::run(layer, geometry, x, y, step, threads, flags)
                       : Engine<Avx2, false>::run(layer, geometry, x, y, step, threads, flags);
}
