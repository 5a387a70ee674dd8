// Tensors of a checkpoint as the GPU takes them, where that is not as they lie in their file.
#ifndef FABRICAST_RUNTIME_EXECUTOR_CUDA_HOST_TENSORS_H_
#define FABRICAST_RUNTIME_EXECUTOR_CUDA_HOST_TENSORS_H_

#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "runtime/executor/cuda/stage_shape.h"
#include "runtime/weights/stage_weights.h"
#include "runtime/weights/tensor.h"

namespace fabricast {

// Exactly; of BF16, F16 and F32.
std::vector<float> ToFloats(const Tensor& tensor);

// The bits of BF16 or F16, rounded to nearest, ties to even.
std::vector<uint16_t> ToHalves(absl::Span<const float> floats, MatrixFormat format);

// [out, in] of (q - z) * s, in float.
std::vector<float> Dequantize(const AwqWeights& weights, int64_t in, int64_t out);

}  // namespace fabricast

#endif  // FABRICAST_RUNTIME_EXECUTOR_CUDA_HOST_TENSORS_H_
