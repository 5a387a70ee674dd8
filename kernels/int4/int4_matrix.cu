#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "absl/status/status.h"
#include "absl/strings/str_format.h"
#include "kernels/gpu/launch.cuh"
#include "kernels/int4/int4_block.h"
#include "kernels/int4/int4_matrix.h"
#include "kernels/int4/synthetic_weights.h"

namespace fabricast {
namespace {

constexpr int kPackThreads = 128;
constexpr int kDequantizeGroups = 4;
constexpr int kDequantizeThreads = 32 * kDequantizeGroups;
constexpr int kVectorsInBlock = kInt4ScalesAt / 16;

// Where weights come from: q and z of 0 ... 15, s of FP16, and rows that exist.

// AutoAWQ's tensors. Output o of the 8 in a word has nibble [0, 4, 1, 5, 2, 6, 3, 7][o].
struct AwqSource {
  const uint32_t* qweight;
  const uint32_t* qzeros;
  const __half* scales;
  int64_t outputs;

  __device__ int Quant(int64_t row, int64_t input) const { return Nibble(qweight, row, input); }
  __device__ int Zero(int64_t row, int64_t group) const { return Nibble(qzeros, row, group); }
  __device__ float Scale(int64_t row, int64_t group) const {
    return __half2float(scales[group * outputs + row]);
  }

