// Cuts a batch's queries into tiles for a grid whose size the host knows without seeing the batch.
//
// Of one entry and KV head, the queries of all rows and of all heads that read this KV head are one
// list: number p is row p / group's head kv_head * group + p % group. A tile is `tile` of them:
// whole rows if group divides tile, so that a chunk's last rows fill it and causality wastes
// little.
#ifndef FABRICAST_KERNELS_ATTENTION_QUERY_TILES_CUH_
#define FABRICAST_KERNELS_ATTENTION_QUERY_TILES_CUH_

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

#include "kernels/attention/kv_cache.h"

namespace fabricast {

// Enough tiles for every batch of so many entries and rows, for one KV head.
inline int64_t MaxQueryTiles(int entries, int max_rows, int64_t total_rows, int group, int tile) {
  const int64_t of_each = (int64_t{max_rows} * group + tile - 1) / tile;
  return std::min(entries * of_each, total_rows * group / tile + entries);
}

struct QueryTile {
  int entry = -1;  // -1: there are fewer tiles
  int first = 0;   // query of the tile, a multiple of `tile`
};

// Tile number `index` of the entries of at least `min_rows` rows. To be called by whole warps,
// after WaitForPreviousKernels; each warp finds it by itself.
__device__ __forceinline__ QueryTile FindQueryTile(const AttentionBatch& batch, int min_rows,
                                                   int group, int tile, int index) {
  const int lane = threadIdx.x % 32;
  for (int begin = 0; begin < batch.entries; begin += 32) {
    const int entry = begin + lane;
    const int rows = entry < batch.entries ? batch.rows[entry] : 0;
    const int tiles = rows < min_rows ? 0 : (rows * group + tile - 1) / tile;
    int end = tiles;  // After this lane's entry, counted from `begin`.
#pragma unroll
    for (int distance = 1; distance < 32; distance *= 2) {
      const int before = __shfl_up_sync(0xffffffff, end, distance);
      if (lane >= distance) end += before;
    }
    const unsigned behind = __ballot_sync(0xffffffff, end > index);
    if (behind != 0) {
      const int owner = __ffs(behind) - 1;
      const int first_tile = __shfl_sync(0xffffffff, end - tiles, owner);
      return {begin + owner, (index - first_tile) * tile};
    }
    index -= __shfl_sync(0xffffffff, end, 31);
  }
  return {};
}

}  // namespace fabricast

#endif  // FABRICAST_KERNELS_ATTENTION_QUERY_TILES_CUH_
