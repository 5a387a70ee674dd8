// A GPU as CUDA shows it, and what its errors mean to who runs a stage on it.
#ifndef FABRICAST_RUNTIME_EXECUTOR_CUDA_CUDA_DEVICE_H_
#define FABRICAST_RUNTIME_EXECUTOR_CUDA_CUDA_DEVICE_H_

#include <cuda_runtime_api.h>

#include <cstdint>
#include <functional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace fabricast {

// What is asked of CUDA to know a GPU: its runtime, or a test's answers.
struct CudaQueries {
  std::function<cudaError_t(int* version)> driver_version;   // 13000; 0: no driver
  std::function<cudaError_t(int* version)> runtime_version;  // of this program
  std::function<cudaError_t(int* count)> device_count;
  std::function<cudaError_t(int device, cudaDeviceProp* properties)> properties;
  std::function<cudaError_t(int device, int* mode)> compute_mode;
  std::function<cudaError_t(int device)> set_device;
  // Whether this program holds code for the current device.
  std::function<cudaError_t()> find_code;
  std::function<cudaError_t(size_t* free, size_t* total)> memory;

  static CudaQueries Runtime();
};

struct CudaDevice {
  int index = 0;               // among those that the process sees
  std::string name;            // "NVIDIA H200"
  int compute_capability = 0;  // 90: 9.0
  int multiprocessors = 0;
  int64_t total_bytes = 0;
  int64_t free_bytes = 0;  // with the context that this process now has there
  std::string driver;      // "580.95.05", empty if the system does not say
  int driver_cuda = 0;     // what the driver supports: 13000
  int runtime_cuda = 0;    // what this program was built with

  std::string Label() const;  // "GPU 0 (NVIDIA H200)"
};

// 13000 as "13.0".
std::string CudaVersion(int version);

// GPUs that the process may use, at least one. kUnavailable: no driver, one that is too old for
// this program (naming both versions), or no GPU. All say how to mend it.
absl::StatusOr<int> CountCudaDevices(const CudaQueries& queries = CudaQueries::Runtime());

// What GPU `index` is; takes nothing of it. Errors as CountCudaDevices, and kInvalidArgument if
// there are fewer.
absl::StatusOr<CudaDevice> FindCudaDevice(int index,
                                          const CudaQueries& queries = CudaQueries::Runtime());

// The same, and makes it the calling thread's device. kUnavailable also if other processes keep it
// for themselves, kUnimplemented if this program holds no code for it.
absl::StatusOr<CudaDevice> OpenCudaDevice(int index,
                                          const CudaQueries& queries = CudaQueries::Runtime());

// `status`, as kernels and calls return it (kernels/gpu/cuda_status.h), for who reads it: names
// `where` ("stage 1 on GPU 0 (NVIDIA H200)"), and for what the GPU itself has failed at, an ECC
// error, an illegal address, a launch that did not end or a GPU that fell off the bus, where to
// look. OK stays OK.
absl::Status ExplainCudaError(const absl::Status& status, absl::string_view where);

}  // namespace fabricast

#endif  // FABRICAST_RUNTIME_EXECUTOR_CUDA_CUDA_DEVICE_H_
