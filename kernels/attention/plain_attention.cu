#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "absl/status/status.h"
#include "kernels/attention/attention_arguments.h"
#include "kernels/attention/kv_cache.h"
#include "kernels/attention/plain_attention.h"
#include "kernels/attention/query_tiles.cuh"
#include "kernels/gpu/launch.cuh"

namespace fabricast {
namespace {

constexpr int kWarps = 4;
// Pairs of dims that a lane sums: lane, lane + 32, ...
constexpr int kLanePairs = kPlainAttentionMaxHeadDim / 2 / 32;

// One row and query head, by a CTA. Its warps take blocks in turn; for the scores a lane has half
// of a token's dims, for the outputs all tokens of its dims.
__device__ void Attend(const AttentionArguments& arguments, int entry, int row, int head) {
  const KvCacheView& cache = arguments.cache;
  const AttentionBatch& batch = arguments.batch;
  const int head_dim = cache.head_dim, kv_head = head / (arguments.heads / cache.kv_heads);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int context = batch.first_position[entry] + row + 1;
  const int64_t batch_row = batch.first_row[entry] + row;
  const int32_t* table = batch.block_table + batch.table_start[entry];
  const __nv_bfloat16* query = static_cast<const __nv_bfloat16*>(arguments.queries) +
                               batch_row * arguments.query_stride + head * head_dim;
  const __nv_bfloat16* data = static_cast<const __nv_bfloat16*>(cache.data);
  const auto pair_at = [](const __nv_bfloat16* at) {
    return __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162*>(at));
  };

  __shared__ float2 queries[kPlainAttentionMaxHeadDim / 2];
  for (int i = threadIdx.x; i < head_dim / 2; i += blockDim.x) queries[i] = pair_at(query + 2 * i);
  __syncthreads();

  float2 output[kLanePairs] = {};
  float max = -INFINITY, sum = 0;
  for (int begin = warp * kKvBlockTokens; begin < context; begin += kWarps * kKvBlockTokens) {
    const int64_t block = table[begin / kKvBlockTokens];
    const __nv_bfloat16* keys = data + cache.tile(block, kv_head, 0);
    const __nv_bfloat16* values = data + cache.tile(block, kv_head, 1);
    const int tokens = min(kKvBlockTokens, context - begin);

    float score = 0;
    const int token = lane % kKvBlockTokens;
    for (int i = lane / kKvBlockTokens; i < head_dim / 2; i += 2) {
      const float2 key = pair_at(keys + cache.in_tile(token, 2 * i));
      score += queries[i].x * key.x + queries[i].y * key.y;
    }
    score += __shfl_xor_sync(0xffffffff, score, kKvBlockTokens);
    score = token < tokens ? score * arguments.scale : -INFINITY;
    float new_max = fmaxf(max, score);
#pragma unroll
    for (int distance = kKvBlockTokens / 2; distance > 0; distance /= 2) {
      new_max = fmaxf(new_max, __shfl_xor_sync(0xffffffff, new_max, distance));
    }
    const float rescale = __expf(max - new_max), weight = __expf(score - new_max);
    max = new_max;
    sum *= rescale;
#pragma unroll
    for (int p = 0; p < kLanePairs; ++p) {
      output[p].x *= rescale;
      output[p].y *= rescale;
    }
    for (int t = 0; t < tokens; ++t) {
      const float of_token = __shfl_sync(0xffffffff, weight, t);
      const float rounded = __bfloat162float(__float2bfloat16_rn(of_token));
      sum += of_token;
#pragma unroll
      for (int p = 0; p < kLanePairs; ++p) {
        const int i = p * 32 + lane;
        if (i >= head_dim / 2) break;
        const float2 value = pair_at(values + cache.in_tile(t, 2 * i));
        output[p].x += rounded * value.x;
        output[p].y += rounded * value.y;
      }
    }
  }

  __shared__ float maxima[kWarps], sums[kWarps];
  __shared__ float2 outputs[kWarps][kPlainAttentionMaxHeadDim / 2];
  if (lane == 0) {
    maxima[warp] = max;
    sums[warp] = sum;
  }
#pragma unroll
  for (int p = 0; p < kLanePairs; ++p) outputs[warp][p * 32 + lane] = output[p];
  __syncthreads();
  for (int w = 0; w < kWarps; ++w) max = fmaxf(max, maxima[w]);
  __nv_bfloat16* to = static_cast<__nv_bfloat16*>(arguments.output) +
                      (batch_row * arguments.heads + head) * head_dim;
  for (int i = threadIdx.x; i < head_dim / 2; i += blockDim.x) {
    float2 total = {};
    float divisor = 0;
    for (int w = 0; w < kWarps; ++w) {
      const float factor = __expf(maxima[w] - max);
      total.x += factor * outputs[w][i].x;
      total.y += factor * outputs[w][i].y;
      divisor += factor * sums[w];
    }
    *reinterpret_cast<__nv_bfloat162*>(to + 2 * i) =
        __floats2bfloat162_rn(total.x / divisor, total.y / divisor);
  }
}

__global__ void __launch_bounds__(kWarps * 32) PlainDecode(const AttentionArguments arguments) {
  WaitForPreviousKernels();
  AllowNextKernel();
  if (arguments.batch.rows[blockIdx.y] == 1) Attend(arguments, blockIdx.y, 0, blockIdx.x);
}

__global__ void __launch_bounds__(kWarps * 32) PlainPrefill(const AttentionArguments arguments) {
  WaitForPreviousKernels();
  AllowNextKernel();
  const QueryTile row = FindQueryTile(arguments.batch, 2, 1, 1, blockIdx.x);
  if (row.entry >= 0) Attend(arguments, row.entry, row.first, blockIdx.y);
}

}  // namespace

absl::Status PlainDecodeAttention(const AttentionArguments& arguments,
                                  const LaunchOptions& options) {
  return LaunchKernel("DecodeAttention", PlainDecode,
                      dim3(arguments.heads, arguments.batch.entries), dim3(kWarps * 32), 0, options,
                      arguments);
}

absl::Status PlainPrefillAttention(const AttentionArguments& arguments, int max_rows,
                                   int total_rows, const LaunchOptions& options) {
  const int64_t rows = MaxQueryTiles(arguments.batch.entries, max_rows, total_rows, 1, 1);
  return LaunchKernel("PrefillAttention", PlainPrefill, dim3(rows, arguments.heads),
                      dim3(kWarps * 32), 0, options, arguments);
}

}  // namespace fabricast
