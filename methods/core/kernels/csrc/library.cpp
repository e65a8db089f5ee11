// Exported functions: choice of the instruction set, threads, scratch memory.
#include <pthread.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>

#include "quantarena.h"

#define QA_EXPORT __attribute__((visibility("default")))

#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif
#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

namespace {

typedef void (*GompParallel)(void (*)(void*), void*, unsigned, unsigned);
GompParallel gomp_parallel = nullptr;

// A forked process inherits the runtime's record of its threads, but not the threads: a team would
// wait for them forever.  So it computes on one thread.
[[maybe_unused]] const int registered =
    pthread_atfork(nullptr, nullptr, [] { gomp_parallel = nullptr; });

struct Isa {
    const char* name;
    const QaUnit* unit;
    const char* absent;  // why this machine cannot run it: a phrase, or null
    bool usable() const { return absent == nullptr; }
};

[[maybe_unused]] constexpr const char* kNoSuch = "this processor has no such instructions";

#if defined(__x86_64__)
// Tiles are large, so a process asks the system for them before it uses one; that it has asked, its
// threads and forks inherit.  The system refuses where a signal stack is too small, or a filter is set.
[[maybe_unused]] bool tiles_permitted() {
#if defined(QA_EMULATE_AMX)
    return std::getenv("QA_REFUSE_AMX") == nullptr;
#elif defined(__linux__)
    constexpr long kRequestPermission = 0x1023, kTileData = 18;
    return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
    return false;
#endif
}

struct X86 {
    bool avx2 = false, avxvnni = false, avx512vnni = false, avx512wide = false;
    const char* no_amx = kNoSuch;
    X86() {
        unsigned a, b, c, d;
        if (!__get_cpuid(1, &a, &b, &c, &d)) return;
        const bool fma = c & (1u << 12), osxsave = c & (1u << 27), avx = c & (1u << 28);
        if (!osxsave || !avx || !fma) return;
        unsigned lo, hi;
        __asm__ volatile("xgetbv" : "=a"(lo), "=d"(hi) : "c"(0));
        if ((lo & 0x6) != 0x6) return;  // the system saves the ymm registers
        const bool zmm = (lo & 0xe6) == 0xe6;
        if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return;
        avx2 = b & (1u << 5);
        const bool avx512f = b & (1u << 16), avx512vl = b & (1u << 31);
        const bool avx512bw = b & (1u << 30);
        avx512vnni = avx2 && zmm && avx512f && avx512vl && avx512bw && (c & (1u << 11));
        avx512wide = avx512vnni && (b & (1u << 17));
        const unsigned leaves = a;
        if (avx512wide) no_amx = amx(d, lo);
#if defined(QA_EMULATE_VNNI)
        avxvnni = avx2;
        return;
#endif
        if (leaves >= 1 && __get_cpuid_count(7, 1, &a, &b, &c, &d)) avxvnni = avx2 && (a & (1u << 4));
    }

    // Why there are no byte tiles, or null; `features` is edx of leaf 7, `saved` the low half of XCR0.
    static const char* amx([[maybe_unused]] unsigned features, [[maybe_unused]] unsigned saved) {
#if !defined(QA_EMULATE_AMX)
        constexpr unsigned kTile = 1u << 24, kInt8 = 1u << 25, kState = 3u << 17;
        if ((features & (kTile | kInt8)) != (kTile | kInt8)) return kNoSuch;
        if ((saved & kState) != kState) return "the system does not save tile registers";
        unsigned a, b, c, d;
        if (!__get_cpuid_count(0x1d, 1, &a, &b, &c, &d) || (b >> 16) < 8 || (b & 0xffff) < 64 || (c & 0xffff) < 16)
            return "the tile registers are smaller than 8 times 16 rows of 64 bytes";
#endif
        return tiles_permitted() ? nullptr : "the system does not permit tile registers to this process";
    }
};
#endif

// Best first.
const Isa* isa_table(int* count) {
    static Isa table[7];
    static int used = [] {
        int n = 0;
#if defined(__x86_64__)
        const X86 cpu;
        const auto absent = [](bool usable) { return usable ? nullptr : kNoSuch; };
#if defined(QA_WITH_AMX)
        table[n++] = {"amx", &qa_unit_amx, cpu.no_amx};
#endif
#if defined(QA_WITH_AVX512WIDE)
        table[n++] = {"avx512wide", &qa_unit_avx512wide, absent(cpu.avx512wide)};
#endif
#if defined(QA_WITH_AVXVNNI)
        table[n++] = {"avxvnni", &qa_unit_avxvnni, absent(cpu.avxvnni)};
#endif
#if defined(QA_WITH_AVX512VNNI)
        table[n++] = {"avx512vnni", &qa_unit_avx512vnni, absent(cpu.avx512vnni)};
#endif
#if defined(QA_WITH_AVX2)
        table[n++] = {"avx2", &qa_unit_avx2, absent(cpu.avx2)};
#endif
#endif
#if defined(QA_WITH_NEON)
#if defined(__linux__)
        const bool dotprod = getauxval(AT_HWCAP) & (1ul << 20);
#else
        const bool dotprod = true;
#endif
        table[n++] = {"neon", &qa_unit_neon, dotprod ? nullptr : kNoSuch};
#endif
        table[n++] = {"scalar", &qa_unit_scalar, nullptr};
        return n;
    }();
    *count = used;
    return table;
}

struct Scratch {
    void* block[QA_SLOT_COUNT] = {};
    size_t bytes[QA_SLOT_COUNT] = {};
    ~Scratch() {
        for (void* p : block) std::free(p);
    }
};
thread_local Scratch scratch;

}  // namespace

