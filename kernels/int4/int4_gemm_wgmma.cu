// Int4GemmWgmma: kernels/int4/int4_gemm.h.
//
// A tile is kBlocks blocks of 128 outputs x kN tokens; a unit is a tile and one group of 128
// inputs. Consumer warpgroups own kPairs blocks each, warp w of one m16 tiles 2 w and 2 w + 1 of
// each block, so that a thread ends with 4 adjacent outputs of a token. One more thread fetches
// units into a ring of shared memory. Weights become FP16 in the registers that wgmma reads them
// from, scaled, so accumulators run over all inputs; while some k16 steps multiply, the next are
// dequantised.
//
// Where tokens need several tiles, blocks form teams of one block a token tile: all of a team have
// the same outputs at about the same time, and all but one find the weights in L2. Teams take equal
// runs of the units, outputs by outputs (stream-K). A block that begins within a tile hands its
// sums to the one that began it, which adds them in the order of the inputs.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

#include "absl/status/status.h"
#include "absl/strings/str_format.h"
#include "kernels/gpu/cuda_status.h"
#include "kernels/gpu/launch.cuh"
#include "kernels/int4/int4_gemm.h"
#include "kernels/int4/int4_gemm_wgmma_instructions.cuh"

namespace fabricast {
// Not anonymous: compilations for other architectures leave much of it unused, and would warn.
namespace int4_gemm_wgmma {

// A multiprocessor of 9.0 gives a block 227 KiB of its 228.
constexpr int kSharedBytes = 227 * 1024;
// Barriers; a multiple of 1,024, since the swizzle's atoms follow.
constexpr int kBarrierBytes = 1024;

// GH100 has 144 multiprocessors, of which products enable up to 132.
constexpr int kMaxBlocks = 144;
constexpr int64_t kFlagBytes = 16384;
// Of a tile's sums: up to 256 x 128 or 512 x 64 FP32.
constexpr int64_t kPartialBytes = 131072;

// More token tiles than these go to another launch.
constexpr int kMaxTokenTiles = 8;

// kN: tokens, wgmma's n. Each of kWarpgroups has kPairs pairs of m64 tiles, a 128-output block
// each. kSteps: k16 steps of a pair that are dequantised, and then multiplied, at a time.
template <int kN_, int kWarpgroups_, int kPairs_, int kSteps_>
struct Tile {
  static constexpr int kN = kN_, kWarpgroups = kWarpgroups_, kPairs = kPairs_, kSteps = kSteps_;
  static constexpr int kBlocks = kWarpgroups * kPairs;
  static constexpr int kTokenBytes = kN * 256;
  static constexpr int kWeightBytes = kBlocks * static_cast<int>(kInt4BlockBytes);
  // More than 9 only spread the blocks.
  static constexpr int kStages =
      std::min(9, (kSharedBytes - kBarrierBytes) / (kTokenBytes + kWeightBytes));
  static constexpr int kUsedSharedBytes = kBarrierBytes + kStages * (kTokenBytes + kWeightBytes);
  static_assert(kTokenBytes / 2 % 1024 == 0 && kStages >= 3 &&
                kBlocks * 128 * kN * 4 <= kPartialBytes);

  static constexpr int kConsumerWarps = 4 * kWarpgroups;
  static_assert(kMaxBlocks * kConsumerWarps * 4 <= kFlagBytes);
  // And a warpgroup, of which one thread fetches; a whole one, to hand its registers over. Of the
  // 65,536 registers each thread begins with an equal share, a multiple of 8.
  static constexpr int kThreads = 32 * (kConsumerWarps + 4);
  static constexpr int kProducerRegisters = 24;
  static constexpr int kConsumerRegisters =
      std::min(240, (65536 / kThreads / 8 * 8 * (kWarpgroups + 1) - kProducerRegisters) /
                        kWarpgroups / 8 * 8);
};

struct Arguments {
  const char* weights;
  const char* tokens;
  const float* row_scale;
  const float* token_scale;
  char* output;
  int64_t stride;
  OutputKind kind;
  int outputs, slots;
  int first_token, end_token;  // of this launch
  int groups, block_rows;
  int token_tiles;
  uint32_t units_per_team, teams_with_one_more;
  float4* partial;  // [block][...]
  uint32_t* flags;  // [block][consumer warp]: 1 when its partial sums are there

