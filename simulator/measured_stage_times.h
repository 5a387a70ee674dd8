// What stages were measured to take, in place of the roofline: for asking what a run would have
// been on another fabric with the computation that it really had.
#ifndef FABRICAST_SIMULATOR_MEASURED_STAGE_TIMES_H_
#define FABRICAST_SIMULATOR_MEASURED_STAGE_TIMES_H_

#include <cstdint>
#include <map>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "runtime/metrics/timeline.h"

namespace fabricast {

// A stage's time by what a micro-batch holds: its decodes and its tokens of prefill. What it does
// not tell apart, such as the length of contexts and how many chunks are a prompt's last, is in the
// mean of what was measured.
class MeasuredStageTimes {
 public:
  // From the timeline of one run or of several, one after the other. kInvalidArgument if a stage
  // computed nothing, or there is a slice of another stage.
  static absl::StatusOr<MeasuredStageTimes> Fit(int stages, absl::Span<const StageSlice> slices);

  int stages() const { return static_cast<int>(rows_.size()); }
  int64_t samples() const { return samples_; }

  // The mean of the micro-batches that held just this, so that a run like the measured one computes
  // for just as long. Else linear: first in the decodes, among micro-batches of as much prefill,
  // then in the prefill; beyond the ends along the line from the first to the last, if that rises.
  double Seconds(int stage, int64_t decodes, int64_t prefill_tokens) const;

 private:
  struct Mean {
    double sum_s = 0;
    int64_t count = 0;
  };
  // By tokens of prefill, then by decodes.
  using Rows = std::map<int64_t, std::map<int64_t, Mean>>;

  std::vector<Rows> rows_;  // of each stage
  int64_t samples_ = 0;
};

}  // namespace fabricast

#endif  // FABRICAST_SIMULATOR_MEASURED_STAGE_TIMES_H_