 private:
  __device__ int Nibble(const uint32_t* words, int64_t row, int64_t line) const {
    const int nibble = static_cast<int>(row % 2 * 4 + row % 8 / 2);
    return static_cast<int>(__ldg(words + line * (outputs / 8) + row / 8) >> (4 * nibble) & 15);
  }
};

struct SyntheticSource : SyntheticWeights {
  int64_t outputs;
};

// row_scale[row] = 2^-K, 2^K bringing the largest scale of the row to [2^15, 2^16); 1 for rows of
// zeros and those beyond the outputs. A thread a row; `rows` of them.
template <typename Source>
__global__ void __launch_bounds__(kPackThreads)
    FindRowScales(Source from, int64_t groups, int64_t rows, float* row_scale) {
  WaitForPreviousKernels();
  const int64_t row = int64_t{blockIdx.x} * kPackThreads + threadIdx.x;
  if (row >= rows) return;
  float largest = 0;
  if (row < from.outputs) {
    for (int64_t group = 0; group < groups; ++group) {
      const float scale = fabsf(from.Scale(row, group));
      if (isfinite(scale)) largest = fmaxf(largest, scale);
    }
  }
  int exponent = 16;
  if (largest > 0) frexpf(largest, &exponent);
  row_scale[row] = ldexpf(1, exponent - 16);
}

// Writes the blocks of `from`, one a CUDA block: (group, 128 rows).
template <typename Source>
__global__ void __launch_bounds__(kPackThreads)
    PackBlocks(Source from, char* blocks, const float* row_scale) {
  WaitForPreviousKernels();
  const int64_t group = blockIdx.x, groups = gridDim.x;
  const int64_t first_row = int64_t{blockIdx.y} * kInt4BlockRows;
  char* const block = blocks + (blockIdx.y * groups + group) * kInt4BlockBytes;

  for (int at = threadIdx.x; at < kVectorsInBlock; at += kPackThreads) {
    const int tile = at / 64, half = at / 32 % 2, lane = at % 32;
    uint32_t words[4] = {};
    for (int fragment_row = lane / 4; fragment_row < 16; fragment_row += 8) {
      const int64_t row = first_row + Int4Row(tile, fragment_row);
      if (row >= from.outputs) continue;
      for (int word = 0; word < 4; ++word) {
        for (int value = 0; value < 4; ++value) {
          const int input = Int4Input(4 * half + word, lane % 4, value);
          words[word] |= from.Quant(row, group * kInt4GroupInputs + input)
                         << Int4QuantAt(Int4Row(tile, fragment_row), input).shift;
        }
      }
    }
    reinterpret_cast<uint4*>(block)[at] = make_uint4(words[0], words[1], words[2], words[3]);
  }

  {
    const int64_t row = first_row + threadIdx.x;
    // A product by a power of two, of a scale that stays normal: exact.
    const float scale = row < from.outputs ? from.Scale(row, group) / row_scale[row] : 0;
    *reinterpret_cast<__half*>(block + Int4ScaleAt(threadIdx.x)) = __float2half_rn(scale);
  }
  if (threadIdx.x < 16) {
    uint32_t zeros = 0;
    for (int tile = 0; tile < 4; ++tile) {
      for (int half = 0; half < 2; ++half) {
        const int block_row =
            Int4Row(threadIdx.x / 8 * 4 + tile, static_cast<int>(threadIdx.x % 8) + 8 * half);
        const int64_t row = first_row + block_row;
        if (row < from.outputs) zeros |= from.Zero(row, group) << Int4ZeroAt(block_row).shift;
      }
    }
    reinterpret_cast<uint32_t*>(block + kInt4ZerosAt)[threadIdx.x] = zeros;
    reinterpret_cast<uint32_t*>(block + kInt4UnusedAt)[threadIdx.x] = 0;
  }
}

template <typename Source>
absl::Status Pack(const Source& from, int64_t first_row, const Int4Matrix& to,
                  const LaunchOptions& options) {
  const int64_t block_rows = (from.outputs + kInt4BlockRows - 1) / kInt4BlockRows;
  const int64_t rows = block_rows * kInt4BlockRows;
  float* const row_scale = to.row_scale + first_row;
  char* const blocks =
      static_cast<char*>(to.blocks) + first_row / kInt4BlockRows * to.groups() * kInt4BlockBytes;
  if (absl::Status status = LaunchKernel(
          "FindRowScales", FindRowScales<Source>, dim3(static_cast<unsigned>(block_rows)),
          dim3(kPackThreads), 0, options, from, to.groups(), rows, row_scale);
      !status.ok()) {
    return status;
  }
  return LaunchKernel("PackBlocks", PackBlocks<Source>,
                      dim3(static_cast<unsigned>(to.groups()), static_cast<unsigned>(block_rows)),
                      dim3(kPackThreads), 0, options, from, blocks, row_scale);
}

// Four nibbles of a word, 4 bits apart in each half: the low half's are values 0 and 2, the high
// half's 1 and 3. (q - z) s is exact in FP32 and rounded once.
__device__ uint2 DequantizeFour(uint32_t word, float zero, float scale) {
  // 2^23 + q has q in its lowest bits; so has zero.
  const auto value = [&](int shift) {
    return (__uint_as_float(0x4b000000 | (word >> shift & 15)) - zero) * scale;
  };
  const __nv_bfloat162 low = __floats2bfloat162_rn(value(0), value(16));
  const __nv_bfloat162 high = __floats2bfloat162_rn(value(4), value(20));
  return make_uint2(*reinterpret_cast<const uint32_t*>(&low),
                    *reinterpret_cast<const uint32_t*>(&high));
}

// What a lane has of a block: 4 adjacent rows, of tiles 2 i and 2 i + 1.
struct LaneRows {
  float scale[4];
  float zero[4];  // 2^23 + z

