#ifndef FABRICAST_RUNTIME_WORKLOAD_WORKLOAD_SPEC_H_
#define FABRICAST_RUNTIME_WORKLOAD_WORKLOAD_SPEC_H_

#include <cstdint>
#include <string>
#include <variant>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "runtime/workload/lengths.h"

namespace fabricast {

// Requests are sent as others end, `concurrency` at a time.
struct ClosedLoop {
  int64_t concurrency = 1;
};

// Independent gaps between arrivals, gamma-distributed. cv 1 is the exponential distribution: a
// Poisson process.
struct RandomArrivals {
  double rate = 1;  // requests a second
  double cv = 1;    // standard deviation of the gaps / their mean
  bool poisson = true;
};

// What "closed:...", "poisson:..." and "gamma:..." say.
struct SyntheticSpec {
  std::variant<ClosedLoop, RandomArrivals> arrivals;
  int64_t requests = 1;
  LengthDistribution input;
  LengthDistribution output;

  std::string Description() const;
};

enum class TraceFormat { kAzureCsv, kJsonl };

struct TraceSpec {
  TraceFormat format;
  std::string file;
  bool bundled = false;  // `file` is compiled in
};

using WorkloadSpec = std::variant<SyntheticSpec, TraceSpec>;

// Everything that MakeWorkload takes but names of the catalogue, and "bundled:FILE" for traces that
// are compiled in. Errors name the specification, the key and the mend.
absl::StatusOr<WorkloadSpec> ParseWorkloadSpec(absl::string_view spec);

}  // namespace fabricast

#endif  // FABRICAST_RUNTIME_WORKLOAD_WORKLOAD_SPEC_H_
