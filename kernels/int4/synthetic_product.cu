#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <array>
#include <cmath>

#include "kernels/gpu/launch.cuh"
#include "kernels/int4/synthetic_product.h"
#include "kernels/int4/synthetic_weights.h"
#include "kernels/timing/device_array.h"

namespace fabricast {
namespace {

constexpr int kThreads = 256;
constexpr int kTokensAtOnce = 8;

__device__ double SumOverWarp(double value) {
  for (int distance = 16; distance != 0; distance /= 2) {
    value += __shfl_xor_sync(0xffffffff, value, distance);
  }
  return value;
}

// A warp an output.
__global__ void __launch_bounds__(kThreads)
    MultiplySynthetic(SyntheticWeights weights, int64_t outputs, const __nv_bfloat16* x, int tokens,
                      double* to) {
  WaitForPreviousKernels();
  const int64_t row = (int64_t{blockIdx.x} * kThreads + threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x % 32);
  if (row >= outputs) return;
  for (int first = 0; first < tokens; first += kTokensAtOnce) {
    const int count = min(kTokensAtOnce, tokens - first);
    double sums[kTokensAtOnce] = {};
    for (int64_t input = lane; input < weights.inputs; input += 32) {
      const double weight = weights.Weight(row, input);
#pragma unroll
      for (int i = 0; i < kTokensAtOnce; ++i) {
        if (i < count) {
          sums[i] += weight *
                     static_cast<double>(__bfloat162float(x[(first + i) * weights.inputs + input]));
        }
      }
    }
#pragma unroll
    for (int i = 0; i < kTokensAtOnce; ++i) {
      const double sum = SumOverWarp(sums[i]);
      if (lane == 0 && i < count) to[(first + i) * outputs + row] = sum;
    }
  }
}

// Adds to sums the squares of the errors and of the values expected.
__global__ void __launch_bounds__(kThreads) SumSquares(const double* expected, GemmOutput output,
                                                       int tokens, int64_t outputs, double* sums) {
  double errors = 0, values = 0;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < tokens * outputs;
       i += int64_t{gridDim.x} * kThreads) {
    const int64_t at = i / outputs * output.stride + i % outputs;
    const double actual = output.kind == OutputKind::kBf16
                              ? static_cast<double>(__bfloat162float(
                                    static_cast<const __nv_bfloat16*>(output.data)[at]))
                              : static_cast<double>(static_cast<const float*>(output.data)[at]);
    errors += (actual - expected[i]) * (actual - expected[i]);
    values += expected[i] * expected[i];
  }
  errors = SumOverWarp(errors);
  values = SumOverWarp(values);
  if (threadIdx.x % 32 == 0) {
    atomicAdd(&sums[0], errors);
    atomicAdd(&sums[1], values);
  }
}

// The sum of 4 uniform values of [-1/2, 1/2) has the variance 1/3.
__global__ void __launch_bounds__(kThreads)
    FillNormal(uint64_t key, __nv_bfloat16* to, int64_t count) {
  WaitForPreviousKernels();
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= count) return;
  const uint64_t bits = MixBits(key ^ static_cast<uint64_t>(i));
  float sum = -2;
  for (int part = 0; part < 4; ++part) {
    sum += static_cast<float>(bits >> (16 * part) & 0xffff) * 0x1p-16f;
  }
  to[i] = __float2bfloat16(sum * 1.7320508f);
}

dim3 BlocksFor(int64_t threads) {
  return dim3(static_cast<unsigned>((threads + kThreads - 1) / kThreads));
}

}  // namespace

absl::Status SyntheticProduct(uint64_t seed, int64_t outputs, int64_t inputs, const void* x,
                              int tokens, double* to, const LaunchOptions& options) {
  return LaunchKernel("MultiplySynthetic", MultiplySynthetic, BlocksFor(outputs * 32),
                      dim3(kThreads), 0, options, SyntheticWeights(seed, inputs), outputs,
                      static_cast<const __nv_bfloat16*>(x), tokens, to);
}

absl::StatusOr<double> RelativeError(const double* expected, const GemmOutput& output, int tokens,
                                     int64_t outputs, GpuStream stream) {
  // The stream may not wait for others, which copies to the array do.
  FABRICAST_RETURN_IF_CUDA_FAILS(cudaStreamSynchronize(stream));
  absl::StatusOr<DeviceArray<double>> sums = DeviceArray<double>::CopyOf({0.0, 0.0}, "sums");
  if (!sums.ok()) return sums.status();
  constexpr int kBlocks = 1024;
  if (absl::Status status =
          LaunchKernel("SumSquares", SumSquares, dim3(kBlocks), dim3(kThreads), 0,
                       {.stream = stream}, expected, output, tokens, outputs, sums->get());
      !status.ok()) {
    return status;
  }
  FABRICAST_RETURN_IF_CUDA_FAILS(cudaStreamSynchronize(stream));
  const absl::StatusOr<std::vector<double>> host = sums->ToHost();
  if (!host.ok()) return host.status();
  return std::sqrt((*host)[0] / (*host)[1]);
}

absl::Status FillNormalBf16(uint64_t seed, void* to, int64_t count, const LaunchOptions& options) {
  return LaunchKernel("FillNormal", FillNormal, BlocksFor(count), dim3(kThreads), 0, options,
                      MixBits(seed), static_cast<__nv_bfloat16*>(to), count);
}

}  // namespace fabricast
