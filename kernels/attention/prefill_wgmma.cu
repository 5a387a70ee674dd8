// Prefill for Hopper, after FlashAttention-3 (Shah et al., 2024): two warpgroups take turns with
// the tensor cores, each with 64 queries; a third one's four warps only copy, through rings in
// shared memory. A warpgroup starts the scores of a token tile together with the product of the
// weights and values of the one before, and computes the softmax while the other warpgroup's
// products run.
//
// The queries are kept in registers: read from shared memory, they are 2 KB more beside each 4 KB
// of keys, and the next tile's could not be fetched before the end of this one's.
//
// One block a multiprocessor; they take tiles of 128 queries (query_tiles.cuh) in turns.
#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <type_traits>

#include "absl/status/status.h"
#include "absl/strings/str_format.h"
#include "kernels/attention/prefill.h"
#include "kernels/attention/prefill_wgmma.cuh"
#include "kernels/attention/query_tiles.cuh"
#include "kernels/attention/tensor_core.cuh"
#include "kernels/gpu/cuda_status.h"
#include "kernels/gpu/launch.cuh"

namespace fabricast {
namespace {

constexpr int kHeadDim = 128;
constexpr int kWarpgroup = 128;
constexpr int kGroups = 2;  // Warpgroups that multiply.
constexpr int kThreads = (kGroups + 1) * kWarpgroup;
// Of a thread at launch: what 384 threads can have of 65,536, in steps of 8.
constexpr int kRegisters = 168;
constexpr int kGroupQueries = 64;  // Of a warpgroup: wgmma's m.
constexpr int kTileQueries = kGroups * kGroupQueries;
constexpr int kTileTokens = 128;
// Of keys and of values. A third one (224 KB in all) was no faster.
constexpr int kStages = 2;

// A tile in shared memory is two parts of 64 dimensions, of lines of 128 bytes.
constexpr int kPartBytes = kTileTokens * 128;
constexpr int kTileBytes = 2 * kPartBytes;
constexpr int kQueryPartBytes = kGroupQueries * 128;
constexpr int kQueryBytes = 2 * kQueryPartBytes;

// One tile of queries, and the tiles of tokens that it reads.
struct Tile {
  int queries;  // Of the entry. 0: there are no more tiles.
  int first;    // The tile's first of them.
  int kv_head;
  int first_row;
  int first_position;
  int context;
  int table_start;
  int token_tiles;
  int unmasked_token_tiles;  // The first ones: all queries read all of their tokens.
};

constexpr int kTileSlots = 2;

struct SharedMemory {
  uint8_t keys[kStages][kTileBytes];
  uint8_t values[kStages][kTileBytes];
  uint8_t queries[kGroups][kQueryBytes];
  Tile tiles[kTileSlots];
  uint64_t keys_full[kStages], keys_empty[kStages];
  uint64_t values_full[kStages], values_empty[kStages];
  uint64_t queries_full[kGroups], queries_empty[kGroups];
  uint64_t tiles_full[kTileSlots], tiles_empty[kTileSlots];
};

struct Parameters {
  AttentionArguments arguments;
  int group;         // Query heads of a KV head.
  float scale_log2;  // exp(scale x) = exp2(scale_log2 x)
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

constexpr int kMinRows = 2;  // Entries of 1 row are decodes.
constexpr int kWarp = 32;
constexpr int kTileBlocks = kTileTokens / kKvBlockTokens;
constexpr int kBlockPartBytes = kKvBlockTokens * 128;  // Of a part.
// A thread's registers after the warpgroups have shared them out: 128 x (40 + 2 x 232) = 384 x 168.
// The copying warps spill with 24.
constexpr int kCopyRegisters = 40;
constexpr int kMultiplyRegisters = 232;

// Where a reader or a writer of a ring is, and the parity of its barriers' phase.
template <int kLength>
struct RingPosition {
  int index = 0;
  int parity = 0;

