// A state of encoders_fast/_dropout.py and a probability, as kernels take them. Plain data.
#pragma once
#include <cstdint>

namespace encoders_fast {

struct Dropout {
  uint32_t seed[2], offset[2];  // low and high half
  uint32_t threshold;           // an element is kept where its random word is at least this
  float scale;                  // of what is kept; 0 where nothing is
};

}  // namespace encoders_fast
