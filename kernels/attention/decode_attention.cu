#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

#include "absl/status/status.h"
#include "absl/strings/str_format.h"
#include "kernels/attention/attention_arguments.h"
#include "kernels/attention/decode.h"
#include "kernels/attention/kv_cache.h"
#include "kernels/attention/tensor_core.cuh"
#include "kernels/gpu/cuda_status.h"
#include "kernels/gpu/launch.cuh"

namespace fabricast {
namespace {

constexpr int kWarp = 32;
constexpr int kTileHeads = 16;  // query heads: the rows of an mma
constexpr int kMaxCtas = 256;   // more than the multiprocessors of any GPU that this is for
// Of a CTA's run: shorter ones would cost more in the merge than they save.
constexpr int kMinBlocks = 8;
constexpr float kLog2E = 1.44269504f;

// Stats: maximum and sum of a row, the maximum in units of log 2.
struct Partial {
  float* output;  // [kTileHeads][head_dim], relative to the maximum
  float2* stats;  // [kTileHeads]
};

// Two a CTA: of the part that begins its run, and of the part that ends it.
__host__ __device__ int64_t PartialBytes(int head_dim) {
  return kTileHeads * (head_dim * sizeof(float) + sizeof(float2));
}

__device__ Partial PartialAt(void* workspace, int head_dim, int slot) {
  char* begin = static_cast<char*>(workspace) + slot * PartialBytes(head_dim);
  return {reinterpret_cast<float*>(begin),
          reinterpret_cast<float2*>(begin + kTileHeads * head_dim * sizeof(float))};
}

__device__ int* CounterAt(void* workspace, int head_dim, int pair) {
  return reinterpret_cast<int*>(static_cast<char*>(workspace) +
                                2 * kMaxCtas * PartialBytes(head_dim)) +
         pair;
}

// Releases what the CTA's threads wrote before they were synchronised, and acquires what others
// released.
__device__ int AddAndSee(int* counter, int added) {
  int before;
  asm volatile("atom.acq_rel.gpu.global.add.s32 %0, [%1], %2;"
               : "=r"(before)
               : "l"(counter), "r"(added)
               : "memory");
  return before;
}

struct DecodeShape {
  int group;       // query heads of a KV head
  int head_tiles;  // of kTileHeads, for a KV head
  int units;       // kv_heads * head_tiles
};

// What a CTA must know of an entry.
struct Entry {
  int first_block;  // blocks of all entries before
  int row, context, table_start;
};

template <int kHeadDim, int kWarps>
struct SharedLayout {
  static constexpr int kStageBytes = 2 * kKvBlockTokens * kHeadDim * int{sizeof(__nv_bfloat16)};
  // A warp's blocks on their way or in use: 8 KiB. With eight warps these are 64 KiB, all that an
  // H200 wants on the way for a multiprocessor: with 128 or 192 KiB it was slower by 1 to 4 %.
  static constexpr int kStages = 128 / kHeadDim;

  // Offsets.
  static constexpr int kMerged = 0;
  static constexpr int kQueries = kMerged + kWarps * kTileHeads * kHeadDim * int{sizeof(float)};
  static constexpr int kStats = kQueries + kTileHeads * kHeadDim * int{sizeof(__nv_bfloat16)};
  static constexpr int kSums = kStats + kWarps * kTileHeads * int{sizeof(float2)};
  static constexpr int kScratch = kSums + kWarps * kTileHeads * int{sizeof(float)};
  static constexpr int kRing = (kScratch + (kWarps + 1) * int{sizeof(int)} + 127) / 128 * 128;
  static constexpr int kBarriers = kRing + kWarps * kStages * kStageBytes;
  static constexpr int kEntries =
      (kBarriers + kWarps * kStages * int{sizeof(uint64_t)} + 15) / 16 * 16;

