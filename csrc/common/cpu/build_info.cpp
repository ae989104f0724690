// How the CPU library was built and what it uses here: torch.ops.encoders_fast_native.build_info().
#include <torch/csrc/stable/library.h>

#include <string>

#include "common/build_info.h"
#include "common/cpu/instruction_set.h"

namespace encoders_fast {
namespace {

std::string compiled_sets(bool only_of_this_cpu) {
  std::string names;
  const auto append = [&](InstructionSet set) {
    if (only_of_this_cpu && !cpu_has(set)) return;
    names += (names.empty() ? "\"" : ", \"") + std::string(name(set)) + "\"";
  };
#define EF_APPEND(isa) append(InstructionSet::isa);
  EF_FOR_EACH_ISA(EF_APPEND)
#undef EF_APPEND
  return "[" + names + "]";
}

std::string build_info() {
  return std::string("{") + common_build_info() +                                 //
         ", \"instruction_sets_compiled\": " + compiled_sets(false) +             //
         ", \"instruction_sets_of_this_cpu\": " + compiled_sets(true) +           //
         ", \"instruction_set\": \"" + name(instruction_set()) + "\"}";
}

}  // namespace
}  // namespace encoders_fast

STABLE_TORCH_LIBRARY_IMPL(encoders_fast_native, CompositeExplicitAutograd, library) {
  library.impl("build_info", TORCH_BOX(&encoders_fast::build_info));
}