  // First unit of a team.
  __device__ uint32_t Begin(uint32_t team) const {
    return team * units_per_team + min(team, teams_with_one_more);
  }
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

__device__ __forceinline__ uint32_t SharedAddress(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

__device__ __forceinline__ void InitBarrier(uint32_t barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals));
}
__device__ __forceinline__ void ArriveExpecting(uint32_t barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
               : "memory");
}
// If `yes`. Without a branch, which would end the stretch of code over which the compiler lets
// wgmma run: it would wait for each.
__device__ __forceinline__ void ArriveIf(bool yes, uint32_t barrier) {
  asm volatile(
      "{\n"
      ".reg .pred yes;\n"
      "setp.ne.s32 yes, %1, 0;\n"
      "@yes mbarrier.arrive.shared::cta.b64 _, [%0];\n"
      "}" ::"r"(barrier),
      "r"(static_cast<int>(yes))
      : "memory");
}
__device__ __forceinline__ void WaitBarrier(uint32_t barrier, int parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@done bra finished;\n"
      "bra again;\n"
      "finished:\n"
      "}" ::"r"(barrier),
      "r"(parity)
      : "memory");
}
// `from`, `to` and `bytes`: multiples of 16.
__device__ __forceinline__ void BulkCopy(uint32_t to, const void* from, int bytes, uint32_t barrier,
                                         uint64_t policy) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint "
      "[%0], [%1], %2, [%3], %4;" ::"r"(to),
      "l"(from), "r"(bytes), "r"(barrier), "l"(policy)
      : "memory");
}

__device__ __forceinline__ __half2 Half2(uint32_t bits) {
  return *reinterpret_cast<const __half2*>(&bits);
}
__device__ __forceinline__ uint32_t Bits(__half2 value) {
  return *reinterpret_cast<const uint32_t*>(&value);
}

// Of an m16 tile and group, for fragment rows g (low half) and g + 8.
struct TileScales {
  __half2 scale;          // s 2^K
  __half2 scale_over_16;  // for nibbles that lie 4 bits higher
  __half2 zero;           // -z s 2^K 2^-24

  // `zeros`: z in bits 0-3 and 16-19, which as FP16 are z 2^-24.
  __device__ __forceinline__ void Set(uint32_t scales, uint32_t zeros) {
    scale = Half2(scales);
    scale_over_16 = __hmul2(scale, __float2half2_rn(0.0625f));
    zero = __hmul2(Half2(zeros), __hneg2(scale));
  }
};

// (q - z) s 2^K 2^-24 of the 8 weights in a word.
__device__ __forceinline__ void Dequantize(uint32_t word, const TileScales& by, uint32_t (&a)[4]) {
  const uint32_t high = word >> 8;
  const __half2 zero_g = __low2half2(by.zero), zero_g8 = __high2half2(by.zero);
  a[0] = Bits(__hfma2(Half2(word & 0x000f000f), __low2half2(by.scale), zero_g));
  a[1] = Bits(__hfma2(Half2(high & 0x000f000f), __high2half2(by.scale), zero_g8));
  a[2] = Bits(__hfma2(Half2(word & 0x00f000f0), __low2half2(by.scale_over_16), zero_g));
  a[3] = Bits(__hfma2(Half2(high & 0x00f000f0), __high2half2(by.scale_over_16), zero_g8));
}

__device__ __forceinline__ uint32_t Word(const uint4& words, int i) {
  return i == 0 ? words.x : i == 1 ? words.y : i == 2 ? words.z : words.w;
}

__device__ __forceinline__ void Add(float4& to, const float4& more) {
  to.x += more.x, to.y += more.y, to.z += more.z, to.w += more.w;
}

