// A number made of 64 elements of each weight [N, K], spread over it: where it is another, the weight has changed.
//
// They lie in four rows, sixteen along each, so that no quarter of the rows and no eighth of the columns changes unseen.
// Weights that are packed are in no cache, and a page of memory has to be found first: 64 places anywhere in a weight would be as
// many pages.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <cstring>
#include <vector>

#include "common/cpu/launch.h"

namespace encoders_fast::packed_linear {
namespace {

constexpr int64_t rows = 4, columns = 16;

class Sampled {
 public:
  explicit Sampled(const torch::stable::Tensor& weight)
      : data_(static_cast<const char*>(weight.const_data_ptr())), N_(weight.size(0)), K_(weight.size(1)),
        row_(weight.stride(0)), column_(weight.stride(1)), bytes_(bytes_of(storage_of(weight, "packed_linear"))) {}

  void will_read() const {
    for (int64_t i = 0; i < rows; i++)
      for (int64_t j = 0; j < columns; j++) __builtin_prefetch(address(i, j));
  }

  uint64_t hash() const {
    uint64_t hash = 14695981039346656037u;  // FNV-1a, of whole elements
    for (int64_t i = 0; i < rows; i++)
      for (int64_t j = 0; j < columns; j++) {
        uint32_t element = 0;
        std::memcpy(&element, address(i, j), bytes_);
        hash = (hash ^ element) * 1099511628211u;
      }
    return hash;
  }

 private:
  // Rows in golden sections; columns in even steps, which begin at another one in each row.
  const char* address(int64_t i, int64_t j) const {
    const uint64_t fraction = uint64_t(i + 1) * 0x9E3779B97F4A7C15u;
    const int64_t row = int64_t(static_cast<unsigned __int128>(fraction) * uint64_t(N_) >> 64);
    const int64_t column = (4 * j + i) * K_ / (4 * columns);
    return data_ + (row * row_ + column * column_) * bytes_;
  }

  const char* data_;
  int64_t N_, K_, row_, column_, bytes_;
};

int64_t sample(const std::vector<torch::stable::Tensor>& weights) {
  const int64_t count = weights.size();
  std::vector<uint64_t> hashes(count);
  const auto sample_of = [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) {
      if (i == begin) Sampled(weights[i]).will_read();
      if (i + 1 < end) Sampled(weights[i + 1]).will_read();
      hashes[i] = Sampled(weights[i]).hash();
    }
  };
  constexpr int64_t worth_waking = 32;  // weights: fewer are done before other threads have woken up
  if (count < worth_waking) sample_of(0, count);
  else torch::stable::parallel_for(0, count, worth_waking / 2, sample_of);
  uint64_t hash = 14695981039346656037u;
  for (const uint64_t each : hashes) hash = (hash ^ each) * 1099511628211u;
  return int64_t(hash);
}

}  // namespace
}  // namespace encoders_fast::packed_linear

STABLE_TORCH_LIBRARY_IMPL(encoders_fast_native, CPU, m) {
  m.impl("packed_linear_sample", TORCH_BOX(&encoders_fast::packed_linear::sample));
}