  __device__ void Advance() {
    if (++index == kLength) {
      index = 0;
      parity ^= 1;
    }
  }
};

// Returns when the barrier's phase of this parity has completed. Of a new barrier, that of parity 1
// has.
__device__ __forceinline__ void Wait(const uint64_t& barrier, int parity) {
  WaitForBarrier(SharedAddress(&barrier), parity);
}
// Once a warp.
__device__ __forceinline__ void ArriveAsWarp(const uint64_t& barrier) {
  if (threadIdx.x % kWarp == 0) Arrive(SharedAddress(&barrier));
}

// --- Tiles: one warp finds them, the others read them from a ring. ---

// KV heads that the blocks work on at a time. Their tiles are taken longest first, so that blocks
// end together; but with hundreds of KV heads no two blocks would read the same keys from the L2
// cache.
constexpr int kHeadsAtATime = 32;

// Of one KV head. By a whole warp.
__device__ int CountTiles(const Parameters& parameters) {
  const AttentionBatch& batch = parameters.arguments.batch;
  int tiles = 0;
  for (int entry = threadIdx.x % kWarp; entry < batch.entries; entry += kWarp) {
    const int rows = batch.rows[entry];
    if (rows >= kMinRows) tiles += (rows * parameters.group + kTileQueries - 1) / kTileQueries;
  }
  return __reduce_add_sync(0xffffffff, tiles);
}

// Number `index` of `tiles` of each KV head. By a whole warp.
__device__ Tile FindTile(const Parameters& parameters, int tiles, int index) {
  const AttentionBatch& batch = parameters.arguments.batch;
  const int kv_heads = parameters.arguments.cache.kv_heads, group = parameters.group;
  if (index >= tiles * kv_heads) return {};
  const int first_head = index / (kHeadsAtATime * tiles) * kHeadsAtATime;
  const int heads = min(kHeadsAtATime, kv_heads - first_head);
  const int turn = index - first_head * tiles;

  // An entry's longest tiles are its last ones.
  const QueryTile found =
      FindQueryTile(batch, kMinRows, group, kTileQueries, tiles - 1 - turn / heads);
  const int rows = batch.rows[found.entry];
  const int first_position = batch.first_position[found.entry];
  const int last = min(found.first + kTileQueries, rows * group) - 1;
  return {.queries = rows * group,
          .first = found.first,
          .kv_head = first_head + turn % heads,
          .first_row = batch.first_row[found.entry],
          .first_position = first_position,
          .context = first_position + rows,
          .table_start = batch.table_start[found.entry],
          .token_tiles = (first_position + last / group) / kTileTokens + 1,
          .unmasked_token_tiles = (first_position + found.first / group + 1) / kTileTokens};
}

// Calls `use` with each of the block's tiles, and passes them to the block's other warps. Blocks
// take turns in alternating order, so that none has the longer one of each round.
template <typename Use>
__device__ void DealTiles(const Parameters& parameters, SharedMemory& shared, const Use& use) {
  const int tiles = CountTiles(parameters);
  const int blocks = static_cast<int>(gridDim.x), block = static_cast<int>(blockIdx.x);
  RingPosition<kTileSlots> ring;
  for (int round = 0;; ++round) {
    Wait(shared.tiles_empty[ring.index], ring.parity ^ 1);
    const Tile tile =
        FindTile(parameters, tiles, round * blocks + (round % 2 == 0 ? block : blocks - 1 - block));
    if (threadIdx.x % kWarp == 0) shared.tiles[ring.index] = tile;
    ArriveAsWarp(shared.tiles_full[ring.index]);
    ring.Advance();
    if (tile.queries == 0) return;
    use(tile);
  }
}

class TileReader {
 public:
  __device__ explicit TileReader(SharedMemory& shared) : shared_(shared) {}

  // Waits for the next tile; returns false if there is none.
  __device__ bool Next(Tile& tile) {
    Wait(shared_.tiles_full[ring_.index], ring_.parity);
    tile = shared_.tiles[ring_.index];
    return tile.queries > 0;
  }
  // Lets one more be found. Once after Next, by whole warps.
  __device__ void Release() {
    __syncwarp();
    ArriveAsWarp(shared_.tiles_empty[ring_.index]);
    ring_.Advance();
  }

