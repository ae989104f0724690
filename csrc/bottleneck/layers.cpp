// All of MobileBERT's layers in a row, in inference. A layer is two parallel regions: attention, a head of a sequence at a
// time; and what is behind it together with what is in front of the next one, a tile of rows at a time.
//
// The time of a short text is that of its weights: the 84 MB of MobileBERT's in float32 come from memory in every call.
#include <torch/csrc/stable/library.h>

#include "bottleneck/attention.h"
#include "bottleneck/ffn.h"
#include "bottleneck/input.h"

namespace encoders_fast::bottleneck {
namespace {

using torch::stable::Tensor;
using Tensors = std::vector<Tensor>;

// All layers' biases and norms in front of the attention, or behind it: one layer's after the other's. eps are of one.
struct Lists {
  Tensors biases, norms;
  std::vector<double> eps;
};

// What all layers have alike.
struct Shape {
  int64_t layers, rows, H, D, A, F, blocks;
  bool bottleneck, shared, from_bottleneck;
  Storage storage, operand;

  Shape(const Tensor& h, const Tensor& packed, const Lists& input, const Lists& ffn, bool from_bottleneck)
      : rows(h.numel() / h.size(h.dim() - 1)), H(h.size(h.dim() - 1)), D(ffn.biases[0].size(0)), A(input.biases[0].size(0)),
        F(ffn.biases[1].size(0)), bottleneck(!input.eps.empty()), shared(input.eps.size() > 1),
        from_bottleneck(from_bottleneck), storage(storage_of(h, "bottleneck")), operand(storage_of(packed, "bottleneck")) {
    blocks = ffn.eps.size() - 1 - bottleneck;
    layers = ffn.biases.size() / (1 + 2 * blocks + bottleneck);
  }
  int64_t narrow_outputs() const { return from_bottleneck ? 3 : shared ? 2 : 0; }
};

// A layer's panels lie in the order of their use, and those of the next one behind them.
class Panels {
 public:
  explicit Panels(const Tensor& panels)
      : next_(static_cast<const char*>(panels.const_data_ptr())), operand_(storage_of(panels, "bottleneck")) {}
  Product take(int64_t count, int64_t K) {
    const Product product = {next_, K, operand_};
    next_ += count * operand_width(K, operand_) * panel_columns * bytes_of(operand_);
    return product;
  }

 private:
  const char* next_;
  Storage operand_;
};

// Whether each layer's vectors are of the first one's widths and all of one dtype.
bool alike(std::initializer_list<const Tensors*> lists, int64_t layers) {
  const auto dtype = (*lists.begin())->front().scalar_type();
  for (const Tensors* list : lists) {
    const size_t each = list->size() / layers;
    for (size_t i = 0; i < list->size(); i++) {
      const Tensor& vector = (*list)[i];
      if (vector.dim() != 1 || vector.size(0) != (*list)[i % each].size(0) || vector.scalar_type() != dtype) return false;
    }
  }
  return true;
}

// In float32.
std::vector<Vectors> vectors_of(const Lists& lists, int64_t layers) {
  const size_t biases = lists.biases.size() / layers, norms = lists.norms.size() / layers;
  std::vector<Vectors> vectors(layers);
  torch::stable::parallel_for(0, layers, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++)
      vectors[i] = Vectors({lists.biases.data() + i * biases, biases}, {lists.norms.data() + i * norms, norms});
  });
  return vectors;
}

// Memory from a cache line on.
class Block {
 public:
  Block(const Tensor& like, int64_t bytes) : tensor_(floats(like, bytes / 4 + 16)) {}
  char* begin() const {
    return reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(tensor_.mutable_data_ptr()) + 63) / 64 * 64);
  }

 private:
  Tensor tensor_;
};

// What passes between the parts of a layer.
struct Passed {
  char *q, *k, *v, *context, *u0;
  float* log_sum_exp;

  void lay_out(Parts& parts, const Shape& s, int64_t heads) {
    for (char** each : {&q, &k, &v, &context}) *each = parts.take(s.rows * s.A * bytes_of(s.storage));
    u0 = s.bottleneck ? parts.take(s.rows * s.D * bytes_of(s.storage)) : nullptr;
    log_sum_exp = parts.take<float>(s.rows * heads * 4);
  }
};

class Layers {
 public:
  // The first layer reads h, all others and all results are in y.
  Layers(const Shape& s, const Lists& input, const Lists& ffn, Panels panels, const Passed& passed, const char* h, char* y,
         Activation activation)
      : vectors_{vectors_of(input, s.layers), vectors_of(ffn, s.layers)} {
    Gather *const gather = EF_SELECT(gather)(s.storage, s.operand), *const widen = EF_SELECT(gather)(s.storage, Storage::float32);
    Normalized* const normalize = EF_SELECT(normalize)(s.storage, s.operand);
    Activated* const store = EF_SELECT(activate)(s.storage, Activation::none);
    Activated* const activate = EF_SELECT(activate)(s.operand, activation);
    for (int64_t i = 0; i < s.layers; i++) {
      const char* const stream = i == 0 ? h : y;
      const Product wide = panels.take(panels_of(s.D) * (s.bottleneck + s.shared) + panels_of(s.A) * (3 - s.narrow_outputs()), s.H);
      const Product narrow = panels.take(panels_of(s.A) * s.narrow_outputs(), s.D);
      inputs_.push_back({stream, passed.q, passed.k, passed.v, passed.u0, s.H, s.D, s.A, s.shared, s.from_bottleneck, wide, narrow,
                         &vectors_[0][i], &input.eps, s.storage, gather, normalize, store});
      const Product output = panels.take(panels_of(s.D), s.A);
      const Product expand = panels.take(panels_of(s.F) * s.blocks + (s.bottleneck ? panels_of(s.H) : 0), s.D);
      const Product contract = panels.take(panels_of(s.D) * s.blocks, s.F);
      ffns_.push_back({passed.context, s.bottleneck ? passed.u0 : stream, s.bottleneck ? stream : nullptr, y,
                       s.bottleneck ? s.H : 0, s.D, s.A, s.F, s.blocks, output, expand, contract, &vectors_[1][i], &ffn.eps,
                       std::nullopt, std::nullopt, s.storage, gather, widen, activate, normalize});
    }
  }