// Outputs row ... row + 3 of some tokens, those of this launch. All that is read is read first.
template <int kCount>
__device__ __forceinline__ void Store(const Arguments& p, int row, const int (&tokens)[kCount],
                                      float4 (&values)[kCount]) {
  if (row + 4 > p.outputs) {
    for (int i = 0; i < kCount; ++i) {
      const float four[4] = {values[i].x, values[i].y, values[i].z, values[i].w};
#pragma unroll
      for (int r = 0; r < 3; ++r) {
        if (tokens[i] >= p.end_token || row + r >= p.outputs) continue;
        const int64_t at = tokens[i] * p.stride + row + r;
        if (p.kind == OutputKind::kBf16) {
          reinterpret_cast<__nv_bfloat16*>(p.output)[at] = __float2bfloat16_rn(four[r]);
        } else {
          float* const to = reinterpret_cast<float*>(p.output) + at;
          *to = four[r] + (p.kind == OutputKind::kAddF32 ? *to : 0.f);
        }
      }
    }
    return;
  }
  if (p.kind == OutputKind::kBf16) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      if (tokens[i] >= p.end_token) continue;
      const __nv_bfloat162 low = __floats2bfloat162_rn(values[i].x, values[i].y);
      const __nv_bfloat162 high = __floats2bfloat162_rn(values[i].z, values[i].w);
      *reinterpret_cast<uint2*>(p.output + 2 * (tokens[i] * p.stride + row)) = make_uint2(
          *reinterpret_cast<const uint32_t*>(&low), *reinterpret_cast<const uint32_t*>(&high));
    }
    return;
  }
  float* const output = reinterpret_cast<float*>(p.output) + row;
  if (p.kind == OutputKind::kAddF32) {
    float4 before[kCount];
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      before[i] =
          *reinterpret_cast<const float4*>(output + min(tokens[i], p.end_token - 1) * p.stride);
    }
#pragma unroll
    for (int i = 0; i < kCount; ++i) Add(values[i], before[i]);
  }
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    if (tokens[i] < p.end_token) {
      *reinterpret_cast<float4*>(output + tokens[i] * p.stride) = values[i];
    }
  }
}

// Fetches a block's units, in their order, into the ring: one thread's.
template <typename T>
struct Producer {
  const Arguments& p;
  uint32_t full, empty, token_ring, weight_ring;
  uint32_t begin, end;
  int first_slot;

  uint32_t tile, group;
  uint64_t weight_policy, token_policy;

  // The next unit to be fetched is this block's first.
  __device__ __forceinline__ void Rewind() { tile = begin / p.groups, group = begin % p.groups; }
  __device__ __forceinline__ void Advance() {
    if (++group == p.groups) group = 0, ++tile;
  }

  __device__ __forceinline__ int HalfBytes() const {
    return min(T::kN, p.slots - first_slot) * 128;
  }
  __device__ __forceinline__ void FetchWeights(int stage) const {
    ArriveExpecting(full + 8 * stage, T::kWeightBytes + 2 * HalfBytes());
#pragma unroll
    for (int i = 0; i < T::kBlocks; ++i) {
      // Beyond the last block it comes again, and its outputs are not stored.
      const int block = min(tile * T::kBlocks + i, p.block_rows - 1);
      BulkCopy(weight_ring + stage * T::kWeightBytes + i * kInt4BlockBytes,
               p.weights + (static_cast<int64_t>(block) * p.groups + group) * kInt4BlockBytes,
               kInt4BlockBytes, full + 8 * stage, weight_policy);
    }
  }
  __device__ __forceinline__ void FetchTokens(int stage) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      BulkCopy(token_ring + stage * T::kTokenBytes + half * (T::kTokenBytes / 2),
               p.tokens + ((group * 2 + half) * static_cast<int64_t>(p.slots) + first_slot) * 128,
               HalfBytes(), full + 8 * stage, token_policy);
    }
  }

  __device__ __forceinline__ uint32_t Filled() const { return min(begin + T::kStages, end); }

  // Weights do not depend on the kernel before.
  __device__ __forceinline__ void FetchFirstWeights() {
    if (p.token_tiles == 1) {
      asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(weight_policy));
    } else {
      asm volatile("createpolicy.fractional.L2::evict_normal.b64 %0, 1.0;" : "=l"(weight_policy));
    }
    asm volatile("createpolicy.fractional.L2::evict_last.b64 %0, 1.0;" : "=l"(token_policy));
    Rewind();
    for (uint32_t unit = begin; unit < Filled(); ++unit, Advance()) FetchWeights(unit - begin);
  }
  __device__ __forceinline__ void FetchRest() {
    Rewind();
    for (uint32_t unit = begin; unit < Filled(); ++unit, Advance()) FetchTokens(unit - begin);
    int stage = 0, parity = 0;
    for (uint32_t unit = Filled(); unit < end; ++unit, Advance()) {
      WaitBarrier(empty + 8 * stage, parity);
      FetchWeights(stage);
      FetchTokens(stage);
      if (++stage == T::kStages) stage = 0, parity ^= 1;
    }
  }
};

