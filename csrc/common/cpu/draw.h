// What launchers make of an op's dropout_p and rng_state: encoders_fast/_dropout.py has the definition.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cmath>
#include <optional>

#include "common/cpu/dropout.h"
#include "common/cpu/launch.h"

namespace encoders_fast {

// None where nothing is dropped. `site` is added to the state's offset, as _dropout.at does.
inline std::optional<Dropout> dropout_of(double probability, const std::optional<torch::stable::Tensor>& rng_state,
                                         uint64_t site = 0) {
  if (probability == 0 || !rng_state) return std::nullopt;
  const torch::stable::Tensor state = dense(*rng_state);
  const int64_t* words = state.const_data_ptr<int64_t>();
  const uint64_t seed = words[0], offset = words[1] + site;
  Dropout d{};
  for (uint32_t round = 0; round < 10; round++) {
    d.key[round][0] = uint32_t(seed) + round * 0x9E3779B9u;
    d.key[round][1] = uint32_t(seed >> 32) + round * 0xBB67AE85u;
  }
  d.offset[0] = uint32_t(offset);
  d.offset[1] = uint32_t(offset >> 32);
  const double threshold = std::nearbyint(std::ldexp(probability, 32));  // ties to even, as Python rounds
  if (threshold < 0x1p32) d.threshold = uint32_t(threshold), d.scale = float(1 / (1 - probability));
  return d;
}

}  // namespace encoders_fast
