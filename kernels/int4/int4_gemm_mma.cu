// INT4 matrix product with mma.sync m16n8k16 (FP16 in, FP32 out). Weights are the A operand, tokens
// the B operand, so that few tokens waste little.
//
// Work. A *unit* is a tile of kRows outputs x one group of 128 inputs; it takes one stage of shared
// memory: its weight blocks and the activations' record of the group. Units are numbered tile by
// tile, and each CTA takes an equal run of them (stream-K), so that all multiprocessors stream
// weights all the time, whatever the shape. Inside a CTA *teams* of warps take units in turn
// (split-K), unit i of the CTA in stage i % stages.
//
// Loading. A producer warp keeps the ring of stages full: bulk copies on an mbarrier from compute
// capability 9.0 on, cp.async before. Where registers are too few for one (64 tokens), the last
// warp done with a stage loads it again. The first round of weights, which no kernel writes, is
// asked for before the kernel before has ended.
//
// Dequantisation. A 16-byte load of a lane is 4 A fragments; 8 weights take
//  - Scaling::kAfter (up to 16 tokens), one shift and four lop3: nibbles dropped into the mantissa
//  of
//    FP16 1024 (k % 4 < 2) or 64 (k % 4 >= 2, where the nibble is 4 bits up) are 1024 + q and 64 +
//    q. A group's accumulators begin at minus the sum of bias(k) x, which the activations bring
//    along; at its end total += s (accumulator - z sum of x) in FP32.
//  - Scaling::kBefore (more tokens, whose accumulators would be many to scale), one shift, four
//  ANDs
//    and four HFMA2: nibbles are FP16 subnormals q 2^-24 and 16 q 2^-24, and q s - z s is one fma
//    each, so that nothing is left to do at the end of a group. It rounds z s and the weight to
//    FP16, 2^-12 on average, which adds 3e-4 to the relative error.
//
// Reduction, in an order that the launch fixes: first over teams, in shared memory, then over CTAs.
// A CTA whose run begins inside a tile hands its sums to the workspace and raises its warps' flags;
// the CTA that has the tile's first unit adds the parts of the CTAs after it in their order, lowers
// their flags and stores. So a CTA may wait for those after it, and all must be on the GPU at once:
// no more of them than multiprocessors, each of which has room for one, and no kernel may begin
// that could take a place before all have theirs (AllowNextKernel comes after that, in every CTA).
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <mutex>

#include "absl/status/status.h"
#include "absl/strings/str_format.h"
#include "kernels/gpu/launch.cuh"
#include "kernels/int4/int4_block.h"
#include "kernels/int4/int4_gemm.h"
#include "kernels/int4/int4_gemm_mma_instructions.cuh"

namespace fabricast {
namespace {

using namespace int4_mma;

enum class Scaling { kAfter, kBefore };

// Bytes of the ring's barriers: 64 that say "full", 64 that say "empty".
constexpr int kMostStages = 64;
constexpr int kBarrierBytes = 2 * 8 * kMostStages;
constexpr int kFragmentBytes = 512;  // 4 FP32 a lane
constexpr int kBlockBytes = static_cast<int>(kInt4BlockBytes);

// A warp has kRowTiles m16 tiles x kTokenTiles n8 tiles.
template <int kTokenTiles_, int kRowTiles_, int kTeamWarps_, int kTeams_, bool kProducer_,
          Scaling kScaling_, int kStages_>
struct Config {
  static constexpr int kTokenTiles = kTokenTiles_;
  static constexpr int kRowTiles = kRowTiles_;
  static constexpr int kTeamWarps = kTeamWarps_;
  static constexpr int kTeams = kTeams_;
  static constexpr bool kProducer = kProducer_;
  static constexpr Scaling kScaling = kScaling_;
  static constexpr int kStages = kStages_;  // where shared memory allows

  static constexpr int kRows = 16 * kRowTiles * kTeamWarps;  // of a tile
  static constexpr int kBlocks = kRows / 128;                // of weights in a stage
  static constexpr int kMathWarps = kTeamWarps * kTeams;
  static constexpr int kThreads = 32 * (kMathWarps + kProducer);