#endif  // __CUDA_ARCH_FEAT_SM90_ALL

template <typename T>
__global__ void __launch_bounds__(T::kThreads, 1) GemmKernel(const __grid_constant__ Arguments p) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  constexpr int kN = T::kN, kPairs = T::kPairs, kSteps = T::kSteps;
  constexpr int kConsumerWarps = T::kConsumerWarps;
  extern __shared__ __align__(1024) char shared[];
  char* const weight_ring = shared + kBarrierBytes + T::kStages * T::kTokenBytes;
  const uint32_t full = SharedAddress(shared), empty = full + kBarrierBytes / 2;
  const uint32_t token_ring = full + kBarrierBytes;

  const int warp = __shfl_sync(0xffffffff, threadIdx.x / 32, 0), lane = threadIdx.x % 32;
  const int team = blockIdx.x / p.token_tiles;
  const int first_slot = p.first_token + blockIdx.x % p.token_tiles * kN;
  const uint32_t begin = p.Begin(team), end = p.Begin(team + 1);

  Producer<T> producer{.p = p,
                       .full = full,
                       .empty = empty,
                       .token_ring = token_ring,
                       .weight_ring = SharedAddress(weight_ring),
                       .begin = begin,
                       .end = end,
                       .first_slot = first_slot};
  const bool fetches = threadIdx.x == kConsumerWarps * 32;
  if (fetches) {
    for (int i = 0; i < T::kStages; ++i) {
      InitBarrier(full + 8 * i, 1);
      InitBarrier(empty + 8 * i, kConsumerWarps);
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    producer.FetchFirstWeights();
  }
  __syncthreads();
  AllowNextKernel();
  if (warp >= kConsumerWarps) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(T::kProducerRegisters));
    if (fetches) {
      WaitForPreviousKernels();
      producer.FetchRest();
    }
    return;
  }
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(T::kConsumerRegisters));

  const int warpgroup = warp / 4, w = warp % 4, g = lane / 4, t = lane % 4;
  const auto release_if = [&](bool yes, int stage) {
    __syncwarp();
    ArriveIf(yes && lane == 0, empty + 8 * stage);
  };
  // Where this thread's parts of a block lie: its m16 tiles are 2 w and 2 w + 1.
  const char* const warp_blocks = weight_ring + warpgroup * kPairs * kInt4BlockBytes;
  const int nibbles_at = 2 * w * 1024 + lane * 16;
  const int scales_at = 8192 + w / 2 * 128 + g * 16 + w % 2 * 8;
  const int zeros_at = 8448 + w / 2 * 32 + g * 4;

  float sums[2 * kPairs][kN / 2];
  uint32_t a[2][kSteps][2][4];  // of the batch that multiplies, and of the next
  int stage = 0, parity = 0;
  uint32_t tile = begin / p.groups;
  int first_group = begin % p.groups;
  for (uint32_t unit = begin; unit < end; ++tile, first_group = 0) {
    const int count = min(p.groups - first_group, end - unit);
#pragma unroll
    for (int m = 0; m < 2 * kPairs; ++m) {
#pragma unroll
      for (int i = 0; i < kN / 2; ++i) sums[m][i] = 0;
      PinRegisters(sums[m]);
    }

    int previous_stage = 0;
    for (int i = 0; i < count; ++i) {
      WaitBarrier(full + 8 * stage, parity);
      const char* const blocks = warp_blocks + stage * T::kWeightBytes;
      const uint64_t tokens = WgmmaDescriptor(token_ring + stage * T::kTokenBytes);
      TileScales scales[kPairs][2];
#pragma unroll
      for (int pair = 0; pair < kPairs; ++pair) {
        const char* const block = blocks + pair * kInt4BlockBytes;
        const uint2 s = *reinterpret_cast<const uint2*>(block + scales_at);
        const uint32_t z = *reinterpret_cast<const uint32_t*>(block + zeros_at) >> (w % 2 * 8);
        scales[pair][0].Set(s.x, z & 0x000f000f);
        scales[pair][1].Set(s.y, z >> 4 & 0x000f000f);
      }
#pragma unroll
      for (int part = 0; part < 2 * kPairs; ++part) {
        const int half = part / kPairs, pair = part % kPairs;
        uint4 words[2];
#pragma unroll
        for (int m = 0; m < 2; ++m) {
          words[m] = *reinterpret_cast<const uint4*>(blocks + pair * kInt4BlockBytes + nibbles_at +
                                                     m * 1024 + half * 512);
        }
#pragma unroll
        for (int batch = 0; batch < 4 / kSteps; ++batch) {
          constexpr int kBatchesPerPart = 4 / kSteps;
          const int index = part * kBatchesPerPart + batch;
          // What multiplied from these registers two batches ago is done.
          WgmmaWait<1>();
          if (index == 1) release_if(i > 0, previous_stage);
#pragma unroll
          for (int step = 0; step < kSteps; ++step) {
#pragma unroll
            for (int m = 0; m < 2; ++m) {
              Dequantize(Word(words[m], batch * kSteps + step), scales[pair][m],
                         a[index % 2][step][m]);
              PinRegisters(a[index % 2][step][m]);
            }
          }
          WgmmaFence();
#pragma unroll
          for (int step = 0; step < kSteps; ++step) {
#pragma unroll
            for (int m = 0; m < 2; ++m) {
              WgmmaM64K16<kN>(
                  sums[2 * pair + m], a[index % 2][step][m],
                  tokens + (half * (T::kTokenBytes / 2) + (batch * kSteps + step) * 32) / 16);
            }
          }
          WgmmaCommit();
        }
      }
      previous_stage = stage;
      if (++stage == T::kStages) stage = 0, parity ^= 1;
    }
    WgmmaWait<0>();
#pragma unroll
    for (int m = 0; m < 2 * kPairs; ++m) PinRegisters(sums[m]);
    release_if(true, previous_stage);

    // The workspace and the output are the kernel's before until it ends.
    if (unit == begin) WaitForPreviousKernels();
    constexpr int kQuads = kN / 8;  // float4 of an m64 tile that a thread has
    constexpr int kPartialStride = 2 * kPairs * kQuads * kConsumerWarps * 32;
    float4* const partial = p.partial + warp * 32 + lane;
    if (first_group > 0) {
      float4* const to = partial + static_cast<int64_t>(blockIdx.x) * kPartialStride;
#pragma unroll
      for (int m = 0; m < 2 * kPairs; ++m) {
#pragma unroll
        for (int q = 0; q < kQuads; ++q) {
          const float* const v = sums[m] + 4 * q;
          __stcg(to + (m * kQuads + q) * kConsumerWarps * 32, make_float4(v[0], v[1], v[2], v[3]));
        }
      }
      __syncwarp();
      if (lane == 0) {
        asm volatile("fence.acq_rel.gpu;\nst.release.gpu.u32 [%0], 1;" ::"l"(
                         p.flags + blockIdx.x * kConsumerWarps + warp)
                     : "memory");
      }
    } else {
      // Lane l's: of tokens l, l + 32, ... of the tile. 2^24: weights were multiplied as
      // (q - z) s 2^-24.
      float token_scale[(kN + 31) / 32];
#pragma unroll
      for (int i = 0; i < (kN + 31) / 32; ++i) {
        token_scale[i] =
            p.token_scale[min(first_slot + 32 * i + lane, p.end_token - 1)] * 16777216.f;
      }
      const uint32_t tile_end = (tile + 1) * p.groups;
      int from = blockIdx.x;
      for (uint32_t next = team + 1; p.Begin(next) < tile_end; ++next) {
        from += p.token_tiles;
        uint32_t* const flag = p.flags + from * kConsumerWarps + warp;
        if (lane == 0) {
          uint32_t there;
          do {
            asm volatile("ld.acquire.gpu.u32 %0, [%1];" : "=r"(there) : "l"(flag) : "memory");
          } while (there == 0);
        }
        __syncwarp();
        const float4* const more = partial + static_cast<int64_t>(from) * kPartialStride;
        constexpr int kBatch = 2 * kPairs * kQuads % 8 == 0 ? 8 : 4;  // loads in flight
#pragma unroll
        for (int first = 0; first < 2 * kPairs * kQuads; first += kBatch) {
          float4 loaded[kBatch];
#pragma unroll
          for (int i = 0; i < kBatch; ++i) {
            loaded[i] = __ldcg(more + (first + i) * kConsumerWarps * 32);
          }
#pragma unroll
          for (int i = 0; i < kBatch; ++i) {
            float* const to = sums[(first + i) / kQuads] + 4 * ((first + i) % kQuads);
            to[0] += loaded[i].x, to[1] += loaded[i].y;
            to[2] += loaded[i].z, to[3] += loaded[i].w;
          }
        }
        __syncwarp();
        if (lane == 0) *flag = 0;
      }
#pragma unroll
      for (int pair = 0; pair < kPairs; ++pair) {
        const int block = tile * T::kBlocks + warpgroup * kPairs + pair;
        const int row = block * 128 + 32 * w + 4 * g;
        const float4 row_scale = *reinterpret_cast<const float4*>(
            p.row_scale + min(row, p.block_rows * static_cast<int>(kInt4BlockRows) - 4));
        constexpr int kBatch = kQuads % 4 == 0 ? 4 : 3;
#pragma unroll
        for (int first = 0; first < kQuads; first += kBatch) {
          int tokens[2 * kBatch];
          float4 values[2 * kBatch];
#pragma unroll
          for (int i = 0; i < 2 * kBatch; ++i) {
            const int q = first + i / 2, e = i % 2;
            tokens[i] = first_slot + 8 * q + 2 * t + e;
            const float *const low = sums[2 * pair] + 4 * q + e, *const high =
                                                                     sums[2 * pair + 1] + 4 * q + e;
            const float scale =
                __shfl_sync(0xffffffff, token_scale[q / 4], 8 * (q % 4) + 2 * t + e);
            values[i] = make_float4(low[0] * scale * row_scale.x, low[2] * scale * row_scale.y,
                                    high[0] * scale * row_scale.z, high[2] * scale * row_scale.w);
          }
          if (row < p.outputs) Store(p, row, tokens, values);
        }
      }
    }
    unit += count;
  }
