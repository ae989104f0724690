// The types that tensors are stored in. Plain data, for launchers and kernels.
#pragma once

namespace encoders_fast {

enum class Storage { float32, bfloat16, float16 };

}  // namespace encoders_fast
