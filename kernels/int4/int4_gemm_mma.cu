// INT4 matrix product with mma.sync m16n8k16 (FP16 in, FP32 out). Weights are the A operand, tokens
// the B operand, so that few tokens waste little.
//
// Work. A *unit* is a tile of kRows outputs x one group of 128 inputs; it takes one stage of shared
// memory: its weight blocks and the activations' record of the group. Units are numbered tile by
// tile, and each CTA takes an equal run of them (stream-K), so that all multiprocessors stream
// weights all the time, whatever the shape. Inside a CTA *teams* of warps take units in turn
// (split-K), unit i of the CTA in stage i % stages.
//
// A CTA may wait for those after it (int4_gemm_mma_tile_end.cuh), and all must be on the GPU at
// once: no more of them than multiprocessors, each of which has room for one, and no kernel may
// begin that could take a place before all have theirs (AllowNextKernel comes after that, in every
// CTA).
#include <cuda_runtime.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <mutex>

#include "absl/status/status.h"
#include "absl/strings/str_format.h"
#include "kernels/gpu/launch.cuh"
#include "kernels/int4/int4_gemm.h"
#include "kernels/int4/int4_gemm_mma_config.cuh"
#include "kernels/int4/int4_gemm_mma_instructions.cuh"
#include "kernels/int4/int4_gemm_mma_ring.cuh"
#include "kernels/int4/int4_gemm_mma_tile_end.cuh"
#include "kernels/int4/int4_gemm_mma_unit.cuh"

namespace fabricast {
namespace {

using namespace int4_mma;

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