  // Sums are reduced in slices: two row tiles (4 adjacent outputs a lane) x kSliceTokenTiles token
  // tiles. Slice q ends in team q % kTeams.
  static constexpr int kSliceTokenTiles = kTokenTiles < 4 ? kTokenTiles : kTeams > 2 ? 1 : 4;
  static constexpr int kSlices = kRowTiles / 2 * (kTokenTiles / kSliceTokenTiles);
  static constexpr int kTeamSlices = (kSlices + kTeams - 1) / kTeams;
  static constexpr int kSliceFragments = 2 * kSliceTokenTiles;
  static constexpr int kSlicesAtOnce = kSlices <= 2 ? kSlices : 1;
  static constexpr int kReductionFragments = kSlicesAtOnce * kSliceFragments;
  static constexpr int kReductionBytes =
      (kTeams - 1) * kTeamWarps * kReductionFragments * kFragmentBytes;
  // What a CTA leaves in the workspace; of how many CTAs that is loaded before it is added.
  static constexpr int kPartialVectors = kRowTiles * kTokenTiles * kTeamWarps * 32;
  static constexpr int kTeamFragments = kTeamSlices * kSliceFragments;
  static constexpr int kPartialsAtOnce = std::max(1, 4 / kTeamFragments);

  // Registers for the factors of the outputs ahead of their use.
  static constexpr bool kEarlyFactors = kRowTiles * kTokenTiles <= 4;

  static constexpr int SharedBytes(int stages, int record_bytes) {
    return kBarrierBytes + kReductionBytes + stages * (kBlocks * kBlockBytes + record_bytes);
  }

  static_assert(kRows % 128 == 0 && (kRowTiles == 2 || kRowTiles % 4 == 0));
  static_assert(kStages % kTeams == 0 && kStages <= kMostStages);
};

constexpr int kMostCtas = 256;  // multiprocessors that are used
constexpr int kMostMathWarps = 12;
constexpr int kMostPartialBytes = 64 * 256 * 4;  // 64 tokens x 256 rows

struct Parameters {
  const char* blocks;
  const char* records;
  const float* row_scale;
  const float* token_scale;
  char* output;
  float4* partials;  // a CTA has kPartialBytes
  uint32_t* flags;   // a CTA has kMathWarps; zero before and after a launch
  int64_t output_stride;
  int outputs;
  OutputKind output_kind;
  int tokens;
  int record_rows;
  int record_bytes;
  int stages;  // a multiple of kTeams: a stage always serves the same team
  uint32_t block_rows;
  uint32_t groups;       // units of a tile
  uint32_t units_a_cta;  // and one more for the first
  uint32_t longer_ctas;  // CTAs

  __device__ uint32_t FirstUnit(uint32_t cta) const {
    return cta * units_a_cta + min(cta, longer_ctas);
  }
};

// ---- Shared memory and what is loaded into it

// Addresses of barriers, of the teams' reduction and of stages: blocks, then the record.
template <typename C>
struct Ring {
  uint32_t base;
  int stages;
  int stage_bytes;

  __device__ Ring(const void* shared, const Parameters& p)
      : base(SharedAddress(shared)),
        stages(p.stages),
        stage_bytes(C::kBlocks * kBlockBytes + p.record_bytes) {}

  __device__ uint32_t Full(int stage) const { return base + 8 * stage; }
  // With a producer, a barrier; without, a count of the warps that are done.
  __device__ uint32_t Empty(int stage) const { return base + kBarrierBytes / 2 + 8 * stage; }
  __device__ uint32_t Reduction() const { return base + kBarrierBytes; }
  __device__ uint32_t Stage(int stage) const {
    return base + kBarrierBytes + C::kReductionBytes + stage * stage_bytes;
  }
};

// Where the next unit to load lies. Steps without divisions, which would bound the producer.
template <typename C>
class Source {
 public:
  __device__ Source(const Parameters& p, uint32_t unit) : p_(p) {
    const uint32_t tile = unit / p.groups;
    group_ = unit - tile * p.groups;
    rows_left_ = p.block_rows - tile * C::kBlocks;
    block_ = p.blocks + (static_cast<int64_t>(tile) * C::kBlocks * p.groups + group_) * kBlockBytes;
  }

