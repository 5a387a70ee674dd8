// The point where the answer changes: how slow the network may be before it costs a given share of
// a metric.
#ifndef FABRICAST_SIMULATOR_BREAK_EVEN_H_
#define FABRICAST_SIMULATOR_BREAK_EVEN_H_

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "runtime/metrics/result.pb.h"
#include "simulator/simulate.h"

namespace fabricast {

struct BreakEvenOptions {
  std::vector<std::string> metrics = {"tpot.mean", "ttft.mean"};
  std::vector<double> losses = {0.01, 0.05};
  double lowest_gbps = 0.1;
  double highest_gbps = 1600;
};

// For each metric and loss, the network rate below which the metric is worse by more than `loss`
// than with an unlimited network (all NICs and the switch ports they are cabled to; PCIe, message
// latencies and NCCL's chunk limit stay).
//
// Simulates the scenario at rates a factor of two apart, then twice more around each crossing, and
// interpolates the loss between the last two rates linearly in log(rate). Where the loss is not
// monotone (a scheduler under overload is not), the highest crossing counts. Empty if no route
// crosses a network.
absl::StatusOr<std::vector<BreakEvenPoint>> FindBreakEven(const Scenario& scenario,
                                                          const BreakEvenOptions& options,
                                                          const ProgressCallback& progress);

}  // namespace fabricast

#endif  // FABRICAST_SIMULATOR_BREAK_EVEN_H_
