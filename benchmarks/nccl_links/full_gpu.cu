#include <cstdint>

#include "benchmarks/nccl_links/full_gpu.h"
#include "kernels/gpu/cuda_status.h"

namespace fabricast {
namespace {

__device__ uint64_t Nanoseconds() {
  uint64_t time;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(time));
  return time;
}

__global__ void __launch_bounds__(256) Wait(int microseconds) {
  const uint64_t end = Nanoseconds() + uint64_t{1000} * microseconds;
  while (Nanoseconds() < end) __nanosleep(100);
}

}  // namespace

absl::Status WaitInBlocks(int blocks, int shared_bytes, int microseconds, GpuStream stream) {
  FABRICAST_RETURN_IF_CUDA_FAILS(
      cudaFuncSetAttribute(Wait, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes));
  Wait<<<blocks, 256, shared_bytes, stream>>>(microseconds);
  return ToStatus(cudaGetLastError(), "Wait");
}

}  // namespace fabricast
