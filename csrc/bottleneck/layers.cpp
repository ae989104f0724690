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

// What all layers have alike.
struct Shape {
  int64_t H, D, A, F, blocks, narrow_outputs;
  bool bottleneck;
  int64_t input_norms, ffn_norms;  // of one layer

  int64_t input_biases() const { return 3 + input_norms; }
  int64_t ffn_biases() const { return 1 + 2 * blocks + bottleneck; }
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

// Biases and norms of all layers, in float32.
std::vector<Vectors> vectors_of(const Tensors& biases, const Tensors& norms, int64_t layers) {
  const int64_t of_biases = biases.size() / layers, of_norms = norms.size() / layers;
  std::vector<Vectors> vectors(layers);
  torch::stable::parallel_for(0, layers, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++)
      vectors[i] = Vectors({biases.data() + i * of_biases, size_t(of_biases)}, {norms.data() + i * of_norms, size_t(of_norms)});
  });
  return vectors;
}

// What passes between the parts of a layer, and the memory of its workers.
struct Room {
  char *q, *k, *v, *context, *u0;
  float* log_sum_exp;

  void lay_out(Parts& parts, const Shape& s, int64_t rows, int64_t heads, int64_t bytes) {
    for (char** each : {&q, &k, &v, &context}) *each = parts.take(rows * s.A * bytes);
    u0 = s.bottleneck ? parts.take(rows * s.D * bytes) : nullptr;
    log_sum_exp = parts.take<float>(rows * heads * 4);
  }
};

struct Layers {
  std::vector<Input> inputs;
  std::vector<Ffn> ffns;

  void lay_out(Parts& parts, Input::Memory& input, Ffn::Memory& ffn) const {
    inputs[0].lay_out(parts, input);
    ffns[0].lay_out(parts, ffn);
  }

  // Layer i behind its attention, and the next one in front of it; layer -1 is what comes before all.
  void run(int64_t i, Tile tile, const Input::Memory& input, const Ffn::Memory& ffn) const {
    if (i >= 0) ffns[i].run(tile, ffn);
    if (i + 1 < int64_t(inputs.size())) inputs[i + 1].run(tile, input);
  }
};