 private:
  SharedMemory& shared_;
  RingPosition<kTileSlots> ring_;
};

// --- The warps that copy. ---

// Copies all tiles' keys (`value` 0) or values (1), the last token tile first. A lane copies a part
// of a block.
__device__ void CopyTokens(const Parameters& parameters, SharedMemory& shared, int value) {
  const KvCacheView& cache = parameters.arguments.cache;
  uint8_t(*const stages)[kTileBytes] = value ? shared.values : shared.keys;
  const uint64_t* const full = value ? shared.values_full : shared.keys_full;
  const uint64_t* const empty = value ? shared.values_empty : shared.keys_empty;
  const int lane = threadIdx.x % kWarp;
  const int block = lane / 2, part = lane % 2;
  RingPosition<kStages> ring;
  TileReader reader(shared);
  for (Tile tile; reader.Next(tile);) {
    reader.Release();
    const int32_t* table = parameters.arguments.batch.block_table + tile.table_start;
    const int context_blocks = (tile.context + kKvBlockTokens - 1) / kKvBlockTokens;
    for (int i = tile.token_tiles - 1; i >= 0; --i) {
      const int blocks = min(context_blocks - i * kTileBlocks, kTileBlocks);
      const int number = block < blocks ? table[i * kTileBlocks + block] : 0;
      Wait(empty[ring.index], ring.parity ^ 1);
      const uint32_t barrier = SharedAddress(&full[ring.index]);
      ExpectFetch(barrier, blocks * 2 * kBlockPartBytes, lane);
      __syncwarp();
      if (block < blocks) {
        BulkCopy(SharedAddress(stages[ring.index]) + part * kPartBytes + block * kBlockPartBytes,
                 static_cast<const uint8_t*>(cache.data) +
                     cache.tile(number, tile.kv_head, value) * 2 + part * kBlockPartBytes,
                 kBlockPartBytes, barrier);
      }
      ring.Advance();
    }
  }
}

// Copies one tile's queries for one warpgroup: half a warp a row of 256 bytes. The queries behind
// the entry's last are zeros.
__device__ void CopyQueries(const Parameters& parameters, const Tile& tile, int warpgroup,
                            int parity, SharedMemory& shared) {
  const AttentionArguments& arguments = parameters.arguments;
  const int lane = threadIdx.x % kWarp, chunk = lane % 16, group = parameters.group;
  Wait(shared.queries_empty[warpgroup], parity ^ 1);
  int query = tile.first + warpgroup * kGroupQueries + lane / 16;
  int head = query % group;
  const __nv_bfloat16* from = static_cast<const __nv_bfloat16*>(arguments.queries) +
                              (tile.first_row + query / group) * arguments.query_stride +
                              tile.kv_head * group * kHeadDim + chunk * 8;
  const uint32_t to = SharedAddress(shared.queries[warpgroup]) + chunk / 8 * kQueryPartBytes;
#pragma unroll 4
  for (int row = lane / 16; row < kGroupQueries; row += 2) {
    const bool valid = query < tile.queries;
    CopyOrZero(to + row * 128 + ((chunk % 8) ^ (row % 8)) * 16,
               valid ? from + head * kHeadDim : arguments.queries, valid);
    query += 2;
    for (head += 2; head >= group; head -= group) from += arguments.query_stride;
  }
  WaitForCopies();
  FenceForAsyncProxy();
  Arrive(SharedAddress(&shared.queries_full[warpgroup]));
}

__device__ void Copy(const Parameters& parameters, SharedMemory& shared) {
  const int warp = threadIdx.x / kWarp;
  int parity = 0;
  switch (warp) {
    case 0:
    case 1:
      CopyTokens(parameters, shared, /*value=*/warp);
      break;
    case 2:
      DealTiles(parameters, shared, [&](const Tile& tile) {
        CopyQueries(parameters, tile, 0, parity, shared);
        parity ^= 1;
      });
      break;
    case 3: {
      TileReader reader(shared);
      for (Tile tile; reader.Next(tile); parity ^= 1) {
        reader.Release();
        CopyQueries(parameters, tile, 1, parity, shared);
      }
      break;
    }
  }
}

// --- The warpgroups that multiply. ---

using Scores = float[kTileTokens / 2];          // A thread's, of 64 x kTileTokens.
using Output = float[kHeadDim / 2];             // A thread's, of 64 x kHeadDim.
using Weights = uint32_t[kTileTokens / 16][4];  // The scores' as BF16, as wgmma's operands.
using Queries = uint32_t[kHeadDim / 16][4];

__device__ __forceinline__ void LoadQueries(const uint8_t* shared_queries, Queries& queries) {
  const int lane = threadIdx.x % kWarp;
  const int row = threadIdx.x % kWarpgroup / kWarp * 16 + lane % 16;
#pragma unroll
  for (int k = 0; k < kHeadDim / 16; ++k) {
    const int chunk = k % 4 * 2 + lane / 16;
    LoadMatrices(queries[k], SharedAddress(shared_queries) + k / 4 * kQueryPartBytes + row * 128 +
                                 (chunk ^ (row % 8)) * 16);
  }
}

// Starts scores = queries . keys.
__device__ __forceinline__ void StartScores(const Queries& queries, const uint8_t* keys,
                                            Scores& scores) {
  const uint64_t matrix = MatrixDescriptor(SharedAddress(keys), kPartBytes);
  KeepInPlace(scores);
  WgmmaFence();
#pragma unroll
  for (int k = 0; k < kHeadDim / 16; ++k) {
    Wgmma64x128</*kSumOverLines=*/false>(
        scores, queries[k], matrix + DescriptorOffset(k / 4 * kPartBytes + k % 4 * 32), k > 0);
  }
  WgmmaCommit();
  KeepInPlace(scores);
}

// Starts output += weights . values.
__device__ __forceinline__ void StartOutput(const Weights& weights, const uint8_t* values,
                                            Output& output) {
  const uint64_t matrix = MatrixDescriptor(SharedAddress(values), kPartBytes);
  KeepInPlace(output);
  WgmmaFence();
#pragma unroll
  for (int k = 0; k < kTileTokens / 16; ++k) {
    Wgmma64x128</*kSumOverLines=*/true>(output, weights[k], matrix + DescriptorOffset(k * 16 * 128),
                                        true);
  }
  WgmmaCommit();
  KeepInPlace(output);
}

// Of a thread's two queries, 8 apart.
struct Softmax {
  // Weights are exp2(scale_log2 (score - reference)). The reference follows the maximum only once
  // that is this much (in powers of 2) above it: weights stay below 2^8, far from overflow, BF16
  // and FP32 are as precise there, and most tiles leave the output as it is.
  static constexpr float kSlack = 8;

