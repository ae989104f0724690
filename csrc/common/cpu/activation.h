// The activation functions that kernels know, in the order of ACTIVATIONS in encoders_fast/ops/packed_linear/checks.py.
#pragma once

namespace encoders_fast {

enum class Activation { none, relu, gelu, gelu_tanh, silu };

}  // namespace encoders_fast
