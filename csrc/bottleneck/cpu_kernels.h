// What the kernels of every instruction set offer to the launcher. Plain data, no torch, no STL.
//
// Three types meet here: rows are what tensors hold, an operand is what brgemm multiplies, and all between is float32.
#pragma once
#include <cstdint>

#include "common/cpu/activation.h"
#include "common/cpu/dropout.h"
#include "common/cpu/instruction_set.h"
#include "common/cpu/storage.h"

namespace encoders_fast::bottleneck {

// Columns of a panel of a packed weight, and what vectors of parameters are padded to.
constexpr int64_t panel_columns = 64;

// `columns` rows of W [N, K] -> a panel: [K][64], and in bfloat16 [K / 2][64][2], with zeros behind the last column and,
// where K is odd, behind the last pair.
using Pack = void(const void* weight, int64_t columns, int64_t K, void* panel);

// [count][width] -> [count][stride], with zeros behind each row. `to` is an operand, or float32.
using Gather = void(const void* rows, int64_t count, int64_t width, void* to, int64_t stride);

// act(sums + bias) of [count][columns] -> an operand, or rows.
struct Activate {
  const float* sums;
  int64_t sums_stride;
  const float* bias;
  int64_t count, columns;
  void* to;
  int64_t stride;
};
using Activated = void(const Activate&);

// N(dropout(sums + bias) + residual) of [count][width]. Each of the pointers below may be null.
struct Normalize {
  float* sums;  // overwritten where eps is not negative
  int64_t sums_stride;
  const float *bias, *weight, *shift;
  float eps;  // negative where N(x) = x * weight + shift
  int64_t count, width;
  const Dropout* dropout;
  int64_t first;  // row in its tensor, for dropout
  float* room;    // for dropout, 2 * width + 128 floats

  const float* stream;  // the residual in float32, [count][width rounded up to panels]
  const void* rows;     // the residual in its tensor, [count][width]
  float* to_stream;     // may be `stream`
  void* to_operand;
  int64_t operand_stride;
  void* to_rows;
};
using Normalized = void(const Normalize&);

#define EF_DECLARE(isa)                                \
  namespace isa {                                      \
  Pack* pack(Storage);                                 \
  Gather* gather(Storage from, Storage to);            \
  Activated* activate(Storage to, Activation);         \
  Normalized* normalize(Storage rows, Storage operand); \
  }
EF_FOR_EACH_ISA(EF_DECLARE)
#undef EF_DECLARE

}  // namespace encoders_fast::bottleneck
