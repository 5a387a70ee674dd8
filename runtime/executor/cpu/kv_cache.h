// The keys and values of requests in progress, in blocks.
//
// A block holds kv_block_tokens consecutive tokens of one request, for all layers of the stage. A
// request's blocks lie anywhere: its block table lists them in order. So memory is not reserved for
// the longest possible output, and no request needs contiguous room.
#ifndef FABRICAST_RUNTIME_EXECUTOR_CPU_KV_CACHE_H_
#define FABRICAST_RUNTIME_EXECUTOR_CPU_KV_CACHE_H_

#include <cstdint>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/types/span.h"
#include "runtime/executor/cpu/float_matrix.h"
#include "runtime/scheduler/scheduler.h"

namespace fabricast {

struct KvShape {
  int64_t layers;  // of the stage
  int64_t kv_heads;
  int64_t head_dim;
  int64_t block_tokens;

  // Keys of 16 tokens lie dimension by dimension, [head_dim, 16], so that the scores of 16 tokens
  // are one vector and need no sum over lanes; the last of a block's may be used in part.
  int64_t key_groups() const { return RoundUpToLanes(block_tokens) / kLanes; }
  int64_t key_group_floats() const { return head_dim * kLanes; }
  // Values of a token lie together.
  int64_t value_stride() const { return RoundUpToLanes(head_dim); }

  int64_t head_floats() const {
    return key_groups() * key_group_floats() + block_tokens * value_stride();
  }
  int64_t block_floats() const { return layers * kv_heads * head_floats(); }
};

// One layer's part of one request's blocks.
class KvSequence {
 public:
  KvSequence(const KvShape& shape, int64_t layer, absl::Span<float* const> blocks)
      : shape_(&shape),
        layer_offset_(layer * shape.kv_heads * shape.head_floats()),
        blocks_(blocks) {}

  const KvShape& shape() const { return *shape_; }

  // The keys of tokens [16 g, 16 (g + 1)) of block `block`: dimension d of the i-th at 16 d + i.
  float* KeyGroup(int64_t kv_head, int64_t block, int64_t group) const {
    return Head(kv_head, block) + group * shape_->key_group_floats();
  }
  // The value of the token at `position`: head_dim floats, zeros up to value_stride().
  float* Value(int64_t kv_head, int64_t position) const {
    return Head(kv_head, position / shape_->block_tokens) +
           shape_->key_groups() * shape_->key_group_floats() +
           position % shape_->block_tokens * shape_->value_stride();
  }
  // Dimension 0 of the key of the token at `position`; the others follow kLanes floats apart.
  float* Key(int64_t kv_head, int64_t position) const {
    const int64_t in_block = position % shape_->block_tokens;
    return KeyGroup(kv_head, position / shape_->block_tokens, in_block / kLanes) +
           in_block % kLanes;
  }

 private:
  float* Head(int64_t kv_head, int64_t block) const {
    return blocks_[block] + layer_offset_ + kv_head * shape_->head_floats();
  }

  const KvShape* shape_;
  int64_t layer_offset_;
  absl::Span<float* const> blocks_;
};

// Not thread-safe; the memory that it hands out may be read and written by many threads.
class KvCache {
 public:
  KvCache(const KvShape& shape, int64_t blocks);

  const KvShape& shape() const { return shape_; }

  // Makes room for `tokens` more tokens of `request`, whose context is `first_token` tokens long
  // (CHECKed; 0 for one that is not known). kResourceExhausted if there are too few blocks.
  absl::Status Extend(RequestId request, int64_t first_token, int64_t tokens);

  // Frees the blocks; nothing if `request` is not known.
  void Release(RequestId request);

  // Frees the blocks of all requests. Their memory is kept for the next ones.
  void Clear();

  // Valid until the next call of the above.
  KvSequence Sequence(RequestId request, int64_t layer) const;

  int64_t blocks_used() const { return blocks_used_; }
  // Memory taken so far: of the most blocks ever in use.
  int64_t bytes() const;

 private:
  struct Context {
    int64_t tokens = 0;
    std::vector<float*> blocks;
  };

  KvShape shape_;
  int64_t max_blocks_;
  int64_t blocks_used_ = 0;
  absl::flat_hash_map<RequestId, Context> contexts_;
  std::vector<float*> free_;  // used before: the last one freed is taken first
  std::vector<AlignedFloats> allocated_;
};

}  // namespace fabricast

#endif  // FABRICAST_RUNTIME_EXECUTOR_CPU_KV_CACHE_H_