  __device__ LaneRows(const char* block, const float* row_scale, int pair, int lane) {
    const int row = Int4Row(2 * pair, lane / 4);
    const uint2 scales = __ldg(reinterpret_cast<const uint2*>(block + Int4ScaleAt(row)));
    const float2 low = __half22float2(*reinterpret_cast<const __half2*>(&scales.x));
    const float2 high = __half22float2(*reinterpret_cast<const __half2*>(&scales.y));
    const float4 factors = __ldg(reinterpret_cast<const float4*>(row_scale + row));
    scale[0] = low.x * factors.x;
    scale[1] = low.y * factors.y;
    scale[2] = high.x * factors.z;
    scale[3] = high.y * factors.w;
    const Int4Nibble at = Int4ZeroAt(row);
    const uint32_t zeros = __ldg(reinterpret_cast<const uint32_t*>(block + at.at)) >> at.shift;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      zero[i] = __uint_as_float(0x4b000000 | (zeros >> (i / 2 * 4 + i % 2 * 16) & 15));
    }
  }
};

// By a warp: 32 rows, of tiles 2 pair and 2 pair + 1, of a block. Calls store(row, input, 8 BF16 of
// adjacent inputs); rows and inputs count from the first of the 32 x 128. The weights are read past
// the caches, so that what is written stays there for the matrix product that reads it next.
template <typename Store>
__device__ __forceinline__ void DequantizeRows(const char* block, const float* row_scale, int pair,
                                               const Store& store) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  const uint4* const nibbles = reinterpret_cast<const uint4*>(block) + pair * 128 + lane;
  uint4 words[2][2];  // tile, half
#pragma unroll
  for (int i = 0; i < 4; ++i) words[i / 2][i % 2] = __ldcs(nibbles + i * 32);
  const LaneRows rows(block, row_scale, pair, lane);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int shift = i % 2 * 8;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const uint4& word = words[i / 2][half];
#pragma unroll
      for (int steps = 0; steps < 2; ++steps) {  // two of them: 8 adjacent inputs
        const uint2 low =
            DequantizeFour((steps == 0 ? word.x : word.z) >> shift, rows.zero[i], rows.scale[i]);
        const uint2 high =
            DequantizeFour((steps == 0 ? word.y : word.w) >> shift, rows.zero[i], rows.scale[i]);
        store(4 * (lane / 4) + i, Int4Input(4 * half + 2 * steps, lane % 4, 0),
              make_uint4(low.x, low.y, high.x, high.y));
      }
    }
  }
}

// A CUDA block writes 32 rows of kDequantizeGroups groups, a warp a group, through shared memory: a
// warp then stores 512 bytes of a row at a time. (On an H200 that
// reaches 95 % of a copy's rate; stores of 64 bytes a row 88 %, in runs of 256 bytes 33 %.)
__global__ void __launch_bounds__(kDequantizeThreads)
    DequantizeWholeGroups(const char* blocks, const float* row_scale, int groups,
                          __nv_bfloat16* to) {
  // 64 bytes of padding: the 8 lanes of a phase of a store are 4 adjacent ones in 2 rows.
  __shared__ __align__(16) char rows[32][kDequantizeGroups * 256 + 64];
  AllowNextKernel();
  WaitForPreviousKernels();
  const int warp = static_cast<int>(threadIdx.x / 32), lane = static_cast<int>(threadIdx.x % 32);
  const int first_group = static_cast<int>(blockIdx.x) * kDequantizeGroups;
  const int64_t block_row = blockIdx.y / 4;
  if (first_group + warp < groups) {
    DequantizeRows(blocks + (block_row * groups + first_group + warp) * kInt4BlockBytes,
                   row_scale + block_row * kInt4BlockRows, static_cast<int>(blockIdx.y % 4),
                   [&](int row, int input, const uint4& values) {
                     *reinterpret_cast<uint4*>(&rows[row][warp * 256 + input * 2]) = values;
                   });
  }
  __syncthreads();
  const int bytes = min(kDequantizeGroups, groups - first_group) * 256;
  for (int row = warp; row < 32; row += kDequantizeGroups) {
    char* const line = reinterpret_cast<char*>(
        to + ((int64_t{blockIdx.y} * 32 + row) * groups + first_group) * kInt4GroupInputs);
    for (int at = lane * 16; at < bytes; at += 512) {
      *reinterpret_cast<uint4*>(line + at) = *reinterpret_cast<const uint4*>(&rows[row][at]);
    }
  }
}

// The same for any number of inputs and any alignment.
__global__ void __launch_bounds__(kDequantizeThreads)
    DequantizeAnyInputs(const char* blocks, const float* row_scale, int groups, int64_t inputs,
                        __nv_bfloat16* to) {
  AllowNextKernel();
  WaitForPreviousKernels();
  const int group = static_cast<int>(blockIdx.x * kDequantizeGroups + threadIdx.x / 32);
  if (group >= groups) return;
  const int64_t block_row = blockIdx.y / 4;
  DequantizeRows(blocks + (block_row * groups + group) * kInt4BlockBytes,
                 row_scale + block_row * kInt4BlockRows, static_cast<int>(blockIdx.y % 4),
                 [&](int row, int input, const uint4& values) {
                   const int64_t first = group * kInt4GroupInputs + input;
                   uint16_t* const place = reinterpret_cast<uint16_t*>(to) +
                                           (int64_t{blockIdx.y} * 32 + row) * inputs + first;
                   const uint32_t pairs[4] = {values.x, values.y, values.z, values.w};
#pragma unroll
                   for (int i = 0; i < 8; ++i) {
                     if (first + i < inputs) {
                       place[i] = static_cast<uint16_t>(pairs[i / 2] >> (16 * (i % 2)));
                     }
                   }
                 });
}

