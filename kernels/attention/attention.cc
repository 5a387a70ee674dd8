#include "kernels/attention/attention.h"

#include <algorithm>
#include <cstdint>

#include "absl/status/status.h"
#include "absl/strings/str_format.h"
#include "kernels/attention/decode.h"
#include "kernels/attention/plain_attention.h"
#include "kernels/attention/prefill.h"

namespace fabricast {
namespace {

bool HasTensorCoreKernel(int head_dim) { return head_dim == 64 || head_dim == 128; }

absl::Status CheckArguments(const AttentionArguments& arguments) {
  const KvCacheView& cache = arguments.cache;
  if (cache.kv_heads < 1 || arguments.heads < 1 || arguments.heads % cache.kv_heads != 0) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "attention: %d heads are not a multiple of %d KV heads", arguments.heads, cache.kv_heads));
  }
  if (cache.head_dim < 2 || cache.head_dim % 2 != 0 || cache.head_dim > kPlainAttentionMaxHeadDim) {
    return absl::InvalidArgumentError(
        absl::StrFormat("attention: head_dim %d is not an even number of at most %d",
                        cache.head_dim, kPlainAttentionMaxHeadDim));
  }
  if (arguments.batch.entries < 0 || arguments.batch.entries > kMaxAttentionEntries) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "attention: %d entries, of at most %d", arguments.batch.entries, kMaxAttentionEntries));
  }
  if (arguments.query_stride % 8 != 0 ||
      arguments.query_stride < int64_t{arguments.heads} * cache.head_dim) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "attention: a query_stride of %d for %d heads of %d: it must be a multiple of 8 and hold "
        "them",
        arguments.query_stride, arguments.heads, cache.head_dim));
  }
  if (!(arguments.scale > 0)) {
    return absl::InvalidArgumentError(
        absl::StrFormat("attention: a scale of %g is not positive", arguments.scale));
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status DecodeAttention(const AttentionArguments& arguments, const LaunchOptions& options) {
  if (absl::Status status = CheckArguments(arguments); !status.ok()) return status;
  if (arguments.batch.entries == 0) return absl::OkStatus();
  if (!HasTensorCoreKernel(arguments.cache.head_dim)) {
    return PlainDecodeAttention(arguments, options);
  }
  if (arguments.workspace == nullptr) {
    return absl::InvalidArgumentError("DecodeAttention: no workspace");
  }
  return DecodeAttentionMma(arguments, /*warps=*/0, options);
}

int64_t DecodeAttentionWorkspaceBytes(int entries, int heads, int head_dim) {
  return HasTensorCoreKernel(head_dim) ? DecodeAttentionMmaWorkspaceBytes(entries, heads, head_dim)
                                       : 0;
}

absl::Status PrefillAttention(const AttentionArguments& arguments, int max_rows, int total_rows,
                              const LaunchOptions& options) {
  if (absl::Status status = CheckArguments(arguments); !status.ok()) return status;
  if (arguments.batch.entries == 0 || max_rows < 2 || total_rows < 2) return absl::OkStatus();
  if (!HasTensorCoreKernel(arguments.cache.head_dim)) {
    return PlainPrefillAttention(arguments, max_rows, total_rows, options);
  }
  absl::Status status = PrefillAttentionWgmma(arguments, max_rows, total_rows, options);
  if (!absl::IsUnimplemented(status)) return status;
  return PrefillAttentionMma(arguments, max_rows, total_rows, options);
}

}  // namespace fabricast
