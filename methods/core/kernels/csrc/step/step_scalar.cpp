// Kernels of recorded steps, portable.
#include "step/pointwise.h"
#include "step/products.h"
#include "step/rows.h"

extern const QaStepKernels qa_step_scalar = {run_pointwise, run_layer_norm, run_gather, run_products};
