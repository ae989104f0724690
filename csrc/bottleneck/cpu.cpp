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

#include "bottleneck/tiles.h"
#include "common/cpu/draw.h"
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

struct Input {
  struct Memory { float* sums; char *operand, *narrow; };

  const char* h;
  char *q, *k, *v, *u0;  // u0 is null where there is no bottleneck
  int64_t H, D, A;
  bool shared, from_bottleneck;
  Product wide, narrow;
  const Vectors* vectors;
  const std::vector<double>* eps;
  Storage storage;
  Gather* gather;
  Normalized* normalize;
  Activated* store;

  int64_t narrow_outputs() const { return from_bottleneck ? 3 : shared ? 2 : 0; }
  int64_t wide_panels() const { return panels_of(D) * ((u0 != nullptr) + shared) + panels_of(A) * (3 - narrow_outputs()); }

  void lay_out(Parts& parts, Memory& memory) const {
    const int64_t panels = std::max(wide_panels(), panels_of(A) * narrow_outputs());
    memory.sums = parts.take<float>(most_rows * panels * panel_columns * 4);
    memory.operand = parts.take(most_rows * operand_width(H, wide.operand) * bytes_of(wide.operand));
    memory.narrow = parts.take(most_rows * operand_width(D, wide.operand) * bytes_of(wide.operand));
  }

  // Norm i, whose sums begin at `sums`; beside rows of u0 it gives an operand, or that alone.
  void norm(int64_t i, Tile tile, float* sums, int64_t stride, char* operand, char* rows) const {
    normalize({sums, stride, vectors->bias(3 + i), vectors->weight(i), vectors->shift(i), float((*eps)[i]), tile.count, D,
               nullptr, tile.first, nullptr, nullptr, nullptr, nullptr, operand, operand_width(D, wide.operand), rows});
  }

  void run(Tile tile, const Memory& m) const {
    gather(h + tile.first * H * bytes_of(storage), tile.count, H, m.operand, operand_width(H, wide.operand));
    int64_t panels = wide_panels(), stride = panels * panel_columns;
    wide(tile, m.operand, 0, panels, m.sums, stride);
    float* sums = m.sums;
    if (u0) {
      norm(0, tile, sums, stride, from_bottleneck ? m.narrow : nullptr, u0 + tile.first * D * bytes_of(storage));
      sums += padded(D);
    }
    if (shared) {
      norm(1, tile, sums, stride, m.narrow, nullptr);
      sums += padded(D);
    }
    outputs(narrow_outputs(), 3, tile, sums, stride);
    if (!narrow_outputs()) return;
    panels = panels_of(A) * narrow_outputs(), stride = panels * panel_columns;
    narrow(tile, m.narrow, 0, panels, m.sums, stride);
    outputs(0, narrow_outputs(), tile, m.sums, stride);
  }

  // Those of q, k and v from `begin` to `end`.
  void outputs(int64_t begin, int64_t end, Tile tile, const float* sums, int64_t stride) const {
    for (int64_t i = begin; i < end; i++, sums += padded(A))
      store({sums, stride, vectors->bias(i), tile.count, A, (i == 0 ? q : i == 1 ? k : v) + tile.first * A * bytes_of(storage), A});
  }
};

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

struct Ffn {
  struct Memory { float *sums, *stream, *room; char *attention, *operand, *hidden; };

  const char *attention, *u0, *h;  // h is null where there is no bottleneck
  char* y;
  int64_t H, D, A, F, blocks;
  Product output, expand, contract;
  const Vectors* vectors;
  const std::vector<double>* eps;
  std::optional<Dropout> at_attention, at_end;
  Storage storage;
  Gather *gather, *widen;
  Activated* activate;
  Normalized* normalize;

  int64_t operand_bytes(int64_t width) const { return operand_width(width, output.operand) * bytes_of(output.operand); }
  int64_t row_bytes() const { return bytes_of(storage); }

  void lay_out(Parts& parts, Memory& m) const {
    m.sums = parts.take<float>(most_rows * std::max(padded(D), padded(H)) * 4);
    m.stream = parts.take<float>(most_rows * padded(D) * 4);
    m.room = parts.take<float>((2 * std::max(D, H) + 128) * 4);
    m.attention = parts.take(most_rows * operand_bytes(A));
    m.operand = parts.take(most_rows * operand_bytes(D));
    m.hidden = parts.take(most_rows * operand_bytes(F));
  }

  void run(Tile tile, const Memory& m) const {
    gather(attention + tile.first * A * row_bytes(), tile.count, A, m.attention, operand_width(A, output.operand));
    widen(u0 + tile.first * D * row_bytes(), tile.count, D, m.stream, padded(D));
    output(tile, m.attention, 0, panels_of(D), m.sums, padded(D));
    narrow_norm(0, tile, m);
    for (int64_t block = 1; block <= blocks; block++) {
      hidden(block, tile, m);
      contract(tile, m.hidden, (block - 1) * panels_of(D), panels_of(D), m.sums, padded(D));
      narrow_norm(block, tile, m);
    }
    if (!h) return;
    expand(tile, m.operand, blocks * panels_of(F), panels_of(H), m.sums, padded(H));
    const int64_t at = tile.first * H * row_bytes();
    normalize({m.sums, padded(H), vectors->bias(2 * blocks + 1), vectors->weight(blocks + 1), vectors->shift(blocks + 1),
               float((*eps)[blocks + 1]), tile.count, H, at_end ? &*at_end : nullptr, tile.first, m.room, nullptr, h + at, nullptr,
               nullptr, 0, y + at});
  }

  // A panel of sums at a time: it is activated while it is in the first-level cache.
  void hidden(int64_t block, Tile tile, const Memory& m) const {
    const int64_t width = operand_width(F, output.operand), first = (block - 1) * panels_of(F);
    for (int64_t i = 0; i < panels_of(F); i++) {
      const int64_t panel = tile.in_turn(i, panels_of(F)), column = panel * panel_columns;
      expand(tile, m.operand, first + panel, 1, m.sums, panel_columns);
      activate({m.sums, panel_columns, vectors->bias(2 * block - 1) + column, tile.count, std::min(panel_columns, width - column),
                m.hidden + column * bytes_of(output.operand), width});
    }
  }

  // u = N_i(dropout(sums + bias) + u): the stream and its operand, or where it is the layer's result, that.
  void narrow_norm(int64_t i, Tile tile, const Memory& m) const {
    const bool last = !h && i == blocks;
    const std::optional<Dropout>& dropout = i == 0 ? at_attention : at_end;
    normalize({m.sums, padded(D), vectors->bias(2 * i), vectors->weight(i), vectors->shift(i), float((*eps)[i]), tile.count, D,
               !h && (i == 0 || last) && dropout ? &*dropout : nullptr, tile.first, m.room, m.stream, nullptr,
               last ? nullptr : m.stream, last ? nullptr : m.operand, operand_width(D, output.operand),
               last ? y + tile.first * D * row_bytes() : nullptr});
  }
};

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