#else
  __trap();  // The host sees to it that this is not launched.
#endif
}

template <typename T>
absl::Status LaunchTile(Arguments arguments, int multiprocessors, LaunchOptions options) {
  const int tokens = arguments.end_token;
  const uint32_t units =
      static_cast<uint32_t>((arguments.block_rows + T::kBlocks - 1) / T::kBlocks) *
      arguments.groups;
  FABRICAST_RETURN_IF_CUDA_FAILS(cudaFuncSetAttribute(
      GemmKernel<T>, cudaFuncAttributeMaxDynamicSharedMemorySize, T::kUsedSharedBytes));
  for (int first = 0; first < tokens; first += kMaxTokenTiles * T::kN) {
    arguments.first_token = first;
    arguments.end_token = std::min(tokens, first + kMaxTokenTiles * T::kN);
    arguments.token_tiles = (arguments.end_token - first + T::kN - 1) / T::kN;
    const uint32_t teams = std::min<uint32_t>(multiprocessors / arguments.token_tiles, units);
    arguments.units_per_team = units / teams;
    arguments.teams_with_one_more = units % teams;
    if (absl::Status status =
            LaunchKernel("Int4GemmWgmma", GemmKernel<T>, dim3(teams * arguments.token_tiles),
                         dim3(T::kThreads), T::kUsedSharedBytes, options, arguments);
        !status.ok()) {
      return status;
    }
    options.overlap_previous = true;
  }
  return absl::OkStatus();
}