  static constexpr int Bytes(int entries) { return kEntries + (entries + 1) * int{sizeof(Entry)}; }
};

// The entries, and one more for their end. Ends with all threads synchronised.
__device__ void ReadEntries(const AttentionBatch& batch, Entry* entries, int* warp_sums) {
  const int threads = blockDim.x, thread = threadIdx.x, lane = thread % kWarp;
  int before = 0;  // Blocks of the entries that earlier rounds saw.
  for (int begin = 0; begin <= batch.entries; begin += threads) {
    Entry entry = {};
    int blocks = 0;
    if (const int i = begin + thread; i < batch.entries) {
      const int rows = batch.rows[i];
      entry.context = batch.first_position[i] + 1;
      entry.row = batch.first_row[i];
      entry.table_start = batch.table_start[i];
      if (rows == 1) blocks = (entry.context + kKvBlockTokens - 1) / kKvBlockTokens;
    }
    int sum = blocks;
#pragma unroll
    for (int distance = 1; distance < kWarp; distance *= 2) {
      const int other = __shfl_up_sync(0xffffffff, sum, distance);
      if (lane >= distance) sum += other;
    }
    if (lane == kWarp - 1) warp_sums[thread / kWarp] = sum;
    __syncthreads();
    entry.first_block = before + sum - blocks;
    for (int warp = 0; warp < threads / kWarp; ++warp) {
      if (warp < thread / kWarp) entry.first_block += warp_sums[warp];
      before += warp_sums[warp];
    }
    if (begin + thread <= batch.entries) entries[begin + thread] = entry;
    __syncthreads();
  }
}

// A block of the contexts' line.
struct Place {
  int entry, block, blocks;  // block of the entry's blocks

  __device__ Place(const Entry* entries, int count, int index) {
    int low = 0, high = count - 1;  // The last entry that begins at or before index has blocks.
    while (low < high) {
      const int middle = (low + high + 1) / 2;
      if (entries[middle].first_block <= index) {
        low = middle;
      } else {
        high = middle - 1;
      }
    }
    entry = low;
    block = index - entries[entry].first_block;
    blocks = entries[entry + 1].first_block - entries[entry].first_block;
  }

  // Not beyond the line's last block.
  __device__ void Advance(const Entry* entries, int distance) {
    block += distance;
    while (block >= blocks) {
      block -= blocks;
      ++entry;
      blocks = entries[entry + 1].first_block - entries[entry].first_block;
    }
  }
};

template <int kHeadDim>
struct Accumulator {
  float output[kHeadDim / 8][4];
  float max[2], sum[2];  // of rows lane / 4 and lane / 4 + 8; the lane's share of the sums

  __device__ void Clear() {
#pragma unroll
    for (int n = 0; n < kHeadDim / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) output[n][i] = 0;
    }
    max[0] = max[1] = -INFINITY;
    sum[0] = sum[1] = 0;
  }
};

// Swizzled as the cache is.
__device__ int QueryOffset(int head_dim, int head, int chunk) {
  return head * head_dim * int{sizeof(__nv_bfloat16)} + (chunk ^ head % 8) * 16;
}

// A tile of heads on its way from memory to shared memory: 16 bytes at a time, by all threads.
template <int kHeadDim, int kThreads>
struct QueryChunks {
  static constexpr int kRowChunks = kHeadDim / 8;
  static constexpr int kCount = (kTileHeads * kRowChunks + kThreads - 1) / kThreads;
  uint4 chunks[kCount];

  // Heads beyond `heads` are zero.
  __device__ void Load(const __nv_bfloat16* from, int heads) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const int chunk = i * kThreads + threadIdx.x;
      chunks[i] = chunk < heads * kRowChunks ? reinterpret_cast<const uint4*>(from)[chunk]
                                             : make_uint4(0, 0, 0, 0);
    }
  }

  __device__ void Store(char* to) const {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const int chunk = i * kThreads + threadIdx.x;
      if (chunk >= kTileHeads * kRowChunks) break;
      *reinterpret_cast<uint4*>(
          to + QueryOffset(kHeadDim, chunk / kRowChunks, chunk % kRowChunks)) = chunks[i];
    }
  }
};

