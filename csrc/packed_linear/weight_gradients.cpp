// dW = dz^T x, and the sums of dz's columns. The rows of dz and x are the terms of every sum, and neither matrix lies as
// brgemm reads it: so they are taken in parts of some hundred rows, of which all workers first turn dz and pack x, once, and
// then add to all tiles of dW.
#include <torch/csrc/stable/library.h>

#include <cstring>

#include "packed_linear/product.h"

namespace encoders_fast::packed_linear {
namespace {

using torch::stable::Tensor;

// Float32 sums of tiles that wait for the next part. The x of a part is packed anew for each block of so many bytes.
constexpr int64_t sums_bytes = 32 << 20;

// Between the turned rows of a part: 512 float32 one after the other would lie in the same few sets of the first-level cache.
// Without it (4096, 768, 768) ran at 175 GFLOP/s, not 204, in float32 and at 360, not 397, in bfloat16 (two cores of a Zen 4).
constexpr int64_t row_gap = 16;

// 64 columns of a dz, which are rows of its dW.
struct Strip {
  const char* dz;
  int64_t stride, columns;
  char* dweight;
  double* totals;  // null where nobody asked
};

struct Gradients {
  Storage storage;
  int64_t M, K;
  const char* x;
  int64_t x_stride;
  std::vector<Strip> strips;

  bool pairs() const { return storage == Storage::bfloat16; }
  int64_t words(int64_t rows) const { return pairs() ? (rows + 1) / 2 : rows; }
  void run(const Tensor& like) const;

 private:
  void turn(const Strip& strip, int64_t row, int64_t rows, char* to, int64_t apart) const;
  void pack(int64_t panel, int64_t row, int64_t rows, char* to) const;
};

// -> [64 columns][rows], `apart` from column to column, zeros in place of columns that are not there.
void Gradients::turn(const Strip& strip, int64_t row, int64_t rows, char* to, int64_t apart) const {
  const char* const from = strip.dz + row * strip.stride * bytes_of(storage);
  const int64_t column = apart * bytes_of(storage);
  std::memset(to + strip.columns * column, 0, (tile_columns - strip.columns) * column);
  EF_SELECT(transposed)(pairs(), false)({from, strip.stride, rows, strip.columns, to, words(apart)});
  if (strip.totals) EF_SELECT(add_columns)(storage)({from, strip.stride, rows, strip.columns, strip.totals});
}

void Gradients::pack(int64_t panel, int64_t row, int64_t rows, char* to) const {
  const int64_t column = panel * tile_columns;
  EF_SELECT(straight)(pairs())({x + (row * x_stride + column) * bytes_of(storage), x_stride, rows,
                                std::min(tile_columns, K - column), to, tile_columns});
}

void Gradients::run(const Tensor& like) const {
  constexpr int64_t tile = tile_columns * tile_columns;
  const int64_t panels = panels_of(K), step = depth(storage, M), apart = step + row_gap;
  const int64_t most = std::max<int64_t>(1, sums_bytes / (panels * tile * 4));
  const int64_t blocks = (strips.size() + most - 1) / most, block = (strips.size() + blocks - 1) / blocks;
  const int64_t part = apart * tile_columns * bytes_of(storage);  // bytes of a strip or panel
  const int64_t workers = workers_for_elements(M * K);
  const int64_t group = std::clamp<int64_t>(panel_group_bytes / part, 1, panels);
  Tensor memory = floats(like, (block + panels) * part / 4 + (step < M ? block * panels * tile : 0));
  char* const turned = static_cast<char*>(memory.mutable_data_ptr());
  char* const packed = turned + block * part;
  float* const sums = reinterpret_cast<float*>(packed + panels * part);
  const std::vector<float> no_bias(panels * tile_columns);
  Finish* const finish = EF_SELECT(finish)(storage, Activation::none);
  for (int64_t first = 0; first < static_cast<int64_t>(strips.size()); first += block) {
    const int64_t wide = std::min<int64_t>(block, strips.size() - first);
    for (int64_t row = 0; row < M; row += step) {
      const int64_t rows = std::min(step, M - row), terms = pairs() ? (rows + 1) / 2 * 2 : rows;
      on_each_worker(std::min(workers, wide + panels), [&](int64_t worker) {
        for (int64_t item = worker; item < wide + panels; item += std::min(workers, wide + panels))
          if (item < wide) turn(strips[first + item], row, rows, turned + item * part, apart);
          else pack(item - wide, row, rows, packed + (item - wide) * part);
      });
      on_each_worker(std::min(workers, wide * panels), [&](int64_t worker) {
        alignas(64) float own[tile];
        const int64_t items = wide * panels, all = std::min(workers, items);
        for (int64_t item = items * worker / all; item < items * (worker + 1) / all; item++) {
          // A group of panels, which stays in the second-level cache, with every strip.
          const int64_t g = item / (group * wide), across = std::min(group, panels - g * group);
          const int64_t within = item - g * group * wide, panel = g * group + within % across, strip = within / across;
          float* const to = step < M ? sums + item * tile : own;
          if (row > 0) for (int64_t i = 0; i < tile; i += 16) __builtin_prefetch(to + i, 1, 2);
          (pairs() ? brgemm_bfloat16 : brgemm_float32)(tile_columns, tile_columns, terms, apart, tile_columns, tile_columns,
                                                       row > 0, turned + strip * part, packed + panel * part, to, pairs());
          if (row + step < M) continue;
          const Strip& rows_of_weight = strips[first + strip];
          finish({to, no_bias.data(), nullptr, rows_of_weight.dweight + panel * tile_columns * bytes_of(storage), K,
                  rows_of_weight.columns, std::min(tile_columns, K - panel * tile_columns)});
        }
        brgemm_release(pairs());
      });
    }
  }
}

std::vector<Tensor> weight_gradients(const std::vector<Tensor>& dzs, const Tensor& x_, bool bias) {
  const Tensor x = rows_of(x_);
  const Storage storage = storage_of(x, "packed_linear");
  Gradients gradients = {storage, x.size(0), x.size(1), bytes_in(x), x.stride(0), {}};
  std::vector<Tensor> kept, results;
  std::vector<std::vector<double>> totals;
  for (const Tensor& dz_ : dzs) {
    const Tensor& dz = kept.emplace_back(rows_of(dz_));
    const int64_t N = dz.size(1);
    results.push_back(new_matrix(x, N, gradients.K));
    totals.emplace_back(bias ? N : 0);
    for (int64_t n = 0; n < N; n += tile_columns)
      gradients.strips.push_back(
          {bytes_in(dz) + n * bytes_of(storage), dz.stride(0), std::min(tile_columns, N - n),
           static_cast<char*>(results.back().mutable_data_ptr()) + n * gradients.K * bytes_of(storage),
           bias ? totals.back().data() + n : nullptr});
  }
  gradients.run(x);
  for (const std::vector<double>& sums : totals) {
    if (!bias) break;
    Tensor dbias = floats(x, sums.size());
    std::copy(sums.begin(), sums.end(), dbias.mutable_data_ptr<float>());
    results.push_back(storage == Storage::float32 ? dbias : torch::stable::to(dbias, x.scalar_type()));
  }
  return results;
}

}  // namespace
}  // namespace encoders_fast::packed_linear

STABLE_TORCH_LIBRARY_IMPL(encoders_fast_native, CPU, m) {
  m.impl("packed_linear_weight_gradients", TORCH_BOX(&encoders_fast::packed_linear::weight_gradients));
}