  float reference[2] = {-INFINITY, -INFINITY};
  float sum[2] = {0, 0};  // Over the thread's columns.

  // Turns scores into weights. Sets `rescale` to what the output so far is to be multiplied by.
  // kMasked: columns behind last_column[row] are not read.
  template <bool kMasked>
  __device__ __forceinline__ void Update(Scores& scores, float scale_log2,
                                         const int (&last_column)[2], float (&rescale)[2]) {
    constexpr int kCount = std::extent_v<Scores>;
    if constexpr (kMasked) {
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        if (i / 4 * 8 + i % 2 > last_column[i / 2 % 2]) scores[i] = -INFINITY;
      }
    }
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      float top = -INFINITY;
#pragma unroll
      for (int i = 2 * row; i < kCount; i += 4) top = fmaxf(top, fmaxf(scores[i], scores[i + 1]));
      top = RowMax(top);
      const float before = reference[row];
      if ((top - before) * scale_log2 > kSlack) reference[row] = top;
      // Rounded products, so that the same reference gives the same offset and a factor of 1.
      float offset = __fmul_rn(reference[row], scale_log2);
      if (kMasked && reference[row] == -INFINITY) offset = 0;  // No column was read so far.
      rescale[row] = Exp2(__fmul_rn(before, scale_log2) - offset);
      float added = 0;
#pragma unroll
      for (int i = 2 * row; i < kCount; i += 4) {
        scores[i] = Exp2(scores[i] * scale_log2 - offset);
        scores[i + 1] = Exp2(scores[i + 1] * scale_log2 - offset);
        added += scores[i] + scores[i + 1];
      }
      sum[row] = sum[row] * rescale[row] + added;
    }
  }
};

// Both are laid out alike: no exchange between threads.
__device__ __forceinline__ void ToOperand(const Scores& scores, Weights& weights) {
#pragma unroll
  for (int k = 0; k < kTileTokens / 16; ++k) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      weights[k][i] = PackBf16(scores[8 * k + 2 * i], scores[8 * k + 2 * i + 1]);
    }
  }
}

