// What both libraries say about their build: the JSON members that do not depend on the device.
#pragma once

#include <torch/csrc/stable/version.h>

#include <string>

namespace encoders_fast {

inline std::string common_build_info() {
  const auto part_of_target = [](int shift) { return std::to_string((TORCH_TARGET_VERSION >> shift) & 0xff); };
#if defined(__clang__)
  const std::string compiler = __VERSION__;
#else
  const std::string compiler = std::string("gcc ") + __VERSION__;
#endif
  return "\"torch_headers\": \"" TORCH_VERSION "\", \"torch_target\": \"" + part_of_target(56) + "." +
         part_of_target(48) + "\", \"compiler\": \"" + compiler + "\"";
}

}  // namespace encoders_fast
