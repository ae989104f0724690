// What the kernels of every instruction set offer to the launcher. Plain data, no torch, no STL.
#pragma once
#include <cstdint>

#include "common/cpu/dropout.h"
#include "common/cpu/instruction_set.h"
#include "common/cpu/storage.h"

namespace encoders_fast::block_sparse_attention {

// A [B, H, tokens, K] tensor whose last dimension is contiguous; strides count elements.
struct Tensor4 {
  const void* data;
  int64_t batch_stride, head_stride, token_stride;
};

// What is the same for all heads. Blocks of keys are cut into panels and blocks of queries into tiles, both as even as
// can be: `*_pieces` to a block, of `*_tokens` tokens each but for the last ones.
struct Problem {
  Storage storage;
  int64_t B, H, Tq, Tk, K, block;
  int64_t key_blocks, panel_pieces, panel_tokens;
  int64_t query_blocks, tile_pieces, tile_tokens;

  // The pattern: [pattern_heads, query_blocks + 1] and [entries].
  const int32_t *row_starts, *columns, *multiplicities;
  int64_t pattern_heads;
  bool causal;
  const bool *key_real, *query_real;  // [B, Tk] and [B, Tq], or null where all are
  const float* head_factors;          // [B, H], of the outputs, or null
  float scale;
  const Dropout* dropout;  // null without

  Tensor4 query, key, value, dy;   // dy is null in a forward pass
  void* out;                       // forward: [B, Tq, H, K], contiguous like all below
  float* log_sum_exp;              // [B, H, Tq]; forward writes it, backward reads it
  const float* dlog_sum_exp;       // [B, H, Tq] or null
  void *dquery, *dkey, *dvalue;    // backward: [B, Tq or Tk, H, K]

  // Compiled for every instruction set: no copy of them may be shared.
  [[gnu::always_inline]] int64_t panels() const { return key_blocks * panel_pieces; }
  [[gnu::always_inline]] int64_t tiles() const { return query_blocks * tile_pieces; }
  [[gnu::always_inline]] float head_factor(int64_t head) const { return head_factors ? head_factors[head] : 1.0f; }
};

// Bytes, each a multiple of 64.
struct Sizes {
  int64_t panels;   // a head's keys and values, packed
  int64_t scratch;  // of one thread
  int64_t sums;     // backward: a buffer for float32 sums of a head's dkey and dvalue
};

// The passes over a head, which is batch * H + its number. Each splits into items that may run on any thread in any
// order, with a barrier between the passes:
//   pack    item p: panel p of the keys and values, zeros where a key is padded; zeros in float32's dkey and dvalue
//   rows    item t: tile t of the queries: out and log_sum_exp; backward: dquery, and its part of dkey and dvalue, which
//           is added to `sums` (zeros at first), or in float32 without them to dkey and dvalue themselves
//   columns item p, backward: panel p of dkey and dvalue, the total of `parts` buffers of sums that lie one after the
//           other, and in float32 of what stands in dkey and dvalue before them
struct Kernels {
  Sizes (*sizes)(const Problem&);
  void (*pack)(const Problem&, int64_t head, void* panels, int64_t begin, int64_t end);
  void (*rows)(const Problem&, int64_t head, const void* panels, void* scratch, float* sums, int64_t begin, int64_t end);
  void (*columns)(const Problem&, int64_t head, const float* sums, int64_t parts, int64_t begin, int64_t end);
};

#define EF_DECLARE(isa) \
  namespace isa {       \
  const Kernels& kernels(Storage, bool backward); \
  }
EF_FOR_EACH_ISA(EF_DECLARE)
#undef EF_DECLARE

}  // namespace encoders_fast::block_sparse_attention
