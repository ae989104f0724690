// A product in tiles: which rows and columns a worker takes, in which order, and where the panels come from.
#pragma once

#include <functional>
#include <vector>

#include "common/cpu/brgemm.h"
#include "common/cpu/launch.h"
#include "packed_linear/cpu_kernels.h"

namespace encoders_fast::packed_linear {

// A tile of the product: rows [first, first + count) are computed, of which those from `wanted` on are still missing.
struct Rows { int64_t first, count, wanted; };

std::vector<Rows> row_tiles(int64_t M);

// A new [M, N] that is about to be written as a whole.
torch::stable::Tensor new_matrix(const torch::stable::Tensor& like, int64_t M, int64_t N);

inline const char* bytes_in(const torch::stable::Tensor& tensor) {
  return static_cast<const char*>(tensor.const_data_ptr());
}

// [M, N] whose rows are dense, any distance apart that brgemm's addresses of 32 bits reach over 64 rows.
inline torch::stable::Tensor rows_of(const torch::stable::Tensor& matrix) {
  const bool dense_rows = (matrix.stride(1) == 1 || matrix.size(1) == 1) && matrix.stride(0) >= matrix.size(1) &&
                          matrix.stride(0) < 1 << 22;
  return dense_rows ? matrix : torch::stable::contiguous(matrix);
}

// Panels that a worker goes through for every tile of rows, beside which they fit into a second-level cache of 1 MB: with one
// at a time, x comes from the third level for each, 197 GFLOP/s in place of 213 for (4096, 768, 768) in float32 and 400 in
// place of 422 in bfloat16 (two cores of a Zen 4).
constexpr int64_t panel_group_bytes = 600 << 10;

inline int64_t panels_of(int64_t columns) { return (columns + tile_columns - 1) / tile_columns; }

// Terms of a sum that one call of brgemm takes: in equal parts, so that one kernel does. A kernel reads its part of the panel
// again for every few rows, from the second-level cache if that holds it: with K = 3072 in float32 at once, (512, 3072, 768)
// was slower than F.linear. And it adds term by term: beyond 512 of them float32 has twice F.linear's error.
inline int64_t depth(Storage storage, int64_t terms) {
  const int64_t most = storage == Storage::float32 ? 512 : 2048, parts = (terms + most - 1) / most;
  return ((terms + parts - 1) / parts + 15) / 16 * 16;
}

// One a of sum(a b): [M, terms], rows `stride` elements apart. In bfloat16 `terms` is even.
struct Factor {
  const char* a;
  int64_t stride, terms;
};

// One y beside others: [M, columns], dense, and what is added to it.
struct Output {
  int64_t columns;
  const float* bias;  // [panels * 64]
  const char* residual;
  char* y;
};

// y = act(sum over factors + bias) + residual for every output. The panels of all outputs, one after the other, are in
// `packed`; where that is null every worker makes those that it needs: pack(panel, to).
struct Product {
  Storage storage;
  int64_t M;
  std::vector<Factor> factors;
  std::vector<Output> outputs;
  const char* packed;
  std::function<void(int64_t panel, char* to)> pack;
  Finish* finish;

  // `like` lends its device to the memory that this takes.
  void run(const torch::stable::Tensor& like) const;

 private:
  int64_t panel_bytes() const;
  void tile(Rows rows, const Output& output, int64_t column, const char* panel, float* sums) const;
};

}  // namespace encoders_fast::packed_linear