absl::Status CheckArguments(const Int4Matrix& weights, const Activations& input,
                            const GemmOutput& output) {
  const ActivationLayout& layout = input.layout;
  if (layout.format != ActivationFormat::kWgmma) {
    return absl::InvalidArgumentError("Int4GemmWgmma: activations must be in kWgmma's format");
  }
  if (layout.inputs != weights.inputs || layout.inputs < 1 || weights.outputs < 1) {
    return absl::InvalidArgumentError(
        absl::StrFormat("Int4GemmWgmma: weights of %d outputs x %d inputs, activations of %d",
                        weights.outputs, weights.inputs, layout.inputs));
  }
  if (layout.tokens < 1) {
    return absl::InvalidArgumentError(absl::StrFormat("Int4GemmWgmma: %d tokens", layout.tokens));
  }
  if (output.stride % 4 != 0 || output.stride < weights.outputs) {
    return absl::InvalidArgumentError(
        absl::StrFormat("Int4GemmWgmma: output stride %d for %d outputs; a multiple of 4, no less",
                        output.stride, weights.outputs));
  }
  return absl::OkStatus();
}

absl::Status Launch(const Int4Matrix& weights, const Activations& input, const GemmOutput& output,
                    void* workspace, const LaunchOptions& options) {
  if (absl::Status status = CheckArguments(weights, input, output); !status.ok()) return status;
  int device, major, minor, multiprocessors;
  FABRICAST_RETURN_IF_CUDA_FAILS(cudaGetDevice(&device));
  FABRICAST_RETURN_IF_CUDA_FAILS(
      cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
  FABRICAST_RETURN_IF_CUDA_FAILS(
      cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device));
  FABRICAST_RETURN_IF_CUDA_FAILS(
      cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device));
  if (major != 9 || minor != 0) {
    return absl::UnimplementedError(absl::StrFormat(
        "Int4GemmWgmma: wgmma is of compute capability 9.0, this GPU is of %d.%d; use Int4GemmMma "
        "or Int4ManyTokens",
        major, minor));
  }
  multiprocessors = std::min(multiprocessors, kMaxBlocks);

  Arguments arguments = {};
  arguments.weights = static_cast<const char*>(weights.blocks);
  arguments.tokens = static_cast<const char*>(input.data);
  arguments.row_scale = weights.row_scale;
  arguments.token_scale = input.token_scale;
  arguments.output = static_cast<char*>(output.data);
  arguments.stride = output.stride;
  arguments.kind = output.kind;
  arguments.outputs = static_cast<int>(weights.outputs);
  arguments.end_token = input.layout.tokens;
  arguments.slots = input.layout.slots();
  arguments.groups = static_cast<int>(weights.groups());
  arguments.block_rows = static_cast<int>(weights.block_rows());
  arguments.flags = static_cast<uint32_t*>(workspace);
  arguments.partial = reinterpret_cast<float4*>(static_cast<char*>(workspace) + kFlagBytes);

  // Chosen by measurement on an H200 (docs/kernels.md). Tiles of 512 outputs read the activations
  // from L2 half as often as those of 256; but where few of their units come to a multiprocessor,
  // adding up the parts of a tile costs more than that.
  const int tokens = input.layout.tokens;
  const int64_t units_of_512 = (weights.block_rows() + 3) / 4 * weights.groups() / multiprocessors;
  if (tokens <= 32) {
    return units_of_512 >= 33 ? LaunchTile<Tile<32, 2, 2, 4>>(arguments, multiprocessors, options)
                              : LaunchTile<Tile<32, 3, 1, 4>>(arguments, multiprocessors, options);
  }
  if (tokens <= 48) {
    return units_of_512 >= 128 ? LaunchTile<Tile<48, 2, 2, 4>>(arguments, multiprocessors, options)
                               : LaunchTile<Tile<48, 2, 1, 1>>(arguments, multiprocessors, options);
  }
  if (tokens <= 64) {
    return units_of_512 >= 64 ? LaunchTile<Tile<64, 2, 2, 1>>(arguments, multiprocessors, options)
                              : LaunchTile<Tile<64, 2, 1, 1>>(arguments, multiprocessors, options);
  }
  const int tiles_of_128 = (tokens + 127) / 128;
  return tokens <= tiles_of_128 * 96
             ? LaunchTile<Tile<96, 2, 1, 1>>(arguments, multiprocessors, options)
             : LaunchTile<Tile<128, 2, 1, 1>>(arguments, multiprocessors, options);
}

}  // namespace int4_gemm_wgmma

int64_t Int4GemmWgmmaWorkspaceBytes() {
  return int4_gemm_wgmma::kFlagBytes + int4_gemm_wgmma::kMaxBlocks * int4_gemm_wgmma::kPartialBytes;
}

absl::Status Int4GemmWgmma(const Int4Matrix& weights, const Activations& input,
                           const GemmOutput& output, void* workspace,
                           const LaunchOptions& options) {
  return int4_gemm_wgmma::Launch(weights, input, output, workspace, options);
}

}  // namespace fabricast
