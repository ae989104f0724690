// block_sparse_attention on the CPU: shares out the heads and their passes among torch's threads. Arguments were checked
// in op.py; here they are only put into the form that the kernels take.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <optional>
#include <tuple>
#include <vector>

#include "block_sparse_attention/cpu_kernels.h"
#include "common/cpu/draw.h"
#include "common/cpu/instruction_set.h"
#include "common/cpu/launch.h"

namespace encoders_fast::block_sparse_attention {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

Tensor dense_rows(const Tensor& tensor) {
  return tensor.stride(3) == 1 ? tensor : torch::stable::contiguous(tensor);
}
std::optional<Tensor> dense_if_any(const std::optional<Tensor>& tensor) {
  return tensor ? std::optional(dense(*tensor)) : std::nullopt;
}

Tensor4 strided(const Tensor& tensor) {
  return {tensor.const_data_ptr(), tensor.stride(0), tensor.stride(1), tensor.stride(2)};
}

// The arguments that both operators have, kept alive while a Problem points to them.
struct Inputs {
  Tensor query, key, value, row_starts, columns, multiplicities;
  std::optional<Tensor> key_real, query_real, head_factors;
  std::optional<Dropout> dropout;

  Inputs(const Tensor& query, const Tensor& key, const Tensor& value, const Tensor& row_starts, const Tensor& columns,
         const Tensor& multiplicities, const std::optional<Tensor>& key_real, const std::optional<Tensor>& query_real,
         const std::optional<Tensor>& head_factors, const std::optional<Tensor>& rng_state, double dropout_p)
      : query(dense_rows(query)), key(dense_rows(key)), value(dense_rows(value)), row_starts(dense(row_starts)),
        columns(dense(columns)), multiplicities(dense(multiplicities)), key_real(dense_if_any(key_real)),
        query_real(dense_if_any(query_real)), head_factors(dense_if_any(head_factors)),
        dropout(dropout_of(dropout_p, rng_state)) {}
};

// Tokens of a piece of a block: 64 is what the kernels' memory is laid out for, see part_panels.
constexpr int64_t piece_tokens = 64;

void cut_queries(Problem& p, int64_t most) {
  p.tile_pieces = divide_up(p.block, most);
  p.tile_tokens = divide_up(p.block, p.tile_pieces);
}

Problem problem_of(const Inputs& inputs, int64_t block, bool causal, double scale) {
  Problem p{};
  const Tensor &query = inputs.query, &key = inputs.key;
  p.storage = storage_of(query, "block_sparse_attention");
  p.B = query.size(0), p.H = query.size(1), p.Tq = query.size(2), p.Tk = key.size(2), p.K = query.size(3);
  p.block = block;
  p.key_blocks = divide_up(p.Tk, block);
  p.panel_pieces = divide_up(block, piece_tokens);
  p.panel_tokens = divide_up(block, p.panel_pieces);
  p.query_blocks = inputs.row_starts.size(1) - 1;
  cut_queries(p, piece_tokens);
  p.row_starts = inputs.row_starts.const_data_ptr<int32_t>();
  p.columns = inputs.columns.const_data_ptr<int32_t>();
  p.multiplicities = inputs.multiplicities.const_data_ptr<int32_t>();
  p.pattern_heads = inputs.row_starts.size(0);
  p.causal = causal;
  p.key_real = inputs.key_real ? inputs.key_real->const_data_ptr<bool>() : nullptr;
  p.query_real = inputs.query_real ? inputs.query_real->const_data_ptr<bool>() : nullptr;
  p.head_factors = inputs.head_factors ? inputs.head_factors->const_data_ptr<float>() : nullptr;
  p.scale = float(scale);
  p.dropout = inputs.dropout ? &*inputs.dropout : nullptr;
  p.query = strided(query), p.key = strided(key), p.value = strided(inputs.value);
  return p;
}

// ---- sharing out

int64_t list_length(const Problem& p, int64_t head, int64_t block) {
  const int32_t* starts = p.row_starts + (p.pattern_heads == 1 ? 0 : head % p.H) * (p.query_blocks + 1) + block;
  return starts[1] - starts[0];
}

int64_t workers_for(const Problem& p) {
  // Less work than this, in multiplications, is done before other threads have woken up: 5 us.
  constexpr double worth_waking = 1 << 18;
  const double listed = double(p.row_starts[p.pattern_heads * (p.query_blocks + 1) - 1]) * p.H / p.pattern_heads;
  if (p.B * listed * p.block * p.block * p.K < worth_waking) return 1;
  return std::max<int64_t>(1, torch::stable::get_num_threads());
}

// The tiles of one head in shares of equal work. Global rows have far longer lists than the others: tiles become
// smaller until no one of them is more than half of a share. What a row computes does not depend on its tile.
struct Shares {
  Problem p;
  std::vector<int64_t> begin;  // [workers + 1]

