// A CUDA event with an owner. For files that see CUDA's headers.
#ifndef FABRICAST_KERNELS_TIMING_GPU_EVENT_H_
#define FABRICAST_KERNELS_TIMING_GPU_EVENT_H_

#include <cuda_runtime_api.h>

#include <memory>

#include "absl/status/statusor.h"
#include "kernels/gpu/cuda_status.h"

namespace fabricast {

struct GpuEventDestroy {
  void operator()(cudaEvent_t event) const { cudaEventDestroy(event); }
};
using GpuEvent = std::unique_ptr<CUevent_st, GpuEventDestroy>;

// With timing.
inline absl::StatusOr<GpuEvent> CreateGpuEvent() {
  cudaEvent_t event = nullptr;
  FABRICAST_RETURN_IF_CUDA_FAILS(cudaEventCreate(&event));
  return GpuEvent(event);
}

}  // namespace fabricast

#endif  // FABRICAST_KERNELS_TIMING_GPU_EVENT_H_
