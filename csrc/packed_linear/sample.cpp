// A number made of 64 elements of each weight [N, K], spread over it: where it is another, the weight has changed.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <cstring>
#include <vector>

#include "common/cpu/launch.h"

namespace encoders_fast::packed_linear {
namespace {

int64_t sample(const std::vector<torch::stable::Tensor>& weights) {
  constexpr int64_t count = 64;
  uint64_t hash = 14695981039346656037u;  // FNV-1a, of whole elements
  for (const torch::stable::Tensor& weight : weights) {
    const int64_t N = weight.size(0), K = weight.size(1), bytes = bytes_of(storage_of(weight, "packed_linear"));
    const char* const elements = static_cast<const char*>(weight.const_data_ptr());
    uint64_t place = 0;
    for (int64_t i = 0; i < count; i++) {
      place += 0x9E3779B97F4A7C15u;  // golden section: even steps, in no row or column alone
      const int64_t at = int64_t(static_cast<unsigned __int128>(place) * uint64_t(N * K) >> 64);
      uint32_t element = 0;
      std::memcpy(&element, elements + (at / K * weight.stride(0) + at % K * weight.stride(1)) * bytes, bytes);
      hash = (hash ^ element) * 1099511628211u;
    }
  }
  return int64_t(hash);
}

}  // namespace
}  // namespace encoders_fast::packed_linear

STABLE_TORCH_LIBRARY_IMPL(encoders_fast_native, CPU, m) {
  m.impl("packed_linear_sample", TORCH_BOX(&encoders_fast::packed_linear::sample));
}
