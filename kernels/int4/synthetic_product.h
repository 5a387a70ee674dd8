// Checks products with FillSyntheticInt4's weights on the GPU, at any size: what benchmarks verify
// against. The weights come from their definition, not from packed blocks.
#ifndef FABRICAST_KERNELS_INT4_SYNTHETIC_PRODUCT_H_
#define FABRICAST_KERNELS_INT4_SYNTHETIC_PRODUCT_H_

#include <cstdint>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/gpu/gpu_stream.h"
#include "kernels/int4/gemm_output.h"

namespace fabricast {

// FP64 [tokens, outputs] = x w^T, summed in float64. `x`: BF16 [tokens, inputs], row-major.
absl::Status SyntheticProduct(uint64_t seed, int64_t outputs, int64_t inputs, const void* x,
                              int tokens, double* to, const LaunchOptions& options);

// ||output - expected|| / ||expected|| over all elements; NaN if one of them is. Waits for the GPU.
absl::StatusOr<double> RelativeError(const double* expected, const GemmOutput& output, int tokens,
                                     int64_t outputs, GpuStream stream);

// BF16 values, about normal, that depend on seed and index alone.
absl::Status FillNormalBf16(uint64_t seed, void* to, int64_t count, const LaunchOptions& options);

}  // namespace fabricast

#endif  // FABRICAST_KERNELS_INT4_SYNTHETIC_PRODUCT_H_
