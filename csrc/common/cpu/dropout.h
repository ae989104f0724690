// A state of encoders_fast/_dropout.py and a probability, as kernels take them. Plain data.
#pragma once
#include <cstdint>

namespace encoders_fast {

struct Dropout {
  uint64_t key[10][2];  // of each round: 32-bit numbers, as wide as the lanes that they are spread over
  uint32_t offset[2];   // low and high half
  uint32_t threshold;   // an element is kept where its random word is at least this
  float scale;          // of what is kept; 0 where nothing is
};

}  // namespace encoders_fast
