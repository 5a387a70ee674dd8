// CUDA's errors as statuses. For .cu files and others that see CUDA's headers.
#ifndef FABRICAST_KERNELS_GPU_CUDA_STATUS_H_
#define FABRICAST_KERNELS_GPU_CUDA_STATUS_H_

#include <cuda_runtime_api.h>

#include "absl/status/status.h"
#include "absl/strings/str_format.h"

namespace fabricast {

// OK for cudaSuccess. Clears the runtime's last error. `what`: the call, for the message.
//
// kUnavailable: no GPU, or a driver that is too old for it. kResourceExhausted: memory.
// kUnimplemented: a GPU that the binary holds no code for. kInvalidArgument: no such device.
// kDataLoss: an ECC error. kInternal: all others; after those that end the context (an illegal
// address, a launch failure) every later call fails as well.
inline absl::Status ToStatus(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return absl::OkStatus();
  cudaGetLastError();  // Or the next launch would be taken to have failed.
  const std::string message =
      absl::StrFormat("%s: %s (%s)", what, cudaGetErrorString(error), cudaGetErrorName(error));
  switch (error) {
    case cudaErrorNoDevice:
    case cudaErrorInsufficientDriver:
    case cudaErrorInitializationError:
    case cudaErrorSystemNotReady:
    case cudaErrorDevicesUnavailable:
      return absl::UnavailableError(message);
    case cudaErrorInvalidDevice:
      return absl::InvalidArgumentError(message);
    case cudaErrorMemoryAllocation:
      return absl::ResourceExhaustedError(message);
    case cudaErrorNoKernelImageForDevice:
    case cudaErrorInvalidPtx:
    case cudaErrorUnsupportedPtxVersion:
      return absl::UnimplementedError(message);
    case cudaErrorECCUncorrectable:
      return absl::DataLossError(message);
    default:
      return absl::InternalError(message);
  }
}

#define FABRICAST_RETURN_IF_CUDA_FAILS(call)                                              \
  if (absl::Status cuda_status = ::fabricast::ToStatus((call), #call); !cuda_status.ok()) \
  return cuda_status

}  // namespace fabricast

#endif  // FABRICAST_KERNELS_GPU_CUDA_STATUS_H_
