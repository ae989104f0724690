// packed_linear on the CPU: tiles of a product by at::native::cpublas::brgemm, each finished while it is in the cache.
// Arguments were checked in op.py.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstring>
#include <optional>
#include <vector>

#include "common/cpu/brgemm.h"
#include "common/cpu/instruction_set.h"
#include "common/cpu/launch.h"
#include "packed_linear/cpu_kernels.h"

namespace encoders_fast::packed_linear {
namespace {

using torch::stable::Tensor;

int64_t panels_of(int64_t columns) { return (columns + tile_columns - 1) / tile_columns; }

// Panels of 64 columns of the product, [N / 64][K][64], with zeros behind the last column. In bfloat16 pairs of rows lie
// together, [N / 64][K / 2][64][2], as the instruction reads them.
template <typename Element>
void pack_panel(const Element* weight, Element* to, int64_t K, int64_t columns, int64_t pair) {
  for (int64_t n = 0; n < columns; n++)
    for (int64_t k = 0; k < K; k++) to[(k / pair * tile_columns + n) * pair + k % pair] = weight[n * K + k];
}

// weight [N, K] -> panels.
Tensor pack(const Tensor& weight_) {
  const Tensor weight = dense(weight_);
  const int64_t N = weight.size(0), K = weight.size(1), panels = panels_of(N), panel = K * tile_columns;
  const Storage storage = storage_of(weight, "packed_linear");
  Tensor packed = torch::stable::new_empty(weight, {panels * panel});
  std::memset(packed.mutable_data_ptr(), 0, panels * panel * bytes_of(storage));
  torch::stable::parallel_for(0, panels, 1, [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; p++) {
      const int64_t columns = std::min(tile_columns, N - p * tile_columns);
      const auto each = [&](auto* from, auto* to, int64_t pair) { pack_panel(from + p * panel, to + p * panel, K, columns, pair); };
      if (storage == Storage::float32)
        each(static_cast<const uint32_t*>(weight.const_data_ptr()), static_cast<uint32_t*>(packed.mutable_data_ptr()), 1);
      else
        each(static_cast<const uint16_t*>(weight.const_data_ptr()), static_cast<uint16_t*>(packed.mutable_data_ptr()), 2);
    }
  });
  return packed;
}

// Rows [first, first + count) are computed, of which those from `wanted` on are still missing.
struct Rows { int64_t first, count, wanted; };

// A kernel is generated at the first call of each shape in each thread (50 us), so there are few: 64, 32 and 16 rows, and
// what is left comes with rows above it that are computed once more. Only a whole product of less than 16 rows has its own.
std::vector<Rows> row_tiles(int64_t M) {
  std::vector<Rows> tiles;
  int64_t row = 0;
  for (int64_t count : {64, 32, 16})
    for (; row + count <= M; row += count) tiles.push_back({row, count, row});
  if (row < M) tiles.push_back(M < 16 ? Rows{0, M, 0} : Rows{M - 16, 16, row});
  return tiles;
}

struct Product {
  Storage storage;
  int64_t N, K;
  const char *x, *packed, *residual;
  const float* bias;  // [panels * 64]
  char* y;
  Finish* finish;

  // Terms of a sum that one call takes: in equal parts, so that one kernel does. A kernel reads its part of the panel again
  // for every few rows, from the second-level cache if that holds it: with K = 3072 in float32 at once, (512, 3072, 768)
  // was slower than F.linear. And it adds term by term: beyond 512 of them float32 has twice F.linear's error.
  int64_t depth() const {
    const int64_t most = storage == Storage::float32 ? 512 : 2048, parts = (K + most - 1) / most;
    return ((K + parts - 1) / parts + 15) / 16 * 16;
  }

  void tile(Rows rows, int64_t panel, float* sums) const {
    const bool vnni = storage == Storage::bfloat16;
    const int64_t bytes = bytes_of(storage), column = panel * tile_columns, step = depth();
    for (int64_t k = 0; k < K; k += step)
      (vnni ? brgemm_bfloat16 : brgemm_float32)(
          rows.count, tile_columns, std::min(step, K - k), K, tile_columns, tile_columns, k > 0,
          x + (rows.first * K + k) * bytes, packed + (panel * K + k) * tile_columns * bytes, sums, vnni);
    const int64_t at = (rows.wanted * N + column) * bytes;
    finish({sums + (rows.wanted - rows.first) * tile_columns, bias + column, residual ? residual + at : nullptr, y + at, N,
            rows.first + rows.count - rows.wanted, std::min(tile_columns, N - column)});
  }
};

// x [M, K] -> [M, N].
Tensor linear(const Tensor& x_, const Tensor& packed, const std::optional<Tensor>& bias_, int64_t N, int64_t activation,
              const std::optional<Tensor>& residual_) {
  const Tensor x = dense(x_), residual = residual_ ? dense(*residual_) : x;
  const int64_t M = x.size(0), K = x.size(1), panels = panels_of(N);
  const Storage storage = storage_of(x, "packed_linear");
  std::vector<float> bias(panels * tile_columns);
  if (bias_) {
    const std::vector<float> given = padded(*bias_, N);
    std::copy_n(given.begin(), N, bias.begin());
  }
  Tensor y = torch::stable::new_empty(x, {M, N});
  const Product product = {storage, N, K, static_cast<const char*>(x.const_data_ptr()),
                           static_cast<const char*>(packed.const_data_ptr()),
                           residual_ ? static_cast<const char*>(residual.const_data_ptr()) : nullptr, bias.data(),
                           static_cast<char*>(y.mutable_data_ptr()),
                           EF_SELECT(finish)(storage, static_cast<Activation>(activation))};
  const std::vector<Rows> tiles = row_tiles(M);
  const int64_t down = tiles.size(), items = down * panels, workers = std::min(items, workers_for_elements(M * N * 4));
  Tensor memory = floats(x, workers * 64 * tile_columns);
  float* const sums = memory.mutable_data_ptr<float>();
  on_each_worker(workers, [&](int64_t worker) {
    // Down a panel first: it stays in the second-level cache.
    for (int64_t item = items * worker / workers; item < items * (worker + 1) / workers; item++)
      product.tile(tiles[item % down], item / down, sums + worker * 64 * tile_columns);
    brgemm_release(storage == Storage::bfloat16);
  });
  return y;
}

}  // namespace
}  // namespace encoders_fast::packed_linear

STABLE_TORCH_LIBRARY_IMPL(encoders_fast_native, CPU, m) {
  m.impl("packed_linear_pack", TORCH_BOX(&encoders_fast::packed_linear::pack));
  m.impl("packed_linear", TORCH_BOX(&encoders_fast::packed_linear::linear));
}
STABLE_TORCH_LIBRARY_IMPL(encoders_fast_native, CompositeExplicitAutograd, m) {
  m.impl("packed_linear_missing", TORCH_BOX(&encoders_fast::brgemm_missing));
}
