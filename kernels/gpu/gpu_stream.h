// CUDA's handles, for headers that callers without nvcc include.
#ifndef FABRICAST_KERNELS_GPU_GPU_STREAM_H_
#define FABRICAST_KERNELS_GPU_GPU_STREAM_H_

struct CUstream_st;
struct CUevent_st;
struct CUgraphExec_st;

namespace fabricast {

using GpuStream = CUstream_st*;      // cudaStream_t
using GpuEventHandle = CUevent_st*;  // cudaEvent_t

// How a kernel is put into a stream.
struct LaunchOptions {
  GpuStream stream = nullptr;
  // Programmatic dependent launch (compute capability 9.0 and later; ignored before): the kernel
  // may begin while the one before it in the stream ends. Every kernel of this folder waits for it
  // before it touches what an earlier kernel wrote or reads, so this is always safe among them.
  bool overlap_previous = false;
};

}  // namespace fabricast

#endif  // FABRICAST_KERNELS_GPU_GPU_STREAM_H_
