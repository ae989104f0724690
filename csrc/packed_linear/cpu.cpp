// packed_linear on the CPU: tiles of a product by at::native::cpublas::brgemm, each finished while it is in the cache.
// Arguments were checked in op.py.
#include <torch/csrc/stable/library.h>

#include <optional>

#include "packed_linear/product.h"

namespace encoders_fast::packed_linear {
namespace {

using torch::stable::Tensor;

// Panels of 64 columns of W^T for each weight [N, K]: [N / 64][K][64], with zeros behind the last column. In bfloat16 pairs
// of rows lie together, [N / 64][K / 2][64][2], as the instruction reads them.
struct Weights {
  Storage storage;
  int64_t K;
  std::vector<Tensor> dense_;
  std::vector<Block> blocks;  // one for each panel, without its place

  explicit Weights(const std::vector<Tensor>& weights)
      : storage(storage_of(weights[0], "packed_linear")), K(weights[0].size(1)) {
    const int64_t words = K * bytes_of(storage) / 4;
    for (const Tensor& weight : weights) {
      dense_.push_back(dense(weight));
      const int64_t N = weight.size(0);
      for (int64_t n = 0; n < N; n += tile_columns)
        blocks.push_back({bytes_in(dense_.back()) + n * words * 4, words, std::min(tile_columns, N - n), words, nullptr,
                          tile_columns});
    }
  }

  int64_t panel_bytes() const { return K * tile_columns * bytes_of(storage); }

  void pack(int64_t panel, char* to) const {
    Block block = blocks[panel];
    block.to = to;
    EF_SELECT(transposed)(false, true)(block);
  }
};

Tensor pack(const std::vector<Tensor>& weights_) {
  const Weights weights(weights_);
  const int64_t panels = weights.blocks.size(), bytes = weights.panel_bytes();
  Tensor packed = torch::stable::new_empty(weights_[0], {panels * bytes / bytes_of(weights.storage)});
  char* const to = static_cast<char*>(packed.mutable_data_ptr());
  torch::stable::parallel_for(0, panels, 1, [&](int64_t begin, int64_t end) {
    for (int64_t panel = begin; panel < end; panel++) weights.pack(panel, to + panel * bytes);
  });
  return packed;
}

// x [M, K] -> [M, N] for each weight [N, K].
std::vector<Tensor> linear(const Tensor& x_, const std::optional<Tensor>& packed, const std::vector<Tensor>& weights_,
                           const std::vector<std::optional<Tensor>>& biases, int64_t activation,
                           const std::optional<Tensor>& residual_) {
  const Tensor x = rows_of(x_), residual = residual_ ? dense(*residual_) : x;
  const int64_t M = x.size(0), K = x.size(1);
  const Storage storage = storage_of(x, "packed_linear");
  std::optional<Weights> weights;
  if (!packed) weights.emplace(weights_);
  std::vector<Tensor> results;
  std::vector<std::vector<float>> wide_biases;
  std::vector<Output> outputs;
  for (size_t i = 0; i < weights_.size(); i++) {
    const int64_t N = weights_[i].size(0);
    std::vector<float>& bias = wide_biases.emplace_back(panels_of(N) * tile_columns);
    if (biases[i]) {
      const std::vector<float> given = padded(*biases[i], N);
      std::copy_n(given.begin(), N, bias.begin());
    }
    results.push_back(new_matrix(x, M, N));
    outputs.push_back({N, bias.data(), residual_ ? bytes_in(residual) : nullptr,
                       static_cast<char*>(results.back().mutable_data_ptr())});
  }
  const Product product = {storage, M, {{bytes_in(x), x.stride(0), K}}, outputs, packed ? bytes_in(*packed) : nullptr,
                           [&](int64_t panel, char* to) { weights->pack(panel, to); },
                           EF_SELECT(finish)(storage, static_cast<Activation>(activation))};
  product.run(x);
  return results;
}

// sum over i of dz_i [M, N_i] W_i [N_i, K] -> dx [M, K].
Tensor input_gradient(const std::vector<Tensor>& dzs_, const std::vector<Tensor>& weights_) {
  const int64_t M = dzs_[0].size(0), K = weights_[0].size(1);
  const Storage storage = storage_of(weights_[0], "packed_linear");
  const bool pairs = storage == Storage::bfloat16;
  const int64_t bytes = bytes_of(storage);
  std::vector<Tensor> kept, weights;
  std::vector<Factor> factors;
  for (size_t i = 0; i < dzs_.size(); i++) {
    const Tensor& dz = kept.emplace_back(rows_of(dzs_[i]));
    weights.push_back(rows_of(weights_[i]));
    factors.push_back({bytes_in(dz), dz.stride(0), dz.size(1)});
  }
  const auto pack = [&](int64_t panel, char* to) {
    const int64_t column = panel * tile_columns;
    for (const Tensor& weight : weights) {
      EF_SELECT(straight)(pairs)({bytes_in(weight) + column * bytes, weight.stride(0), weight.size(0),
                                  std::min(tile_columns, K - column), to, tile_columns});
      to += weight.size(0) * tile_columns * bytes;
    }
  };
  Tensor dx = new_matrix(weights_[0], M, K);
  const std::vector<float> no_bias(panels_of(K) * tile_columns);
  const Output output = {K, no_bias.data(), nullptr, static_cast<char*>(dx.mutable_data_ptr())};
  Product{storage, M, factors, {output}, nullptr, pack, EF_SELECT(finish)(storage, Activation::none)}.run(dx);
  return dx;
}

}  // namespace
}  // namespace encoders_fast::packed_linear

STABLE_TORCH_LIBRARY_IMPL(encoders_fast_native, CPU, m) {
  m.impl("packed_linear_pack", TORCH_BOX(&encoders_fast::packed_linear::pack));
  m.impl("packed_linear", TORCH_BOX(&encoders_fast::packed_linear::linear));
  m.impl("packed_linear_input_gradient", TORCH_BOX(&encoders_fast::packed_linear::input_gradient));
}
STABLE_TORCH_LIBRARY_IMPL(encoders_fast_native, CompositeExplicitAutograd, m) {
  m.impl("packed_linear_missing", TORCH_BOX(&encoders_fast::brgemm_missing));
}
