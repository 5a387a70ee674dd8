// Keys and values in the GPU's memory, in blocks of 16 tokens.
//
// Of one layer: [blocks][kv_heads][key, value][16 x head_dim] BF16. Where head_dim is a multiple of
// 64 the 16 x head_dim are [head_dim / 64][16 tokens][128 bytes], 16-byte chunks c of token t at c
// ^ (t % 8): wgmma's 128-byte swizzle, so that a block is copied to shared memory as it is and read
// there without bank conflicts, by ldmatrix and by wgmma. For other sizes they are row-major.
#ifndef FABRICAST_KERNELS_ATTENTION_KV_CACHE_H_
#define FABRICAST_KERNELS_ATTENTION_KV_CACHE_H_

#include <cstdint>

#if defined(__CUDACC__)
#define FABRICAST_HOST_DEVICE __host__ __device__
#else
#define FABRICAST_HOST_DEVICE
#endif

namespace fabricast {

constexpr int kKvBlockTokens = 16;

// One layer's cache; does not own it.
struct KvCacheView {
  void* data = nullptr;
  int64_t blocks = 0;
  int kv_heads = 0;
  int head_dim = 0;

  // Of keys or of values, of one KV head.
  FABRICAST_HOST_DEVICE int64_t tile_elements() const { return int64_t{kKvBlockTokens} * head_dim; }
  FABRICAST_HOST_DEVICE int64_t block_elements() const { return kv_heads * 2 * tile_elements(); }
  FABRICAST_HOST_DEVICE int64_t bytes() const { return blocks * block_elements() * 2; }

  // Of the tile's first element, in elements from `data`. `value`: 0 keys, 1 values.
  FABRICAST_HOST_DEVICE int64_t tile(int64_t block, int kv_head, int value) const {
    return block * block_elements() + (int64_t{kv_head} * 2 + value) * tile_elements();
  }
  // Of an element in its tile; `token` in [0, 16).
  FABRICAST_HOST_DEVICE int in_tile(int token, int dim) const {
    if (head_dim % 64 != 0) return token * head_dim + dim;
    const int chunk = dim % 64 / 8;
    return dim / 64 * (kKvBlockTokens * 64) + token * 64 + (chunk ^ (token % 8)) * 8 + dim % 8;
  }
};

// The requests of a micro-batch; all arrays in the GPU's memory, so that a graph can be replayed
// with others in them.
struct AttentionBatch {
  int entries = 0;
  const int32_t* first_row = nullptr;  // [entries] of the entry's tokens, in the batch's rows
  const int32_t* rows = nullptr;       // [entries] tokens: 1 for a decode; 0: nothing to do
  const int32_t* first_position =
      nullptr;  // [entries] of its first token; context = first_position + rows
  const int32_t* block_table = nullptr;  // all entries' block numbers
  const int32_t* table_start = nullptr;  // [entries] of the entry's, in block_table
};

}  // namespace fabricast

#endif  // FABRICAST_KERNELS_ATTENTION_KV_CACHE_H_
