#include "kernels/timing/results.h"

#include <cuda_runtime_api.h>
#include <dlfcn.h>
#include <google/protobuf/util/json_util.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <fstream>
#include <sstream>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "kernels/gpu/cuda_status.h"

namespace fabricast {
namespace {

// What NVML tells of a GPU and its driver.
void ReadNvml(const char* pci_bus_id, MeasuredEnvironment& environment) {
  void* const library = dlopen("libnvidia-ml.so.1", RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) return;
  // From nvml.h, which every driver since 2013 keeps to; 0 is success.
  const auto init = reinterpret_cast<int (*)()>(dlsym(library, "nvmlInit_v2"));
  const auto driver_version =
      reinterpret_cast<int (*)(char*, unsigned)>(dlsym(library, "nvmlSystemGetDriverVersion"));
  const auto by_bus_id = reinterpret_cast<int (*)(const char*, void**)>(
      dlsym(library, "nvmlDeviceGetHandleByPciBusId_v2"));
  const auto power_limit = reinterpret_cast<int (*)(void*, unsigned*)>(
      dlsym(library, "nvmlDeviceGetEnforcedPowerLimit"));
  if (init == nullptr || init() != 0) return;
  std::array<char, 80> version = {};
  if (driver_version != nullptr &&
      driver_version(version.data(), static_cast<unsigned>(version.size())) == 0) {
    environment.set_driver(version.data());
  }
  void* device = nullptr;
  unsigned milliwatts = 0;
  if (by_bus_id != nullptr && power_limit != nullptr && by_bus_id(pci_bus_id, &device) == 0 &&
      power_limit(device, &milliwatts) == 0) {
    environment.set_power_limit_watts(milliwatts / 1e3);
  }
}

// The arguments of this program, as they could be typed.
std::string CommandLine() {
  std::ifstream file("/proc/self/cmdline", std::ios::binary);
  std::string arguments((std::istreambuf_iterator<char>(file)), {});
  if (!arguments.empty() && arguments.back() == '\0') arguments.pop_back();
  std::replace(arguments.begin(), arguments.end(), '\0', ' ');
  return arguments.substr(arguments.substr(0, arguments.find(' ')).rfind('/') + 1);
}

std::string Microseconds(double us) { return us > 0 ? absl::StrFormat("%.2f", us) : "-"; }

}  // namespace

absl::StatusOr<MeasuredEnvironment> MeasureEnvironment(GpuTimer& timer) {
  MeasuredEnvironment environment;
  int device = 0, cuda = 0;
  FABRICAST_RETURN_IF_CUDA_FAILS(cudaGetDevice(&device));
  FABRICAST_RETURN_IF_CUDA_FAILS(cudaRuntimeGetVersion(&cuda));
  cudaDeviceProp properties;
  FABRICAST_RETURN_IF_CUDA_FAILS(cudaGetDeviceProperties(&properties, device));
  std::array<char, 32> pci_bus_id = {};
  FABRICAST_RETURN_IF_CUDA_FAILS(
      cudaDeviceGetPCIBusId(pci_bus_id.data(), static_cast<int>(pci_bus_id.size()), device));
  environment.set_gpu(properties.name);
  environment.set_cuda(absl::StrCat(cuda / 1000, ".", cuda % 1000 / 10));
  environment.set_date(absl::FormatTime("%Y-%m-%d", absl::Now(), absl::UTCTimeZone()));
  if (const char* const commit = std::getenv("FABRICAST_COMMIT"); commit != nullptr) {
    environment.set_commit(commit);
  }
  environment.set_command(CommandLine());
  ReadNvml(pci_bus_id.data(), environment);
  const absl::StatusOr<double> mhz = timer.SmClockMhz();
  if (!mhz.ok()) return mhz.status();
  environment.set_sm_clock_mhz(*mhz);
  return environment;
}

absl::Status TimeKernel(GpuTimer& timer, const GpuTimer::Launch& launch,
                        const TimingOptions& options, KernelTiming& timing) {
  const absl::StatusOr<GpuTiming> single = timer.Single(launch, options.repeats);
  if (!single.ok()) return single.status();
  timing.set_single_us(single->median_us);
  timing.set_single_p99_us(single->p99_us);
  if (options.graph_launches > 0) {
    const absl::StatusOr<GpuTiming> graph =
        timer.InGraph(launch, options.graph_launches, options.repeats);
    if (!graph.ok()) return graph.status();
    timing.set_graph_us(graph->median_us);
  }
  if (options.sustained_seconds > 0) {
    const absl::StatusOr<double> sustained = timer.SustainedUs(launch, options.sustained_seconds);
    if (!sustained.ok()) return sustained.status();
    timing.set_sustained_us(*sustained);
  }
  return absl::OkStatus();
}

double BestUs(const KernelTiming& timing) {
  return timing.graph_us() > 0 ? timing.graph_us() : timing.single_us();
}

std::string KernelTable(const KernelResults& results) {
  const MeasuredEnvironment& environment = results.environment();
  const MeasuredCeilings& ceilings = results.ceilings();
  std::string table = absl::StrFormat(
      "%s, driver %s, CUDA %s, SM %.0f MHz, limit %.0f W; copy %.0f GB/s, read %.0f GB/s\n",
      environment.gpu(), environment.driver(), environment.cuda(), environment.sm_clock_mhz(),
      environment.power_limit_watts(), ceilings.copy_gb_s(), ceilings.read_gb_s());
  absl::StrAppendFormat(&table, "%-22s %-15s %-12s %6s %5s %6s %9s %9s %9s %7s %6s %7s %8s %9s\n",
                        "kernel", "model", "operation", "tokens", "reqs", "ctx", "lone us",
                        "graph us", "load us", "GB/s", "% copy", "TFLOP/s", "x peer", "error");
  for (const KernelTiming& timing : results.timings()) {
    const double us = BestUs(timing);
    const double gb_s = us > 0 ? timing.bytes() / us / 1e3 : 0;
    absl::StrAppendFormat(
        &table, "%-22s %-15s %-12s %6d %5d %6d %9s %9s %9s %7.0f %6.1f %7.1f %8s %9.2e %s\n",
        timing.kernel(), timing.model(), timing.operation(), timing.tokens(), timing.requests(),
        timing.context(), Microseconds(timing.single_us()), Microseconds(timing.graph_us()),
        Microseconds(timing.sustained_us()), gb_s,
        ceilings.copy_gb_s() > 0 ? 100 * gb_s / ceilings.copy_gb_s() : 0,
        us > 0 ? timing.operations() / us / 1e6 : 0,
        timing.peer_us() > 0 ? absl::StrFormat("%.3f", timing.single_us() / timing.peer_us()) : "-",
        timing.relative_error(), timing.note());
  }
  return table;
}

std::string ToJson(const KernelResults& results) {
  google::protobuf::util::JsonPrintOptions options;
  options.add_whitespace = true;
  options.preserve_proto_field_names = true;
  std::string json;
  // Fails for strings that are not UTF-8 alone; what is there of the others is written.
  (void)google::protobuf::util::MessageToJsonString(results, &json, options);
  return json;
}

absl::StatusOr<KernelResults> KernelResultsFromJson(const std::string& json) {
  KernelResults results;
  const auto status = google::protobuf::util::JsonStringToMessage(json, &results);
  if (!status.ok()) return absl::InvalidArgumentError(status.ToString());
  return results;
}

absl::StatusOr<KernelResults> ReadKernelResults(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) return absl::NotFoundError(absl::StrCat(path, ": cannot be read"));
  std::ostringstream json;
  json << file.rdbuf();
  absl::StatusOr<KernelResults> results = KernelResultsFromJson(json.str());
  if (!results.ok()) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": ", results.status().message()));
  }
  return results;
}

absl::Status WriteKernelResults(const KernelResults& results, const std::string& path) {
  std::ofstream file(path, std::ios::binary | std::ios::trunc);
  file << ToJson(results);
  file.close();
  if (!file) return absl::UnavailableError(absl::StrCat(path, ": cannot be written"));
  return absl::OkStatus();
}

}  // namespace fabricast
