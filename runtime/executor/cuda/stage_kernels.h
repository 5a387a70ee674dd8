// What the executor computes on the GPU beside what kernels/ holds: what only some models need, and
// weights out of nothing.
#ifndef FABRICAST_RUNTIME_EXECUTOR_CUDA_STAGE_KERNELS_H_
#define FABRICAST_RUNTIME_EXECUTOR_CUDA_STAGE_KERNELS_H_

#include <cuda_runtime_api.h>

#include <cstdint>

#include "absl/status/status.h"
#include "kernels/dense/cublaslt.h"
#include "kernels/gpu/gpu_stream.h"

namespace fabricast {

// Whether this program holds code for the current device.
cudaError_t FindCodeForDevice();

// values[r][i] += bias[i] of [rows, columns], row-major.
absl::Status AddBiasF32(const float* bias, int rows, int64_t columns, float* values,
                        const LaunchOptions& options);
absl::Status AddBiasBf16(const float* bias, int rows, int64_t columns, void* values,
                         const LaunchOptions& options);

// Element i is a function of seed and i alone, uniform in [-scale, scale) x sqrt(3): of standard
// deviation `scale`.
absl::Status FillSyntheticDense(uint64_t seed, DenseType type, int64_t count, float scale,
                                void* values, const LaunchOptions& options);
absl::Status FillF32(float value, int64_t count, float* values, const LaunchOptions& options);

}  // namespace fabricast

#endif  // FABRICAST_RUNTIME_EXECUTOR_CUDA_STAGE_KERNELS_H_
