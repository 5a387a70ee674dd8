// Attention for any even head_dim up to 256, on the GPU's ordinary cores: for small models and odd
// sizes.
#ifndef FABRICAST_KERNELS_ATTENTION_PLAIN_ATTENTION_H_
#define FABRICAST_KERNELS_ATTENTION_PLAIN_ATTENTION_H_

#include "absl/status/status.h"
#include "kernels/attention/attention_arguments.h"
#include "kernels/gpu/gpu_stream.h"

namespace fabricast {

inline constexpr int kPlainAttentionMaxHeadDim = 256;

// The entries of 1 row, as DecodeAttention.
absl::Status PlainDecodeAttention(const AttentionArguments& arguments,
                                  const LaunchOptions& options);

// The entries of 2 rows or more, as PrefillAttention.
absl::Status PlainPrefillAttention(const AttentionArguments& arguments, int max_rows,
                                   int total_rows, const LaunchOptions& options);

}  // namespace fabricast

#endif  // FABRICAST_KERNELS_ATTENTION_PLAIN_ATTENTION_H_
