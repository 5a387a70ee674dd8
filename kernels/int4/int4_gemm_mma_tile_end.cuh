// The end of a tile of int4_gemm_mma: its sums are reduced and stored. For .cu files only.
//
// Reduction, in an order that the launch fixes: first over teams, in shared memory, then over CTAs.
// A CTA whose run begins inside a tile hands its sums to the workspace and raises its warps' flags;
// the CTA that has the tile's first unit adds the parts of the CTAs after it in their order, lowers
// their flags and stores.
#ifndef FABRICAST_KERNELS_INT4_INT4_GEMM_MMA_TILE_END_CUH_
#define FABRICAST_KERNELS_INT4_INT4_GEMM_MMA_TILE_END_CUH_

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

#include "kernels/int4/gemm_output.h"
#include "kernels/int4/int4_gemm_mma_config.cuh"
#include "kernels/int4/int4_gemm_mma_instructions.cuh"
#include "kernels/int4/int4_gemm_mma_unit.cuh"

namespace fabricast::int4_mma {

// Fragment i of slice q.
template <typename C>
__device__ __forceinline__ float (&SliceFragment(Sums<C>& total, int q, int i))[4] {
  return total[q % (C::kRowTiles / 2) * 2 + i / C::kSliceTokenTiles]
              [q / (C::kRowTiles / 2) * C::kSliceTokenTiles + i % C::kSliceTokenTiles];
}

template <typename C>
__device__ __forceinline__ void SyncMathWarps() {
  asm volatile("bar.sync 1,%0;" ::"n"(C::kMathWarps * 32) : "memory");
}

// Afterwards slice q is complete in team q % kTeams. By all math warps.
template <typename C>
__device__ __forceinline__ void ReduceOverTeams(uint32_t scratch, int team, int team_warp, int lane,
                                                Sums<C>& total) {
  if constexpr (C::kTeams > 1) {
    // Of fragment i of slice q from the `from`th of the teams that do not own it.
    const auto place = [&](int from, int q, int i) {
      const int fragment = (from * C::kTeamWarps + team_warp) * C::kReductionFragments +
                           q % C::kSlicesAtOnce * C::kSliceFragments + i;
      return scratch + fragment * kFragmentBytes + lane * 16;
    };
#pragma unroll
    for (int first = 0; first < C::kSlices; first += C::kSlicesAtOnce) {
#pragma unroll
      for (int q = first; q < first + C::kSlicesAtOnce; ++q) {
        const int owner = q % C::kTeams;
        if (team == owner) continue;
#pragma unroll
        for (int i = 0; i < C::kSliceFragments; ++i) {
          StoreShared128(place(team - (team > owner), q, i), SliceFragment<C>(total, q, i));
        }
      }
      SyncMathWarps<C>();
#pragma unroll
      for (int q = first; q < first + C::kSlicesAtOnce; ++q) {
        if (team != q % C::kTeams) continue;
        for (int from = 0; from < C::kTeams - 1; ++from) {
#pragma unroll
          for (int i = 0; i < C::kSliceFragments; ++i) {
            const uint4 part = LoadShared128(place(from, q, i));
            Add(SliceFragment<C>(total, q, i), *reinterpret_cast<const float4*>(&part));
          }
        }
      }
      SyncMathWarps<C>();
    }
  }
}

// Calls function(fragment, its number in the team, its index in a CTA's partial sums) for the
// slices of `team`.
template <typename C, typename Function>
__device__ __forceinline__ void ForEachPartial(int team, int team_warp, int lane, Sums<C>& total,
                                               const Function& function) {
#pragma unroll
  for (int q = 0; q < C::kSlices; ++q) {
    if (q % C::kTeams != team) continue;
#pragma unroll
    for (int i = 0; i < C::kSliceFragments; ++i) {
      function(SliceFragment<C>(total, q, i), q / C::kTeams * C::kSliceFragments + i,
               ((q * C::kSliceFragments + i) * C::kTeamWarps + team_warp) * 32 + lane);
    }
  }
}

// Leaves the sums of a tile's later part to the CTA that owns the tile.
template <typename C>
__device__ __forceinline__ void HandOver(const Parameters& p, int warp, int team, int team_warp,
                                         int lane, Sums<C>& total) {
  float4* const partials = p.partials + static_cast<size_t>(blockIdx.x) * C::kPartialVectors;
  ForEachPartial<C>(team, team_warp, lane, total, [partials](const float(&v)[4], int, int at) {
    __stcg(partials + at, AsFloat4(v));
  });
  __syncwarp();
  if (lane == 0) {
    asm volatile("fence.acq_rel.gpu;\nst.release.gpu.u32 [%0],1;" ::"l"(
                     p.flags + blockIdx.x * C::kMathWarps + warp)
                 : "memory");
  }
}

// Adds what the CTAs after this one have of its last tile, which ends before unit `end`.
template <typename C>
__device__ __forceinline__ void Collect(const Parameters& p, uint32_t end, int warp, int team,
                                        int team_warp, int lane, Sums<C>& total) {
  const uint32_t first = blockIdx.x + 1;
  uint32_t count = 0;
  while (p.FirstUnit(first + count) < end) ++count;
  uint32_t* const flags = p.flags + first * C::kMathWarps + warp;
  for (uint32_t cta = lane; cta < count; cta += 32) {
    uint32_t raised;
    do {
      asm volatile("ld.acquire.gpu.u32 %0,[%1];"
                   : "=r"(raised)
                   : "l"(flags + cta * C::kMathWarps)
                   : "memory");
    } while (raised == 0);
  }
  __syncwarp();
  const float4* const partials = p.partials + static_cast<size_t>(first) * C::kPartialVectors;
  if constexpr (C::kPartialsAtOnce == 1) {
    for (uint32_t cta = 0; cta < count; ++cta) {
      const float4* const from = partials + cta * C::kPartialVectors;
      ForEachPartial<C>(team, team_warp, lane, total,
                        [from](float(&v)[4], int, int at) { Add(v, __ldcg(from + at)); });
    }
  } else {
    // All their loads before the first is added: latency is most of the time.
    for (uint32_t cta = 0; cta < count; cta += C::kPartialsAtOnce) {
      float4 parts[C::kPartialsAtOnce][C::kTeamFragments];
#pragma unroll
      for (int ahead = 0; ahead < C::kPartialsAtOnce; ++ahead) {
        const float4* const from = partials + (cta + ahead) * C::kPartialVectors;
        ForEachPartial<C>(team, team_warp, lane, total, [&](const float(&)[4], int i, int at) {
          parts[ahead][i] = cta + ahead < count ? __ldcg(from + at) : make_float4(0, 0, 0, 0);
        });
      }
#pragma unroll
      for (int ahead = 0; ahead < C::kPartialsAtOnce; ++ahead) {
        ForEachPartial<C>(team, team_warp, lane, total,
                          [&](float(&v)[4], int i, int) { Add(v, parts[ahead][i]); });
      }
    }
  }
  __syncwarp();
  for (uint32_t cta = lane; cta < count; cta += 32) flags[cta * C::kMathWarps] = 0;
}

// What a lane's 4 outputs x kSliceTokenTiles x 2 tokens of a slice are multiplied by.
template <typename C>
struct OutputFactors {
  float4 row;
  float token[2 * C::kSliceTokenTiles];

