// Forecasts: the real scheduler, driven in simulated time.
#ifndef FABRICAST_SIMULATOR_SIMULATE_H_
#define FABRICAST_SIMULATOR_SIMULATE_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "runtime/metrics/result.pb.h"
#include "runtime/model/model.h"
#include "runtime/plan/plan.h"
#include "runtime/workload/workload.h"
#include "simulator/isolated.h"
#include "simulator/measured_stage_times.h"
#include "topology/topology.h"

namespace fabricast {

struct Scenario {
  std::string label;
  Topology topology;
  Model model;
  Plan plan;
  Workload workload;
  std::string trace_file;  // a Perfetto timeline is written here; empty: none
  // For asking how much an answer depends on the constants: all kernel times, all message
  // latencies, times this.
  double kernel_time_factor = 1;
  double message_latency_factor = 1;
  // What the plan's stages were measured to take; null: what the roofline says (runtime/cost).
  std::shared_ptr<const MeasuredStageTimes> measured = nullptr;
};

// Simulates each scenario in a process of its own (a core each). The same scenario gives the same
// Result, byte for byte. Results carry everything but Inputs' seed and overrides, which are the
// caller's.
std::vector<absl::StatusOr<Result>> SimulateAll(absl::Span<const Scenario> scenarios,
                                                const ProgressCallback& progress = nullptr);

absl::StatusOr<Result> Simulate(const Scenario& scenario,
                                const ProgressCallback& progress = nullptr);

// In this process, which can never run another: for SimulateAll's children and for measuring them.
absl::StatusOr<Result> SimulateInThisProcess(const Scenario& scenario,
                                             std::atomic<double>& progress);

}  // namespace fabricast

#endif  // FABRICAST_SIMULATOR_SIMULATE_H_
