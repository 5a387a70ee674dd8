// Matrix products with INT4 weights for many tokens: some rows of the weights at a time are
// dequantised to BF16 scratch, which cuBLASLt multiplies.
#ifndef FABRICAST_KERNELS_DENSE_INT4_MANY_TOKENS_H_
#define FABRICAST_KERNELS_DENSE_INT4_MANY_TOKENS_H_

#include <cstdint>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/dense/cublaslt.h"
#include "kernels/gpu/gpu_stream.h"
#include "kernels/int4/activations.h"
#include "kernels/int4/gemm_output.h"
#include "kernels/int4/int4_matrix.h"

namespace fabricast {

// `input` in ActivationFormat::kBf16Rows; output as CublasLt::Multiply's. `scratch`:
// `scratch_bytes`
// >= 128 rows of the weights in BF16 (Int4ManyTokensScratchBytes is what is fast), 256-byte
// aligned. `workspace`: cublas.workspace_bytes().
//
// kInvalidArgument if formats or sizes do not fit together.
absl::Status Int4ManyTokens(CublasLt& cublas, const Int4Matrix& weights, const Activations& input,
                            const GemmOutput& output, void* scratch, int64_t scratch_bytes,
                            void* workspace, const LaunchOptions& options);
int64_t Int4ManyTokensScratchBytes(int64_t inputs);

// Rows that are dequantised at a time: a multiple of 128, at most all of them. kInvalidArgument if
// not even 128 fit into the scratch.
absl::StatusOr<int64_t> Int4ManyTokensTileRows(int64_t outputs, int64_t inputs, int tokens,
                                               int64_t scratch_bytes);

}  // namespace fabricast

#endif  // FABRICAST_KERNELS_DENSE_INT4_MANY_TOKENS_H_
