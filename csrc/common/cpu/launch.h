// What launchers do with tensors and threads before and around a kernel. For .cpp files: it includes torch and the STL.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <array>
#include <vector>

#include "common/cpu/storage.h"

namespace encoders_fast {

inline Storage storage_of(const torch::stable::Tensor& x, const char* op) {
  using torch::headeronly::ScalarType;
  switch (x.scalar_type()) {
    case ScalarType::Float: return Storage::float32;
    case ScalarType::BFloat16: return Storage::bfloat16;
    case ScalarType::Half: return Storage::float16;
    default: STD_TORCH_CHECK(false, op, ": x must be float32, bfloat16 or float16");
  }
}

inline int64_t bytes_of(Storage storage) { return storage == Storage::float32 ? 4 : 2; }

inline torch::stable::Tensor floats(const torch::stable::Tensor& like, int64_t count) {
  return torch::stable::new_empty(like, {count}, torch::headeronly::ScalarType::Float);
}

// With the dtype and the device of `like`. torch::stable has no function for it.
inline torch::stable::Tensor new_empty_strided(
    const torch::stable::Tensor& like, const std::vector<int64_t>& sizes, const std::vector<int64_t>& strides) {
  using torch::stable::detail::from;
  std::array<StableIValue, 7> stack{from(like), from(sizes), from(strides), from(std::nullopt), from(std::nullopt),
                                    from(std::nullopt), from(std::nullopt)};
  STABLE_TORCH_ERROR_CODE_CHECK(
      torch_call_dispatcher("aten::new_empty_strided", "", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<torch::stable::Tensor>(stack[0]);
}

// Through the dispatcher only where there is something to do: each such call costs 2 us.
inline torch::stable::Tensor dense(const torch::stable::Tensor& tensor) {
  return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
}

// A [width] parameter as float32, with zeros behind it to the end of a vector of any instruction set.
inline std::vector<float> padded(const torch::stable::Tensor& parameter, int64_t width) {
  using torch::headeronly::ScalarType;
  const bool wide = parameter.scalar_type() == ScalarType::Float;
  const torch::stable::Tensor from = dense(wide ? parameter : torch::stable::to(parameter, ScalarType::Float));
  std::vector<float> to(width + 16);
  std::copy_n(from.const_data_ptr<float>(), width, to.begin());
  return to;
}

// Fewer elements than this are not worth the 5 us that waking the threads takes.
constexpr int64_t worth_threads = 16384;

inline int64_t workers_for_elements(int64_t elements) {
  return elements < worth_threads ? 1 : std::max<int64_t>(1, torch::stable::get_num_threads());
}

template <typename Function>
void on_each_worker(int64_t workers, Function function) {
  if (workers == 1) return function(0);
  torch::stable::parallel_for(0, workers, 1, [&](int64_t begin, int64_t end) {
    for (int64_t worker = begin; worker < end; worker++) function(worker);
  });
}

}  // namespace encoders_fast
