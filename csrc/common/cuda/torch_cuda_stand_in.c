// An empty libtorch_cuda.so to link against where torch was built without CUDA, so that such a machine proves that the
// CUDA library compiles and links. It is never installed and never loaded. Listed are the functions of torch's stable ABI
// that live in libtorch_cuda.so in torch 2.11: a launcher that needs another torch function fails to link here, as it should.
#define STAND_IN(function) \
  void function(void) {}

STAND_IN(aoti_torch_create_cuda_guard)
STAND_IN(aoti_torch_delete_cuda_guard)
STAND_IN(aoti_torch_cuda_guard_set_index)
STAND_IN(aoti_torch_create_cuda_stream_guard)
STAND_IN(aoti_torch_delete_cuda_stream_guard)
STAND_IN(aoti_torch_get_current_cuda_stream)
STAND_IN(torch_get_current_cuda_blas_handle)
STAND_IN(torch_set_current_cuda_stream)
STAND_IN(torch_get_cuda_stream_from_pool)
STAND_IN(torch_cuda_stream_synchronize)
STAND_IN(torch_c10_cuda_check_msg)
STAND_IN(torch_c10_cuda_free_error_msg)