  struct Memory { Input::Memory input; Ffn::Memory ffn; };
  void lay_out(Parts& parts, Memory& memory) const {
    inputs_[0].lay_out(parts, memory.input);
    ffns_[0].lay_out(parts, memory.ffn);
  }

  // Layer i behind its attention, and the next one in front of it; layer -1 is what comes before all.
  void run(int64_t i, Tile tile, const Memory& memory) const {
    if (i >= 0) ffns_[i].run(tile, memory.ffn);
    if (i + 1 < int64_t(inputs_.size())) inputs_[i + 1].run(tile, memory.input);
  }

 private:
  std::vector<Vectors> vectors_[2];  // of inputs_, of ffns_
  std::vector<Input> inputs_;
  std::vector<Ffn> ffns_;
};

void run(const Shape& s, const Layers& layers, const Attention& attention, const float* head_factors, int64_t factors_of_layer,
         int64_t workers, const Tensor& like) {
  Layers::Memory memory;
  Parts of_tile(nullptr);
  layers.lay_out(of_tile, memory);
  const int64_t tile_bytes = of_tile.taken(), each = tile_bytes + attention.worker_bytes();
  const Block block(like, workers * each);
  char* const begin = block.begin();
  // Rows of a tile that are not there are multiplied all the same: let them be zeros at first.
  if (s.rows % least_rows) on_each_worker(workers, [&](int64_t worker) { std::memset(begin + worker * each, 0, tile_bytes); });
  for (int64_t i = -1; i < s.layers; i++) {
    if (i >= 0) {
      std::atomic<int64_t> next{0};
      const float* const factors = head_factors ? head_factors + i * factors_of_layer : nullptr;
      on_each_worker(workers, [&](int64_t worker) { attention.run(next, factors, begin + worker * each + tile_bytes); });
    }
    on_each_worker(workers, [&](int64_t worker) {
      Layers::Memory own;
      Parts parts(begin + worker * each);
      layers.lay_out(parts, own);
      for_tiles(s.rows, workers, worker, [&](Tile tile) { layers.run(i, tile, own); });
      brgemm_release(s.operand == Storage::bfloat16);
    });
  }
}

// Empty where the layers' biases and norms are not alike. key_real and head_factors are dense.
Tensor layers(const Tensor& h_, const Tensor& packed, Tensors input_biases, Tensors input_norms, std::vector<double> input_eps,
              bool from_bottleneck, Tensors ffn_biases, Tensors ffn_norms, std::vector<double> ffn_eps, int64_t activation,
              int64_t heads, double scale, std::vector<int64_t> lengths, std::optional<Tensor> key_real,
              std::optional<Tensor> head_factors) {
  const Tensor h = dense(h_);
  const Lists input{input_biases, input_norms, input_eps}, ffn{ffn_biases, ffn_norms, ffn_eps};
  const Shape s(h, packed, input, ffn, from_bottleneck);
  if (!alike({&input.biases, &input.norms, &ffn.biases, &ffn.norms}, s.layers)) return torch::stable::new_empty(h, {0});
  Tensor y = torch::stable::new_empty(h, std::vector<int64_t>(h.sizes().begin(), h.sizes().end()));
  Passed passed{};
  Parts measured(nullptr);
  passed.lay_out(measured, s, heads);
  const Block block(h, measured.taken());
  Parts parts(block.begin());
  passed.lay_out(parts, s, heads);
  const Layers layers(s, input, ffn, Panels(packed), passed, static_cast<const char*>(h.const_data_ptr()),
                      static_cast<char*>(y.mutable_data_ptr()), static_cast<Activation>(activation));
  const int64_t workers = workers_for_rows(s.rows);
  const Attention attention({s.storage, heads, s.A / heads, lengths, float(scale), passed.q, passed.k, passed.v, passed.context,
                             passed.log_sum_exp, key_real ? key_real->const_data_ptr<bool>() : nullptr}, workers);
  run(s, layers, attention, head_factors ? head_factors->const_data_ptr<float>() : nullptr, lengths.size() * heads, workers, h);
  return y;
}

}  // namespace
}  // namespace encoders_fast::bottleneck

STABLE_TORCH_LIBRARY_IMPL(encoders_fast_native, CPU, m) {
  m.impl("bottleneck_layers", TORCH_BOX(&encoders_fast::bottleneck::layers));
}
