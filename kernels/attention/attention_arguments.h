// What attention over a paged KV cache takes.
#ifndef FABRICAST_KERNELS_ATTENTION_ATTENTION_ARGUMENTS_H_
#define FABRICAST_KERNELS_ATTENTION_ATTENTION_ARGUMENTS_H_

#include <cstdint>

#include "kernels/attention/kv_cache.h"

namespace fabricast {

// Each CTA looks for its work among them; what a request batch has at most is far below.
inline constexpr int kMaxAttentionEntries = 1024;

// kInvalidArgument from the functions of attention.h: heads not a multiple of kv_heads, head_dim
// odd or above 256, more entries than that, a query_stride that does not fit, a scale that is not
// positive. What the arrays hold is not checked.
struct AttentionArguments {
  AttentionBatch batch;
  KvCacheView cache;
  const void* queries = nullptr;
  int64_t query_stride = 0;  // elements; a multiple of 8
  void* output = nullptr;
  int heads = 0;
  float scale = 0;
  // Of DecodeAttention: as many bytes as DecodeAttentionWorkspaceBytes says, zero before the first
  // launch; every launch leaves them fit for the next. One for all launches that run one after the
  // other.
  void* workspace = nullptr;
};

}  // namespace fabricast

#endif  // FABRICAST_KERNELS_ATTENTION_ATTENTION_ARGUMENTS_H_