absl::Status CheckMatrix(const Int4Matrix& matrix) {
  if (matrix.outputs <= 0 || matrix.inputs <= 0) {
    return absl::InvalidArgumentError(
        absl::StrFormat("an INT4 matrix of %d outputs x %d inputs", matrix.outputs, matrix.inputs));
  }
  if (matrix.blocks == nullptr || matrix.row_scale == nullptr) {
    return absl::InvalidArgumentError("an INT4 matrix without memory");
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status PackInt4(const AwqTensors& from, int64_t first_row, Int4Matrix to,
                      const LaunchOptions& options) {
  if (absl::Status status = CheckMatrix(to); !status.ok()) return status;
  if (from.outputs <= 0 || from.outputs % 8 != 0 || from.inputs % kInt4GroupInputs != 0) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "AWQ tensors of %d outputs x %d inputs: multiples of 8 and 128 can be packed", from.outputs,
        from.inputs));
  }
  const int64_t end = first_row + from.outputs;
  if (from.inputs != to.inputs || first_row < 0 || first_row % kInt4BlockRows != 0 ||
      end > to.outputs || (end % kInt4BlockRows != 0 && end != to.outputs)) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "rows %d ... %d of %d inputs do not fit into an INT4 matrix of %d outputs x %d inputs: a "
        "part begins at a multiple of 128, and ends at one or at the last output",
        first_row, end - 1, from.inputs, to.outputs, to.inputs));
  }
  return Pack(AwqSource{.qweight = static_cast<const uint32_t*>(from.qweight),
                        .qzeros = static_cast<const uint32_t*>(from.qzeros),
                        .scales = static_cast<const __half*>(from.scales),
                        .outputs = from.outputs},
              first_row, to, options);
}

absl::Status FillSyntheticInt4(uint64_t seed, Int4Matrix to, const LaunchOptions& options) {
  if (absl::Status status = CheckMatrix(to); !status.ok()) return status;
  return Pack(SyntheticSource{SyntheticWeights(seed, to.inputs), to.outputs}, 0, to, options);
}

absl::Status DequantizeInt4(const Int4Matrix& from, int64_t first_row, int64_t rows, void* to,
                            const LaunchOptions& options) {
  if (absl::Status status = CheckMatrix(from); !status.ok()) return status;
  if (first_row < 0 || first_row % kInt4BlockRows != 0 || rows <= 0 || rows % kInt4BlockRows != 0 ||
      first_row + rows > from.block_rows() * kInt4BlockRows) {
    return absl::InvalidArgumentError(
        absl::StrFormat("rows %d ... %d of an INT4 matrix of %d blocks of 128", first_row,
                        first_row + rows - 1, from.block_rows()));
  }
  const char* const blocks = static_cast<const char*>(from.blocks) +
                             first_row / kInt4BlockRows * from.groups() * kInt4BlockBytes;
  const int groups = static_cast<int>(from.groups());
  const dim3 grid(static_cast<unsigned>((groups + kDequantizeGroups - 1) / kDequantizeGroups),
                  static_cast<unsigned>(rows / 32));
  const float* const row_scale = from.row_scale + first_row;
  __nv_bfloat16* const output = static_cast<__nv_bfloat16*>(to);
  if (from.inputs % kInt4GroupInputs == 0 && reinterpret_cast<uintptr_t>(to) % 16 == 0) {
    return LaunchKernel("DequantizeWholeGroups", DequantizeWholeGroups, grid,
                        dim3(kDequantizeThreads), 0, options, blocks, row_scale, groups, output);
  }
  return LaunchKernel("DequantizeAnyInputs", DequantizeAnyInputs, grid, dim3(kDequantizeThreads), 0,
                      options, blocks, row_scale, groups, from.inputs, output);
}

}  // namespace fabricast
