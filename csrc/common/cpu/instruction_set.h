// Which of the compiled instruction sets the kernels use, and how a launcher reaches the kernel of that set.
//
// A kernel is written once, in csrc/<op>/cpu_kernels.inc, inside `namespace encoders_fast::EF_ISA { ... }`. The build
// compiles that file once per instruction set with EF_ISA defined to its name. The header of the op declares the kernel in
// every namespace, and the launcher picks one:
//
//   #define DECLARE(isa) namespace isa { void scale(const float* x, float* y, int64_t count, float factor); }
//   namespace encoders_fast { EF_FOR_EACH_ISA(DECLARE) }                       // in the header
//
//   EF_SELECT(scale)(x, y, count, factor);                                     // in the launcher, namespace encoders_fast
//
// This header includes neither torch nor the STL, and kernel files must not either: an inline function of theirs that was
// compiled for AVX-512 may be the copy that the linker keeps for the whole library. Inside a kernel the compiler's own
// macros (__AVX2__, __AVX512F__, __AVX512BF16__) tell which instructions are there.
#pragma once

// CMakeLists.txt holds the same list, with the compiler flags of each set.
#if defined(__x86_64__)
#define EF_FOR_EACH_ISA(DO) DO(generic) DO(avx2) DO(avx512) DO(avx512_bf16)
#else
#define EF_FOR_EACH_ISA(DO) DO(generic)
#endif

namespace encoders_fast {

// In ascending order: a CPU that has one of them has all before it.
enum class InstructionSet { generic, avx2, avx512, avx512_bf16 };

// The best set of this CPU, or the one that the environment variable ENCODERS_FAST_ISA names. Decided at the first call.
// Throws a sentence, at every call, if the variable names an unknown set or one that the CPU lacks.
InstructionSet instruction_set();

bool cpu_has(InstructionSet set);

const char* name(InstructionSet set);

// The kernel for instruction_set(); arguments in the order of the enumeration. Called through EF_SELECT.
template <typename Kernel, typename... Kernels>
Kernel* select_kernel(Kernel* generic, Kernels*... better) {
  Kernel* const kernels[] = {generic, better...};
  return kernels[static_cast<int>(instruction_set())];
}

}  // namespace encoders_fast

// Variadic, so that a template may be selected too: EF_SELECT(scale<float, 4>).
#if defined(__x86_64__)
#define EF_SELECT(...)                                                                                        \
  ::encoders_fast::select_kernel(generic::__VA_ARGS__, avx2::__VA_ARGS__, avx512::__VA_ARGS__, \
                                 avx512_bf16::__VA_ARGS__)
#else
#define EF_SELECT(...) ::encoders_fast::select_kernel(generic::__VA_ARGS__)
#endif