void* qa_scratch(QaSlot slot, size_t bytes) {
    Scratch& mine = scratch;
#if defined(__SANITIZE_ADDRESS__)
    mine.bytes[slot] = 0;  // a fresh block of just this size, so that overruns show
    constexpr size_t grain = 64;
#else
    constexpr size_t grain = 4096;
#endif
    if (mine.bytes[slot] < bytes) {
        const size_t rounded = (bytes + grain - 1) / grain * grain;
        std::free(mine.block[slot]);
        mine.bytes[slot] = 0;
        mine.block[slot] = std::aligned_alloc(64, rounded);
        if (mine.block[slot] == nullptr) return nullptr;
        std::memset(mine.block[slot], 0, rounded);
        mine.bytes[slot] = rounded;
    }
    return mine.block[slot];
}

void qa_parallel(int threads, void (*fn)(void*), void* arg) {
    if (threads <= 1 || gomp_parallel == nullptr) {
        fn(arg);
    } else {
        gomp_parallel(fn, arg, static_cast<unsigned>(threads), 0);
    }
}

extern "C" {

// Version of this ABI; the Python side refuses any other.
QA_EXPORT int32_t qa_abi(void) { return 11; }

// Takes GOMP_parallel of the OpenMP runtime that the process already uses (null: one thread).
QA_EXPORT void qa_set_parallel(void* function) { gomp_parallel = reinterpret_cast<GompParallel>(function); }

// Name of the index-th compiled instruction set that this machine can run, best first; null past
// the last.
QA_EXPORT const char* qa_isa_name(int32_t index) {
    int count;
    const Isa* table = isa_table(&count);
    for (int i = 0; i < count; ++i) {
        if (table[i].usable() && index-- == 0) return table[i].name;
    }
    return nullptr;
}

// The index-th compiled instruction set that this machine cannot run, and the reason: "name: phrase";
// null past the last.
QA_EXPORT const char* qa_isa_absent(int32_t index) {
    static thread_local char text[160];
    int count;
    const Isa* table = isa_table(&count);
    for (int i = 0; i < count; ++i) {
        if (table[i].usable() || index-- != 0) continue;
        std::snprintf(text, sizeof text, "%s: %s", table[i].name, table[i].absent);
        return text;
    }
    return nullptr;
}

// Entry points of an instruction set by name, in the order of QaUnit; null when the set is unknown or
// this machine lacks it.
QA_EXPORT void* qa_entry(const char* name, int32_t which) {
    int count;
    const Isa* table = isa_table(&count);
    for (int i = 0; i < count; ++i) {
        if (!table[i].usable() || std::strcmp(table[i].name, name) != 0) continue;
        const QaUnit& unit = *table[i].unit;
        switch (which) {
            case 0: return reinterpret_cast<void*>(unit.run);
            case 1: return reinterpret_cast<void*>(unit.peak);
            case 2: return reinterpret_cast<void*>(unit.norm);
            case 3: return reinterpret_cast<void*>(unit.activation);
            case 4: return reinterpret_cast<void*>(unit.extremes);
            case 5: return reinterpret_cast<void*>(unit.attention);
            case 6: return reinterpret_cast<void*>(unit.rotate);
            case 7: return reinterpret_cast<void*>(unit.run_groups);
            default: return nullptr;
        }
    }
    return nullptr;
}
}
