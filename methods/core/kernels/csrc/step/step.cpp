// The loop over a recorded step's operations.
#include "step/step.h"

#include <cstring>
#include <ctime>

#include "attention/attention_call.h"

#define QA_EXPORT __attribute__((visibility("default")))

namespace {

struct Places {
    char* at[8];
    explicit Places(const QaOp& op, char* const* slots) {
        for (int k = 0; k < 8; ++k)
            at[k] = op.at[k].slot < 0 ? nullptr : slots[op.at[k].slot] + op.at[k].offset;
    }
    float* floats(int k) const { return reinterpret_cast<float*>(at[k]); }
};

template <class Function>
Function* as(const QaOp& op) {
    return reinterpret_cast<Function*>(op.function);
}
template <class Params>
const Params* params(const QaOp& op) {
    return static_cast<const Params*>(op.params);
}

int run(const QaOp& op, char* const* slots, int32_t step, int32_t threads) {
    const Places p(op, slots);
    const int32_t entry = op.table < 0 ? step : op.table;
    switch (op.kind) {
        case QA_OP_LAYER: {
            const QaRowScales rows = {p.floats(2), reinterpret_cast<int32_t*>(p.at[3])};
            return reinterpret_cast<QaRun>(op.function)(
                params<QaLayer>(op), static_cast<const QaGeometry*>(op.more), p.floats(0), p.at[1],
                entry, threads, op.flags, rows.scale ? &rows : nullptr);
        }
        case QA_OP_GROUPS: {
            const QaRowScales rows = {p.floats(2), reinterpret_cast<int32_t*>(p.at[3])};
            const QaGroupedLayer& both = *params<QaGroupedLayer>(op);
            return reinterpret_cast<QaRunGroups>(op.function)(
                both.layer, both.groups, static_cast<const QaGeometry*>(op.more), p.floats(0), p.at[1],
                entry, threads, op.flags, rows.scale ? &rows : nullptr);
        }
        case QA_OP_NORM:
            return as<int(const QaNorm*, const float*, float*, int32_t)>(op)(
                params<QaNorm>(op), p.floats(0), p.floats(1), threads);
        case QA_OP_ACTIVATION:
            return as<int(const QaRows*, const float*, const float*, float*, int32_t)>(op)(
                params<QaRows>(op), p.floats(0), p.floats(1), p.floats(2), threads);
        case QA_OP_EXTREMES: {
            const int64_t* size = params<int64_t>(op);
            return as<int(const float*, float*, float*, int64_t, int64_t, int32_t)>(op)(
                p.floats(0), p.floats(1), p.floats(2), size[0], size[1], threads);
        }
        case QA_OP_ATTENTION: {
            QaAttention call = *params<QaAttention>(op);
            call.query = p.floats(0);
            call.key = p.floats(1);
            call.value = p.floats(2);
            call.mask = p.floats(3);
            call.probs = p.floats(4);
            call.y = p.at[5];
            for (int g = 0; g < 4; ++g)
                if (op.flags >> g & 1) call.grid[g].first = entry;
            return as<int(const QaAttention*, int32_t)>(op)(&call, threads);
        }
        case QA_OP_ROTATION:
            return as<int(const QaRotation*, const float*, float*, int32_t)>(op)(
                params<QaRotation>(op), p.floats(0), p.floats(1), threads);
        case QA_OP_KERNEL:
            return reinterpret_cast<QaStepKernel>(op.function)(op.params, p.at, threads);
        default: return QA_BAD_ARGUMENT;
    }
}

// The wall's clock in nanoseconds: the processor's moves in steps of milliseconds on some machines.
int64_t wall_time() {
    timespec now = {};
    clock_gettime(CLOCK_MONOTONIC, &now);
    return static_cast<int64_t>(now.tv_sec) * 1000000000 + now.tv_nsec;
}

}  // namespace

extern "C" {

// Runs `count` operations in order.  Returns 0, or 8 * (number of the one that failed) + its error.
QA_EXPORT int32_t qa_run_plan(const QaOp* ops, int32_t count, char* const* slots, int32_t step,
                              int32_t threads) {
    for (int32_t i = 0; i < count; ++i)
        if (const int error = run(ops[i], slots, step, threads)) return 8 * i + error;
    return QA_OK;
}

// As qa_run_plan, and adds the wall time of operation i to spent[i].  For who looks where a step's
// time goes.
QA_EXPORT int32_t qa_time_plan(const QaOp* ops, int32_t count, char* const* slots, int32_t step,
                               int32_t threads, int64_t* spent) {
    int64_t before = wall_time();
    for (int32_t i = 0; i < count; ++i) {
        if (const int error = run(ops[i], slots, step, threads)) return 8 * i + error;
        const int64_t now = wall_time();
        spent[i] += now - before;
        before = now;
    }
    return QA_OK;
}

// Kernels of recorded steps beside an instruction set, in the order of QaStepKernels; null past the
// last.
QA_EXPORT void* qa_step_kernel(const char* isa, int32_t which) {
    const QaStepKernels* kernels = &qa_step_scalar;
#if defined(QA_WITH_STEP_AVX2)
    if (std::strcmp(isa, "scalar") != 0 && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        kernels = &qa_step_avx2;
#endif
    (void)isa;
    switch (which) {
        case 0: return reinterpret_cast<void*>(kernels->pointwise);
        case 1: return reinterpret_cast<void*>(kernels->layer_norm);
        case 2: return reinterpret_cast<void*>(kernels->gather);
        case 3: return reinterpret_cast<void*>(kernels->products);
        default: return nullptr;
    }
}
}
