// KernelResults: filling, printing, reading and writing them.
#ifndef FABRICAST_KERNELS_TIMING_RESULTS_H_
#define FABRICAST_KERNELS_TIMING_RESULTS_H_

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/timing/gpu_timer.h"
#include "kernels/timing/kernel_results.pb.h"

namespace fabricast {

// Of the current device, and of this program: the command line from /proc, the commit from the
// environment's FABRICAST_COMMIT. What the machine does not tell stays empty.
absl::StatusOr<MeasuredEnvironment> MeasureEnvironment(GpuTimer& timer);

struct TimingOptions {
  int repeats = 21;
  int graph_launches = 16;       // 0: not in a graph
  double sustained_seconds = 0;  // 0: not under load
};

// Fills the times of `timing`: single_us, single_p99_us, and graph_us and sustained_us if asked
// for.
absl::Status TimeKernel(GpuTimer& timer, const GpuTimer::Launch& launch,
                        const TimingOptions& options, KernelTiming& timing);

// The best of its times: in a graph if that was measured, else lone.
double BestUs(const KernelTiming& timing);

std::string KernelTable(const KernelResults& results);

std::string ToJson(const KernelResults& results);
// kInvalidArgument, naming the place, for JSON that is none or of another schema.
absl::StatusOr<KernelResults> KernelResultsFromJson(const std::string& json);

absl::StatusOr<KernelResults> ReadKernelResults(const std::string& path);
absl::Status WriteKernelResults(const KernelResults& results, const std::string& path);

}  // namespace fabricast

#endif  // FABRICAST_KERNELS_TIMING_RESULTS_H_
