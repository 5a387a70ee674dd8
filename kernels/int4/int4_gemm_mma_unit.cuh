// Multiplies a unit of int4_gemm_mma, a tile of outputs x 128 inputs, from a stage of shared
// memory. For .cu files only.
//
// Weights are the A operand of mma.sync. A 16-byte load of a lane is 4 A fragments; 8 weights take
//  - Scaling::kAfter (up to 16 tokens), one shift and four lop3: nibbles dropped into the mantissa
//    of FP16 1024 (k % 4 < 2) or 64 (k % 4 >= 2, where the nibble is 4 bits up) are 1024 + q and
//    64 + q. A group's accumulators begin at minus the sum of bias(k) x, which the activations
//    bring along; at its end total += s (accumulator - z sum of x) in FP32.
//  - Scaling::kBefore (more tokens, whose accumulators would be many to scale), one shift, four
//    ANDs and four HFMA2: nibbles are FP16 subnormals q 2^-24 and 16 q 2^-24, and q s - z s is one
//    fma each, so that nothing is left to do at the end of a group. It rounds z s and the weight to
//    FP16, 2^-12 on average, which adds 3e-4 to the relative error.
#ifndef FABRICAST_KERNELS_INT4_INT4_GEMM_MMA_UNIT_CUH_
#define FABRICAST_KERNELS_INT4_INT4_GEMM_MMA_UNIT_CUH_

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

#include "kernels/int4/int4_block.h"
#include "kernels/int4/int4_gemm_mma_config.cuh"
#include "kernels/int4/int4_gemm_mma_instructions.cuh"

namespace fabricast::int4_mma {

template <typename C>
using Sums = float[C::kRowTiles][C::kTokenTiles][4];

// Of a row tile: {fragment row g, g + 8}.
template <typename C>
struct RowFactors {
  uint32_t scale[C::kRowTiles];  // FP16
  uint32_t zero[C::kRowTiles];   // FP16: z 2^-24
};

// The same of Scaling::kBefore, each twice in a register, for fragment rows g and g + 8.
struct WeightFactors {
  uint32_t scale[2];
  uint32_t scale_16th[2];
  uint32_t minus_zero[2];  // -z s 2^-24

  __device__ __forceinline__ void Set(uint32_t scales, uint32_t zeros) {
    const uint32_t products = MultiplyF16x2(zeros, scales ^ 0x80008000);
    const uint32_t sixteenths = MultiplyF16x2(scales, 0x2c002c00);
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      const int half = row == 0 ? 0x1010 : 0x3232;
      scale[row] = __byte_perm(scales, 0, half);
      scale_16th[row] = __byte_perm(sixteenths, 0, half);
      minus_zero[row] = __byte_perm(products, 0, half);
    }
  }
};

// A lane's offsets in a stage.
template <typename C>
struct LaneOffsets {
  uint32_t nibbles, scales, zeros;
  uint32_t values[2];  // B fragments of the even and the odd pairs of steps
  uint32_t sums;
  int zero_shift;

  __device__ LaneOffsets(const Parameters& p, int team_warp, int lane) {
    const int g = lane / 4, t = lane % 4;
    const int block = team_warp * C::kRowTiles / 8 * kBlockBytes;
    const int tile = team_warp * C::kRowTiles % 8;  // the warp's first in its block
    nibbles = block + tile * 1024 + lane * 16;
    scales = block + kInt4ScalesAt + tile / 4 * 128 + g * 16 + tile % 4 * 4;
    zeros = block + kInt4ZerosAt + tile / 4 * 32 + g * 4;
    zero_shift = tile % 4 * 4;
    // Columns beyond the tokens repeat the last; no one stores them.
    const int token = C::kTokenTiles == 1 ? min(g, p.tokens - 1) : g;
    const int record = C::kBlocks * kBlockBytes;
    for (int odd = 0; odd < 2; ++odd) {
      values[odd] = record + token * 256 + t * 16 + ((token + odd) & 1) * 64;
    }
    sums = record + p.record_rows * 256 + t * 16;
  }
};

template <typename C>
__device__ __forceinline__ void LoadRowFactors(uint32_t stage, const LaneOffsets<C>& at,
                                               RowFactors<C>& factors) {
  constexpr int kTiles = C::kRowTiles == 2 ? 2 : 4;
#pragma unroll
  for (int tile = 0; tile < C::kRowTiles; tile += kTiles) {
    uint32_t zeros = LoadShared32(stage + at.zeros + tile * 8);
    if constexpr (kTiles == 2) {
      const uint2 scales = LoadShared64(stage + at.scales);
      factors.scale[0] = scales.x;
      factors.scale[1] = scales.y;
      zeros >>= at.zero_shift;
    } else {
      const uint4 scales = LoadShared128(stage + at.scales + tile * 32);
      factors.scale[tile] = scales.x;
      factors.scale[tile + 1] = scales.y;
      factors.scale[tile + 2] = scales.z;
      factors.scale[tile + 3] = scales.w;
    }
#pragma unroll
    for (int i = 0; i < kTiles; ++i) factors.zero[tile + i] = zeros >> (4 * i) & 0x000f000f;
  }
}

