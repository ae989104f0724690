// fourier_mixing on the CPU: shares out the samples and their passes among torch's threads. Arguments were checked in
// op.py; here they are only put into the form that the kernels take.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <tuple>
#include <vector>

#include "common/cpu/instruction_set.h"
#include "common/cpu/launch.h"
#include "fourier_mixing/cpu_kernels.h"
#include "fourier_mixing/cpu_plan.h"

namespace encoders_fast {

#define EF_DECLARE(isa) \
  namespace isa {                                          \
  const Kernels& fourier_mixing_kernels(Mode, Storage);    \
  int fourier_mixing_lanes();                              \
  }
EF_FOR_EACH_ISA(EF_DECLARE)
#undef EF_DECLARE

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// [batch, tokens, width] samples, all as `first`, one after the other in memory.
struct Batch {
  Sample first;
  int64_t size;
  double* dweight = nullptr;  // [workers][stride], zeros at first, for `gradient`
  double* dbias = nullptr;
  int64_t parameter_stride = 0;

  Sample sample(int64_t b) const {
    Sample s = first;
    const int64_t elements = b * s.tokens * s.width, bytes = elements * bytes_of(s.storage);
    s.x = static_cast<const char*>(s.x) + bytes;
    s.y = static_cast<char*>(s.y) + bytes;
    if (s.normalized) s.normalized = static_cast<char*>(s.normalized) + bytes;
    if (s.rstd) s.rstd += b * s.tokens;
    return s;
  }
};

int64_t workers_for(const Batch& batch) {
  return workers_for_elements(batch.size * batch.first.tokens * batch.first.width);
}

// As many samples as divide evenly go to one worker each, which keeps a sample's spectrum in its own cache; the workers
// share each sample of the rest.
void run(const Batch& batch, const Kernels& kernels, const Tensor& like) {
  const int64_t workers = workers_for(batch), whole = batch.size / workers * workers;
  const Sample& first = batch.first;
  const int64_t spectrum_floats = kernels.spectrum_floats(first), scratch_floats = kernels.scratch_floats(first);
  Tensor memory = floats(like, (whole ? workers : 1) * spectrum_floats + workers * scratch_floats);
  float* spectra = memory.mutable_data_ptr<float>();
  float* scratches = spectra + (whole ? workers : 1) * spectrum_floats;
  const int64_t pairs = first.tokens / 2 + 1, columns = kernels.column_groups(first), rows = kernels.row_items(first);

  if (whole) on_each_worker(workers, [&](int64_t worker) {
    float *spectrum = spectra + worker * spectrum_floats, *scratch = scratches + worker * scratch_floats;
    const int64_t parameters = worker * batch.parameter_stride;
    for (int64_t b = worker * (whole / workers); b < (worker + 1) * (whole / workers); b++) {
      const Sample s = batch.sample(b);
      kernels.fold(s, spectrum, scratch, batch.dweight + parameters, batch.dbias + parameters, 0, pairs);
      kernels.columns(s, spectrum, scratch, 0, columns);
      kernels.rows(s, spectrum, scratch, 0, rows);
    }
  });
  for (int64_t b = whole; b < batch.size; b++) {
    const Sample s = batch.sample(b);
    const auto share = [&](int64_t items, auto pass) {
      on_each_worker(workers, [&](int64_t worker) {
        const int64_t begin = items * worker / workers, end = items * (worker + 1) / workers;
        if (begin < end) pass(worker, scratches + worker * scratch_floats, begin, end);
      });
    };
    share(pairs, [&](int64_t worker, float* scratch, int64_t begin, int64_t end) {
      const int64_t parameters = worker * batch.parameter_stride;
      kernels.fold(s, spectra, scratch, batch.dweight + parameters, batch.dbias + parameters, begin, end);
    });
    share(columns, [&](int64_t, float* scratch, int64_t begin, int64_t end) {
      kernels.columns(s, spectra, scratch, begin, end);
    });
    share(rows, [&](int64_t, float* scratch, int64_t begin, int64_t end) {
      kernels.rows(s, spectra, scratch, begin, end);
    });
  }
}

struct Plans {
  std::shared_ptr<const Plan> tokens, width;
  std::shared_ptr<const LanePlan> lanes;
  explicit Plans(const Tensor& x) : tokens(plan_for(x.size(1))), width(plan_for(x.size(2))) {
    const int64_t lane_count = EF_SELECT(fourier_mixing_lanes)();
    if (x.size(2) % lane_count == 0) lanes = lane_plan_for(x.size(2), lane_count);
  }
};

// Memory is read before it is written through a cache, and for results that do not fit the second-level caches that is
// time lost: with these rows streamed, (512, 768) in float32 took 390 us instead of 500 (x and y in memory, one core of a
// 2.6 GHz Zen 4). On a 2.5 GHz Cascade Lake streaming was the slower way, 225 us against 125 for 1.5 MB.
bool streams(const Tensor& y, int64_t row_bytes) {
  constexpr int64_t cached = 1 << 20, line = 64;
  return instruction_set() == InstructionSet::avx512_bf16 && y.numel() / y.size(2) * row_bytes > cached &&
         row_bytes % line == 0 && reinterpret_cast<uintptr_t>(y.const_data_ptr()) % line == 0;
}

Batch batch_of(Mode mode, const Tensor& x, Tensor& y, const Plans& plans, double scale) {
  Sample s{};
  s.mode = mode;
  s.storage = storage_of(x, "fourier_mixing");
  s.tokens = x.size(1);
  s.width = x.size(2);
  s.token_plan = plans.tokens.get();
  s.width_plan = plans.width.get();
  if (plans.lanes) {
    s.part_plan = plans.lanes->part.get();
    s.lane_twiddles = plans.lanes->twiddles();
  }
  s.x = x.const_data_ptr();
  s.y = y.mutable_data_ptr();
  s.streams = streams(y, s.width * bytes_of(s.storage));
  s.scale = float(scale / 4);  // 1 / 2 of the fold and 1 / 2 of the separation
  return {s, x.size(0)};
}

const Kernels& kernels_for(const Batch& batch) {
  return EF_SELECT(fourier_mixing_kernels)(batch.first.mode, batch.first.storage);
}

Tensor mix(const Tensor& input, double scale) {
  const Tensor x = dense(input);
  Tensor y = torch::stable::empty_like(x);
  const Plans plans(x);
  const Batch batch = batch_of(Mode::mix, x, y, plans, scale);
  run(batch, kernels_for(batch), x);
  return y;
}

std::tuple<Tensor, Tensor, Tensor> normalize(
    const Tensor& input, const Tensor& weight, const Tensor& bias, double eps, double scale, bool keep) {
  const Tensor x = dense(input);
  Tensor y = torch::stable::empty_like(x);
  Tensor normalized = keep ? torch::stable::empty_like(x) : torch::stable::new_empty(x, {0});
  Tensor rstd = keep ? torch::stable::new_empty(x, {x.size(0), x.size(1)}, ScalarType::Float) : floats(x, 0);
  const std::vector<float> wide_weight = padded(weight, x.size(2)), wide_bias = padded(bias, x.size(2));
  const Plans plans(x);
  Batch batch = batch_of(Mode::normalize, x, y, plans, scale);
  batch.first.weight = wide_weight.data();
  batch.first.bias = wide_bias.data();
  batch.first.eps = float(eps);
  if (keep) batch.first.normalized = normalized.mutable_data_ptr(), batch.first.rstd = rstd.mutable_data_ptr<float>();
  run(batch, kernels_for(batch), x);
  return {y, normalized, rstd};
}

// Sum over the workers' parts, in their order: the same bits every time.
Tensor parameter_gradient(const double* parts, int64_t workers, int64_t stride, const Tensor& like) {
  Tensor sums = floats(like, like.size(0));
  float* to = sums.mutable_data_ptr<float>();
  for (int64_t i = 0; i < like.size(0); i++) {
    double total = 0;
    for (int64_t worker = 0; worker < workers; worker++) total += parts[worker * stride + i];
    to[i] = float(total);
  }
  return torch::stable::to(sums, like.scalar_type());
}

std::tuple<Tensor, Tensor, Tensor> normalize_backward(
    const Tensor& gradient, const Tensor& weight, const Tensor& normalized_, const Tensor& rstd_, double scale) {
  const Tensor dy = dense(gradient), normalized = dense(normalized_), rstd = dense(rstd_);
  const std::vector<float> wide_weight = padded(weight, dy.size(2));
  Tensor dx = torch::stable::empty_like(dy);
  const Plans plans(dy);
  Batch batch = batch_of(Mode::gradient, dy, dx, plans, scale);
  batch.first.weight = wide_weight.data();
  batch.first.normalized = const_cast<void*>(normalized.const_data_ptr());
  batch.first.rstd = const_cast<float*>(rstd.const_data_ptr<float>());
  const int64_t workers = workers_for(batch), stride = dy.size(2) + 16;
  Tensor parts = torch::stable::new_empty(dy, {2 * workers * stride}, ScalarType::Double);
  batch.parameter_stride = stride;
  batch.dweight = parts.mutable_data_ptr<double>();
  batch.dbias = batch.dweight + workers * stride;
  std::fill_n(batch.dweight, 2 * workers * stride, 0.0);
  run(batch, kernels_for(batch), dy);
  return {dx, parameter_gradient(batch.dweight, workers, stride, weight),
          parameter_gradient(batch.dbias, workers, stride, weight)};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(encoders_fast_native, CPU, m) {
  m.impl("fourier_mixing", TORCH_BOX(&mix));
  m.impl("fourier_mixing_layer_norm", TORCH_BOX(&normalize));
  m.impl("fourier_mixing_layer_norm_backward", TORCH_BOX(&normalize_backward));
}

}  // namespace encoders_fast
