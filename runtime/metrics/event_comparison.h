// Compares two runs event by event: how long each kind of event took in either, and which of them
// make up the difference of their latencies.
#ifndef FABRICAST_RUNTIME_METRICS_EVENT_COMPARISON_H_
#define FABRICAST_RUNTIME_METRICS_EVENT_COMPARISON_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "runtime/metrics/alignment.h"
#include "runtime/metrics/event_log.h"
#include "runtime/metrics/result.pb.h"

namespace fabricast {

struct LinedUpRuns {
  std::string first_label;
  std::string second_label;
  RunEvents first;
  RunEvents second;
  Alignment alignment;
};

// Reads the events of two results and lines them up. kFailedPrecondition if one has no events, with
// how to get them; kInvalidArgument if they are not of one model, workload and number of stages, or
// broken. Labels tell which result is meant.
absl::StatusOr<LinedUpRuns> LineUp(const Result& first, const Result& second);

EventComparison CompareEvents(const LinedUpRuns& runs);

// All events, as CSV: a line for every kind of event (DurationComparison.what) of every two
// micro-batches that share tokens, then of those that share none with the other run, whose columns
// are then empty. Starts are since the first arrival. Only lines of "step" list the shared tokens.
// kUnavailable naming the file if it cannot be written.
absl::Status WriteEvents(const LinedUpRuns& runs, const std::string& file);

// Both runs for Perfetto (timeline.h), each stage and each hop of one beside that of the other.
absl::Status WriteLinedUpTrace(const LinedUpRuns& runs, const std::string& file);

}  // namespace fabricast

#endif  // FABRICAST_RUNTIME_METRICS_EVENT_COMPARISON_H_
