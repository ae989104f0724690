// What the kernels of every instruction set offer to the launcher. Plain data, no torch, no STL.
#pragma once
#include <cstdint>

#include "common/cpu/storage.h"
#include "fourier_mixing/plan.h"

namespace encoders_fast {

// mix:       y = M(x)
// normalize: y = LayerNorm(x + M(x)) * weight + bias
// gradient:  y = d + M(d), where d is the gradient that `normalize` passes to its sum
// M is the real part of the Fourier transform over tokens and width, times scale.
enum class Mode { mix, normalize, gradient };

// One sample: pointers to its [tokens, width] rows in `storage`, or float32 where a float pointer says so.
struct Sample {
  Mode mode;
  Storage storage;
  int64_t tokens, width;
  const Plan* token_plan;
  const Plan* width_plan;
  // Where the width is a multiple of the lanes: a plan for part = width / lanes, and exp(-2 pi i l k / width) for
  // k < part, rounded up to tiles of as many k as lanes, as [tile][l < lanes][real, imaginary][k]. Null otherwise.
  const Plan* part_plan;
  const float* lane_twiddles;
  const void* x;  // for `gradient`: dy
  void* y;
  float scale;
  bool streams;  // y goes past the caches, where the instruction set can do that; its rows start on cache lines then
  const float* weight;  // [width], null for `mix`
  const float* bias;    // [width], for `normalize`
  float eps;
  void* normalized;  // written by `normalize` if not null, read by `gradient`
  float* rstd;       // [tokens], as `normalized`
};

// The three passes over a sample. Each splits its work into items that may run on any thread in any order, with a barrier
// between the passes:
//   fold     item t <= tokens / 2: rows t and -t of x, folded onto half the columns of `spectrum`
//   columns  item g: transforms over the tokens, in place, of one group of columns
//   rows     item g: transforms over the width of some rows, and the rows of y that come from them
// `scratch` belongs to the thread. `gradient`'s fold adds to `dweight` and
// `dbias` [width], in float64: a sum over thousands of rows would lose digits otherwise.
struct Kernels {
  int64_t (*column_groups)(const Sample&);
  int64_t (*row_items)(const Sample&);
  int64_t (*spectrum_floats)(const Sample&);
  int64_t (*scratch_floats)(const Sample&);
  void (*fold)(const Sample&, float* spectrum, float* scratch, double* dweight, double* dbias, int64_t begin, int64_t end);
  void (*columns)(const Sample&, float* spectrum, float* scratch, int64_t begin, int64_t end);
  void (*rows)(const Sample&, const float* spectrum, float* scratch, int64_t begin, int64_t end);
};

}  // namespace encoders_fast
