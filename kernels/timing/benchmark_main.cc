#include "kernels/timing/benchmark_main.h"

#include <cuda_runtime_api.h>

#include <iostream>
#include <memory>
#include <utility>

#include "CLI/CLI.hpp"
#include "absl/status/statusor.h"
#include "kernels/gpu/cuda_status.h"
#include "kernels/timing/results.h"

namespace fabricast {
namespace {

absl::Status Run(int device, const BenchmarkOptions& options, const MeasureKernels& measure,
                 KernelResults& results) {
  FABRICAST_RETURN_IF_CUDA_FAILS(cudaSetDevice(device));
  const absl::StatusOr<std::unique_ptr<GpuTimer>> timer = GpuTimer::Create();
  if (!timer.ok()) return timer.status();
  absl::StatusOr<MeasuredEnvironment> environment = MeasureEnvironment(**timer);
  if (!environment.ok()) return environment.status();
  *results.mutable_environment() = *std::move(environment);
  const absl::StatusOr<double> copy = MeasureCopyBandwidth(**timer);
  if (!copy.ok()) return copy.status();
  results.mutable_ceilings()->set_copy_gb_s(*copy / 1e9);
  return measure(options, **timer, results);
}

}  // namespace

int KernelBenchmarkMain(int argc, char** argv, const std::string& description,
                        const MeasureKernels& measure) {
  CLI::App app(description);
  BenchmarkOptions options;
  int device = 0;
  std::string json, commit;
  app.add_flag("--quick", options.quick, "a few shapes only");
  app.add_option("--sustained_seconds", options.sustained_seconds,
                 "how long to load the GPU for each sustained time; 0: none")
      ->check(CLI::Range(0.0, 60.0));
  app.add_option("--only", options.only, "operations whose name holds this");
  app.add_option("--device", device, "which GPU, as CUDA counts them");
  app.add_option("--json", json, "file for the results");
  app.add_option("--commit", commit, "of the source; default: the environment's FABRICAST_COMMIT");
  CLI11_PARSE(app, argc, argv);

  KernelResults results;
  const absl::Status measured = Run(device, options, measure, results);
  if (!commit.empty()) results.mutable_environment()->set_commit(commit);
  if (results.has_environment()) std::cout << KernelTable(results);
  if (!measured.ok()) std::cerr << measured << "\n";
  if (!json.empty() && results.timings_size() > 0) {
    if (absl::Status status = WriteKernelResults(results, json); !status.ok()) {
      std::cerr << status << "\n";
      return 1;
    }
  }
  return measured.ok() ? 0 : 1;
}

}  // namespace fabricast
