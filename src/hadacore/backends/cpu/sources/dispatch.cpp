// The exported functions: which instruction sets this CPU has, and a call of the kernels compiled for one of them.
#include "problem.hpp"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

#define DECLARE(isa)                                    \
    namespace isa {                                     \
    Status transform(const Problem&);                   \
    Status quantize(const Problem&, const Quantization&); \
    }
#define EXPORT extern "C" __attribute__((visibility("default")))

#if defined(HADACORE_WITH_AVX512)
DECLARE(avx512)
#endif
#if defined(HADACORE_WITH_AVX2)
DECLARE(avx2)
#endif
#if defined(HADACORE_WITH_NEON)
DECLARE(neon)
#endif
DECLARE(portable)

namespace {

#if defined(__x86_64__)
// Neither GCC nor clang of all versions answers __builtin_cpu_supports("f16c").
bool has_f16c() {
    unsigned a, b, c, d;
    return __get_cpuid(1, &a, &b, &c, &d) && (c & (1u << 29));
}

bool has_avx2() {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
}

bool has_avx512() {
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}
#endif

bool always() { return true; }

struct InstructionSet {
    const char* name;
    bool (*supported)();
    Status (*transform)(const Problem&);
    Status (*quantize)(const Problem&, const Quantization&);
};

// Best first.
const InstructionSet INSTRUCTION_SETS[] = {
#if defined(HADACORE_WITH_AVX512)
    {"avx512", has_avx512, avx512::transform, avx512::quantize},
#endif
#if defined(HADACORE_WITH_AVX2)
    {"avx2", has_avx2, avx2::transform, avx2::quantize},
#endif
#if defined(HADACORE_WITH_NEON)
    {"neon", always, neon::transform, neon::quantize},
#endif
    {"portable", always, portable::transform, portable::quantize},
};

constexpr int64_t COUNT = sizeof(INSTRUCTION_SETS) / sizeof(INSTRUCTION_SETS[0]);

}  // namespace

// The digest of the sources that this library was built from.
EXPORT const char* hadacore_sources() { return HADACORE_SOURCES; }

// The name of an instruction set, best first, or null beyond the last.
EXPORT const char* hadacore_instruction_set_name(int64_t index) {
    return index >= 0 && index < COUNT ? INSTRUCTION_SETS[index].name : nullptr;
}

// Whether this CPU has it.
EXPORT int64_t hadacore_instruction_set_supported(int64_t index) {
    return index >= 0 && index < COUNT && INSTRUCTION_SETS[index].supported();
}

EXPORT int64_t hadacore_transform(const Problem* problem) {
    int64_t index = problem->instruction_set;
    if (index < 0 || index >= COUNT) return UNKNOWN_INSTRUCTION_SET;
    return INSTRUCTION_SETS[index].transform(*problem);
}

EXPORT int64_t hadacore_quantize(const Problem* problem, const Quantization* quantization) {
    int64_t index = problem->instruction_set;
    if (index < 0 || index >= COUNT) return UNKNOWN_INSTRUCTION_SET;
    return INSTRUCTION_SETS[index].quantize(*problem, *quantization);
}
