// The kernels behind PrefillAttention. Each computes the entries of 2 rows or more, and leaves out
// the others; arguments as PrefillAttention's, checked by it.
#ifndef FABRICAST_KERNELS_ATTENTION_PREFILL_H_
#define FABRICAST_KERNELS_ATTENTION_PREFILL_H_

#include "absl/status/status.h"
#include "kernels/attention/attention_arguments.h"
#include "kernels/gpu/gpu_stream.h"

namespace fabricast {

// wgmma, for compute capability 9.0. kUnimplemented, with nothing launched, for a GPU or a head_dim
// that it is not for.
absl::Status PrefillAttentionWgmma(const AttentionArguments& arguments, int max_rows,
                                   int total_rows, const LaunchOptions& options);

// mma.sync, for compute capability 8.0 and later; head_dim 64 and 128.
absl::Status PrefillAttentionMma(const AttentionArguments& arguments, int max_rows, int total_rows,
                                 const LaunchOptions& options);

}  // namespace fabricast

#endif  // FABRICAST_KERNELS_ATTENTION_PREFILL_H_
