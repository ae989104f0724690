// What the kernels of every instruction set offer to the launcher. Plain data, no torch, no STL.
#pragma once
#include <cstdint>

#include "common/cpu/activation.h"
#include "common/cpu/instruction_set.h"
#include "common/cpu/storage.h"

namespace encoders_fast::packed_linear {

// Columns of a tile, and of a panel of the packed weight.
constexpr int64_t tile_columns = 64;

// y = act(sums + bias) + residual for one tile: sums [rows][tile_columns], y and residual with `stride` from row to row.
struct Tile {
  const float* sums;
  const float* bias;  // [tile_columns]
  const void* residual;  // null without
  void* y;
  int64_t stride, rows, columns;
};

using Finish = void(const Tile&);

#define EF_DECLARE(isa) \
  namespace isa {       \
  Finish* finish(Storage, Activation); \
  }
EF_FOR_EACH_ISA(EF_DECLARE)
#undef EF_DECLARE

}  // namespace encoders_fast::packed_linear
