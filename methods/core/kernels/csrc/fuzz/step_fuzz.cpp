// Random recorded steps.  Each program runs operation by operation in heap blocks of exactly the size of
// what is in them, and every result is compared with plain loops on the operands that the operation had;
// then it runs as one plan in an arena, where buffers use each other's memory as soon as their last
// reader is done, and must give the same bits.
#include <cstdio>

#include "fuzz/step_pointwise.h"
#include "fuzz/step_rows.h"

extern "C" {
const char* qa_isa_name(int32_t);
void* qa_entry(const char*, int32_t);        // in the order of QaUnit
void* qa_step_kernel(const char*, int32_t);  // in the order of QaStepKernels
int32_t qa_run_plan(const QaOp*, int32_t, char* const*, int32_t, int32_t);
int32_t qa_time_plan(const QaOp*, int32_t, char* const*, int32_t, int32_t, int64_t*);
}

namespace {

constexpr int kArena = 1, kFirst = 2;  // slots: null, the arena, what is outside of it

void add_layer(Program& program) {
    std::unique_ptr<Problem> found;
    do {
        found = std::make_unique<Problem>(random_problem());
    } while (found->layer.pair || found->wide || found->deep || found->layer.in_channels > 64 ||
             found->layer.groups > 4);
    program.layers.push_back(std::move(found));
    const Problem& p = *program.layers.back();
    const QaLayer& l = p.layer;
    QaGeometry g{};
    g.batch = pick(1, 2);
    g.height = std::max(pick(1, 8), l.dilation_h * (l.kernel_h - 1) + 1 - 2 * l.pad_h);
    g.width = std::max(pick(1, 8), l.dilation_w * (l.kernel_w - 1) + 1 - 2 * l.pad_w);
    g.out_height = (g.height + 2 * l.pad_h - l.dilation_h * (l.kernel_h - 1) - 1) / l.stride_h + 1;
    g.out_width = (g.width + 2 * l.pad_w - l.dilation_w * (l.kernel_w - 1) - 1) / l.stride_w + 1;
    const int64_t in = static_cast<int64_t>(l.groups) * l.in_channels,
                  out = static_cast<int64_t>(l.groups) * l.out_channels;
    const auto lay = [](bool last, int64_t channels, int64_t height, int64_t width, int64_t& batch,
                        int64_t& row, int64_t& pixel, int64_t& channel) {
        channel = last ? 1 : height * width, pixel = last ? channels : 1;
        row = pixel * width, batch = channels * height * width;
    };
    lay(pick(0, 1), in, g.height, g.width, g.x_batch, g.x_row, g.x_pixel, g.x_channel);
    lay(pick(0, 1), out, g.out_height, g.out_width, g.y_batch, g.y_row, g.y_pixel, g.y_channel);
    Operation made;
    const Place x = program.read(g.batch * g.x_batch), y = {program.buffer(g.batch * g.y_batch), 0};
    made.at = {x, y, {-1, 0}, {-1, 0}};
    made.entry = 0;
    made.op.kind = QA_OP_LAYER;
    made.op.params = &l;
    made.op.more = program.keep(g);
    made.op.table = pick(0, 1) ? -1 : pick(0, l.table_size - 1);
    if (made.op.table < 0 && program.step >= l.table_size) made.op.table = 0;
    const int step = made.op.table < 0 ? program.step : made.op.table;
    made.check = [&p, g, x, y, step, in, out](const std::vector<char*>& m) {
        const Range range = {p.table[step], p.table_zero[step]};
        const Reference reference(p, g, floats(m, x), [&](int64_t, int64_t) { return range; });
        for (int64_t b = 0; b < g.batch; ++b)
            for (int n = 0; n < out; ++n)
                for (int64_t i = 0; i < g.out_height * g.out_width; ++i) {
                    const int64_t oy = i / g.out_width, ox = i % g.out_width;
                    const double term = static_cast<double>(reference.sum(b, n, oy, ox)) *
                                        static_cast<double>(p.scale[n]) * static_cast<double>(range.scale);
                    const double want = term + static_cast<double>(p.bias[n]);
                    const float y_at =
                        floats(m, y)[b * g.y_batch + n * g.y_channel + oy * g.y_row + ox * g.y_pixel];
                    if (!(std::fabs(y_at - want) <= 1e-5 * std::fabs(term) + 1e-3)) return false;
                }
        return true;
    };
    program.add(std::move(made));
}

Program random_program() {
    Program program;
    program.step = pick(0, 2);
    for (int i = pick(2, 12); i > 0; --i) {
        switch (pick(0, 9)) {
            case 0:
                add_layer_norm(program);
                break;
            case 1:
                add_norm(program);
                break;
            case 2:
                add_activation(program);
                break;
            case 3:
                add_gather(program);
                break;
            case 4:
                add_products(program);
                break;
            case 5:
                add_layer(program);
                break;
            default:
                add_pointwise(program);
        }
    }
    for (Buffer& b : program.buffers)  // what nobody reads any more, and a few others, come out
        b.output = !b.given && (b.last + 1 == static_cast<int>(program.operations.size()) || pick(0, 5) == 0);
    return program;
}

// Offsets in an arena: first fit by lifetimes, in the order in which buffers are made.
std::vector<size_t> placed(const Program& program, size_t* bytes) {
    const auto& buffers = program.buffers;
    std::vector<size_t> offset(buffers.size(), 0);
    *bytes = 0;
    for (size_t i = 0; i < buffers.size(); ++i) {
        if (buffers[i].given || buffers[i].output) continue;
        for (bool moved = true; moved;) {
            moved = false;
            for (size_t k = 0; k < i; ++k) {
                if (buffers[k].given || buffers[k].output) continue;
                const bool live = buffers[k].first <= buffers[i].last && buffers[i].first <= buffers[k].last;
                const bool meet =
                    offset[i] < offset[k] + buffers[k].bytes() && offset[k] < offset[i] + buffers[i].bytes();
                if (live && meet) offset[i] = (offset[k] + buffers[k].bytes() + 7) / 8 * 8, moved = true;
            }
        }
        *bytes = std::max(*bytes, offset[i] + buffers[i].bytes());
    }
    return offset;
}

struct Blocks {
    std::vector<std::unique_ptr<char[]>> held;
    char* make(size_t bytes) {
        held.emplace_back(new char[std::max<size_t>(bytes, 1)]);
        std::memset(held.back().get(), 0xff, bytes);  // NaN, or an index that no table has
        return held.back().get();
    }
};

bool run(const Program& program, const char* isa, int threads, uint64_t seed) {
    const auto& buffers = program.buffers;
    const size_t count = buffers.size();
    Blocks blocks, outside;
    std::vector<char*> alone, memory;
    for (const Buffer& b : buffers) {
        alone.push_back(blocks.make(b.bytes()));
        if (b.given) std::copy(b.value.begin(), b.value.end(), alone.back());
    }
    size_t arena_bytes = 0;
    const std::vector<size_t> offset = placed(program, &arena_bytes);
    std::vector<char*> single = {nullptr, nullptr}, shared = {nullptr, outside.make(arena_bytes)};
    std::vector<QaOp> apart, plan;
    for (size_t i = 0; i < count; ++i) {
        single.push_back(alone[i]);
        const bool in_arena = !buffers[i].given && !buffers[i].output;
        shared.push_back(in_arena ? nullptr : outside.make(buffers[i].bytes()));
        if (buffers[i].given) std::copy(buffers[i].value.begin(), buffers[i].value.end(), shared.back());
    }
    for (const Operation& operation : program.operations) {
        QaOp op = operation.op;
        if (operation.kernel >= 0) op.kind = QA_OP_KERNEL, op.table = 0;
        op.function =
            operation.kernel >= 0 ? qa_step_kernel(isa, operation.kernel) : qa_entry(isa, operation.entry);
        for (int k = 0; k < 8; ++k) op.at[k].slot = -1;
        QaOp other = op;
        for (size_t k = 0; k < operation.at.size(); ++k) {
            const Place& place = operation.at[k];
            if (place.buffer < 0) continue;
            const Buffer& b = buffers[place.buffer];
            const int64_t bytes = place.offset * (b.index ? 8 : 4);
            op.at[k] = {place.buffer + kFirst, 0, bytes};
            const bool in_arena = !b.given && !b.output;
            other.at[k] = {in_arena ? kArena : place.buffer + kFirst, 0,
                           bytes + (in_arena ? static_cast<int64_t>(offset[place.buffer]) : 0)};
        }
        apart.push_back(op);
        plan.push_back(other);
    }
    const auto number = static_cast<unsigned long long>(seed);
    for (size_t i = 0; i < apart.size(); ++i) {
        // a check also sees what the buffers held before
        memory = alone;
        Blocks before;
        for (size_t k = 0; k < count; ++k) {
            memory.push_back(before.make(buffers[k].bytes()));
            std::copy(alone[k], alone[k] + buffers[k].bytes(), memory.back());
        }
        if (qa_run_plan(&apart[i], 1, single.data(), program.step, threads) != QA_OK ||
            !program.operations[i].check(memory)) {
            std::printf("seed %llu: %s, operation %zu of a step (kind %d, kernel %d) is wrong\n", number, isa,
                        i, apart[i].kind, program.operations[i].kernel);
            return false;
        }
    }
    std::vector<int64_t> spent(plan.size(), -1);
    const bool timed = seed & 1;
    const int error =
        timed ? qa_time_plan(plan.data(), static_cast<int>(plan.size()), shared.data(), program.step, threads,
                             spent.data())
              : qa_run_plan(plan.data(), static_cast<int>(plan.size()), shared.data(), program.step, threads);
    bool equal = error == QA_OK;
    for (size_t i = 0; i < plan.size() && timed; ++i) equal &= spent[i] >= -1;
    for (size_t i = 0; i < count && equal; ++i)
        if (buffers[i].output || buffers[i].given)
            equal = std::memcmp(alone[i], shared[i + kFirst], buffers[i].bytes()) == 0;
    if (!equal) std::printf("seed %llu: %s, a step in an arena differs from its operations\n", number, isa);
    return equal;
}

}  // namespace

bool step_trial(uint64_t seed) {
    generator.seed(seed);
    const Program program = random_program();
    for (int i = 0; qa_isa_name(i) != nullptr; ++i)
        if (!run(program, qa_isa_name(i), pick(1, 3), seed)) return false;
    return true;
}
