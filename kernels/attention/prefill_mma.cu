#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

#include "absl/status/status.h"
#include "absl/strings/str_format.h"
#include "kernels/attention/attention_arguments.h"
#include "kernels/attention/kv_cache.h"
#include "kernels/attention/prefill.h"
#include "kernels/attention/query_tiles.cuh"
#include "kernels/attention/tensor_core.cuh"
#include "kernels/gpu/cuda_status.h"
#include "kernels/gpu/launch.cuh"

namespace fabricast {
namespace {

constexpr int kWarps = 8;
constexpr int kThreads = kWarps * 32;
constexpr int kTileQueries = kWarps * 16;  // a warp has the 16 rows of an mma
constexpr int kTileBlocks = 4;
constexpr int kTileTokens = kTileBlocks * kKvBlockTokens;
// Of kTileTokens keys and values; for head_dim 128 96 KB, of the 99 KB of compute capability 12.0.
constexpr int kStages = 3;
constexpr float kLog2E = 1.44269504f;

template <int kHeadDim>
struct Shared {
  __align__(128) char stages[kStages][kTileBlocks][2][kKvBlockTokens * kHeadDim * 2];
  uint64_t barriers[kStages];
};

// A warp's 16 queries.
template <int kHeadDim>
struct Rows {
  uint32_t queries[kHeadDim / 16][4];
  float output[kHeadDim / 8][4] = {};
  float max[2] = {-INFINITY, -INFINITY};  // of rows lane / 4 and lane / 4 + 8
  float sum[2] = {};                      // the lane's share
};

// Adds kTileTokens tokens. kMasked: of row i those before contexts[i] count, and what is in shared
// memory from token `end` on may be anything; contexts and end counted from the tile's first token.
template <int kHeadDim, bool kMasked>
__device__ __forceinline__ void AddTile(Rows<kHeadDim>& rows, uint32_t stage, float scale_log2,
                                        const int (&contexts)[2], int end) {
  constexpr int kSlabBytes = kKvBlockTokens * 128;
  constexpr int kKeyBytes = kKvBlockTokens * kHeadDim * sizeof(__nv_bfloat16);
  const int lane = threadIdx.x % 32;

  float scores[kTileBlocks * 2][4] = {};
  const int key_token = lane / 16 * 8 + lane % 8;
#pragma unroll
  for (int k = 0; k < kHeadDim / 16; ++k) {
    const int chunk = k % 4 * 2 + lane / 8 % 2;
    const uint32_t at = stage + k / 4 * kSlabBytes + key_token * 128 + (chunk ^ lane % 8) * 16;
#pragma unroll
    for (int block = 0; block < kTileBlocks; ++block) {
      uint32_t b[4];
      LoadMatrices(b, at + block * 2 * kKeyBytes);
      MultiplyAdd(scores[2 * block], rows.queries[k], b[0], b[1]);
      MultiplyAdd(scores[2 * block + 1], rows.queries[k], b[2], b[3]);
    }
  }

  if constexpr (kMasked) {
#pragma unroll
    for (int n = 0; n < kTileBlocks * 2; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int token = n * 8 + lane % 4 * 2 + i % 2;
        if (token >= contexts[i / 2]) scores[n][i] = -INFINITY;
      }
    }
  }

  uint32_t weights[kTileBlocks][4];
#pragma unroll
  for (int row = 0; row < 2; ++row) {
    float max = rows.max[row];
#pragma unroll
    for (int n = 0; n < kTileBlocks * 2; ++n) {
      max = fmaxf(max, fmaxf(scores[n][2 * row], scores[n][2 * row + 1]));
    }
    max = RowMax(max);
    const float rescale = Exp2((rows.max[row] - max) * scale_log2);
    const float shift = -max * scale_log2;
    rows.max[row] = max;
    rows.sum[row] *= rescale;
#pragma unroll
    for (int n = 0; n < kTileBlocks * 2; ++n) {
      const float low = Exp2(fmaf(scores[n][2 * row], scale_log2, shift));
      const float high = Exp2(fmaf(scores[n][2 * row + 1], scale_log2, shift));
      rows.sum[row] += low + high;
      weights[n / 2][n % 2 * 2 + row] = PackBf16(low, high);
    }
#pragma unroll
    for (int n = 0; n < kHeadDim / 8; ++n) {
      rows.output[n][2 * row] *= rescale;
      rows.output[n][2 * row + 1] *= rescale;
    }
  }

