// Causal attention over a paged KV cache, with grouped queries: query head h reads KV head
// h / (heads / kv_heads).
//
// out[r][h] = softmax(q[r][h] . K * scale) V over positions 0 ... position of r. Keys and values of
// the batch's own tokens are in the cache already (AppendKv).
//
// queries: BF16, row r's head h at queries + (r * query_stride + h * head_dim); output: BF16 [rows,
// heads, head_dim]; both 16-byte aligned. Scores, softmax and sums in FP32; weights are rounded to
// BF16 for the product with V. Deterministic: the same batch gives the same bits.
#ifndef FABRICAST_KERNELS_ATTENTION_ATTENTION_H_
#define FABRICAST_KERNELS_ATTENTION_ATTENTION_H_

#include <cstdint>

#include "absl/status/status.h"
#include "kernels/attention/attention_arguments.h"
#include "kernels/gpu/gpu_stream.h"

namespace fabricast {

// One token an entry. Splits contexts over the GPU's multiprocessors by what `batch` holds when the
// kernel runs, and merges in a fixed order: launches do not depend on the batch's contents, only on
// `entries`. Entries of 0 rows or of more than 1 are left out (their output is not touched).
absl::Status DecodeAttention(const AttentionArguments& arguments, const LaunchOptions& options);
// Enough for `entries` at most.
int64_t DecodeAttentionWorkspaceBytes(int entries, int heads, int head_dim);

// Chunks of 2 rows or more, with any context before them. Entries of 0 rows or of 1 are left out:
// those of 1 are DecodeAttention's, whose output rows are others, so that a mixed batch is computed
// by the two, in any order. `max_rows`: at least an entry's; `total_rows`: at least those of all
// entries that are not left out. Both are known to the host: the launch depends on them and on
// `entries`. Takes no workspace.
absl::Status PrefillAttention(const AttentionArguments& arguments, int max_rows, int total_rows,
                              const LaunchOptions& options);

}  // namespace fabricast

#endif  // FABRICAST_KERNELS_ATTENTION_ATTENTION_H_