  __device__ __forceinline__ void Advance(uint32_t units) {
    group_ += units;
    block_ += units * kBlockBytes;
    while (group_ >= p_.groups) {
      group_ -= p_.groups;
      rows_left_ -= C::kBlocks;
      block_ += static_cast<int64_t>(C::kBlocks - 1) * p_.groups * kBlockBytes;
    }
  }

  __device__ __forceinline__ void LoadWeights(const StageLoad& load, uint32_t stage) const {
    load.Copy<Reuse::kOnce>(stage, block_, kBlockBytes);
#pragma unroll
    for (int i = 1; i < C::kBlocks; ++i) {
      // A last tile that the matrix fills in part loads its first block again, which no one stores.
      const uint32_t step = i < rows_left_ ? i * p_.groups * kBlockBytes : 0;
      load.Copy<Reuse::kOnce>(stage + i * kBlockBytes, block_ + step, kBlockBytes);
    }
  }
  __device__ __forceinline__ void LoadActivations(const StageLoad& load, uint32_t stage) const {
    load.Copy<Reuse::kOften>(stage + C::kBlocks * kBlockBytes,
                             p_.records + group_ * p_.record_bytes, p_.record_bytes);
  }
  __device__ __forceinline__ void Load(const Ring<C>& ring, int stage) const {
    const StageLoad load(ring.Full(stage));
    load.Begin(ring.stage_bytes);
    LoadWeights(load, ring.Stage(stage));
    LoadActivations(load, ring.Stage(stage));
    load.End();
  }

