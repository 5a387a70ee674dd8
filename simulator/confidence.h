// How sure an answer is: the same comparison with the constants at the ends of what is known about
// them.
#ifndef FABRICAST_SIMULATOR_CONFIDENCE_H_
#define FABRICAST_SIMULATOR_CONFIDENCE_H_

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "runtime/metrics/result.pb.h"
#include "simulator/simulate.h"

namespace fabricast {

// Bounds of kernel times and message latencies, as factors on them, from the provenance of the
// calibrations that `scenario` uses: a stated interval where there is one, else 1 / (1 + p90) to 1
// + p90 of the fit's held-out residual.
std::vector<Variation> VariationsOf(const Scenario& scenario);

// Repeats all scenarios (the first is the baseline) with each variation's low and high factor, one
// variation at a time, and stores variations and intervals of mean TPOT and TTFT in `comparison`,
// whose results are those of `scenarios`.
absl::Status AddIntervals(absl::Span<const Scenario> scenarios, const ProgressCallback& progress,
                          Comparison& comparison);

}  // namespace fabricast

#endif  // FABRICAST_SIMULATOR_CONFIDENCE_H_
