// Launching kernels, with or without programmatic dependent launch. For .cu files only.
#ifndef FABRICAST_KERNELS_GPU_LAUNCH_CUH_
#define FABRICAST_KERNELS_GPU_LAUNCH_CUH_

#include <cuda_runtime.h>

#include <cstddef>
#include <utility>

#include "absl/status/status.h"
#include "kernels/gpu/cuda_status.h"
#include "kernels/gpu/gpu_stream.h"

namespace fabricast {

// To be called by every thread of every kernel before it touches what an earlier kernel wrote, or
// writes what an earlier kernel reads. Returns when all earlier kernels have ended and their writes
// are visible. (griddepcontrol.wait)
__device__ __forceinline__ void WaitForPreviousKernels() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// Lets the next kernel begin, up to its WaitForPreviousKernels, when all blocks have called this or
// ended: as soon as a block holds all that it needs of the multiprocessor.
__device__ __forceinline__ void AllowNextKernel() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;");
#endif
}

template <typename... Parameters, typename... Arguments>
absl::Status LaunchKernel(const char* name, void (*kernel)(Parameters...), dim3 blocks,
                          dim3 threads, size_t shared_bytes, const LaunchOptions& options,
                          Arguments&&... arguments) {
  cudaLaunchConfig_t config = {};
  config.gridDim = blocks;
  config.blockDim = threads;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = options.stream;
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  config.attrs = &attribute;
  config.numAttrs = options.overlap_previous ? 1 : 0;
  return ToStatus(cudaLaunchKernelEx(&config, kernel, Parameters(arguments)...), name);
}

}  // namespace fabricast

#endif  // FABRICAST_KERNELS_GPU_LAUNCH_CUH_
