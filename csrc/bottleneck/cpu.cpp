// bottleneck_input and bottleneck_ffn on the CPU: a tile of up to 64 rows stays in the second-level cache from its first
// product to its last, and between two products there is float32 alone. The products are brgemm's. Arguments were checked in
// op.py.
//
// With 64 rows a weight in float32 is read at 3.5 GB/s from the third-level cache while a core computes at 110 GFLOP/s, so
// nothing has to be shared between cores but the weights.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <tuple>

#include "bottleneck/ffn.h"
#include "bottleneck/input.h"
#include "common/cpu/instruction_set.h"

namespace encoders_fast::bottleneck {
namespace {

using torch::stable::Tensor;
using Tensors = std::vector<Tensor>;

// weights [N, K] of rows[i] rows each -> the panels of each, one after the other.
Tensor pack(const Tensor& weights_, std::vector<int64_t> rows) {
  struct Panel { int64_t row, columns; };
  const Tensor weights = dense(weights_);
  const Storage storage = storage_of(weights, "bottleneck");
  const int64_t K = weights.size(1), bytes = bytes_of(storage), panel_elements = operand_width(K, storage) * panel_columns;
  std::vector<Panel> panels;
  int64_t row = 0;
  for (const int64_t each : rows) {
    for (int64_t n = 0; n < each; n += panel_columns) panels.push_back({row + n, std::min(panel_columns, each - n)});
    row += each;
  }
  const int64_t count = panels.size();
  Tensor packed = torch::stable::new_empty(weights, {count * panel_elements});
  const char* from = static_cast<const char*>(weights.const_data_ptr());
  char* to = static_cast<char*>(packed.mutable_data_ptr());
  Pack* const kernel = EF_SELECT(pack)(storage);
  torch::stable::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; p++)
      kernel(from + panels[p].row * K * bytes, panels[p].columns, K, to + p * panel_elements * bytes);
  });
  return packed;
}

std::vector<int64_t> with_last(const Tensor& like, int64_t width) {
  std::vector<int64_t> shape(like.sizes().begin(), like.sizes().end());
  shape.back() = width;
  return shape;
}

// Runs `Layer` on its tiles. It has parts(Parts&), which lays out a worker's memory, and run(tile, parts of it).
template <typename Layer>
void run_tiles(const Layer& layer, const Tensor& like, int64_t rows, Storage operand) {
  typename Layer::Memory memory;
  Parts measured(nullptr);
  layer.lay_out(measured, memory);
  const int64_t workers = workers_for_rows(rows), floats_each = measured.taken() / 4;
  Tensor all = floats(like, workers * floats_each + 16);
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(all.mutable_data_ptr()) + 63) / 64 * 64;
  on_each_worker(workers, [&](int64_t worker) {
    typename Layer::Memory own;
    char* const start = reinterpret_cast<char*>(begin) + worker * floats_each * 4;
    Parts parts(start);
    layer.lay_out(parts, own);
    for_tiles(rows, workers, worker, [&](Tile tile) {
      // Rows of a tile that are not there are multiplied all the same: let them be zeros.
      if (tile.count < tile.rows) std::memset(start, 0, floats_each * 4);
      layer.run(tile, own);
    });
    brgemm_release(operand == Storage::bfloat16);
  });
}

// ---- bottleneck_input

// `wide_panels` are those of input and shared, where they are there, and of what else h is multiplied with.
std::tuple<Tensor, Tensor, Tensor, Tensor> input(const Tensor& h_, const Tensor& wide_panels, std::optional<Tensor> narrow_panels,
                                                 Tensors biases, Tensors norms, std::vector<double> eps, bool from_bottleneck) {
  const Tensor h = dense(h_);
  const int64_t H = h.size(h.dim() - 1), A = biases[0].size(0), D = eps.empty() ? 0 : biases[3].size(0);
  const Storage storage = storage_of(h, "bottleneck"), operand = storage_of(wide_panels, "bottleneck");
  const Vectors vectors(biases, norms);
  Tensor q = torch::stable::new_empty(h, with_last(h, A)), k = torch::stable::new_empty(h, with_last(h, A));
  Tensor v = torch::stable::new_empty(h, with_last(h, A));
  Tensor u0 = eps.empty() ? torch::stable::new_empty(h, {0}) : torch::stable::new_empty(h, with_last(h, D));
  const auto data = [](Tensor& t) { return static_cast<char*>(t.mutable_data_ptr()); };
  const Input layer = {static_cast<const char*>(h.const_data_ptr()), data(q), data(k), data(v), eps.empty() ? nullptr : data(u0),
                       H, D, A, eps.size() > 1, from_bottleneck, product_of(wide_panels, H),
                       product_of(narrow_panels ? *narrow_panels : wide_panels, D), &vectors, &eps, storage,
                       EF_SELECT(gather)(storage, operand), EF_SELECT(normalize)(storage, operand),
                       EF_SELECT(activate)(storage, Activation::none)};
  run_tiles(layer, h, h.numel() / H, operand);
  return {q, k, v, u0};
}

// ---- bottleneck_ffn

// `expand_panels` are those of each block's first weight, then of out where there is one; `contract_panels` of the second ones.
Tensor ffn(const Tensor& attention_, const Tensor& u0_, std::optional<Tensor> h_, const Tensor& output_panels,
           const Tensor& expand_panels, const Tensor& contract_panels, Tensors biases, Tensors norms, std::vector<double> eps,
           int64_t activation, double dropout_p, std::optional<Tensor> rng_state) {
  const Tensor attention = dense(attention_), u0 = dense(u0_), h = h_ ? dense(*h_) : u0;
  const int64_t D = u0.size(u0.dim() - 1), A = attention.size(u0.dim() - 1), H = h_ ? h.size(u0.dim() - 1) : 0;
  const int64_t blocks = (int64_t(biases.size()) - 1) / 2, F = biases[1].size(0);
  const Storage storage = storage_of(u0, "bottleneck"), operand = storage_of(output_panels, "bottleneck");
  const Vectors vectors(biases, norms);
  Tensor y = torch::stable::new_empty(h, with_last(h, h_ ? H : D));
  const auto data = [](const Tensor& t) { return static_cast<const char*>(t.const_data_ptr()); };
  const Ffn layer = {data(attention), data(u0), h_ ? data(h) : nullptr, static_cast<char*>(y.mutable_data_ptr()), H, D, A, F,
                     blocks, product_of(output_panels, A), product_of(expand_panels, D), product_of(contract_panels, F), &vectors,
                     &eps, dropout_of(dropout_p, rng_state, 1), dropout_of(dropout_p, rng_state, 2), storage,
                     EF_SELECT(gather)(storage, operand), EF_SELECT(gather)(storage, Storage::float32),
                     EF_SELECT(activate)(operand, static_cast<Activation>(activation)), EF_SELECT(normalize)(storage, operand)};
  run_tiles(layer, u0, u0.numel() / D, operand);
  return y;
}

}  // namespace
}  // namespace encoders_fast::bottleneck

STABLE_TORCH_LIBRARY_IMPL(encoders_fast_native, CPU, m) {
  m.impl("bottleneck_pack", TORCH_BOX(&encoders_fast::bottleneck::pack));
  m.impl("bottleneck_input", TORCH_BOX(&encoders_fast::bottleneck::input));
  m.impl("bottleneck_ffn", TORCH_BOX(&encoders_fast::bottleneck::ffn));
}
