// Every native operator, one line each: the table of contents of csrc/.
//
// These are the raw kernels. They live in the namespace `encoders_fast_native`, which exists only where this library
// was compiled; the public operators, in `encoders_fast`, are defined from Python so that they exist everywhere.
// A folder csrc/<op>/ registers its implementations itself, at the bottom of cpu.cpp (key CPU) and cuda.cu (key CUDA).
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(encoders_fast_native, library) {
  // How the libraries were built, as JSON: csrc/common/cpu/build_info.cpp and csrc/common/cuda/build_info.cu.
  library.def("build_info() -> str");
  library.def("cuda_build_info() -> str");

  // scale multiplies the transform; normalized and rstd are empty without `keep`.
  library.def("fourier_mixing(Tensor x, float scale) -> Tensor");
  library.def(
      "fourier_mixing_layer_norm(Tensor x, Tensor weight, Tensor bias, float eps, float scale, bool keep)"
      " -> (Tensor y, Tensor normalized, Tensor rstd)");
  library.def(
      "fourier_mixing_layer_norm_backward(Tensor dy, Tensor weight, Tensor normalized, Tensor rstd, float scale)"
      " -> (Tensor dx, Tensor dweight, Tensor dbias)");

  // The first three lists of a BlockSparsePattern; the padding masks are bool, True for what counts, the
  // head mask is float32.
  library.def(
      "block_sparse_attention(Tensor query, Tensor key, Tensor value, Tensor row_starts, Tensor columns,"
      " Tensor multiplicities, int block, bool causal, Tensor? key_padding_mask, Tensor? query_padding_mask,"
      " Tensor? head_mask, Tensor? rng_state, float dropout_p, float scale) -> (Tensor out, Tensor log_sum_exp)");
  library.def(
      "block_sparse_attention_backward(Tensor dy, Tensor? dlog_sum_exp, Tensor query, Tensor key, Tensor value,"
      " Tensor log_sum_exp, Tensor row_starts, Tensor columns, Tensor multiplicities, int block, bool causal,"
      " Tensor? key_padding_mask, Tensor? query_padding_mask, Tensor? head_mask, Tensor? rng_state, float dropout_p,"
      " float scale) -> (Tensor dquery, Tensor dkey, Tensor dvalue)");

  // dx is empty without dropout: it is dresidual.
  library.def(
      "residual_layer_norm(Tensor x, Tensor residual, Tensor weight, Tensor bias, float eps, float dropout_p,"
      " Tensor? rng_state) -> (Tensor y, Tensor s, Tensor mean, Tensor rstd)");
  library.def(
      "residual_layer_norm_backward(Tensor dy, Tensor? ds, Tensor s, Tensor weight, Tensor mean, Tensor rstd,"
      " float dropout_p, Tensor? rng_state) -> (Tensor dx, Tensor dresidual, Tensor dweight, Tensor dbias)");

  // Why brgemm cannot run, or nothing; weights [N, K] in its order, and a number made of some of their elements; act(x W^T +
  // bias) + residual for x [M, K] and each weight, which are packed on the way without `packed`.
  library.def("packed_linear_missing(bool bfloat16) -> str");
  library.def("packed_linear_pack(Tensor[] weights) -> Tensor");
  library.def("packed_linear_sample(Tensor[] weights) -> int");
  library.def(
      "packed_linear(Tensor x, Tensor? packed, Tensor[] weights, Tensor?[] biases, int activation, Tensor? residual)"
      " -> Tensor[]");
  // The sum of dz_i W_i; dz_i^T x for every i, and with `bias` the sums of dz_i's columns behind them.
  library.def("packed_linear_input_gradient(Tensor[] dz, Tensor[] weights) -> Tensor");
  library.def("packed_linear_weight_gradients(Tensor[] dz, Tensor x, bool bias) -> Tensor[]");

  // One weight under the other, of so many rows each, in panels; then MobileBERT's layer in front of its attention and behind
  // it. What of a list of weights multiplies the same input stands in one `panels`: csrc/bottleneck/cpu.cpp.
  library.def("bottleneck_pack(Tensor weights, int[] rows) -> Tensor");
  library.def(
      "bottleneck_input(Tensor h, Tensor wide_panels, Tensor? narrow_panels, Tensor[] biases, Tensor[] norms, float[] eps,"
      " bool from_bottleneck) -> (Tensor q, Tensor k, Tensor v, Tensor u0)");
  library.def(
      "bottleneck_ffn(Tensor attention, Tensor u0, Tensor? h, Tensor output_panels, Tensor expand_panels,"
      " Tensor contract_panels, Tensor[] biases, Tensor[] norms, float[] eps, int activation, float dropout_p,"
      " Tensor? rng_state) -> Tensor");
  // All layers in a row with attention between the two, of sequences of such lengths that lie end to end in h. The lists have
  // those of one layer after those of another, `eps` are of one, and `panels` are those of the two above in the order in which
  // they take them. key_real is [rows], head_factors float32 [layers, sequences, heads]. Empty where layers differ.
  library.def(
      "bottleneck_layers(Tensor h, Tensor panels, Tensor[] input_biases, Tensor[] input_norms, float[] input_eps,"
      " bool from_bottleneck, Tensor[] ffn_biases, Tensor[] ffn_norms, float[] ffn_eps, int activation, int heads, float scale,"
      " int[] lengths, Tensor? key_real, Tensor? head_factors) -> Tensor");
}