  __device__ __forceinline__ void Load(const Parameters& p, int first_row, int q, int lane) {
    // Rows up to whole blocks have a scale; a tile may end beyond.
    row = first_row < p.outputs ? __ldg(reinterpret_cast<const float4*>(p.row_scale + first_row))
                                : make_float4(0, 0, 0, 0);
#pragma unroll
    for (int i = 0; i < 2 * C::kSliceTokenTiles; ++i) {
      const int tile = q / (C::kRowTiles / 2) * C::kSliceTokenTiles + i / 2;
      const int t = min(tile * 8 + lane % 4 * 2 + i % 2, p.tokens - 1);
      // Not past L1 in the read-only way: the kernel before wrote it, while this one ran.
      token[i] = __ldcg(p.token_scale + t) * (C::kScaling == Scaling::kBefore ? 0x1p24f : 1.0f);
    }
  }
};

__device__ __forceinline__ void StoreOutputs(const Parameters& p, int token, int row, float4 v) {
  const int64_t at = token * p.output_stride + row;
  const float values[4] = {v.x, v.y, v.z, v.w};
  const bool whole = row + 4 <= p.outputs;
  if (p.output_kind == OutputKind::kBf16) {
    __nv_bfloat16* const to = reinterpret_cast<__nv_bfloat16*>(p.output) + at;
    if (whole) {
      const __nv_bfloat162 low = __floats2bfloat162_rn(v.x, v.y);
      const __nv_bfloat162 high = __floats2bfloat162_rn(v.z, v.w);
      *reinterpret_cast<uint2*>(to) = make_uint2(*reinterpret_cast<const uint32_t*>(&low),
                                                 *reinterpret_cast<const uint32_t*>(&high));
      return;
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (row + i < p.outputs) to[i] = __float2bfloat16_rn(values[i]);
    }
    return;
  }
  float* const to = reinterpret_cast<float*>(p.output) + at;
  const bool add = p.output_kind == OutputKind::kAddF32;
  if (whole) {
    const float4 old = add ? *reinterpret_cast<const float4*>(to) : make_float4(0, 0, 0, 0);
    *reinterpret_cast<float4*>(to) =
        make_float4(old.x + v.x, old.y + v.y, old.z + v.z, old.w + v.w);
    return;
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (row + i < p.outputs) to[i] = (add ? to[i] : 0) + values[i];
  }
}

template <typename C>
__device__ __forceinline__ void StoreSlice(const Parameters& p, const OutputFactors<C>& factors,
                                           int first_row, int q, int lane, Sums<C>& total) {
#pragma unroll
  for (int i = 0; i < 2 * C::kSliceTokenTiles; ++i) {
    const int tile = q / (C::kRowTiles / 2) * C::kSliceTokenTiles + i / 2, odd = i % 2;
    const int token = tile * 8 + lane % 4 * 2 + odd;
    if (token >= p.tokens || first_row >= p.outputs) continue;
    const float(&low)[4] = SliceFragment<C>(total, q, i / 2);
    const float(&high)[4] = SliceFragment<C>(total, q, i / 2 + C::kSliceTokenTiles);
    const float f = factors.token[i];
    StoreOutputs(p, token, first_row,
                 make_float4(low[odd] * f * factors.row.x, low[odd + 2] * f * factors.row.y,
                             high[odd] * f * factors.row.z, high[odd + 2] * f * factors.row.w));
  }
}

}  // namespace fabricast::int4_mma

#endif  // FABRICAST_KERNELS_INT4_INT4_GEMM_MMA_TILE_END_CUH_
