// residual_layer_norm on the CPU: shares out the rows among torch's threads. Arguments were checked in op.py; here they
// are only put into the form that the kernels take.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <optional>
#include <tuple>
#include <vector>

#include "common/cpu/instruction_set.h"
#include "common/cpu/draw.h"
#include "common/cpu/launch.h"
#include "residual_layer_norm/cpu_kernels.h"

namespace encoders_fast::residual_layer_norm {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

int64_t width_of(const Tensor& x) { return x.size(x.dim() - 1); }

// Memory is read before it is written through a cache, and for results that no cache will keep that is time lost: with
// them streamed, (8, 512, 768) took 1.37 ms instead of 1.71 in float32 and 0.71 instead of 0.78 in float16; (1, 512, 2560)
// in float16, 2.6 MB, took as long either way, and who reads it next finds it in the third-level cache otherwise (two
// cores of a 2.6 GHz Zen 4 with 32 MB of that). See fourier_mixing for a CPU on which streaming was the slower way.
bool streams(const Tensor& to, const Tensor& other, int64_t row_bytes) {
  constexpr int64_t cached = 4 << 20, line = 64;
  const auto on_line = [](const Tensor& t) { return reinterpret_cast<uintptr_t>(t.const_data_ptr()) % line == 0; };
  return instruction_set() == InstructionSet::avx512_bf16 && to.numel() / width_of(to) * row_bytes > cached &&
         row_bytes % line == 0 && on_line(to) && on_line(other);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> forward(
    const Tensor& x_, const Tensor& residual_, const Tensor& weight_, const Tensor& bias_, double eps,
    double dropout_p, const std::optional<Tensor>& rng_state) {
  const Tensor x = dense(x_), residual = dense(residual_);
  const int64_t width = width_of(x), rows = x.numel() / width;
  const Storage storage = storage_of(x, "residual_layer_norm");
  const std::vector<float> weight = padded(weight_, width), bias = padded(bias_, width);
  const std::optional<Dropout> dropout = dropout_of(dropout_p, rng_state);
  std::vector<int64_t> leading(x.sizes().begin(), x.sizes().end() - 1);
  Tensor y = torch::stable::empty_like(x), s = torch::stable::empty_like(x);
  Tensor mean = torch::stable::new_empty(x, leading, ScalarType::Float), rstd = torch::stable::empty_like(mean);
  const Forward task = {width, x.const_data_ptr(), residual.const_data_ptr(), weight.data(), bias.data(), float(eps),
                        dropout ? &*dropout : nullptr, y.mutable_data_ptr(), s.mutable_data_ptr(),
                        mean.mutable_data_ptr<float>(), rstd.mutable_data_ptr<float>(),
                        streams(y, s, width * bytes_of(storage))};
  const Kernels& kernels = EF_SELECT(kernels)(storage, dropout.has_value());
  const int64_t workers = workers_for_elements(x.numel()), room = kernels.scratch_floats(width);
  Tensor scratch = floats(x, workers * room);
  float* const memory = scratch.mutable_data_ptr<float>();
  on_each_worker(workers, [&](int64_t worker) {
    kernels.forward(task, memory + worker * room, rows * worker / workers, rows * (worker + 1) / workers);
  });
  return {y, s, mean, rstd};
}

// The sum over the parts, in their order, in `like`'s dtype.
Tensor parameter_gradient(const float* parts, int64_t count, int64_t stride, const Tensor& like) {
  const int64_t width = like.size(0);
  std::vector<double> totals(width);
  for (int64_t part = 0; part < count; part++)
    for (int64_t i = 0; i < width; i++) totals[i] += parts[part * stride + i];
  Tensor sums = floats(like, width);
  std::copy(totals.begin(), totals.end(), sums.mutable_data_ptr<float>());
  return torch::stable::to(sums, like.scalar_type());
}

// Rows whose parameter gradients are summed in float32 before float64 takes over: whatever the number of threads, so that
// this changes no bit. Fewer would cost: 32 add 1 / 32 of the traffic of dy and s in float32.
int64_t rows_of_a_part(int64_t rows) { return std::max<int64_t>(32, (rows + 127) / 128); }

std::tuple<Tensor, Tensor, Tensor, Tensor> backward(
    const Tensor& dy_, const std::optional<Tensor>& ds_, const Tensor& s_, const Tensor& weight_, const Tensor& mean_,
    const Tensor& rstd_, double dropout_p, const std::optional<Tensor>& rng_state) {
  const Tensor dy = dense(dy_), s = dense(s_), mean = dense(mean_), rstd = dense(rstd_);
  const Tensor ds = ds_ ? dense(*ds_) : s;
  const int64_t width = width_of(s), rows = s.numel() / width;
  const Storage storage = storage_of(s, "residual_layer_norm");
  const std::vector<float> weight = padded(weight_, width);
  const std::optional<Dropout> dropout = dropout_of(dropout_p, rng_state);
  Tensor dresidual = torch::stable::empty_like(s);
  Tensor dx = dropout ? torch::stable::empty_like(s) : torch::stable::new_empty(s, {0});
  const Backward task = {width, dy.const_data_ptr(), ds_ ? ds.const_data_ptr() : nullptr, s.const_data_ptr(),
                         weight.data(), mean.const_data_ptr<float>(), rstd.const_data_ptr<float>(),
                         dropout ? &*dropout : nullptr, dx.mutable_data_ptr(), dresidual.mutable_data_ptr(),
                         streams(dresidual, dropout ? dx : dresidual, width * bytes_of(storage))};
  const Kernels& kernels = EF_SELECT(kernels)(storage, dropout.has_value());
  const int64_t step = rows_of_a_part(rows), parts = (rows + step - 1) / step, stride = (width + 15) / 16 * 16;
  const int64_t workers = std::min(parts, workers_for_elements(s.numel())), room = kernels.scratch_floats(width);
  Tensor memory = floats(s, 2 * parts * stride + workers * room);
  float *const dweight = memory.mutable_data_ptr<float>(), *const dbias = dweight + parts * stride;
  float* const scratch = dbias + parts * stride;
  on_each_worker(workers, [&](int64_t worker) {
    for (int64_t part = parts * worker / workers; part < parts * (worker + 1) / workers; part++)
      kernels.backward(task, scratch + worker * room, dweight + part * stride, dbias + part * stride, part * step,
                       std::min(rows, (part + 1) * step));
  });
  return {dx, dresidual, parameter_gradient(dweight, parts, stride, weight_),
          parameter_gradient(dbias, parts, stride, weight_)};
}

}  // namespace
}  // namespace encoders_fast::residual_layer_norm

STABLE_TORCH_LIBRARY_IMPL(encoders_fast_native, CPU, m) {
  m.impl("residual_layer_norm", TORCH_BOX(&encoders_fast::residual_layer_norm::forward));
  m.impl("residual_layer_norm_backward", TORCH_BOX(&encoders_fast::residual_layer_norm::backward));
}
