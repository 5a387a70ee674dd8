#include "runtime/executor/cuda/device_memory.h"

#include <cuda_runtime_api.h>

#include <cstring>

#include "absl/strings/str_format.h"
#include "kernels/gpu/cuda_status.h"
#include "runtime/check.h"

namespace fabricast {
namespace {

absl::Status Explain(const absl::Status& status, absl::string_view what, int64_t bytes) {
  if (status.ok()) return status;
  return absl::Status(status.code(),
                      absl::StrFormat("%s (%.2f GB): %s", what, static_cast<double>(bytes) / 1e9,
                                      status.message()));
}

}  // namespace

DeviceMemory::~DeviceMemory() {
  for (void* const pointer : gpu_) cudaFree(pointer);
  for (void* const pointer : pinned_) cudaFreeHost(pointer);
}

absl::StatusOr<void*> DeviceMemory::Allocate(int64_t bytes, absl::string_view what) {
  FABRICAST_CHECK(!sealed_) << what << " after loading: bytes=" << bytes;
  if (bytes == 0) return nullptr;
  void* pointer = nullptr;
  absl::Status status = ToStatus(cudaMalloc(&pointer, bytes), "cudaMalloc");
  if (!status.ok()) return Explain(status, what, bytes);
  gpu_.push_back(pointer);
  bytes_ += bytes;
  status = ToStatus(cudaMemset(pointer, 0, bytes), "cudaMemset");
  if (!status.ok()) return Explain(status, what, bytes);
  return pointer;
}

absl::StatusOr<void*> DeviceMemory::AllocatePinned(int64_t bytes, absl::string_view what) {
  FABRICAST_CHECK(!sealed_) << what << " after loading: bytes=" << bytes;
  void* pointer = nullptr;
  absl::Status status = ToStatus(cudaMallocHost(&pointer, bytes), "cudaMallocHost");
  if (!status.ok()) return Explain(status, what, bytes);
  pinned_.push_back(pointer);
  std::memset(pointer, 0, bytes);
  return pointer;
}

}  // namespace fabricast
