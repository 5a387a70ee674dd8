// The main function of a kernel's benchmark: flags, environment, ceilings, table and JSON.
#ifndef FABRICAST_KERNELS_TIMING_BENCHMARK_MAIN_H_
#define FABRICAST_KERNELS_TIMING_BENCHMARK_MAIN_H_

#include <functional>
#include <string>

#include "absl/status/status.h"
#include "kernels/timing/gpu_timer.h"
#include "kernels/timing/kernel_results.pb.h"

namespace fabricast {

struct BenchmarkOptions {
  bool quick = false;            // --quick: a few shapes, to see that it works
  double sustained_seconds = 0;  // --sustained_seconds
  std::string only;              // --only: operations whose name holds this

  bool Wants(const std::string& operation) const {
    return operation.find(only) != std::string::npos;
  }
};

// Adds what it measured to the results' timings; they hold environment and ceilings already.
using MeasureKernels =
    std::function<absl::Status(const BenchmarkOptions&, GpuTimer&, KernelResults&)>;

// Returns the program's exit code. Flags beside those above: --device, --json=PATH (writes
// KernelResults) and --commit. Prints a table; what was measured before an error is printed and
// written too.
int KernelBenchmarkMain(int argc, char** argv, const std::string& description,
                        const MeasureKernels& measure);

}  // namespace fabricast

#endif  // FABRICAST_KERNELS_TIMING_BENCHMARK_MAIN_H_