  Shares(const Problem& whole, int64_t head, int64_t workers) : p(whole), begin(workers + 1) {
    int64_t total = 0, longest = 0;
    for (int64_t block = 0; block < p.query_blocks; block++) {
      const int64_t length = list_length(p, head, block);
      total += length;
      longest = std::max(longest, length);
    }
    constexpr int64_t smallest = 8;
    while (p.tile_tokens > smallest && longest * 2 * workers > total * p.tile_pieces) cut_queries(p, p.tile_tokens / 2);
    int64_t tile = 0, before = 0;
    for (int64_t worker = 0; worker < workers; worker++) {
      begin[worker] = tile;
      for (; tile < p.tiles() && before * workers < total * p.tile_pieces * (worker + 1); tile++)
        before += list_length(p, head, tile / p.tile_pieces);
    }
    begin[workers] = p.tiles();
  }
};

// As many heads as divide evenly are computed by one worker each, whoever is free; the workers share each of the rest.
class Run {
 public:
  Run(const Problem& p, const Tensor& like)
      : p_(p), kernels_(EF_SELECT(kernels)(p.storage, p.dy.data != nullptr)), sizes_(kernels_.sizes(p)),
        workers_(workers_for(p)), heads_(p.B * p.H), whole_heads_(heads_ / workers_ * workers_),
        in_place_(p.storage == Storage::float32), room_of_whole_(sizes_.panels + (in_place_ ? 0 : sizes_.sums)),
        memory_(torch::stable::new_empty(like, {bytes() + 64}, ScalarType::Byte)) {
    const uintptr_t start = reinterpret_cast<uintptr_t>(memory_.mutable_data_ptr());
    scratch_ = reinterpret_cast<char*>((start + 63) / 64 * 64);
    panels_ = scratch_ + workers_ * sizes_.scratch;
  }

  void operator()() const {
    std::atomic<int64_t> next{0};
    if (whole_heads_) on_each_worker(workers_, [&](int64_t worker) {
      for (int64_t head; (head = next.fetch_add(1)) < whole_heads_;) run_whole(worker, head);
    });
    for (int64_t head = whole_heads_; head < heads_; head++) run_shared(head);
  }

 private:
  // Scratch memory of each worker, and then of each its panels and sums, or the panels of all and the sums of each: the
  // two kinds of heads have their turns.
  int64_t bytes() const {
    const int64_t whole = whole_heads_ ? workers_ * room_of_whole_ : 0;
    const int64_t shared = heads_ > whole_heads_ ? sizes_.panels + buffers() * sizes_.sums : 0;
    return workers_ * sizes_.scratch + std::max(whole, shared);
  }

  // Of a shared head's sums. Those of one worker may stand in the results.
  int64_t buffers() const { return in_place_ ? workers_ - 1 : workers_; }

  char* scratch_of(int64_t worker) const { return scratch_ + worker * sizes_.scratch; }
  float* cleared(char* sums) const { return static_cast<float*>(std::memset(sums, 0, size_t(sizes_.sums))); }

  void run_whole(int64_t worker, int64_t head) const {
    char* panels = panels_ + worker * room_of_whole_;
    float* sums = in_place_ ? nullptr : cleared(panels + sizes_.panels);
    kernels_.pack(p_, head, panels, 0, p_.panels());
    kernels_.rows(p_, head, panels, scratch_of(worker), sums, 0, p_.tiles());
    if (kernels_.columns) kernels_.columns(p_, head, sums, in_place_ ? 0 : 1, 0, p_.panels());
  }

