// AMX unit: int8 tiles where a call is large enough for them, else the 512-bit micro-kernels.
#define QA_UNIT Narrow
#define QA_PIN "v"
#define QA_DOT(acc, a, w) __asm__("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(a), "v"(w))
#include "units/vec256.h"
#include "units/vec512.h"
#include "wide/tile_run.h"
#include "attention/attention.h"

#if !defined(__AMX_INT8__) && !defined(QA_EMULATE_AMX)
#error "needs -mamx-tile -mamx-int8"
#endif

namespace {

struct Amx : Wide512 {
    static constexpr bool kTiles = true;
    static constexpr int64_t kBlockBytes = 256 * 1024;
    static constexpr int64_t kThreadWork = 100 * 1000 * 1000;  // the time of one fork at this speed; a guess
#if defined(QA_EMULATE_AMX)
    static constexpr int kRows = 1;
    // Any size, so that little work tests tiles; some layers run as calls that are too small do.
    static bool takes(const QaLayer& l, const QaGeometry&) { return l.out_channels % 7 != 0; }
#else
    static constexpr int kRows = 6;  // of a block; fewer take as long as sixteen

    // Short sums waste most of a tile, and small calls do not pay for the configuration.
    static bool takes(const QaLayer& l, const QaGeometry& g) {
        const int64_t depth = static_cast<int64_t>(l.in_channels) * l.kernel_h * l.kernel_w;
        const int64_t pixels = g.batch * g.out_height * g.out_width;
        return depth >= 64 && pixels >= kRows && depth * pixels * l.groups * l.out_channels >= 1000 * 1000;
    }
#endif
};

}  // namespace

extern const QaUnit qa_unit_amx = {QuadForm<Amx>::run, QuadForm<Amx>::peak, run_norm,
                                 run_activation, run_extremes, run_attention, run_rotation,
                                 run_groups<Narrow, false>};  // groups of K: on 256 bits
