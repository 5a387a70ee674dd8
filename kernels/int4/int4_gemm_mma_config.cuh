// How int4_gemm_mma divides its work among warps, and what a launch gives it. For .cu files only.
#ifndef FABRICAST_KERNELS_INT4_INT4_GEMM_MMA_CONFIG_CUH_
#define FABRICAST_KERNELS_INT4_INT4_GEMM_MMA_CONFIG_CUH_

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

#include "kernels/int4/gemm_output.h"
#include "kernels/int4/int4_block.h"

namespace fabricast::int4_mma {

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

}  // namespace fabricast::int4_mma

#endif  // FABRICAST_KERNELS_INT4_INT4_GEMM_MMA_CONFIG_CUH_
