#include "runtime/executor/cuda/cuda_device.h"

#include <fstream>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "kernels/gpu/cuda_status.h"
#include "runtime/executor/cuda/stage_kernels.h"

namespace fabricast {
namespace {

// NVIDIA's table of toolkits and drivers (CUDA release notes, table 3): the first driver branch on
// Linux of each major version.
int DriverBranch(int cuda) {
  switch (cuda / 1000) {
    case 11:
      return 450;
    case 12:
      return 525;
    default:
      return 580;
  }
}

// The kernel module's version, where there is one.
std::string ReadDriverVersion() {
  std::ifstream in("/sys/module/nvidia/version");
  std::string version;
  std::getline(in, version);
  return version;
}

absl::Status NoDriver(const std::string& message) {
  return absl::UnavailableError(absl::StrCat(
      message,
      ": install NVIDIA's driver (nvidia-smi shows whether it works), start a container "
      "with --gpus all, or use --topology local_cpu"));
}

absl::Status DriverTooOld(int driver, int runtime) {
  const int branch = DriverBranch(runtime);
  return absl::UnavailableError(absl::StrFormat(
      "NVIDIA's driver supports CUDA %s, and this program needs %s: install driver %d or later, or "
      "build with a toolkit of CUDA %d",
      CudaVersion(driver), CudaVersion(runtime), branch, driver / 1000));
}

}  // namespace

CudaQueries CudaQueries::Runtime() {
  return {.driver_version = cudaDriverGetVersion,
          .runtime_version = cudaRuntimeGetVersion,
          .device_count = cudaGetDeviceCount,
          .properties =
              [](int device, cudaDeviceProp* properties) {
                return cudaGetDeviceProperties(properties, device);
              },
          .compute_mode =
              [](int device, int* mode) {
                return cudaDeviceGetAttribute(mode, cudaDevAttrComputeMode, device);
              },
          .set_device = cudaSetDevice,
          .find_code = FindCodeForDevice,
          .memory = [](size_t* free, size_t* total) { return cudaMemGetInfo(free, total); }};
}

std::string CudaVersion(int version) {
  return absl::StrCat(version / 1000, ".", version % 1000 / 10);
}

std::string CudaDevice::Label() const { return absl::StrCat("GPU ", index, " (", name, ")"); }

absl::StatusOr<int> CountCudaDevices(const CudaQueries& queries) {
  int driver = 0;
  int runtime = 0;
  FABRICAST_RETURN_IF_CUDA_FAILS(queries.driver_version(&driver));
  FABRICAST_RETURN_IF_CUDA_FAILS(queries.runtime_version(&runtime));
  if (driver == 0) return NoDriver("no NVIDIA driver on this machine");
  // Within a major version older drivers run newer programs.
  if (driver / 1000 < runtime / 1000) return DriverTooOld(driver, runtime);
  int count = 0;
  const cudaError_t counted = queries.device_count(&count);
  if (counted != cudaSuccess) cudaGetLastError();
  if (counted == cudaErrorInsufficientDriver) return DriverTooOld(driver, runtime);
  if (counted == cudaErrorNoDevice || (counted == cudaSuccess && count == 0)) {
    return NoDriver("no NVIDIA GPU that this process may use (CUDA_VISIBLE_DEVICES?)");
  }
  FABRICAST_RETURN_IF_CUDA_FAILS(counted);
  return count;
}

absl::StatusOr<CudaDevice> FindCudaDevice(int index, const CudaQueries& queries) {
  absl::StatusOr<int> counted = CountCudaDevices(queries);
  if (!counted.ok()) return counted.status();
  const int count = *counted;
  CudaDevice device;
  device.index = index;
  FABRICAST_RETURN_IF_CUDA_FAILS(queries.driver_version(&device.driver_cuda));
  FABRICAST_RETURN_IF_CUDA_FAILS(queries.runtime_version(&device.runtime_cuda));
  device.driver = ReadDriverVersion();
  if (index < 0 || index >= count) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "GPU %d of this machine is asked for, and it has %d: GPUs count from 0 in the order of the "
        "topology's host; use a topology with at most %d, or look at CUDA_VISIBLE_DEVICES",
        index, count, count));
  }
  cudaDeviceProp properties = {};
  FABRICAST_RETURN_IF_CUDA_FAILS(queries.properties(index, &properties));
  device.name = properties.name;
  device.compute_capability = properties.major * 10 + properties.minor;
  device.multiprocessors = properties.multiProcessorCount;
  device.total_bytes = static_cast<int64_t>(properties.totalGlobalMem);
  return device;
}

