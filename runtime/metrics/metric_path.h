// Numbers of a Result by name: "tpot.p50", "output_tokens_per_s", "stages[1].bubble_fraction",
// "hops[0].exposed_s".
#ifndef FABRICAST_RUNTIME_METRICS_METRIC_PATH_H_
#define FABRICAST_RUNTIME_METRICS_METRIC_PATH_H_

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "runtime/metrics/result.pb.h"

namespace fabricast {

// kInvalidArgument if no run can have a metric of that name; lists the fields at the point where
// the path went wrong. Indices are not bounded.
absl::Status CheckMetricPath(absl::string_view path);

// The number at `path`. CheckMetricPath's error, kOutOfRange if an index is past the end, kNotFound
// if the run has no value for it.
absl::StatusOr<double> MetricAt(const Result& result, absl::string_view path);

// Paths of the metrics that a comparison reports: distributions, throughput, stages, hops, KV
// cache.
std::vector<std::string> ComparedMetrics(const Result& result);

}  // namespace fabricast

#endif  // FABRICAST_RUNTIME_METRICS_METRIC_PATH_H_