Tensor layers(const Tensor& h_, const Tensor& packed, Tensors input_biases, Tensors input_norms, std::vector<double> input_eps,
              bool from_bottleneck, Tensors ffn_biases, Tensors ffn_norms, std::vector<double> ffn_eps, int64_t activation,
              int64_t heads, double scale, std::vector<int64_t> lengths, std::optional<Tensor> key_real,
              std::optional<Tensor> head_factors) {
  const Tensor h = dense(h_);
  const Storage storage = storage_of(h, "bottleneck"), operand = storage_of(packed, "bottleneck");
  const bool shared = input_eps.size() > 1, bottleneck = !input_eps.empty();
  Shape s{};
  s.H = h.size(h.dim() - 1), s.A = input_biases[0].size(0), s.D = ffn_biases[0].size(0), s.F = ffn_biases[1].size(0);
  s.bottleneck = bottleneck, s.input_norms = input_eps.size(), s.ffn_norms = ffn_eps.size();
  s.blocks = s.ffn_norms - 1 - bottleneck;
  s.narrow_outputs = from_bottleneck ? 3 : shared ? 2 : 0;
  const int64_t count = ffn_biases.size() / s.ffn_biases(), rows = h.numel() / s.H, workers = workers_for_rows(rows);
  if (!alike({&input_biases, &input_norms, &ffn_biases, &ffn_norms}, count)) return torch::stable::new_empty(h, {0});
  const std::vector<Vectors> of_input = vectors_of(input_biases, input_norms, count), of_ffn = vectors_of(ffn_biases, ffn_norms, count);

  Tensor y = torch::stable::new_empty(h, std::vector<int64_t>(h.sizes().begin(), h.sizes().end()));
  char* const out = static_cast<char*>(y.mutable_data_ptr());
  Room room{};
  Parts measured(nullptr);
  room.lay_out(measured, s, rows, heads, bytes_of(storage));
  const Tensor passed = floats(h, measured.taken() / 4 + 16);
  const auto aligned = [](const Tensor& t) {
    return reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(t.mutable_data_ptr()) + 63) / 64 * 64);
  };
  Parts parts(aligned(passed));
  room.lay_out(parts, s, rows, heads, bytes_of(storage));

  Layers layers;
  Panels panels(packed);
  for (int64_t i = 0; i < count; i++) {
    const char* const stream = i == 0 ? static_cast<const char*>(h.const_data_ptr()) : out;
    const int64_t wide = panels_of(s.D) * s.input_norms + panels_of(s.A) * (3 - s.narrow_outputs);
    const Product of_wide = panels.take(wide, s.H), of_narrow = panels.take(panels_of(s.A) * s.narrow_outputs, s.D);
    layers.inputs.push_back({stream, room.q, room.k, room.v, room.u0, s.H, s.D, s.A, shared, from_bottleneck, of_wide, of_narrow,
                             &of_input[i], &input_eps, storage, EF_SELECT(gather)(storage, operand),
                             EF_SELECT(normalize)(storage, operand), EF_SELECT(activate)(storage, Activation::none)});
    const Product output = panels.take(panels_of(s.D), s.A);
    const Product expand = panels.take(panels_of(s.F) * s.blocks + (bottleneck ? panels_of(s.H) : 0), s.D);
    const Product contract = panels.take(panels_of(s.D) * s.blocks, s.F);
    layers.ffns.push_back({room.context, bottleneck ? room.u0 : stream, bottleneck ? stream : nullptr, out, bottleneck ? s.H : 0,
                           s.D, s.A, s.F, s.blocks, output, expand, contract, &of_ffn[i], &ffn_eps, std::nullopt, std::nullopt,
                           storage, EF_SELECT(gather)(storage, operand), EF_SELECT(gather)(storage, Storage::float32),
                           EF_SELECT(activate)(operand, static_cast<Activation>(activation)),
                           EF_SELECT(normalize)(storage, operand)});
  }

  const Attention attention({storage, heads, s.A / heads, lengths, float(scale), room.q, room.k, room.v, room.context,
                             room.log_sum_exp, key_real ? key_real->const_data_ptr<bool>() : nullptr}, workers);
  Input::Memory input_memory;
  Ffn::Memory ffn_memory;
  Parts of_tile(nullptr);
  layers.lay_out(of_tile, input_memory, ffn_memory);
  const int64_t tile_bytes = of_tile.taken(), worker_bytes = tile_bytes + attention.worker_bytes();
  const Tensor memory = floats(h, workers * worker_bytes / 4 + 16);
  char* const begin = aligned(memory);
  // Rows of a tile that are not there are multiplied all the same: let them be zeros.
  if (rows % least_rows) on_each_worker(workers, [&](int64_t worker) { std::memset(begin + worker * worker_bytes, 0, tile_bytes); });

  for (int64_t i = -1; i < count; i++) {
    if (i >= 0) {
      std::atomic<int64_t> next{0};
      const float* const factors = head_factors ? head_factors->const_data_ptr<float>() + i * lengths.size() * heads : nullptr;
      on_each_worker(workers, [&](int64_t worker) { attention.run(next, factors, begin + worker * worker_bytes + tile_bytes); });
    }
    on_each_worker(workers, [&](int64_t worker) {
      Input::Memory input;
      Ffn::Memory ffn;
      Parts own(begin + worker * worker_bytes);
      layers.lay_out(own, input, ffn);
      for_tiles(rows, workers, worker, [&](Tile tile) { layers.run(i, tile, input, ffn); });
      brgemm_release(operand == Storage::bfloat16);
    });
  }
  return y;
}

}  // namespace
}  // namespace encoders_fast::bottleneck

STABLE_TORCH_LIBRARY_IMPL(encoders_fast_native, CPU, m) {
  m.impl("bottleneck_layers", TORCH_BOX(&encoders_fast::bottleneck::layers));
}