  void run_shared(int64_t head) const {
    const auto panels_of = [&](int64_t worker) { return p_.panels() * worker / workers_; };
    on_each_worker(workers_, [&](int64_t worker) {
      kernels_.pack(p_, head, panels_, panels_of(worker), panels_of(worker + 1));
    });
    const Shares shares(p_, head, workers_);
    char* const sums = panels_ + sizes_.panels;
    on_each_worker(workers_, [&](int64_t worker) {
      const int64_t buffer = worker - (workers_ - buffers());
      kernels_.rows(shares.p, head, panels_, scratch_of(worker),
                    buffer < 0 ? nullptr : cleared(sums + buffer * sizes_.sums), shares.begin[worker],
                    shares.begin[worker + 1]);
    });
    if (!kernels_.columns) return;
    on_each_worker(workers_, [&](int64_t worker) {
      kernels_.columns(p_, head, reinterpret_cast<float*>(sums), buffers(), panels_of(worker), panels_of(worker + 1));
    });
  }

  const Problem& p_;
  const Kernels& kernels_;
  const Sizes sizes_;
  const int64_t workers_, heads_, whole_heads_;
  const bool in_place_;
  const int64_t room_of_whole_;
  const Tensor memory_;
  char *scratch_, *panels_;
};

// ---- the operators

// A [B, H, tokens, K] result whose memory is [B, tokens, H, K].
Tensor result(const Problem& p, const Tensor& like, int64_t tokens) {
  return new_empty_strided(like, {p.B, p.H, tokens, p.K}, {tokens * p.H * p.K, p.K, p.H * p.K, 1});
}

std::tuple<Tensor, Tensor> forward(
    const Tensor& query, const Tensor& key, const Tensor& value, const Tensor& row_starts, const Tensor& columns,
    const Tensor& multiplicities, int64_t block, bool causal, const std::optional<Tensor>& key_padding_mask,
    const std::optional<Tensor>& query_padding_mask, const std::optional<Tensor>& head_mask,
    const std::optional<Tensor>& rng_state, double dropout_p, double scale) {
  const Inputs inputs(query, key, value, row_starts, columns, multiplicities, key_padding_mask, query_padding_mask,
                      head_mask, rng_state, dropout_p);
  Problem p = problem_of(inputs, block, causal, scale);
  Tensor out = result(p, query, p.Tq);
  Tensor log_sum_exp = torch::stable::new_empty(query, {p.B, p.H, p.Tq}, ScalarType::Float);
  p.out = out.mutable_data_ptr();
  p.log_sum_exp = log_sum_exp.mutable_data_ptr<float>();
  Run(p, query)();
  return {out, log_sum_exp};
}

std::tuple<Tensor, Tensor, Tensor> backward(
    const Tensor& gradient, const std::optional<Tensor>& dlog_sum_exp_, const Tensor& query, const Tensor& key,
    const Tensor& value, const Tensor& log_sum_exp_, const Tensor& row_starts, const Tensor& columns,
    const Tensor& multiplicities, int64_t block, bool causal, const std::optional<Tensor>& key_padding_mask,
    const std::optional<Tensor>& query_padding_mask, const std::optional<Tensor>& head_mask,
    const std::optional<Tensor>& rng_state, double dropout_p, double scale) {
  const Inputs inputs(query, key, value, row_starts, columns, multiplicities, key_padding_mask, query_padding_mask,
                      head_mask, rng_state, dropout_p);
  const Tensor dy = dense_rows(gradient), log_sum_exp = dense(log_sum_exp_);
  const std::optional<Tensor> dlog_sum_exp = dense_if_any(dlog_sum_exp_);
  Problem p = problem_of(inputs, block, causal, scale);
  Tensor dquery = result(p, query, p.Tq);
  Tensor dkey = result(p, query, p.Tk);
  Tensor dvalue = result(p, query, p.Tk);
  p.dy = strided(dy);
  p.log_sum_exp = const_cast<float*>(log_sum_exp.const_data_ptr<float>());
  p.dlog_sum_exp = dlog_sum_exp ? dlog_sum_exp->const_data_ptr<float>() : nullptr;
  p.dquery = dquery.mutable_data_ptr(), p.dkey = dkey.mutable_data_ptr(), p.dvalue = dvalue.mutable_data_ptr();
  Run(p, query)();
  return {dquery, dkey, dvalue};
}

}  // namespace
}  // namespace encoders_fast::block_sparse_attention

STABLE_TORCH_LIBRARY_IMPL(encoders_fast_native, CPU, m) {
  m.impl("block_sparse_attention", TORCH_BOX(&encoders_fast::block_sparse_attention::forward));
  m.impl("block_sparse_attention_backward", TORCH_BOX(&encoders_fast::block_sparse_attention::backward));
}
