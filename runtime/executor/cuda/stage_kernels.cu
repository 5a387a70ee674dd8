#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>

#include "kernels/gpu/launch.cuh"
#include "runtime/executor/cuda/stage_kernels.h"

namespace fabricast {
namespace {

constexpr int kThreads = 256;

// Blocks that cover `count` elements, one a thread, or go round: 2^20 blocks of 256 threads are
// more than any GPU runs at a time.
dim3 BlocksFor(int64_t count) {
  return dim3(static_cast<unsigned>(
      std::min<int64_t>((count + kThreads - 1) / kThreads, int64_t{1} << 20)));
}

__device__ int64_t FirstElement() { return int64_t{blockIdx.x} * kThreads + threadIdx.x; }
__device__ int64_t Stride() { return int64_t{gridDim.x} * kThreads; }

__device__ float ToFloat(float x) { return x; }
__device__ float ToFloat(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ void Store(float x, float* to) { *to = x; }
__device__ void Store(float x, __nv_bfloat16* to) { *to = __float2bfloat16_rn(x); }
__device__ void Store(float x, __half* to) { *to = __float2half_rn(x); }

template <typename T>
__global__ void __launch_bounds__(kThreads)
    AddBiasKernel(const float* bias, int64_t count, int64_t columns, T* values) {
  AllowNextKernel();
  WaitForPreviousKernels();
  for (int64_t i = FirstElement(); i < count; i += Stride()) {
    Store(ToFloat(values[i]) + bias[i % columns], values + i);
  }
}

// The finaliser of SplitMix64 (Steele, Lea and Flood 2014): every bit of the result depends on
// every bit of the input.
__device__ uint64_t Mix(uint64_t x) {
  x ^= x >> 30;
  x *= 0xBF58476D1CE4E5B9;
  x ^= x >> 27;
  x *= 0x94D049BB133111EB;
  return x ^ (x >> 31);
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    FillSyntheticKernel(uint64_t seed, int64_t count, float half_width, T* values) {
  AllowNextKernel();
  WaitForPreviousKernels();
  for (int64_t i = FirstElement(); i < count; i += Stride()) {
    const uint64_t bits = Mix(seed + 0x9E3779B97F4A7C15 * (static_cast<uint64_t>(i) + 1));
    const float uniform = static_cast<float>(bits >> 40) * 0x1p-23f - 1.0f;  // [-1, 1)
    Store(uniform * half_width, values + i);
  }
}

__global__ void __launch_bounds__(kThreads) FillKernel(float value, int64_t count, float* values) {
  AllowNextKernel();
  WaitForPreviousKernels();
  for (int64_t i = FirstElement(); i < count; i += Stride()) values[i] = value;
}

}  // namespace

cudaError_t FindCodeForDevice() {
  cudaFuncAttributes attributes;
  return cudaFuncGetAttributes(&attributes, FillKernel);
}

absl::Status AddBiasF32(const float* bias, int rows, int64_t columns, float* values,
                        const LaunchOptions& options) {
  const int64_t count = rows * columns;
  return LaunchKernel("AddBiasF32", AddBiasKernel<float>, BlocksFor(count), dim3(kThreads), 0,
                      options, bias, count, columns, values);
}

absl::Status AddBiasBf16(const float* bias, int rows, int64_t columns, void* values,
                         const LaunchOptions& options) {
  const int64_t count = rows * columns;
  return LaunchKernel("AddBiasBf16", AddBiasKernel<__nv_bfloat16>, BlocksFor(count), dim3(kThreads),
                      0, options, bias, count, columns, static_cast<__nv_bfloat16*>(values));
}

absl::Status FillSyntheticDense(uint64_t seed, DenseType type, int64_t count, float scale,
                                void* values, const LaunchOptions& options) {
  const float half_width = scale * 1.7320508f;  // sqrt(3): of a uniform's width to its deviation
  if (type == DenseType::kF16) {
    return LaunchKernel("FillSyntheticDense", FillSyntheticKernel<__half>, BlocksFor(count),
                        dim3(kThreads), 0, options, seed, count, half_width,
                        static_cast<__half*>(values));
  }
  return LaunchKernel("FillSyntheticDense", FillSyntheticKernel<__nv_bfloat16>, BlocksFor(count),
                      dim3(kThreads), 0, options, seed, count, half_width,
                      static_cast<__nv_bfloat16*>(values));
}

absl::Status FillF32(float value, int64_t count, float* values, const LaunchOptions& options) {
  return LaunchKernel("FillF32", FillKernel, BlocksFor(count), dim3(kThreads), 0, options, value,
                      count, values);
}

}  // namespace fabricast
