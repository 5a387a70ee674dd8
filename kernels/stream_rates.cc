#include "kernels/stream_rates.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "absl/status/status.h"

namespace fabricast {
namespace {

struct Total {
  double bytes = 0;
  double seconds = 0;

  void Add(const StreamSample& sample) {
    bytes += sample.bytes;
    seconds += sample.seconds;
  }
  double Rate() const { return bytes / seconds; }
};

// The smallest value that at least `share` of the sorted `values` do not exceed.
double NearestRank(const std::vector<double>& sorted, double share) {
  const auto rank = static_cast<size_t>(std::ceil(share * static_cast<double>(sorted.size())));
  return sorted[std::max<size_t>(rank, 1) - 1];
}

}  // namespace

absl::StatusOr<StreamRates> SummarizeStream(absl::Span<const StreamSample> samples) {
  if (samples.empty()) return absl::InvalidArgumentError("a stream without samples has no rate");
  Total run;
  std::vector<double> seconds_per_byte;
  for (const StreamSample& sample : samples) {
    if (!(sample.seconds > 0) || !(sample.bytes > 0)) {
      return absl::InvalidArgumentError("a sample of no bytes or no time has no rate");
    }
    run.Add(sample);
    seconds_per_byte.push_back(sample.seconds / sample.bytes);
  }
  std::sort(seconds_per_byte.begin(), seconds_per_byte.end());

  Total burst, second_half;
  double begin = 0;
  for (const StreamSample& sample : samples) {
    if (begin < kBurstSeconds) burst.Add(sample);
    // The last sample counts in any case, so that there is one.
    if (begin >= run.seconds / 2 || &sample == &samples.back()) second_half.Add(sample);
    begin += sample.seconds;
  }
  return StreamRates{.burst = burst.Rate(),
                     .sustained = second_half.Rate(),
                     .median = 1 / NearestRank(seconds_per_byte, 0.5),
                     .p99 = 1 / NearestRank(seconds_per_byte, 0.99)};
}

}  // namespace fabricast
