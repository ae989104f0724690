#include "common/cpu/instruction_set.h"

#include <torch/headeronly/util/Exception.h>

#include <cstdlib>
#include <stdexcept>
#include <string>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace encoders_fast {
namespace {

#define EF_LIST(isa) InstructionSet::isa,
constexpr InstructionSet compiled_sets[] = {EF_FOR_EACH_ISA(EF_LIST)};
#undef EF_LIST

#if defined(__x86_64__)
bool has_f16c() {  // asked by hand because older compilers do not let __builtin_cpu_supports ask for it
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  return __get_cpuid(1, &eax, &ebx, &ecx, &edx) && (ecx & bit_F16C);
}
#endif

std::string sets_of_this_cpu() {
  std::string names;
  for (InstructionSet set : compiled_sets) {
    if (cpu_has(set)) names += (names.empty() ? "" : ", ") + std::string(name(set));
  }
  return names;
}

InstructionSet best_set() {
  InstructionSet best = InstructionSet::generic;
  for (InstructionSet set : compiled_sets) {
    if (cpu_has(set)) best = set;
  }
  return best;
}

InstructionSet choose() {
  const char* wanted = std::getenv("ENCODERS_FAST_ISA");
  if (wanted == nullptr || *wanted == '\0') return best_set();
  for (InstructionSet set : compiled_sets) {
    if (std::string(wanted) != name(set)) continue;
    STD_TORCH_CHECK(cpu_has(set), "ENCODERS_FAST_ISA=", wanted, ", but this CPU has only ", sets_of_this_cpu());
    return set;
  }
  STD_TORCH_CHECK(false, "ENCODERS_FAST_ISA=", wanted, " is unknown; this CPU has ", sets_of_this_cpu());
  return InstructionSet::generic;  // not reached
}

}  // namespace

InstructionSet instruction_set() {
  // An exception leaves the variable unset, so the next call throws the same sentence again.
  static const InstructionSet chosen = choose();
  return chosen;
}

bool cpu_has(InstructionSet set) {
  if (set == InstructionSet::generic) return true;
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512cd");
  switch (set) {
    case InstructionSet::generic:
      return true;
    case InstructionSet::avx2:
      return avx2;
    case InstructionSet::avx512:
      return avx512;
    case InstructionSet::avx512_bf16:
      return avx512 && __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vnni");
  }
#endif
  return false;
}

const char* name(InstructionSet set) {
  switch (set) {
    case InstructionSet::generic:
      return "generic";
    case InstructionSet::avx2:
      return "avx2";
    case InstructionSet::avx512:
      return "avx512";
    case InstructionSet::avx512_bf16:
      return "avx512_bf16";
  }
  return "unknown";
}

}  // namespace encoders_fast
