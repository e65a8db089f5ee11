// Kernels of recorded steps for AVX2 and FMA.
#include "step/pointwise.h"
#include "step/products.h"
#include "step/rows.h"

extern const QaStepKernels qa_step_avx2 = {run_pointwise, run_layer_norm, run_gather, run_products};