absl::StatusOr<CudaDevice> OpenCudaDevice(int index, const CudaQueries& queries) {
  absl::StatusOr<CudaDevice> found_device = FindCudaDevice(index, queries);
  if (!found_device.ok()) return found_device.status();
  CudaDevice& device = *found_device;
  int mode = cudaComputeModeDefault;
  FABRICAST_RETURN_IF_CUDA_FAILS(queries.compute_mode(index, &mode));
  if (mode == cudaComputeModeProhibited) {
    return absl::UnavailableError(
        absl::StrFormat("%s: its compute mode is Prohibited: sudo nvidia-smi -i %d -c DEFAULT",
                        device.Label(), index));
  }
  const cudaError_t set = queries.set_device(index);
  if (set == cudaErrorDevicesUnavailable || set == cudaErrorDeviceAlreadyInUse) {
    return absl::UnavailableError(absl::StrFormat(
        "%s: another process has it for itself (compute mode %s): end that process (nvidia-smi "
        "lists it), or sudo nvidia-smi -i %d -c DEFAULT",
        device.Label(), mode == cudaComputeModeExclusiveProcess ? "Exclusive_Process" : "unknown",
        index));
  }
  if (absl::Status status = ToStatus(set, "cudaSetDevice"); !status.ok()) {
    return ExplainCudaError(status, device.Label());
  }
  const cudaError_t found = queries.find_code();
  if (found == cudaErrorNoKernelImageForDevice || found == cudaErrorInvalidDeviceFunction ||
      found == cudaErrorUnsupportedPtxVersion || found == cudaErrorInvalidPtx) {
    cudaGetLastError();
    return absl::UnimplementedError(absl::StrFormat(
        "%s: it has compute capability %d.%d, for which this program holds no code: build it with "
        "--@local_cuda//:archs=%d%s",
        device.Label(), device.compute_capability / 10, device.compute_capability % 10,
        device.compute_capability, device.compute_capability >= 90 ? "a" : ""));
  }
  if (absl::Status status = ToStatus(found, "cudaFuncGetAttributes"); !status.ok()) {
    return ExplainCudaError(status, device.Label());
  }
  size_t free = 0;
  size_t total = 0;
  if (absl::Status status = ToStatus(queries.memory(&free, &total), "cudaMemGetInfo");
      !status.ok()) {
    return ExplainCudaError(status, device.Label());
  }
  device.free_bytes = static_cast<int64_t>(free);
  device.total_bytes = static_cast<int64_t>(total);
  return device;
}

absl::Status ExplainCudaError(const absl::Status& status, absl::string_view where) {
  if (status.ok()) return status;
  struct Mend {
    absl::string_view error;  // as ToStatus writes it
    absl::string_view text;
  };
  static constexpr Mend kMends[] = {
      {"cudaErrorECCUncorrectable",
       "its memory has an error that ECC cannot correct: look with nvidia-smi -q -d "
       "ECC,ROW_REMAPPER and dmesg | grep Xid, then reset the GPU (nvidia-smi -r) or replace it"},
      {"cudaErrorIllegalAddress",
       "a kernel touched memory that is not its own, which is a bug, or the GPU is failing: "
       "compute-sanitizer shows the kernel, dmesg | grep Xid the GPU's own account"},
      {"cudaErrorMisalignedAddress",
       "a kernel touched a misaligned address, which is a bug: compute-sanitizer shows the kernel"},
      {"cudaErrorLaunchFailure",
       "a kernel died, which is a bug, or the GPU is failing: dmesg | grep Xid says how, "
       "compute-sanitizer shows the kernel"},
      {"cudaErrorLaunchTimeout",
       "a kernel ran too long for a GPU that drives a display: use another, or stop the display"},
      {"cudaErrorHardwareStackError", "the GPU is failing: dmesg | grep Xid, nvidia-smi -q -d ECC"},
      {"cudaErrorNvlinkUncorrectable",
       "NVLink has an error: nvidia-smi nvlink -e, dmesg | grep Xid"},
      {"cudaErrorContained",
       "an error that the GPU contained to this process: dmesg | grep Xid, nvidia-smi -q -d ECC"},
      {"cudaErrorDevicesUnavailable",
       "the GPU is busy or gone: nvidia-smi, dmesg | grep Xid (79: it fell off the bus)"},
      {"cudaErrorUnknown", "the driver does not say what: dmesg | grep Xid, nvidia-smi"},
      {"cudaErrorMemoryAllocation",
       "another process may have taken memory (nvidia-smi lists them): end it, or give fewer "
       "--kv-blocks or more --reserve-gb"},
  };
  std::string message = absl::StrCat(where, ": ", status.message());
  for (const Mend& mend : kMends) {
    if (!absl::StrContains(status.message(), absl::StrCat("(", mend.error, ")"))) continue;
    absl::StrAppend(&message, ": ", mend.text);
  }
  return absl::Status(status.code(), message);
}

}  // namespace fabricast