 private:
  const Parameters& p_;
  const char* block_;  // the unit's first
  uint32_t group_;
  int rows_left_;  // of blocks, from the unit's tile on
};

// By one warp: barriers, and the first round of copies for units [first, end).
template <typename C>
__device__ __forceinline__ void FillRing(const Ring<C>& ring, Source<C> source, int units) {
  for (int stage = static_cast<int>(threadIdx.x % 32); stage < ring.stages; stage += 32) {
    InitBarrier(ring.Full(stage), kCopyArrivals);
    if constexpr (C::kProducer) {
      InitBarrier(ring.Empty(stage), C::kTeamWarps);
    } else {
      asm volatile("st.shared.u32 [%0],0;" ::"r"(ring.Empty(stage)) : "memory");
    }
  }
#if __CUDA_ARCH__ >= 900
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#endif
  __syncwarp();
  if (IssuesCopies()) {
    const int filled = min(ring.stages, units);
#if __CUDA_ARCH__ >= 900
    Source<C> weights = source;
    for (int stage = 0; stage < filled; ++stage) {
      const StageLoad load(ring.Full(stage));
      load.Begin(ring.stage_bytes);
      weights.LoadWeights(load, ring.Stage(stage));
      weights.Advance(1);
    }
    WaitForPreviousKernels();
    for (int stage = 0; stage < filled; ++stage) {
      source.LoadActivations(StageLoad(ring.Full(stage)), ring.Stage(stage));
      source.Advance(1);
    }
#else
    for (int stage = 0; stage < filled; ++stage) {
      source.Load(ring, stage);
      source.Advance(1);
    }
#endif
  }
  __syncwarp();
}

// The producer warp, after FillRing.
template <typename C>
__device__ __forceinline__ void KeepRingFull(const Ring<C>& ring, Source<C> source, int units) {
  if (!IssuesCopies()) return;
  source.Advance(ring.stages);
  int stage = 0, phase = 0;
  for (int unit = ring.stages; unit < units; ++unit) {
    Wait(ring.Empty(stage), phase);
    source.Load(ring, stage);
    source.Advance(1);
    if (++stage == ring.stages) {
      stage = 0;
      phase ^= 1;
    }
  }
}

// ---- Multiplying a unit

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

// ---- The end of a tile

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

// ---- The kernel

template <typename C>
__global__ void __launch_bounds__(C::kThreads, 1)
    Int4GemmMmaKernel(const __grid_constant__ Parameters p) {
  extern __shared__ __align__(1024) char shared[];
  const Ring<C> ring(shared, p);
  const int warp = __shfl_sync(0xffffffff, static_cast<int>(threadIdx.x / 32), 0);
  const int lane = static_cast<int>(threadIdx.x % 32);
  const uint32_t first = p.FirstUnit(blockIdx.x), end = p.FirstUnit(blockIdx.x + 1);
  Source<C> source(p, first);

  if (warp == (C::kProducer ? C::kMathWarps : 0)) {
    FillRing(ring, source, static_cast<int>(end - first));
  }
  __syncthreads();
  AllowNextKernel();
  if (C::kProducer && warp == C::kMathWarps) {
    KeepRingFull(ring, source, static_cast<int>(end - first));
    return;
  }

  const int team = warp / C::kTeamWarps, team_warp = warp % C::kTeamWarps;
  const LaneOffsets<C> at(p, team_warp, lane);
  uint32_t unit = first + team;  // the team's next
  int stage = team, phase = 0;
  if (!C::kProducer) source.Advance(ring.stages + team);  // what will replace it

  Sums<C> total;
  for (uint32_t begin = first; begin < end;) {  // each tile that the CTA has a part of
    const uint32_t tile = begin / p.groups, first_group = begin - tile * p.groups;
    const uint32_t units = min(p.groups - first_group, end - begin);
    const bool owner = first_group == 0;
    const bool has_slices = team < C::kSlices;
    const auto first_row = [&](int q) {
      return static_cast<int>(tile) * C::kRows +
             (team_warp * C::kRowTiles + q % (C::kRowTiles / 2) * 2) * 16 + 4 * (lane / 4);
    };
    if (C::kEarlyFactors && owner && has_slices) {
#pragma unroll
      for (int j = 0; j < C::kTeamSlices; ++j) {
        const int row = first_row(j * C::kTeams + team);
        if (row < p.outputs) asm volatile("prefetch.global.L2 [%0];" ::"l"(p.row_scale + row));
      }
    }

#pragma unroll
    for (int i = 0; i < C::kRowTiles * C::kTokenTiles * 4; ++i) (&total[0][0][0])[i] = 0;
    for (; unit < begin + units; unit += C::kTeams) {
      Wait(ring.Full(stage), phase);
      MultiplyUnit<C>(ring.Stage(stage), at, total, [&] {
        __syncwarp();
        if constexpr (C::kProducer) {
          ArriveIfLaneZero(ring.Empty(stage), lane);
        } else {
          uint32_t before = 0;
          if (lane == 0) {
            asm volatile("atom.acq_rel.cta.shared.inc.u32 %0,[%1],%2;"
                         : "=r"(before)
                         : "r"(ring.Empty(stage)), "n"(C::kTeamWarps - 1)
                         : "memory");
          }
          before = __shfl_sync(0xffffffff, before, 0);
          if (before == C::kTeamWarps - 1 && unit + ring.stages < end && IssuesCopies()) {
            source.Load(ring, stage);
          }
          __syncwarp();
        }
      });
      if (!C::kProducer) source.Advance(C::kTeams);
      stage += C::kTeams;
      if (stage >= ring.stages) {
        stage -= ring.stages;
        phase ^= 1;
      }
    }

    OutputFactors<C> factors[C::kTeamSlices];
    if (C::kEarlyFactors && owner && has_slices) {
#pragma unroll
      for (int j = 0; j < C::kTeamSlices; ++j) {
        const int q = min(j * C::kTeams + team, C::kSlices - 1);
        factors[j].Load(p, first_row(q), q, lane);
      }
    }
    ReduceOverTeams<C>(ring.Reduction(), team, team_warp, lane, total);
    if (has_slices) {
      WaitForPreviousKernels();  // they use workspace and output until they end
      if (!owner) {
        HandOver<C>(p, warp, team, team_warp, lane, total);
      } else {
        Collect<C>(p, (tile + 1) * p.groups, warp, team, team_warp, lane, total);
#pragma unroll
        for (int q = 0; q < C::kSlices; ++q) {
          if (q % C::kTeams != team) continue;
          OutputFactors<C>& f = factors[q / C::kTeams];
          if (!C::kEarlyFactors) f.Load(p, first_row(q), q, lane);
          StoreSlice<C>(p, f, first_row(q), q, lane, total);
        }
      }
    }
    begin += units;
  }
}

// ---- Launching

using UpTo8Tokens = Config<1, 4, 2, 4, true, Scaling::kAfter, 8>;
using UpTo16Tokens = Config<2, 2, 4, 3, true, Scaling::kAfter, 9>;
using UpTo32Tokens = Config<4, 4, 4, 2, true, Scaling::kBefore, 4>;
using UpTo64Tokens = Config<8, 4, 4, 2, false, Scaling::kBefore, 4>;

// What is to be known of a GPU, once.
struct Device {
  absl::Status status;
  int multiprocessors = 0;
  int shared_bytes = 0;  // that a block may have
};

template <typename C>
absl::Status AllowShared(int bytes) {
  static_assert(C::kPartialVectors * 16 <= kMostPartialBytes && C::kMathWarps <= kMostMathWarps);
  return ToStatus(cudaFuncSetAttribute(Int4GemmMmaKernel<C>,
                                       cudaFuncAttributeMaxDynamicSharedMemorySize, bytes),
                  "Int4GemmMma: cudaFuncSetAttribute");
}

Device LookAt(int ordinal) {
  Device device;
  const auto attribute = [&](cudaDeviceAttr name) {
    int value = 0;
    device.status.Update(
        ToStatus(cudaDeviceGetAttribute(&value, name, ordinal), "cudaDeviceGetAttribute"));
    return value;
  };
  device.multiprocessors = attribute(cudaDevAttrMultiProcessorCount);
  device.shared_bytes = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin);
  const int major = attribute(cudaDevAttrComputeCapabilityMajor);
  if (!device.status.ok()) return device;
  if (major < 8) {
    device.status.Update(absl::UnimplementedError(
        absl::StrFormat("Int4GemmMma: GPU %d has compute capability %d; 8.0 and later can run it",
                        ordinal, major)));
    return device;
  }
  device.status.Update(AllowShared<UpTo8Tokens>(device.shared_bytes));
  device.status.Update(AllowShared<UpTo16Tokens>(device.shared_bytes));
  device.status.Update(AllowShared<UpTo32Tokens>(device.shared_bytes));
  device.status.Update(AllowShared<UpTo64Tokens>(device.shared_bytes));
  return device;
}

const Device& CurrentDevice() {
  constexpr int kMostDevices = 64;
  static std::array<std::once_flag, kMostDevices> once;
  static std::array<Device, kMostDevices> devices;
  static const Device none = {.status = absl::InternalError("Int4GemmMma: no current GPU")};
  int ordinal = 0;
  if (cudaGetDevice(&ordinal) != cudaSuccess || ordinal >= kMostDevices) return none;
  std::call_once(once[ordinal], [ordinal] { devices[ordinal] = LookAt(ordinal); });
  return devices[ordinal];
}

// All multiprocessors, or, if 95 % of them get equal whole tiles (or equal parts of one) that way,
// somewhat fewer: no tile is then shared between CTAs that do not end together, which saves more
// time than 5 % of the multiprocessors, whose share of the memory the others take over.
uint32_t CtaCount(uint32_t tiles, uint32_t units, uint32_t multiprocessors) {
  const uint32_t most = std::min({multiprocessors, units, uint32_t{kMostCtas}});
  for (uint32_t ctas = most; ctas * 20 >= most * 19; --ctas) {
    if (tiles % ctas == 0 || (ctas % tiles == 0 && units % ctas == 0)) return ctas;
  }
  return most;
}

template <typename C>
absl::Status Launch(const Device& device, Parameters p, const LaunchOptions& options) {
  const int stage_bytes = C::SharedBytes(1, p.record_bytes) - C::SharedBytes(0, p.record_bytes);
  p.stages =
      std::min(C::kStages, (device.shared_bytes - C::SharedBytes(0, p.record_bytes)) / stage_bytes);
  p.stages -= p.stages % C::kTeams;
  if (p.stages == 0) {
    return absl::UnimplementedError(absl::StrFormat(
        "Int4GemmMma: %d tokens take %d bytes of shared memory a block; the GPU has %d", p.tokens,
        C::SharedBytes(C::kTeams, p.record_bytes), device.shared_bytes));
  }
  const uint32_t tiles = (p.block_rows + C::kBlocks - 1) / C::kBlocks;
  const uint32_t units = tiles * p.groups;
  const uint32_t ctas = CtaCount(tiles, units, static_cast<uint32_t>(device.multiprocessors));
  p.units_a_cta = units / ctas;
  p.longer_ctas = units % ctas;
  return LaunchKernel("Int4GemmMma", Int4GemmMmaKernel<C>, dim3(ctas), dim3(C::kThreads),
                      C::SharedBytes(p.stages, p.record_bytes), options, p);
}

constexpr int64_t kFlagBytes = int64_t{kMostCtas} * kMostMathWarps * 4;

}  // namespace