// One block, of whose tokens the first `tokens` count; what the others hold does not matter.
template <int kHeadDim>
__device__ void AddBlock(Accumulator<kHeadDim>& to, const uint32_t (&queries)[kHeadDim / 16][4],
                         uint32_t keys, float scale_log2, int tokens) {
  constexpr int kSlabBytes = kKvBlockTokens * 128;
  const int lane = threadIdx.x % kWarp;
  const uint32_t values = keys + kKvBlockTokens * kHeadDim * sizeof(__nv_bfloat16);

  float scores[2][4] = {};
  {
    float odd[2][4] = {};  // Of every other k: two short chains instead of a long one.
    const int token = lane / 16 * 8 + lane % 8;
#pragma unroll
    for (int k = 0; k < kHeadDim / 16; ++k) {
      const int chunk = k % 4 * 2 + lane / 8 % 2;
      uint32_t b[4];
      LoadMatrices(b, keys + k / 4 * kSlabBytes + token * 128 + (chunk ^ lane % 8) * 16);
      float(&sums)[2][4] = k % 2 == 0 ? scores : odd;
      MultiplyAdd(sums[0], queries[k], b[0], b[1]);
      MultiplyAdd(sums[1], queries[k], b[2], b[3]);
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int i = 0; i < 4; ++i) scores[half][i] += odd[half][i];
    }
  }

  uint32_t weights[4];
  uint32_t kept[2];  // Of a value's fragment: 0 for tokens that do not count.
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int token = half * 8 + lane % 4 * 2;
    kept[half] = (token < tokens ? 0xffffu : 0) | (token + 1 < tokens ? 0xffff0000u : 0);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      scores[half][i] = token + i % 2 < tokens ? scores[half][i] * scale_log2 : -INFINITY;
    }
  }
  float rescale[2];
#pragma unroll
  for (int row = 0; row < 2; ++row) {
    const float max =
        fmaxf(to.max[row], RowMax(fmaxf(fmaxf(scores[0][2 * row], scores[0][2 * row + 1]),
                                        fmaxf(scores[1][2 * row], scores[1][2 * row + 1]))));
    rescale[row] = Exp2(to.max[row] - max);
    to.max[row] = max;
    to.sum[row] *= rescale[row];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float low = Exp2(scores[half][2 * row] - max);
      const float high = Exp2(scores[half][2 * row + 1] - max);
      to.sum[row] += low + high;
      weights[half * 2 + row] = PackBf16(low, high);
    }
  }
#pragma unroll
  for (int n = 0; n < kHeadDim / 8; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) to.output[n][i] *= rescale[i / 2];
  }

  {
    const int token = lane / 8 % 2 * 8 + lane % 8;
#pragma unroll
    for (int n = 0; n < kHeadDim / 16; ++n) {
      const int chunk = n % 4 * 2 + lane / 16;
      uint32_t b[4];
      LoadMatricesTransposed(b,
                             values + n / 4 * kSlabBytes + token * 128 + (chunk ^ lane % 8) * 16);
      MultiplyAdd(to.output[2 * n], weights, b[0] & kept[0], b[1] & kept[1]);
      MultiplyAdd(to.output[2 * n + 1], weights, b[2] & kept[0], b[3] & kept[1]);
    }
  }
}

__device__ void StoreOutput(__nv_bfloat16* to, const float4& sums, float divisor) {
  const float factor = 1 / divisor;
  uint2 packed;
  packed.x = PackBf16(sums.x * factor, sums.y * factor);
  packed.y = PackBf16(sums.z * factor, sums.w * factor);
  *reinterpret_cast<uint2*>(to) = packed;
}

__device__ void AddScaled(float4& to, const float4& from, float factor) {
  to.x += from.x * factor;
  to.y += from.y * factor;
  to.z += from.z * factor;
  to.w += from.w * factor;
}

// Merges the warps' accumulators. `whole`: writes the outputs of `heads` heads; else all to
// `partial`. Ends with all threads synchronised.
template <int kHeadDim, int kWarps>
__device__ void MergeWarps(Accumulator<kHeadDim>& own, float* merged, float2* stats, float* sums,
                           bool whole, const Partial& partial, __nv_bfloat16* output, int heads) {
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int rows[2] = {lane / 4, lane / 4 + 8};
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    own.sum[i] = RowSum(own.sum[i]);
    if (lane % 4 == 0) stats[warp * kTileHeads + rows[i]] = make_float2(own.max[i], own.sum[i]);
  }
  __syncthreads();
  const auto max_of = [&](int row) {
    float max = stats[row].x;
#pragma unroll
    for (int w = 1; w < kWarps; ++w) max = fmaxf(max, stats[w * kTileHeads + row].x);
    return max;
  };
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const float factor = Exp2(own.max[i] - max_of(rows[i]));
    if (lane % 4 == 0) sums[warp * kTileHeads + rows[i]] = own.sum[i] * factor;
    float* to = &merged[(warp * kTileHeads + rows[i]) * kHeadDim];
