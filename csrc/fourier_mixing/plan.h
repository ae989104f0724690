// How a discrete Fourier transform of one length is computed. Shared by the launcher, which makes plans, and the kernels,
// which read them: plain data, no torch, no STL.
#pragma once
#include <cstdint>

namespace encoders_fast {

// One stage splits blocks of `length` entries into `radix` interleaved blocks of length / radix. Twiddle (j, p), for
// j < length / radix and 0 < p < radix, is exp(-2 pi i j p / length) at twiddles[2 * (j * (radix - 1) + p - 1)].
struct Stage {
  int32_t radix;
  int32_t length;
  const float* twiddles;
};

struct Plan {
  int64_t length;
  // The transform happens in place and leaves frequency k at entry position[k].
  const int32_t* position;
  int32_t stage_count;
  Stage stages[32];
  // A length with a prime factor above 7 (Bluestein, 1970): multiply by chirp[n] = exp(-pi i n^2 / length), convolve with
  // its conjugate by transforms of the longer length of `convolution`, multiply by chirp[k]. `response` is the transform
  // of the conjugate chirp, by frequency, divided by that length. Pairs (real, imaginary); null for other lengths.
  const Plan* convolution;
  const float* chirp;
  const float* response;
};

}  // namespace encoders_fast
