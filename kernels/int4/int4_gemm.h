// Matrix products with INT4 weights: output[t][n] = sum over k of x[t][k] w[n][k], summed in FP32
// in an order that depends on shape, tokens and GPU alone: deterministic.
//
// Three ways, each best for some numbers of tokens: Int4GemmPlan says which.
#ifndef FABRICAST_KERNELS_INT4_INT4_GEMM_H_
#define FABRICAST_KERNELS_INT4_INT4_GEMM_H_

#include <cstdint>

#include "absl/status/status.h"
#include "kernels/gpu/gpu_stream.h"
#include "kernels/int4/activations.h"
#include "kernels/int4/gemm_output.h"
#include "kernels/int4/int4_matrix.h"

namespace fabricast {

// Tensor cores by mma.sync, for 1 to 64 tokens: any GPU from compute capability 8.0 on.
// `input` is in ActivationFormat::kMma. `workspace`: Int4GemmMmaWorkspaceBytes(), zero before its
// first use, left zero where it matters; one launch at a time uses it.
//
// Weights are read before the kernel before has ended: nothing in the stream may still write them
// when it is launched with overlap_previous. CTAs wait for one another, so all of them must find a
// place: other kernels may run beside it, but no second launch of it from another stream.
absl::Status Int4GemmMma(const Int4Matrix& weights, const Activations& input,
                         const GemmOutput& output, void* workspace, const LaunchOptions& options);
int64_t Int4GemmMmaWorkspaceBytes();

// Tensor cores by wgmma, for any number of tokens: compute capability 9.0 only (kUnimplemented
// elsewhere). `input` is in ActivationFormat::kWgmma. `workspace` as above.
absl::Status Int4GemmWgmma(const Int4Matrix& weights, const Activations& input,
                           const GemmOutput& output, void* workspace, const LaunchOptions& options);
int64_t Int4GemmWgmmaWorkspaceBytes();

// Many tokens: kernels/dense/int4_many_tokens.h.

}  // namespace fabricast

#endif  // FABRICAST_KERNELS_INT4_INT4_GEMM_H_