int64_t Int4GemmMmaWorkspaceBytes() { return kFlagBytes + int64_t{kMostCtas} * kMostPartialBytes; }

absl::Status Int4GemmMma(const Int4Matrix& weights, const Activations& input,
                         const GemmOutput& output, void* workspace, const LaunchOptions& options) {
  const ActivationLayout& layout = input.layout;
  if (layout.format != ActivationFormat::kMma || layout.tokens < 1 || layout.tokens > 64 ||
      layout.inputs != weights.inputs) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "Int4GemmMma: activations of %d tokens x %d inputs in format %d, weights of %d inputs: it "
        "takes 1 to 64 tokens in ActivationFormat::kMma",
        layout.tokens, layout.inputs, static_cast<int>(layout.format), weights.inputs));
  }
  if (weights.outputs <= 0 || weights.inputs <= 0 || output.stride % 4 != 0 ||
      output.stride < weights.outputs) {
    return absl::InvalidArgumentError(
        absl::StrFormat("Int4GemmMma: %d outputs x %d inputs, rows of the output %d apart: a "
                        "multiple of 4, no less "
                        "than the outputs",
                        weights.outputs, weights.inputs, output.stride));
  }
  const Device& device = CurrentDevice();
  if (!device.status.ok()) return device.status;
  Parameters p = {};
  p.blocks = static_cast<const char*>(weights.blocks);
  p.records = static_cast<const char*>(input.data);
  p.row_scale = weights.row_scale;
  p.token_scale = input.token_scale;
  p.output = static_cast<char*>(output.data);
  p.flags = static_cast<uint32_t*>(workspace);
  p.partials = reinterpret_cast<float4*>(static_cast<char*>(workspace) + kFlagBytes);
  p.outputs = static_cast<int>(weights.outputs);
  p.output_stride = output.stride;
  p.output_kind = output.kind;
  p.tokens = layout.tokens;
  p.record_rows = layout.rows();
  p.record_bytes = static_cast<int>(layout.record_bytes());
  p.block_rows = static_cast<uint32_t>(weights.block_rows());
  p.groups = static_cast<uint32_t>(weights.groups());
  switch (layout.n_tiles()) {
    case 1:
      return Launch<UpTo8Tokens>(device, p, options);
    case 2:
      return Launch<UpTo16Tokens>(device, p, options);
    case 4:
      return Launch<UpTo32Tokens>(device, p, options);
    default:
      return Launch<UpTo64Tokens>(device, p, options);
  }
}

}  // namespace fabricast
