// Kernels that take a known time, to see what a transfer costs them.
#ifndef FABRICAST_BENCHMARKS_NCCL_LINKS_FULL_GPU_H_
#define FABRICAST_BENCHMARKS_NCCL_LINKS_FULL_GPU_H_

#include "absl/status/status.h"
#include "kernels/gpu/gpu_stream.h"

namespace fabricast {

// `blocks` blocks of 256 threads and `shared_bytes` of shared memory; each waits for
// `microseconds`.
absl::Status WaitInBlocks(int blocks, int shared_bytes, int microseconds, GpuStream stream);

}  // namespace fabricast

#endif  // FABRICAST_BENCHMARKS_NCCL_LINKS_FULL_GPU_H_
