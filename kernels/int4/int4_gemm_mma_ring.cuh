// Shared memory of int4_gemm_mma, and what is loaded into it. For .cu files only.
//
// A producer warp keeps the ring of stages full: bulk copies on an mbarrier from compute
// capability 9.0 on, cp.async before. Where registers are too few for one (64 tokens), the last
// warp done with a stage loads it again. The first round of weights, which no kernel writes, is
// asked for before the kernel before has ended.
#ifndef FABRICAST_KERNELS_INT4_INT4_GEMM_MMA_RING_CUH_
#define FABRICAST_KERNELS_INT4_INT4_GEMM_MMA_RING_CUH_

#include <cstdint>

#include "kernels/gpu/launch.cuh"
#include "kernels/int4/int4_gemm_mma_config.cuh"
#include "kernels/int4/int4_gemm_mma_instructions.cuh"

namespace fabricast::int4_mma {

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

}  // namespace fabricast::int4_mma

#endif  // FABRICAST_KERNELS_INT4_INT4_GEMM_MMA_RING_CUH_