#pragma unroll
    for (int n = 0; n < kHeadDim / 8; ++n) {
      // Rows a multiple of 128 bytes apart would share their banks.
      *reinterpret_cast<float2*>(to + ((n * 8 + lane % 4 * 2) ^ (rows[i] % 4 * 8))) =
          make_float2(own.output[n][2 * i] * factor, own.output[n][2 * i + 1] * factor);
    }
  }
  __syncthreads();
#pragma unroll
  for (int begin = 0; begin < kTileHeads * kHeadDim; begin += kWarps * kWarp * 4) {
    const int i = begin + threadIdx.x * 4, row = i / kHeadDim, dim = i % kHeadDim;
    if (row >= heads) break;
    float4 total = {};
    float sum = 0;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
      AddScaled(total,
                *reinterpret_cast<const float4*>(
                    &merged[(w * kTileHeads + row) * kHeadDim + (dim ^ (row % 4 * 8))]),
                1);
      sum += sums[w * kTileHeads + row];
    }
    if (whole) {
      StoreOutput(output + i, total, sum);
    } else {
      *reinterpret_cast<float4*>(partial.output + i) = total;
      if (dim == 0) partial.stats[row] = make_float2(max_of(row), sum);
    }
  }
  __syncthreads();
}

// Of `parts` partial results: one in slot `first_slot`, the next in `second_slot`, the others each
// `slots` after.
template <int kHeadDim>
__device__ void MergeParts(void* workspace, int first_slot, int second_slot, int slots, int parts,
                           __nv_bfloat16* output, int heads) {
  constexpr int kDims = 8;    // of a thread
  constexpr int kAtOnce = 8;  // parts whose loads are under way together
  for (int i = threadIdx.x * kDims; i < heads * kHeadDim; i += blockDim.x * kDims) {
    const int row = i / kHeadDim;
    float4 totals[2] = {};
    float max = -INFINITY, sum = 0;
    for (int begin = 0; begin < parts; begin += kAtOnce) {
      float4 from[kAtOnce][2];
      float2 stats[kAtOnce];
#pragma unroll
      for (int p = 0; p < kAtOnce; ++p) {
        const int part = begin + p;
        stats[p] = make_float2(-INFINITY, 0);
        from[p][0] = from[p][1] = float4{};
        if (part >= parts) continue;
        const Partial partial = PartialAt(
            workspace, kHeadDim, part == 0 ? first_slot : second_slot + (part - 1) * slots);
        stats[p] = __ldcg(partial.stats + row);
        from[p][0] = __ldcg(reinterpret_cast<const float4*>(partial.output + i));
        from[p][1] = __ldcg(reinterpret_cast<const float4*>(partial.output + i) + 1);
      }
      float new_max = max;
#pragma unroll
      for (int p = 0; p < kAtOnce; ++p) new_max = fmaxf(new_max, stats[p].x);
      const float rescale = Exp2(max - new_max);
      max = new_max;
      sum *= rescale;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float4 scaled = {};
        AddScaled(scaled, totals[half], rescale);
        totals[half] = scaled;
      }
#pragma unroll
      for (int p = 0; p < kAtOnce; ++p) {
        const float factor = Exp2(stats[p].x - max);
        sum += stats[p].y * factor;
        AddScaled(totals[0], from[p][0], factor);
        AddScaled(totals[1], from[p][1], factor);
      }
    }
    StoreOutput(output + i, totals[0], sum);
    StoreOutput(output + i + 4, totals[1], sum);
  }
}

