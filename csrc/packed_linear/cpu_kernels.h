// What the kernels of every instruction set offer to the launchers. Plain data, no torch, no STL.
#pragma once
#include <cstdint>

#include "common/cpu/activation.h"
#include "common/cpu/instruction_set.h"
#include "common/cpu/storage.h"

namespace encoders_fast::packed_linear {

// Columns of a tile, and of a panel of a packed matrix.
constexpr int64_t tile_columns = 64;

// y = act(sums + bias) + residual for one tile: sums [rows][tile_columns]; y and residual with `stride` from row to row.
struct Tile {
  const float* sums;
  const float* bias;  // [tile_columns]
  const void* residual;  // null without
  void* y;
  int64_t stride, rows, columns;
};

using Finish = void(const Tile&);

// A part of a matrix on its way into the order that brgemm reads: words of 32 bits, one float32 or two bfloat16.
struct Block {
  const void* from;
  int64_t stride;  // elements from row to row
  int64_t rows, columns;
  void* to;
  int64_t to_stride;  // words from row to row
};

using Pack = void(const Block&);

// sums[column] += the column's sum, in float64; of at most 32 rows in float32 at a time.
struct ColumnSums {
  const void* from;
  int64_t stride, rows, columns;
  double* sums;
};

using AddColumns = void(const ColumnSums&);

#define EF_DECLARE(isa) \
  namespace isa {       \
  Finish* finish(Storage, Activation); \
  /* Columns become rows: to[column][row], zeros for rows up to the next multiple of tile_columns where `padded`. */ \
  /* `pairs`: in bfloat16 two rows beside one another make a word; else words are taken as they stand. */ \
  Pack* transposed(bool pairs, bool padded); \
  /* Rows stay rows: to[row][column], zeros for columns up to tile_columns. */ \
  Pack* straight(bool pairs); \
  AddColumns* add_columns(Storage); \
  }
EF_FOR_EACH_ISA(EF_DECLARE)
#undef EF_DECLARE

}  // namespace encoders_fast::packed_linear
