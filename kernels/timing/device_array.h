// Memory of the GPU with an owner. For files that see CUDA's headers.
#ifndef FABRICAST_KERNELS_TIMING_DEVICE_ARRAY_H_
#define FABRICAST_KERNELS_TIMING_DEVICE_ARRAY_H_

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_format.h"
#include "absl/types/span.h"
#include "kernels/gpu/cuda_status.h"

namespace fabricast {

// `size()` elements on the device that was current when they were allocated, 256-byte aligned. One
// owner, movable. All calls wait for the GPU.
template <typename T>
class DeviceArray {
  static_assert(std::is_trivially_copyable_v<T>);

 public:
  DeviceArray() = default;
  DeviceArray(DeviceArray&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}
  DeviceArray& operator=(DeviceArray&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }
  ~DeviceArray() { cudaFree(data_); }

  // Not initialised. kResourceExhausted says what was asked for and what is free; `what` is its
  // name there.
  static absl::StatusOr<DeviceArray> Allocate(int64_t size, const char* what = "an array") {
    DeviceArray array;
    const size_t bytes = static_cast<size_t>(size) * sizeof(T);
    void* data = nullptr;
    if (const cudaError_t error = cudaMalloc(&data, bytes); error != cudaSuccess) {
      if (error != cudaErrorMemoryAllocation) return ToStatus(error, "cudaMalloc");
      cudaGetLastError();
      size_t free = 0, total = 0;
      cudaMemGetInfo(&free, &total);
      return absl::ResourceExhaustedError(
          absl::StrFormat("%s takes %.3f GB of the GPU's memory; %.3f of %.3f GB are free", what,
                          static_cast<double>(bytes) / 1e9, static_cast<double>(free) / 1e9,
                          static_cast<double>(total) / 1e9));
    }
    array.data_ = static_cast<T*>(data);
    array.size_ = size;
    return array;
  }

  static absl::StatusOr<DeviceArray> CopyOf(absl::Span<const T> values,
                                            const char* what = "an array") {
    absl::StatusOr<DeviceArray> array = Allocate(static_cast<int64_t>(values.size()), what);
    if (!array.ok()) return array;
    if (absl::Status status = array->CopyFrom(values); !status.ok()) return status;
    return array;
  }

  // Of the first values.size() elements.
  absl::Status CopyFrom(absl::Span<const T> values) {
    return ToStatus(
        cudaMemcpy(data_, values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice),
        "copying to the GPU");
  }

  absl::StatusOr<std::vector<T>> ToHost() const {
    std::vector<T> values(static_cast<size_t>(size_));
    FABRICAST_RETURN_IF_CUDA_FAILS(
        cudaMemcpy(values.data(), data_, values.size() * sizeof(T), cudaMemcpyDeviceToHost));
    return values;
  }

  // Sets every byte: 0xff makes floats NaN.
  absl::Status FillBytes(int byte) {
    FABRICAST_RETURN_IF_CUDA_FAILS(cudaMemset(data_, byte, static_cast<size_t>(bytes())));
    return ToStatus(cudaDeviceSynchronize(), "cudaMemset");
  }

  T* get() const { return data_; }
  int64_t size() const { return size_; }
  int64_t bytes() const { return size_ * static_cast<int64_t>(sizeof(T)); }

 private:
  T* data_ = nullptr;
  int64_t size_ = 0;
};

}  // namespace fabricast

#endif  // FABRICAST_KERNELS_TIMING_DEVICE_ARRAY_H_
