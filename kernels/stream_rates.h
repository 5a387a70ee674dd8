#ifndef FABRICAST_KERNELS_STREAM_RATES_H_
#define FABRICAST_KERNELS_STREAM_RATES_H_

#include "absl/status/statusor.h"
#include "absl/types/span.h"

namespace fabricast {

// One timed stretch of a stream; stretches follow one another without a gap.
struct StreamSample {
  double bytes = 0;
  double seconds = 0;
};

// Bytes per second over a run of a stream.
struct StreamRates {
  // Over the first kBurstSeconds, when the GPU comes from idle: cool, at its highest clocks.
  double burst = 0;
  // Over the second half of the run. The one to calibrate a loaded pipeline with.
  double sustained = 0;
  // Of the samples, each weighing the same.
  double median = 0;
  // The rate that 99 % of the samples reach: 1 / (the 99th percentile of the time per byte).
  double p99 = 0;
};

// GPUs at their power limit were seen to clock down after about a quarter of a second.
inline constexpr double kBurstSeconds = 0.1;

// Percentiles are those of the nearest rank. Returns kInvalidArgument if there are no samples, or
// one of no time.
absl::StatusOr<StreamRates> SummarizeStream(absl::Span<const StreamSample> samples);

}  // namespace fabricast

#endif  // FABRICAST_KERNELS_STREAM_RATES_H_