template <int kHeadDim, int kWarps>
__global__ void __launch_bounds__(kWarps* kWarp, 1)
    Decode(const AttentionArguments arguments, const DecodeShape shape) {
  using Layout = SharedLayout<kHeadDim, kWarps>;
  constexpr int kStageBytes = Layout::kStageBytes;
  extern __shared__ __align__(128) char shared[];
  const AttentionBatch& batch = arguments.batch;
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const uint32_t ring =
      SharedAddress(shared + Layout::kRing) + warp * Layout::kStages * kStageBytes;
  const uint32_t barriers =
      SharedAddress(shared + Layout::kBarriers) + warp * Layout::kStages * sizeof(uint64_t);
  Entry* entries = reinterpret_cast<Entry*>(shared + Layout::kEntries);
  int* scratch = reinterpret_cast<int*>(shared + Layout::kScratch);

  if (lane < Layout::kStages) {
    InitializeBarrier(barriers + lane * sizeof(uint64_t), FetchArrivals(kWarp));
  }
  PublishBarriers();
  WaitForPreviousKernels();
  AllowNextKernel();
  ReadEntries(batch, entries, scratch);

  const int unit = blockIdx.x % shape.units, runs = gridDim.x / shape.units;
  const int total = entries[batch.entries].first_block;
  const int run = max(kMinBlocks, (total + runs - 1) / runs);
  const int begin = blockIdx.x / shape.units * run, end = min(begin + run, total);
  if (begin >= end) return;
  const int kv_head = unit / shape.head_tiles, head_tile = unit % shape.head_tiles * kTileHeads;
  const int head = kv_head * shape.group + head_tile;
  const int heads = min(kTileHeads, shape.group - head_tile);

  // The warp's next block to fetch.
  const __nv_bfloat16* cache =
      static_cast<const __nv_bfloat16*>(arguments.cache.data) + arguments.cache.tile(0, kv_head, 0);
  const int64_t block_elements = arguments.cache.block_elements();
  int to_fetch = begin + warp;
  Place fetched(entries, batch.entries, min(to_fetch, end - 1));
  const auto block_number = [&] {
    return batch.block_table[entries[fetched.entry].table_start + fetched.block];
  };
  int number = block_number();
  const auto fetch = [&](int stage) {
    if (to_fetch >= end) return;
    const uint32_t barrier = barriers + stage * sizeof(uint64_t);
    ExpectFetch(barrier, kStageBytes, lane);
    FetchToShared<true>(ring + stage * kStageBytes, cache + number * block_elements, kStageBytes,
                        barrier, lane, kWarp);
    EndFetch(barrier);
    to_fetch += kWarps;
    if (to_fetch >= end) return;
    fetched.Advance(entries, kWarps);
    number = block_number();
  };

  Place place(entries, batch.entries, begin);
  QueryChunks<kHeadDim, kWarps * kWarp> next_queries;
  const auto load_queries = [&] {
    next_queries.Load(static_cast<const __nv_bfloat16*>(arguments.queries) +
                          entries[place.entry].row * arguments.query_stride + head * kHeadDim,
                      heads);
  };
  load_queries();
  for (int stage = 0; stage < Layout::kStages; ++stage) fetch(stage);

  int stage = 0;
  uint32_t parity = 0;
  int next = begin + warp;  // The warp's next block to add.
  for (int position = begin; position < end;) {
    // What the run has of one entry.
    const Entry entry = entries[place.entry];
    const int entry_number = place.entry, first_block = place.block;
    const int count = min(place.blocks - first_block, end - position);
    const int pair_begin = position - first_block, pair_end = pair_begin + place.blocks;
    next_queries.Store(shared + Layout::kQueries);
    __syncthreads();
    uint32_t queries[kHeadDim / 16][4];
#pragma unroll
    for (int k = 0; k < kHeadDim / 16; ++k) {
      LoadMatrices(queries[k], SharedAddress(shared + Layout::kQueries) +
                                   QueryOffset(kHeadDim, lane % 16, k * 2 + lane / 16));
    }
    if (position + count < end) {
      place.Advance(entries, count);
      load_queries();
    }

    Accumulator<kHeadDim> accumulator;
    accumulator.Clear();
    for (; next < position + count; next += kWarps) {
      WaitForBarrier(barriers + stage * sizeof(uint64_t), parity);
      const int block = first_block + next - position;
      AddBlock<kHeadDim>(accumulator, queries, ring + stage * kStageBytes, arguments.scale * kLog2E,
                         entry.context - block * kKvBlockTokens);
      __syncwarp();
      fetch(stage);
      if (++stage == Layout::kStages) {
        stage = 0;
        parity ^= 1;
      }
    }

    __nv_bfloat16* output = static_cast<__nv_bfloat16*>(arguments.output) +
                            (int64_t{entry.row} * arguments.heads + head) * kHeadDim;
    const int first_part = pair_begin / run, parts = (pair_end - 1) / run - first_part + 1;
    const Partial partial =
        PartialAt(arguments.workspace, kHeadDim, blockIdx.x * 2 + (position == begin ? 0 : 1));
    MergeWarps<kHeadDim, kWarps>(accumulator, reinterpret_cast<float*>(shared + Layout::kMerged),
                                 reinterpret_cast<float2*>(shared + Layout::kStats),
                                 reinterpret_cast<float*>(shared + Layout::kSums), parts == 1,
                                 partial, output, heads);
    if (parts > 1) {
      if (threadIdx.x == 0) {
        int* counter = CounterAt(arguments.workspace, kHeadDim, entry_number * shape.units + unit);
        const bool is_last = AddAndSee(counter, 1) == parts - 1;
        if (is_last) *counter = 0;
        scratch[kWarps] = is_last;
      }
      __syncthreads();
      if (scratch[kWarps] != 0) {
        const int first_cta = first_part * shape.units + unit;
        MergeParts<kHeadDim>(arguments.workspace, first_cta * 2 + (pair_begin % run == 0 ? 0 : 1),
                             (first_cta + shape.units) * 2, shape.units * 2, parts, output, heads);
      }
    }
    position += count;
  }
}

