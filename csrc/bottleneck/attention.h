// Attention of whole sequences by block_sparse_attention's kernels: each has one block, which is all of it. For .cpp files.
#pragma once

#include <atomic>
#include <vector>

#include "block_sparse_attention/cpu_kernels.h"
#include "common/cpu/launch.h"

namespace encoders_fast::block_sparse_attention {

// In their own namespace, where EF_SELECT finds them.
inline const Kernels& forward_kernels(Storage storage) { return EF_SELECT(kernels)(storage, false); }

}  // namespace encoders_fast::block_sparse_attention

namespace encoders_fast::bottleneck {

// Sequences that lie end to end, in rows of `heads` times K numbers.
struct Sequences {
  Storage storage;
  int64_t heads, K;
  std::vector<int64_t> lengths;
  float scale;
  const char *q, *k, *v;
  char* out;
  float* log_sum_exp;    // room for heads * rows; nobody reads it
  const bool* key_real;  // [rows], or null where all are
};

class Attention {
 public:
  Attention(const Sequences& sequences, int64_t workers)
      : kernels_(block_sparse_attention::forward_kernels(sequences.storage)), heads_(sequences.heads) {
    int64_t first = 0;
    for (const int64_t length : sequences.lengths) {
      problems_.push_back(problem_of(sequences, first, length));
      const block_sparse_attention::Sizes sizes = kernels_.sizes(problems_.back());
      panels_ = std::max(panels_, sizes.panels), scratch_ = std::max(scratch_, sizes.scratch);
      first += length;
    }
    // Keys and values are packed again for every part of a head: only where workers would have none.
    parts_ = (workers + problems_.size() * heads_ - 1) / (problems_.size() * heads_);
  }

  int64_t worker_bytes() const { return panels_ + scratch_; }

  // What one of several workers does, until all is done: `next` begins at 0. The results do not depend on who does what.
  // `factors` [sequences, heads] are of the heads' outputs, or null.
  void run(std::atomic<int64_t>& next, const float* factors, char* memory) const {
    const int64_t items = problems_.size() * heads_ * parts_;
    for (int64_t item; (item = next.fetch_add(1)) < items;) {
      const int64_t sequence = item / (heads_ * parts_), head = item / parts_ % heads_, part = item % parts_;
      block_sparse_attention::Problem p = problems_[sequence];
      if (factors) p.head_factors = factors + sequence * heads_;
      const int64_t begin = p.tiles() * part / parts_, end = p.tiles() * (part + 1) / parts_;
      if (begin == end) continue;
      kernels_.pack(p, head, memory, 0, p.panels());
      kernels_.rows(p, head, memory, memory + panels_, nullptr, begin, end);
    }
  }

 private:
  static block_sparse_attention::Problem problem_of(const Sequences& s, int64_t first, int64_t length) {
    static constexpr int32_t row_starts[] = {0, 1}, columns[] = {0}, multiplicities[] = {1};
    constexpr int64_t piece_tokens = 64;  // what the kernels' memory is laid out for
    const int64_t width = s.heads * s.K, at = first * width * bytes_of(s.storage);
    block_sparse_attention::Problem p{};
    p.storage = s.storage;
    p.B = 1, p.H = s.heads, p.Tq = p.Tk = p.block = length, p.K = s.K;
    p.key_blocks = p.query_blocks = p.pattern_heads = 1;
    p.panel_pieces = p.tile_pieces = (length + piece_tokens - 1) / piece_tokens;
    p.panel_tokens = p.tile_tokens = (length + p.panel_pieces - 1) / p.panel_pieces;
    p.row_starts = row_starts, p.columns = columns, p.multiplicities = multiplicities;
    p.key_real = s.key_real ? s.key_real + first : nullptr;
    p.scale = s.scale;
    p.query = {s.q + at, length * width, s.K, width};
    p.key = {s.k + at, length * width, s.K, width};
    p.value = {s.v + at, length * width, s.K, width};
    p.out = s.out + at;
    p.log_sum_exp = s.log_sum_exp + first * s.heads;
    return p;
  }

  const block_sparse_attention::Kernels& kernels_;
  const int64_t heads_;
  std::vector<block_sparse_attention::Problem> problems_;
  int64_t panels_ = 0, scratch_ = 0, parts_;
};

}  // namespace encoders_fast::bottleneck