  const int value_token = lane / 8 % 2 * 8 + lane % 8;
#pragma unroll
  for (int block = 0; block < kTileBlocks; ++block) {
    uint32_t kept[2] = {0xffffffff, 0xffffffff};
    if constexpr (kMasked) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int token = block * kKvBlockTokens + half * 8 + lane % 4 * 2;
        kept[half] = (token < end ? 0xffffu : 0) | (token + 1 < end ? 0xffff0000u : 0);
      }
    }
#pragma unroll
    for (int n = 0; n < kHeadDim / 16; ++n) {
      const int chunk = n % 4 * 2 + lane / 16;
      uint32_t b[4];
      LoadMatricesTransposed(b, stage + block * 2 * kKeyBytes + kKeyBytes + n / 4 * kSlabBytes +
                                    value_token * 128 + (chunk ^ lane % 8) * 16);
      MultiplyAdd(rows.output[2 * n], weights[block], b[0] & kept[0], b[1] & kept[1]);
      MultiplyAdd(rows.output[2 * n + 1], weights[block], b[2] & kept[0], b[3] & kept[1]);
    }
  }
}

// A CTA: one tile of queries of one KV head; blockIdx.x the KV head, so that all heads' longest
// tiles begin first.
template <int kHeadDim>
__global__ void __launch_bounds__(kThreads, 1) Prefill(const AttentionArguments arguments) {
  constexpr int kBlockBytes = 2 * kKvBlockTokens * kHeadDim * sizeof(__nv_bfloat16);
  extern __shared__ __align__(128) char memory[];
  Shared<kHeadDim>& shared = *reinterpret_cast<Shared<kHeadDim>*>(memory);
  const AttentionBatch& batch = arguments.batch;
  const KvCacheView& cache = arguments.cache;
  const int thread = threadIdx.x, warp = thread / 32, lane = thread % 32;
  const int kv_head = blockIdx.x, group = arguments.heads / cache.kv_heads;

  if (thread < kStages) {
    InitializeBarrier(SharedAddress(&shared.barriers[thread]), FetchArrivals(kThreads));
  }
  PublishBarriers();
  __syncthreads();
  WaitForPreviousKernels();
  AllowNextKernel();

  const QueryTile tile = FindQueryTile(batch, 2, group, kTileQueries, gridDim.y - 1 - blockIdx.y);
  if (tile.entry < 0) return;
  const int queries = batch.rows[tile.entry] * group;
  const int past = batch.first_position[tile.entry];
  const int64_t first_row = batch.first_row[tile.entry];
  const auto context_of = [&](int query) { return past + min(query, queries - 1) / group + 1; };
  const int warp_first = tile.first + warp * 16;
  const int context = context_of(tile.first + kTileQueries - 1);
  const int blocks = (context + kKvBlockTokens - 1) / kKvBlockTokens;
  const int tiles = (blocks + kTileBlocks - 1) / kTileBlocks;

  const int32_t* table = batch.block_table + batch.table_start[tile.entry];
  const char* data = static_cast<const char*>(cache.data);
  int numbers[kTileBlocks];  // Of the next tile to fetch.
  const auto read_numbers = [&](int of_tile) {
#pragma unroll
    for (int b = 0; b < kTileBlocks; ++b) {
      const int block = of_tile * kTileBlocks + b;
      if (block < blocks) numbers[b] = table[block];
    }
  };
  const auto fetch = [&](int of_tile) {
    if (of_tile >= tiles) return;
    const int stage = of_tile % kStages;
    const uint32_t barrier = SharedAddress(&shared.barriers[stage]);
    const int count = min(kTileBlocks, blocks - of_tile * kTileBlocks);
    ExpectFetch(barrier, count * kBlockBytes, thread);
#pragma unroll
    for (int b = 0; b < kTileBlocks; ++b) {
      if (b >= count) break;
      FetchToShared(SharedAddress(shared.stages[stage][b]),
                    data + cache.tile(numbers[b], kv_head, 0) * sizeof(__nv_bfloat16), kBlockBytes,
                    barrier, thread, kThreads);
    }
    EndFetch(barrier);
    read_numbers(of_tile + 1);
  };
  read_numbers(0);
#pragma unroll
  for (int i = 0; i < kStages; ++i) fetch(i);

  Rows<kHeadDim> rows;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int query = warp_first + lane / 4 + i % 2 * 8;
    const __nv_bfloat16* from = static_cast<const __nv_bfloat16*>(arguments.queries) +
                                (first_row + query / group) * arguments.query_stride +
                                (kv_head * group + query % group) * kHeadDim + lane % 4 * 2 +
                                i / 2 * 8;
#pragma unroll
    for (int k = 0; k < kHeadDim / 16; ++k) {
      rows.queries[k][i] = query < queries ? *reinterpret_cast<const uint32_t*>(from + k * 16) : 0;
    }
  }

  const int contexts[2] = {context_of(warp_first + lane / 4),
                           context_of(warp_first + lane / 4 + 8)};
  const int shortest = context_of(warp_first), longest = context_of(warp_first + 15);
  const float scale_log2 = arguments.scale * kLog2E;
  for (int i = 0; i < tiles; ++i) {
    if (i > 0) {
      __syncthreads();  // All warps are done with tile i - 1.
      fetch(i - 1 + kStages);
    }
    const int begin = i * kTileTokens;
    if (begin >= longest) continue;
    WaitForBarrier(SharedAddress(&shared.barriers[i % kStages]), i / kStages % 2);
    const uint32_t stage = SharedAddress(shared.stages[i % kStages]);
    const int from_begin[2] = {contexts[0] - begin, contexts[1] - begin};
    if (begin + kTileTokens <= shortest) {
      AddTile<kHeadDim, false>(rows, stage, scale_log2, from_begin, kTileTokens);
    } else {
      AddTile<kHeadDim, true>(rows, stage, scale_log2, from_begin, context - begin);
    }
  }

