// Causal attention of queries over the paged KV cache.
//
// Arithmetic of one query, in this order whatever it is computed with: for each 64 tokens of its
// context from position 0 on (*tile*), the scores, each a sum over the head's dimensions in order;
// the largest score so far; weights exp(score - largest); what was summed before, scaled down if
// the largest grew; the sum of weights, by 16 lanes, and that of weights times values, token after
// token. At the end one by the other. (The online softmax of Milakov and Gimelshein, 2018, as in
// FlashAttention.) A tile does not depend on the blocks of the cache, on what part of the context
// belongs to the same chunk, nor on other queries.
#ifndef FABRICAST_RUNTIME_EXECUTOR_CPU_ATTENTION_H_
#define FABRICAST_RUNTIME_EXECUTOR_CPU_ATTENTION_H_

#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "runtime/executor/cpu/float_matrix.h"
#include "runtime/executor/cpu/kv_cache.h"
#include "runtime/executor/cpu/thread_pool.h"

namespace fabricast {

// Queries of one request at consecutive positions. The keys and values up to the last are in the
// cache.
struct AttentionQueries {
  KvSequence sequence;
  int64_t first_position;
  int64_t count;
  // [count, heads * head_dim], scaled by head_dim^-0.5. Head h reads KV head h / (heads /
  // kv_heads).
  const float* queries;
  int64_t query_stride;
  float* output;  // as `queries`
  int64_t output_stride;
};

// Scratch of fixed size for each thread.
class Attention {
 public:
  Attention(const KvShape& shape, int64_t heads, ThreadPool* pool);

  void Run(absl::Span<const AttentionQueries> requests);

 private:
  int64_t heads_;
  int64_t kv_heads_;
  int64_t rows_;  // queries times heads of a task
  ThreadPool* pool_;
  std::vector<AlignedFloats> scratch_;  // one a thread
  std::vector<int64_t> first_task_;     // of each request
};

}  // namespace fabricast

#endif  // FABRICAST_RUNTIME_EXECUTOR_CPU_ATTENTION_H_