__device__ __forceinline__ void Rescale(const float (&rescale)[2], Output& output) {
  if (!__any_sync(0xffffffff, rescale[0] != 1 || rescale[1] != 1)) return;
#pragma unroll
  for (int i = 0; i < kHeadDim / 2; ++i) output[i] *= rescale[i / 2 % 2];
}

// Named barriers; 0 is that of __syncthreads.
constexpr int kTurnBarrier = 1;  // And the next one: a warpgroup's.
constexpr int kZeroBarrier = 3;

// Zeroes a value tile's lines from `first` on, by all warpgroups together: what lies behind a
// context may be NaN, and 0 x NaN is NaN.
__device__ void ZeroLines(uint8_t* values, int first) {
  const int thread = static_cast<int>(threadIdx.x) - kWarpgroup;
  for (int i = thread; i < (kTileTokens - first) * 16; i += kGroups * kWarpgroup) {
    *reinterpret_cast<uint4*>(values + i % 16 / 8 * kPartBytes + (first + i / 16) * 128 +
                              i % 8 * 16) = uint4{};
  }
  FenceForAsyncProxy();
  NamedBarrierSync(kZeroBarrier, kGroups * kWarpgroup);
}

// Stores output / sum of a warp's 16 queries, of which `first` is the first. The four lanes of a
// query hold 2 columns of each 8; they exchange, so that each stores whole 8s.
__device__ void StoreOutput(const Parameters& parameters, const Tile& tile, int first,
                            const Output& output, const float (&sum)[2]) {
  const int lane = threadIdx.x % kWarp, quad_lane = lane % 4, group = parameters.group;
#pragma unroll
  for (int row = 0; row < 2; ++row) {
    const float inverse = 1 / RowSum(sum[row]);
    const int query = first + lane / 4 + 8 * row;
    const int64_t to_row = int64_t{tile.first_row} + query / group;
    const int head = tile.kv_head * group + query % group;
    uint4* to = reinterpret_cast<uint4*>(static_cast<__nv_bfloat16*>(parameters.arguments.output) +
                                         (to_row * parameters.arguments.heads + head) * kHeadDim);
#pragma unroll
    for (int part = 0; part < 4; ++part) {  // Of 32 columns.
      uint32_t words[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int column = 4 * (4 * part + i) + 2 * row;
        words[i] = PackBf16(output[column] * inverse, output[column + 1] * inverse);
      }
      // A transposition of 4 x 4: first of its 2 x 2 blocks, then within them.
#pragma unroll
      for (int bit = 2; bit >= 1; bit /= 2) {
        const bool upper = quad_lane & bit;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          if (i & bit) continue;
          const uint32_t received =
              __shfl_xor_sync(0xffffffff, upper ? words[i] : words[i | bit], bit);
          (upper ? words[i] : words[i | bit]) = received;
        }
      }
      if (query < tile.queries) {
        to[4 * part + quad_lane] = uint4{words[0], words[1], words[2], words[3]};
      }
    }
  }
}

