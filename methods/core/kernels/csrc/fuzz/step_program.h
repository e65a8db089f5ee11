// A recorded step of the fuzz driver: buffers, and operations on places in them.
#ifndef QUANTARENA_FUZZ_STEP_PROGRAM_H
#define QUANTARENA_FUZZ_STEP_PROGRAM_H

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <deque>
#include <functional>
#include <memory>
#include <utility>
#include <vector>

#include "fuzz/fuzz_problem.h"
#include "step/step.h"

namespace {

struct Buffer {
    int64_t count = 0;   // of floats, or of indices
    bool index = false;  // int64
    bool given = false;  // an input
    bool output = false;
    int first = -1, last = -1;  // operations that touch it
    std::vector<char> value;    // of an input
    size_t bytes() const { return static_cast<size_t>(count) * (index ? 8 : 4); }
};

struct Place {
    int buffer;      // negative: no such operand
    int64_t offset;  // in elements
};

// Of all buffers as they are after an operation, followed by all as they were before it.
typedef std::function<bool(const std::vector<char*>&)> Check;

struct Operation {
    QaOp op{};
    int entry = -1;  // of the unit, else
    int kernel = -1;
    std::vector<Place> at;
    Check check;
};

struct Program {
    std::vector<Buffer> buffers;
    std::vector<Operation> operations;
    std::deque<std::unique_ptr<Problem>> layers;
    std::deque<std::shared_ptr<void>> kept;
    int step = 0;

    int buffer(int64_t count, bool index = false) {
        buffers.emplace_back();
        buffers.back().count = count;
        buffers.back().index = index;
        return static_cast<int>(buffers.size()) - 1;
    }
    template <class T>
    T* keep(const T& value) {
        auto held = std::make_shared<T>(value);
        kept.push_back(held);
        return held.get();
    }
    int input(int64_t count) {
        const int made = buffer(count);
        buffers[made].given = true;
        buffers[made].value.resize(buffers[made].bytes());
        float* to = reinterpret_cast<float*>(buffers[made].value.data());
        for (int64_t i = 0; i < count; ++i) to[i] = 0.03125f * pick(-160, 160);
        return made;
    }
    // A place with `span` floats: in what was made before, or in a new input.
    Place read(int64_t span) {
        std::vector<int> fit;
        for (size_t i = 0; i < buffers.size(); ++i)
            if (!buffers[i].index && buffers[i].count >= span) fit.push_back(static_cast<int>(i));
        if (fit.empty() || pick(0, 3) == 0) return {input(span), 0};
        const int found = fit[pick(0, static_cast<int>(fit.size()) - 1)];
        return {found, pick(0, static_cast<int>(std::min<int64_t>(buffers[found].count - span, 9)))};
    }
    void add(Operation operation) {
        const int number = static_cast<int>(operations.size());
        for (const Place& place : operation.at) {
            if (place.buffer < 0) continue;
            Buffer& b = buffers[place.buffer];
            if (b.first < 0) b.first = number;
            b.last = number;
        }
        operations.push_back(std::move(operation));
    }
};

const float* floats(const std::vector<char*>& memory, Place place) {
    return reinterpret_cast<const float*>(memory[place.buffer]) + place.offset;
}

bool same(float a, float b) { return a == b || (std::isnan(a) && std::isnan(b)); }

}  // namespace

#endif
