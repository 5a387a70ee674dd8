// Numbers on the GPU for benchmarks: power, and so the clock, depends on them.
#ifndef FABRICAST_BENCHMARKS_KERNELS_RANDOM_ARRAY_H_
#define FABRICAST_BENCHMARKS_KERNELS_RANDOM_ARRAY_H_

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <random>
#include <type_traits>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "kernels/gpu/cuda_status.h"
#include "kernels/timing/device_array.h"

namespace fabricast {

inline uint16_t Bf16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

// Fills `to` with normal numbers, 1 Mi different ones over and over; uint16_t are BF16.
template <typename T>
absl::Status FillNormal(DeviceArray<T>& to) {
  static_assert(std::is_same_v<T, float> || std::is_same_v<T, uint16_t>);
  constexpr int64_t kDifferent = 1 << 20;
  static const std::vector<T>& values = *[] {
    auto* const normal = new std::vector<T>;
    std::mt19937 random(7);
    std::normal_distribution<float> distribution;
    for (int64_t i = 0; i < kDifferent; ++i) {
      if constexpr (std::is_same_v<T, float>) {
        normal->push_back(distribution(random));
      } else {
        normal->push_back(Bf16(distribution(random)));
      }
    }
    return normal;
  }();
  int64_t filled = std::min(to.size(), kDifferent);
  absl::Status status =
      to.CopyFrom(absl::MakeConstSpan(values).subspan(0, static_cast<size_t>(filled)));
  while (filled < to.size() && status.ok()) {
    const int64_t more = std::min(filled, to.size() - filled);
    status.Update(
        ToStatus(cudaMemcpy(to.get() + filled, to.get(), static_cast<size_t>(more) * sizeof(T),
                            cudaMemcpyDeviceToDevice),
                 "filling an array"));
    filled += more;
  }
  return status;
}

}  // namespace fabricast

#endif  // FABRICAST_BENCHMARKS_KERNELS_RANDOM_ARRAY_H_