// The warpgroups start products in turns.
__device__ __forceinline__ void AwaitTurn(int warpgroup) {
  NamedBarrierSync(kTurnBarrier + warpgroup, 2 * kWarpgroup);
}
__device__ __forceinline__ void PassTurn(int warpgroup) {
  NamedBarrierArrive(kTurnBarrier + 1 - warpgroup, 2 * kWarpgroup);
}

__device__ void Multiply(const Parameters& parameters, int warpgroup, SharedMemory& shared) {
  const int group = parameters.group;
  const int lane = threadIdx.x % kWarp;
  const int warp_query = threadIdx.x % kWarpgroup / kWarp * 16;
  RingPosition<kStages> ring;  // Of the keys; the values are one behind.
  TileReader reader(shared);
  int parity = 0;
  if (warpgroup == 1) PassTurn(warpgroup);

  for (Tile tile; reader.Next(tile); parity ^= 1) {
    Queries queries;
    Wait(shared.queries_full[warpgroup], parity);
    LoadQueries(shared.queries[warpgroup], queries);
    __syncwarp();
    ArriveAsWarp(shared.queries_empty[warpgroup]);

    Scores scores;
    Weights weights;
    Output output = {};
    Softmax softmax;
    float rescale[2];
    int i = tile.token_tiles - 1;
    Wait(shared.keys_full[ring.index], ring.parity);
    StartScores(queries, shared.keys[ring.index], scores);

    const int first = tile.first + warpgroup * kGroupQueries + warp_query;
    // Of the thread's queries, the column of their own token, less the thread's first column; in
    // token tile 0. Queries behind the last do as that one.
    int own_column[2];
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      const int query = min(first + lane / 4 + 8 * row, tile.queries - 1);
      own_column[row] = tile.first_position + query / group - lane % 4 * 2;
    }
    const auto update = [&](auto masked) {
      const int last_column[2] = {own_column[0] - i * kTileTokens, own_column[1] - i * kTileTokens};
      softmax.Update<decltype(masked)::value>(scores, parameters.scale_log2, last_column, rescale);
    };

    if (tile.context < tile.token_tiles * kTileTokens) {
      Wait(shared.values_full[ring.index], ring.parity);
      ZeroLines(shared.values[ring.index], tile.context - i * kTileTokens);
    }
    WgmmaWait<0>();
    KeepInPlace(scores);
    ArriveAsWarp(shared.keys_empty[ring.index]);
    update(std::true_type());
    ToOperand(scores, weights);

    const auto next_tokens = [&](auto masked) {
      --i;
      const RingPosition<kStages> before = ring;
      ring.Advance();
      Wait(shared.keys_full[ring.index], ring.parity);
      AwaitTurn(warpgroup);
      StartScores(queries, shared.keys[ring.index], scores);
      Wait(shared.values_full[before.index], before.parity);
      StartOutput(weights, shared.values[before.index], output);
      PassTurn(warpgroup);
      WgmmaWait<1>();
      KeepInPlace(scores);
      ArriveAsWarp(shared.keys_empty[ring.index]);
      update(masked);
      WgmmaWait<0>();
      KeepInPlace(output);
      ArriveAsWarp(shared.values_empty[before.index]);
      ToOperand(scores, weights);
      Rescale(rescale, output);
    };
    while (i > tile.unmasked_token_tiles) next_tokens(std::true_type());
    while (i > 0) next_tokens(std::false_type());

    Wait(shared.values_full[ring.index], ring.parity);
    StartOutput(weights, shared.values[ring.index], output);
    WgmmaWait<0>();
    KeepInPlace(output);
    ArriveAsWarp(shared.values_empty[ring.index]);
    ring.Advance();
    reader.Release();
    StoreOutput(parameters, tile, first, output, softmax.sum);
  }
}

#endif