template <int kHeadDim, int kWarps>
absl::Status Launch(const AttentionArguments& arguments, int processors,
                    const LaunchOptions& options) {
  const int kv_heads = arguments.cache.kv_heads;
  DecodeShape shape;
  shape.group = arguments.heads / kv_heads;
  shape.head_tiles = (shape.group + kTileHeads - 1) / kTileHeads;
  shape.units = kv_heads * shape.head_tiles;
  const int runs = std::max(1, std::min(processors, kMaxCtas) / shape.units);
  const int bytes = SharedLayout<kHeadDim, kWarps>::Bytes(arguments.batch.entries);
  FABRICAST_RETURN_IF_CUDA_FAILS(cudaFuncSetAttribute(
      Decode<kHeadDim, kWarps>, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
  return LaunchKernel("DecodeAttention", Decode<kHeadDim, kWarps>, dim3(runs * shape.units),
                      dim3(kWarps * kWarp), bytes, options, arguments, shape);
}

template <int kHeadDim>
absl::Status Launch(const AttentionArguments& arguments, int warps, const LaunchOptions& options) {
  int device = 0, processors = 0, shared_limit = 0;
  FABRICAST_RETURN_IF_CUDA_FAILS(cudaGetDevice(&device));
  FABRICAST_RETURN_IF_CUDA_FAILS(
      cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device));
  FABRICAST_RETURN_IF_CUDA_FAILS(
      cudaDeviceGetAttribute(&shared_limit, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
  if (warps == 0) {
    warps = SharedLayout<kHeadDim, 8>::Bytes(kMaxAttentionEntries) <= shared_limit ? 8 : 4;
  }
  return warps == 8 ? Launch<kHeadDim, 8>(arguments, processors, options)
                    : Launch<kHeadDim, 4>(arguments, processors, options);
}

}  // namespace

int64_t DecodeAttentionMmaWorkspaceBytes(int entries, int heads, int head_dim) {
  // Counters: one for each entry and tile of heads, of which there are at most `heads`.
  return 2 * kMaxCtas * PartialBytes(head_dim) + int64_t{entries} * heads * sizeof(int);
}

absl::Status DecodeAttentionMma(const AttentionArguments& arguments, int warps,
                                const LaunchOptions& options) {
  switch (arguments.cache.head_dim) {
    case 64:
      return Launch<64>(arguments, warps, options);
    case 128:
      return Launch<128>(arguments, warps, options);
    default:
      return absl::UnimplementedError(
          absl::StrFormat("decode attention on tensor cores is for head_dim 64 and 128, not %d",
                          arguments.cache.head_dim));
  }
}

}  // namespace fabricast
