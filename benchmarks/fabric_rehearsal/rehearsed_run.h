// A run that was measured, forecast again with the stage times that it really had: what is left
// between the two is the fabric's and the scheduler's, not the computation's.
#ifndef FABRICAST_BENCHMARKS_FABRIC_REHEARSAL_REHEARSED_RUN_H_
#define FABRICAST_BENCHMARKS_FABRIC_REHEARSAL_REHEARSED_RUN_H_

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "runtime/metrics/result.pb.h"
#include "runtime/metrics/timeline.h"
#include "simulator/simulate.h"

namespace fabricast {

struct RehearsedRun {
  Result result;
  Timeline timeline;
};

// What `fabricast run` (or `simulate`) wrote with --out and --trace.
absl::StatusOr<RehearsedRun> ReadRun(const std::string& result_file, const std::string& trace_file);

// The forecast's inputs as the run had them: its topology with its overrides, its plan, its
// workload. `model` is a checkpoint folder or a bundled model's name. Stages take what the roofline
// says.
absl::StatusOr<Scenario> ScenarioOf(const Result& run, const std::string& model);

// The means of what the control plane took: how long tokens were on their way to the head, and how
// long after them the first stage began, where it waited for them.
ControlTimes MeasuredControlTimes(const Timeline& timeline, int stages);

// Simulates `scenario` with the stage times and the control plane's of `measured`, a run of the
// same plan.
absl::StatusOr<RehearsedRun> Forecast(Scenario scenario, const Timeline& measured);

// Payload bytes a second of the hop's messages of `min_bytes` and more, the median. A message's
// time is from its own start, or the arrival of the one before it if that is later, until it
// arrives. kNotFound if there are none.
absl::StatusOr<double> HopBytesPerSecond(const Timeline& timeline, int from_stage, int to_stage,
                                         int64_t min_bytes);

}  // namespace fabricast

#endif  // FABRICAST_BENCHMARKS_FABRIC_REHEARSAL_REHEARSED_RUN_H_