// The A fragment of a k16 step, biased.
__device__ __forceinline__ void BiasedFragment(uint32_t word, uint32_t (&a)[4]) {
  const uint32_t shifted = word >> 8;
  a[0] = Insert<0x000f000f, 0x64006400>(word);
  a[1] = Insert<0x000f000f, 0x64006400>(shifted);
  a[2] = Insert<0x00f000f0, 0x54005400>(word);
  a[3] = Insert<0x00f000f0, 0x54005400>(shifted);
}
// The same, scaled: (q - z) s 2^-24.
__device__ __forceinline__ void ScaledFragment(uint32_t word, const WeightFactors& f,
                                               uint32_t (&a)[4]) {
  const uint32_t shifted = word >> 8;
  a[0] = FmaF16x2(word & 0x000f000f, f.scale[0], f.minus_zero[0]);
  a[1] = FmaF16x2(shifted & 0x000f000f, f.scale[1], f.minus_zero[1]);
  a[2] = FmaF16x2(word & 0x00f000f0, f.scale_16th[0], f.minus_zero[0]);
  a[3] = FmaF16x2(shifted & 0x00f000f0, f.scale_16th[1], f.minus_zero[1]);
}

__device__ __forceinline__ uint32_t Word(const uint4& v, int i) {
  return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w;
}

// Adds a unit's products to `total`; calls `release` when the warp has read the stage.
template <typename C, typename Release>
__device__ __forceinline__ void MultiplyUnit(uint32_t stage, const LaneOffsets<C>& at,
                                             Sums<C>& total, const Release& release) {
  constexpr bool kBefore = C::kScaling == Scaling::kBefore;
  RowFactors<C> rows;
  LoadRowFactors(stage, at, rows);
  WeightFactors weights[kBefore ? C::kRowTiles : 1];
  float group[kBefore ? 1 : C::kRowTiles][kBefore ? 1 : C::kTokenTiles][4];
  float4 sums[kBefore ? 1 : C::kTokenTiles];  // two tokens' {-sum of bias x, -2^24 sum of x}
  if constexpr (kBefore) {
#pragma unroll
    for (int m = 0; m < C::kRowTiles; ++m) weights[m].Set(rows.scale[m], rows.zero[m]);
  } else {
#pragma unroll
    for (int n = 0; n < C::kTokenTiles; ++n) {
      const uint4 v = LoadShared128(stage + at.sums + n * 64);
      sums[n] = *reinterpret_cast<const float4*>(&v);
    }
  }

#pragma unroll
  for (int half = 0; half < 2; ++half) {
    uint4 nibbles[C::kRowTiles];
#pragma unroll
    for (int m = 0; m < C::kRowTiles; ++m) {
      nibbles[m] = LoadShared128(stage + at.nibbles + m * 1024 + half * 512);
    }
#pragma unroll
    for (int pair = 0; pair < 2; ++pair) {
      uint4 values[C::kTokenTiles];
#pragma unroll
      for (int n = 0; n < C::kTokenTiles; ++n) {
        values[n] = LoadShared128(stage + at.values[pair] + n * 2048 + half * 128);
      }
      if (half == 1 && pair == 1) release();
#pragma unroll
      for (int step = 0; step < 2; ++step) {
        uint32_t a[C::kRowTiles][4];
#pragma unroll
        for (int m = 0; m < C::kRowTiles; ++m) {
          const uint32_t word = Word(nibbles[m], 2 * pair + step);
          if constexpr (kBefore) {
            ScaledFragment(word, weights[m], a[m]);
          } else {
            BiasedFragment(word, a[m]);
          }
        }
#pragma unroll
        for (int n = 0; n < C::kTokenTiles; ++n) {
          const uint32_t b0 = Word(values[n], 2 * step), b1 = Word(values[n], 2 * step + 1);
#pragma unroll
          for (int m = 0; m < C::kRowTiles; ++m) {
            if constexpr (kBefore) {
              float(&d)[4] = total[m][n];
              Mma(d, a[m], b0, b1, d[0], d[1], d[2], d[3]);
            } else if (half + pair + step == 0) {
              Mma(group[m][n], a[m], b0, b1, sums[n].x, sums[n].z, sums[n].x, sums[n].z);
            } else {
              float(&d)[4] = group[m][n];
              Mma(d, a[m], b0, b1, d[0], d[1], d[2], d[3]);
            }
          }
        }
      }
    }
  }

  if constexpr (!kBefore) {
#pragma unroll
    for (int m = 0; m < C::kRowTiles; ++m) {
      const float2 s = F16x2ToFloats(rows.scale[m]), z = F16x2ToFloats(rows.zero[m]);
#pragma unroll
      for (int n = 0; n < C::kTokenTiles; ++n) {
        float(&d)[4] = total[m][n];
        const float(&v)[4] = group[m][n];
        d[0] = fmaf(s.x, fmaf(z.x, sums[n].y, v[0]), d[0]);
        d[1] = fmaf(s.x, fmaf(z.x, sums[n].w, v[1]), d[1]);
        d[2] = fmaf(s.y, fmaf(z.y, sums[n].y, v[2]), d[2]);
        d[3] = fmaf(s.y, fmaf(z.y, sums[n].w, v[3]), d[3]);
      }
    }
  }
}

}  // namespace fabricast::int4_mma

#endif  // FABRICAST_KERNELS_INT4_INT4_GEMM_MMA_UNIT_CUH_
