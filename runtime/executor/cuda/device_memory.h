// A GPU's memory, taken while a stage is loaded and never afterwards.
#ifndef FABRICAST_RUNTIME_EXECUTOR_CUDA_DEVICE_MEMORY_H_
#define FABRICAST_RUNTIME_EXECUTOR_CUDA_DEVICE_MEMORY_H_

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace fabricast {

// Of the device that is current when it allocates and when it goes. Not thread-safe.
class DeviceMemory {
 public:
  DeviceMemory() = default;
  DeviceMemory(const DeviceMemory&) = delete;
  DeviceMemory& operator=(const DeviceMemory&) = delete;
  ~DeviceMemory();

  // 256-byte aligned, as cudaMalloc promises; all zero. Null for 0 bytes. Freed with this.
  // kResourceExhausted, naming `what`, if the GPU has no more. CHECKs that it is not sealed.
  absl::StatusOr<void*> Allocate(int64_t bytes, absl::string_view what);
  // The same of the host's memory, page-locked.
  absl::StatusOr<void*> AllocatePinned(int64_t bytes, absl::string_view what);

  // From here on nothing more may be allocated.
  void Seal() { sealed_ = true; }

  int64_t bytes() const { return bytes_; }  // of the GPU's
  int allocations() const { return static_cast<int>(gpu_.size() + pinned_.size()); }

 private:
  std::vector<void*> gpu_;
  std::vector<void*> pinned_;
  int64_t bytes_ = 0;
  bool sealed_ = false;
};

}  // namespace fabricast

#endif  // FABRICAST_RUNTIME_EXECUTOR_CUDA_DEVICE_MEMORY_H_