__global__ void __launch_bounds__(kThreads, 1)
    PrefillWgmma(const __grid_constant__ Parameters parameters) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  extern __shared__ __align__(1024) uint8_t shared_bytes[];
  SharedMemory& shared = *reinterpret_cast<SharedMemory*>(shared_bytes);
  if (threadIdx.x == 0) {
    constexpr int kMultiplyWarps = kGroups * kWarpgroup / kWarp;
    const auto initialize = [](const uint64_t& barrier, int arrivals) {
      InitializeBarrier(SharedAddress(&barrier), arrivals);
    };
    for (int i = 0; i < kStages; ++i) {
      initialize(shared.keys_full[i], 1);
      initialize(shared.values_full[i], 1);
      initialize(shared.keys_empty[i], kMultiplyWarps);
      initialize(shared.values_empty[i], kMultiplyWarps);
    }
    for (int i = 0; i < kGroups; ++i) {
      initialize(shared.queries_full[i], kWarp);
      initialize(shared.queries_empty[i], kWarpgroup / kWarp);
    }
    for (int i = 0; i < kTileSlots; ++i) {
      initialize(shared.tiles_full[i], 1);
      initialize(shared.tiles_empty[i], 3 + kMultiplyWarps);  // The copying warps but the dealer.
    }
    PublishBarriers();
  }
  __syncthreads();
  WaitForPreviousKernels();
  AllowNextKernel();

  if (threadIdx.x < kWarpgroup) {
    DecreaseRegisters<kCopyRegisters>();
    Copy(parameters, shared);
  } else {
    IncreaseRegisters<kMultiplyRegisters>();
    Multiply(parameters, static_cast<int>(threadIdx.x) / kWarpgroup - 1, shared);
  }
#else
  __trap();  // Never launched.
#endif
}

}  // namespace

absl::Status PrefillAttentionWgmma(const AttentionArguments& arguments, int max_rows,
                                   int total_rows, const LaunchOptions& options) {
  if (arguments.cache.head_dim != kHeadDim) {
    return absl::UnimplementedError(
        absl::StrFormat("prefill attention with wgmma is for a head_dim of %d, not %d", kHeadDim,
                        arguments.cache.head_dim));
  }
  int device = 0, major = 0, minor = 0, multiprocessors = 0;
  FABRICAST_RETURN_IF_CUDA_FAILS(cudaGetDevice(&device));
  FABRICAST_RETURN_IF_CUDA_FAILS(
      cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
  FABRICAST_RETURN_IF_CUDA_FAILS(
      cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device));
  if (major != 9 || minor != 0) {
    return absl::UnimplementedError(absl::StrFormat(
        "prefill attention with wgmma is for compute capability 9.0, not %d.%d", major, minor));
  }
  cudaFuncAttributes attributes;
  FABRICAST_RETURN_IF_CUDA_FAILS(cudaFuncGetAttributes(&attributes, PrefillWgmma));
  if (attributes.numRegs != kRegisters) {  // The driver made it from PTX, which is without wgmma.
    return absl::UnimplementedError(
        "prefill attention with wgmma: the binary has no code for sm_90a; build with 90a among "
        "--@local_cuda//:archs");
  }
  FABRICAST_RETURN_IF_CUDA_FAILS(
      cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device));
  FABRICAST_RETURN_IF_CUDA_FAILS(cudaFuncSetAttribute(
      PrefillWgmma, cudaFuncAttributeMaxDynamicSharedMemorySize, sizeof(SharedMemory)));

  const int kv_heads = arguments.cache.kv_heads, group = arguments.heads / kv_heads;
  const int64_t tiles =
      kv_heads * MaxQueryTiles(arguments.batch.entries, max_rows, total_rows, group, kTileQueries);
  if (tiles == 0) return absl::OkStatus();
  const unsigned blocks = static_cast<unsigned>(std::min<int64_t>(multiprocessors, tiles));
  constexpr double kLog2OfE = 1.4426950408889634;
  const Parameters parameters = {.arguments = arguments,
                                 .group = group,
                                 .scale_log2 = static_cast<float>(arguments.scale * kLog2OfE)};
  return LaunchKernel("prefill attention with wgmma", PrefillWgmma, dim3(blocks), dim3(kThreads),
                      sizeof(SharedMemory), options, parameters);
}

}  // namespace fabricast
