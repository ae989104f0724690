// c (+)= a b for one tile, by at::native::cpublas::brgemm of libtorch: oneDNN's kernels, generated for each shape.
//
// Not of torch's stable ABI, but exported alike by 2.11 and 2.13: weak, so that this library loads where it is missing.
// Call it inside a parallel section, and brgemm_release at its end in the same thread. A kernel is generated at the first
// call of each (M, N, K, leading dimensions, add) in each thread, in 50 us, and kept: a launcher had better use few.
#pragma once

#include <cstdint>
#include <string>

#include "common/cpu/instruction_set.h"

namespace encoders_fast {

// a [M, K], b [K, N] and c [M, N] in float32, rows lda, ldb and ldc apart. In bfloat16 with `vnni` rows of b lie in pairs,
// [K / 2][N][2] with ldb = N, and K is even. A kernel adds term by term: beyond 512 of them float32 has twice the error of
// torch's own products.
using Brgemm = void(int64_t M, int64_t N, int64_t K, int64_t lda, int64_t ldb, int64_t ldc, bool add, const void* a,
                    const void* b, float* c, bool vnni);
__attribute__((weak)) Brgemm brgemm_float32 asm("_ZN2at6native7cpublas6brgemmEllllllbPKfS3_Pfb");
__attribute__((weak)) Brgemm brgemm_bfloat16 asm("_ZN2at6native7cpublas6brgemmEllllllbPKN3c108BFloat16ES5_Pfb");
__attribute__((weak)) void brgemm_release(bool vnni) asm("_ZN2at6native7cpublas14brgemm_releaseEb");

// Empty where it can run, else one sentence. In bfloat16 without AVX512-BF16 it raises, or finds no kernel.
inline std::string brgemm_missing(bool bfloat16) {
  if (!(bfloat16 ? brgemm_bfloat16 : brgemm_float32) || !brgemm_release) return "this torch does not export brgemm";
  const InstructionSet needed = bfloat16 ? InstructionSet::avx512_bf16 : InstructionSet::avx2;
  if (instruction_set() >= needed) return "";
  return std::string("needs ") + name(needed) + (bfloat16 ? " in bfloat16" : "") + "; in use is " +
         name(instruction_set());
}

}  // namespace encoders_fast
