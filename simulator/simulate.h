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

// What it takes that head and stages are processes, beside the messages between stages; the
// simulated GPUs' stages know of launches at once.
struct ControlTimes {
  double launch_s = 0;  // from the head's decision until the first stage has the step
  // From what a stage did until the head knows of it. 0: tokens take what the calibration says of a
  // message from the last stage to the first.
  double return_s = 0;
};

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
  ControlTimes control = {};  // of two stages and more
  bool keep_events = false;   // in Result.event_log
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
