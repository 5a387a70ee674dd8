#ifndef FABRICAST_KERNELS_GPU_SENSORS_H_
#define FABRICAST_KERNELS_GPU_SENSORS_H_

#include <string>

#include "absl/status/statusor.h"

namespace fabricast {

struct GpuReading {
  double sm_clock_mhz = 0;
  double memory_clock_mhz = 0;
  double power_watts = 0;
  double temperature_celsius = 0;
};

// A GPU's clocks, power and temperature, by the driver's library libnvidia-ml.so.1 (NVML). It is
// loaded at run time, so programs start where there is none.
class GpuSensors {
 public:
  // `pci_bus_id` as CUDA gives it: "0000:19:00.0". Returns kUnavailable if the machine has no NVML,
  // and kNotFound if NVML has no such GPU.
  static absl::StatusOr<GpuSensors> Open(const std::string& pci_bus_id);

  // Takes about a millisecond. Returns kUnavailable if the GPU does not tell, as in some virtual
  // machines.
  absl::StatusOr<GpuReading> Read() const;

 private:
  explicit GpuSensors(void* device) : device_(device) {}

  void* device_;  // nvmlDevice_t, owned by NVML.
};

}  // namespace fabricast

#endif  // FABRICAST_KERNELS_GPU_SENSORS_H_
