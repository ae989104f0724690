// Plans by length, made once and shared.
#pragma once
#include <memory>
#include <vector>

#include "fourier_mixing/plan.h"

namespace encoders_fast {

// Holds a plan's tables as long as somebody uses it. Thread-safe. The most recently used lengths stay cached.
std::shared_ptr<const Plan> plan_for(int64_t length);

// What a transform of a multiple of `lanes` needs whose lanes are parts of one sequence: see Sample.
struct LanePlan {
  int64_t width, lanes;
  std::shared_ptr<const Plan> part;
  struct alignas(64) Line { float floats[16]; };  // kernels read whole vectors
  std::vector<Line> storage;
  const float* twiddles() const { return storage.data()->floats; }
};

std::shared_ptr<const LanePlan> lane_plan_for(int64_t width, int64_t lanes);

}  // namespace encoders_fast
