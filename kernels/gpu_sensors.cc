#include "kernels/gpu_sensors.h"

#include <dlfcn.h>

#include <string>

#include "absl/status/status.h"
#include "absl/strings/str_format.h"

namespace fabricast {
namespace {

// What we use of nvml.h, whose symbols and numbers NVIDIA keeps.
using NvmlResult = int;
constexpr NvmlResult kNvmlSuccess = 0;
constexpr int kNvmlClockSm = 1;
constexpr int kNvmlClockMemory = 2;
constexpr int kNvmlTemperatureGpu = 0;

struct Nvml {
  NvmlResult (*init)() = nullptr;
  NvmlResult (*get_device)(const char* pci_bus_id, void** device) = nullptr;
  NvmlResult (*get_clock_mhz)(void* device, int kind, unsigned* mhz) = nullptr;
  NvmlResult (*get_power_milliwatts)(void* device, unsigned* milliwatts) = nullptr;
  NvmlResult (*get_temperature)(void* device, int sensor, unsigned* celsius) = nullptr;
};

template <typename Function>
bool Load(void* library, const char* symbol, Function& function) {
  function = reinterpret_cast<Function>(dlsym(library, symbol));
  return function != nullptr;
}

absl::StatusOr<Nvml> LoadNvml() {
  constexpr char kLibrary[] = "libnvidia-ml.so.1";
  // Stays loaded: devices belong to it.
  void* library = dlopen(kLibrary, RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    return absl::UnavailableError(
        absl::StrFormat("%s, part of NVIDIA's driver, cannot be loaded: %s", kLibrary, dlerror()));
  }
  Nvml nvml;
  if (!Load(library, "nvmlInit_v2", nvml.init) ||
      !Load(library, "nvmlDeviceGetHandleByPciBusId_v2", nvml.get_device) ||
      !Load(library, "nvmlDeviceGetClockInfo", nvml.get_clock_mhz) ||
      !Load(library, "nvmlDeviceGetPowerUsage", nvml.get_power_milliwatts) ||
      !Load(library, "nvmlDeviceGetTemperature", nvml.get_temperature)) {
    return absl::UnavailableError(absl::StrFormat("%s lacks a symbol: %s", kLibrary, dlerror()));
  }
  if (const NvmlResult result = nvml.init(); result != kNvmlSuccess) {
    return absl::UnavailableError(
        absl::StrFormat("%s: nvmlInit returned %d; is NVIDIA's driver running?", kLibrary, result));
  }
  return nvml;
}

const absl::StatusOr<Nvml>& GetNvml() {
  static const auto* const nvml = new absl::StatusOr<Nvml>(LoadNvml());
  return *nvml;
}

}  // namespace

absl::StatusOr<GpuSensors> GpuSensors::Open(const std::string& pci_bus_id) {
  const absl::StatusOr<Nvml>& nvml = GetNvml();
  if (!nvml.ok()) return nvml.status();
  void* device = nullptr;
  if (const NvmlResult result = nvml->get_device(pci_bus_id.c_str(), &device);
      result != kNvmlSuccess) {
    return absl::NotFoundError(
        absl::StrFormat("NVML has no GPU at PCI address %s (code %d)", pci_bus_id, result));
  }
  return GpuSensors(device);
}

absl::StatusOr<GpuReading> GpuSensors::Read() const {
  const absl::StatusOr<Nvml>& nvml = GetNvml();
  if (!nvml.ok()) return nvml.status();
  unsigned sm_mhz = 0, memory_mhz = 0, milliwatts = 0, celsius = 0;
  if (nvml->get_clock_mhz(device_, kNvmlClockSm, &sm_mhz) != kNvmlSuccess ||
      nvml->get_clock_mhz(device_, kNvmlClockMemory, &memory_mhz) != kNvmlSuccess ||
      nvml->get_power_milliwatts(device_, &milliwatts) != kNvmlSuccess ||
      nvml->get_temperature(device_, kNvmlTemperatureGpu, &celsius) != kNvmlSuccess) {
    return absl::UnavailableError("the GPU does not tell its clocks, power or temperature");
  }
  return GpuReading{.sm_clock_mhz = static_cast<double>(sm_mhz),
                    .memory_clock_mhz = static_cast<double>(memory_mhz),
                    .power_watts = milliwatts / 1000.0,
                    .temperature_celsius = static_cast<double>(celsius)};
}

}  // namespace fabricast