#pragma unroll
  for (int row = 0; row < 2; ++row) {
    const float factor = 1 / RowSum(rows.sum[row]);
    const int query = warp_first + lane / 4 + row * 8;
    if (query >= queries) continue;
    __nv_bfloat16* to =
        static_cast<__nv_bfloat16*>(arguments.output) +
        ((first_row + query / group) * arguments.heads + kv_head * group + query % group) *
            kHeadDim +
        lane % 4 * 2;
#pragma unroll
    for (int n = 0; n < kHeadDim / 8; ++n) {
      *reinterpret_cast<uint32_t*>(to + n * 8) =
          PackBf16(rows.output[n][2 * row] * factor, rows.output[n][2 * row + 1] * factor);
    }
  }
}

template <int kHeadDim>
absl::Status Launch(const AttentionArguments& arguments, int max_rows, int total_rows,
                    const LaunchOptions& options) {
  const int kv_heads = arguments.cache.kv_heads;
  const int64_t tiles = MaxQueryTiles(arguments.batch.entries, max_rows, total_rows,
                                      arguments.heads / kv_heads, kTileQueries);
  constexpr int kSharedBytes = sizeof(Shared<kHeadDim>);
  FABRICAST_RETURN_IF_CUDA_FAILS(cudaFuncSetAttribute(
      Prefill<kHeadDim>, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes));
  return LaunchKernel("PrefillAttention", Prefill<kHeadDim>, dim3(kv_heads, tiles), dim3(kThreads),
                      kSharedBytes, options, arguments);
}

}  // namespace

absl::Status PrefillAttentionMma(const AttentionArguments& arguments, int max_rows, int total_rows,
                                 const LaunchOptions& options) {
  switch (arguments.cache.head_dim) {
    case 64:
      return Launch<64>(arguments, max_rows, total_rows, options);
    case 128:
      return Launch<128>(arguments, max_rows, total_rows, options);
    default:
      return absl::UnimplementedError(
          absl::StrFormat("prefill attention on tensor cores is for head_dim 64 and 128, not %d",
                          arguments.cache.head_dim));
  }
}

}  // namespace fabricast
