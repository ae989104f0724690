// What the kernels of every instruction set offer to the launcher. Plain data, no torch, no STL.
#pragma once
#include <cstdint>

#include "common/cpu/dropout.h"
#include "common/cpu/instruction_set.h"
#include "common/cpu/storage.h"

namespace encoders_fast::residual_layer_norm {

// Rows of `width` in one storage type; parameters and statistics in float32. Parameters have zeros behind them to the end
// of a vector.
struct Forward {
  int64_t width;
  const void *x, *residual;
  const float *weight, *bias;
  float eps;
  const Dropout* dropout;  // null without
  void *y, *s;
  float *mean, *rstd;
  bool streams;  // y and s go past the caches, where the instruction set can do that; their rows start on cache lines then
};

struct Backward {
  int64_t width;
  const void *dy, *ds, *s;  // ds may be null
  const float *weight, *mean, *rstd;
  const Dropout* dropout;
  void *dx, *dresidual;  // dx with dropout only: it is dresidual otherwise
  bool streams;
};

// `scratch` belongs to the thread and starts on a cache line. `backward` sets dweight and dbias, which have room to the end
// of a vector, to the sums over its rows.
struct Kernels {
  int64_t (*scratch_floats)(int64_t width);
  void (*forward)(const Forward&, float* scratch, int64_t begin, int64_t end);
  void (*backward)(const Backward&, float* scratch, float* dweight, float* dbias, int64_t begin, int64_t end);
};

#define EF_DECLARE(isa) \
  namespace isa {       \
  const Kernels& kernels(Storage, bool dropout); \
  }
EF_FOR_EACH_ISA(EF_DECLARE)
#undef EF_DECLARE

}  // namespace encoders_fast::residual_layer_norm
