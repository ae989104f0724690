// What both launchers do with rows, products and parameters. For .cpp files.
#pragma once

#include <algorithm>
#include <cstring>
#include <span>
#include <vector>

#include "bottleneck/cpu_kernels.h"
#include "common/cpu/brgemm.h"
#include "common/cpu/launch.h"

namespace encoders_fast::bottleneck {

inline int64_t panels_of(int64_t columns) { return (columns + panel_columns - 1) / panel_columns; }
inline int64_t padded(int64_t columns) { return panels_of(columns) * panel_columns; }

// Of a row of an operand: bfloat16 is multiplied in pairs.
inline int64_t operand_width(int64_t width, Storage operand) { return operand == Storage::float32 ? width : (width + 1) / 2 * 2; }

// Rows [first, first + count) of a tensor, computed as `rows` of them: a kernel of brgemm is generated for each number, so
// there are three.
struct Tile {
  int64_t first, count, rows, worker, workers;

  // The i-th of `count` panels to be multiplied. Workers begin with different ones: where weights come from memory, which is
  // slower than the products of 64 rows, each then waits for its part and finds the others' in the third-level cache.
  int64_t in_turn(int64_t i, int64_t panels) const { return (i + panels * worker / workers) % panels; }
};

constexpr int64_t least_rows = 16, most_rows = 64;

inline int64_t workers_for_rows(int64_t rows) {
  const int64_t sixteens = (rows + least_rows - 1) / least_rows;
  return std::min<int64_t>(sixteens, std::max<int64_t>(1, torch::stable::get_num_threads()));
}

// Calls function(tile) for the rows of one of `workers`: as equal parts as multiples of 16 make them.
template <typename Function>
void for_tiles(int64_t rows, int64_t workers, int64_t worker, Function function) {
  const int64_t sixteens = (rows + least_rows - 1) / least_rows;
  const int64_t end = std::min(rows, sixteens * (worker + 1) / workers * least_rows);
  for (int64_t first = sixteens * worker / workers * least_rows; first < end;) {
    const int64_t rest = end - first, size = rest > 48 ? 64 : rest > 16 ? 32 : 16;
    function(Tile{first, std::min(size, rest), size, worker, workers});
    first += size;
  }
}

// Biases and norms in float32, each with zeros behind it to a multiple of 64.
class Vectors {
 public:
  using Tensors = std::span<const torch::stable::Tensor>;

  Vectors() = default;
  Vectors(Tensors biases, Tensors norms) {
    int64_t total = 0;
    for (const Tensors list : {biases, norms})
      for (const auto& vector : list) starts_.push_back(total), total += padded(vector.size(0));
    values_.resize(total);
    norms_ = biases.size();
    size_t next = 0;
    for (const Tensors list : {biases, norms}) {
      for (const auto& given : list) {
        const torch::stable::Tensor vector = dense(given);
        const int64_t width = vector.size(0);
        EF_SELECT(gather)(storage_of(vector, "bottleneck"), Storage::float32)
        (vector.const_data_ptr(), 1, width, values_.data() + starts_[next++], padded(width));
      }
    }
  }
  const float* bias(int64_t i) const { return values_.data() + starts_[i]; }
  const float* weight(int64_t norm) const { return bias(norms_ + 2 * norm); }
  const float* shift(int64_t norm) const { return bias(norms_ + 2 * norm + 1); }

 private:
  std::vector<float> values_;
  std::vector<int64_t> starts_;
  int64_t norms_;
};

// Terms of a sum that one call of brgemm takes, in equal parts, so that one kernel does. It adds term by term: with 512 of
// them, float32 has 2.5 times the error of torch's product of one row, and taking 128 costs no time (512 rows, one Zen 4).
inline int64_t depth(Storage operand, int64_t K) {
  const int64_t most = operand == Storage::float32 ? 128 : 2048, parts = (K + most - 1) / most;
  return ((K + parts - 1) / parts + 15) / 16 * 16;
}

// sums [rows of the tile][stride] = operand [rows][operand_width(K)] times `count` panels, from `panel` on.
struct Product {
  const char* panels;
  int64_t K;  // of the weight
  Storage operand;

  void operator()(Tile tile, const char* from, int64_t panel, int64_t count, float* sums, int64_t stride) const {
    const int64_t width = operand_width(K, operand), bytes = bytes_of(operand), step = depth(operand, width);
    const bool pairs = operand == Storage::bfloat16;
    for (int64_t i = 0; i < count; i++) {
      const int64_t p = tile.in_turn(i, count);
      for (int64_t k = 0; k < width; k += step)
        (pairs ? brgemm_bfloat16 : brgemm_float32)(
            tile.rows, panel_columns, std::min(step, width - k), width, panel_columns, stride, k > 0, from + k * bytes,
            panels + ((panel + p) * width + k) * panel_columns * bytes, sums + p * panel_columns, pairs);
    }
  }
};

inline Product product_of(const torch::stable::Tensor& panels, int64_t K) {
  return {static_cast<const char*>(panels.const_data_ptr()), K, storage_of(panels, "bottleneck")};
}

// Parts of one worker's memory, one after the other, each from a cache line on. A first pass without memory measures them.
class Parts {
 public:
  explicit Parts(char* memory) : begin_(memory), next_(memory) {}
  template <typename Element = char>
  Element* take(int64_t bytes) {
    char* const part = next_;
    next_ += (bytes + 63) / 64 * 64;
    return reinterpret_cast<Element*>(part);
  }
  int64_t taken() const { return next_ - begin_; }

 private:
  char *begin_, *next_;
};

}  // namespace encoders_fast::bottleneck
