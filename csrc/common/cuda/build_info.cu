// How the CUDA library was built: torch.ops.encoders_fast_native.cuda_build_info().
#include <cuda_runtime.h>
#include <torch/csrc/stable/library.h>

#include <string>

#include "common/build_info.h"

namespace encoders_fast {
namespace {

// Does nothing. The runtime tells from it which of the compiled targets the present GPU takes.
__global__ void probe() {}

std::string target_in_use() {
  cudaFuncAttributes attributes;
  const cudaError_t error = cudaFuncGetAttributes(&attributes, probe);
  if (error != cudaSuccess) return std::string("none: ") + cudaGetErrorString(error);
  return "sm_" + std::to_string(attributes.binaryVersion);
}

std::string cuda_build_info() {
  const std::string nvcc = std::to_string(__CUDACC_VER_MAJOR__) + "." + std::to_string(__CUDACC_VER_MINOR__) + "." +
                           std::to_string(__CUDACC_VER_BUILD__);
  return std::string("{") + common_build_info() + ", \"nvcc\": \"" + nvcc +
         "\", \"targets\": \"" EF_CUDA_TARGETS "\", \"target_in_use\": \"" + target_in_use() + "\"}";
}

}  // namespace
}  // namespace encoders_fast

STABLE_TORCH_LIBRARY_IMPL(encoders_fast_native, CompositeExplicitAutograd, library) {
  library.impl("cuda_build_info", TORCH_BOX(&encoders_fast::cuda_build_info));
}
