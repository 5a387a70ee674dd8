#include "simulator/measured_stage_times.h"

#include <algorithm>
#include <iterator>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "runtime/check.h"

namespace fabricast {
namespace {

// Of a line through two points, at `x`.
double OnLine(int64_t x0, double y0, int64_t x1, double y1, int64_t x) {
  return y0 + (y1 - y0) * static_cast<double>(x - x0) / static_cast<double>(x1 - x0);
}

double Interpolate(const std::map<int64_t, double>& points, int64_t x) {
  const auto& [first_x, first_y] = *points.begin();
  const auto& [last_x, last_y] = *points.rbegin();
  const auto above = points.lower_bound(x);
  if (above != points.end() && above->first == x) return above->second;
  if (above == points.begin() || above == points.end()) {
    const double end_y = above == points.begin() ? first_y : last_y;
    if (last_y <= first_y) return end_y;
    return std::max(0.0, OnLine(first_x, first_y, last_x, last_y, x));
  }
  const auto below = std::prev(above);
  return OnLine(below->first, below->second, above->first, above->second, x);
}

}  // namespace

absl::StatusOr<MeasuredStageTimes> MeasuredStageTimes::Fit(int stages,
                                                           absl::Span<const StageSlice> slices) {
  MeasuredStageTimes times;
  times.rows_.resize(stages);
  for (const StageSlice& slice : slices) {
    if (slice.stage < 0 || slice.stage >= stages) {
      return absl::InvalidArgumentError(absl::StrCat("measured times: there is a stage ",
                                                     slice.stage, ", but the plan has ", stages,
                                                     ": give the timeline of this plan's run"));
    }
    Mean& mean = times.rows_[slice.stage][slice.prefill_tokens][slice.decodes];
    mean.sum_s += slice.end_s - slice.start_s;
    ++mean.count;
  }
  for (int stage = 0; stage < stages; ++stage) {
    if (!times.rows_[stage].empty()) continue;
    return absl::InvalidArgumentError(
        absl::StrCat("measured times: stage ", stage,
                     " computed nothing: give the timeline of a run that went through all stages"));
  }
  times.samples_ = static_cast<int64_t>(slices.size());
  return times;
}

double MeasuredStageTimes::Seconds(int stage, int64_t decodes, int64_t prefill_tokens) const {
  FABRICAST_CHECK(stage >= 0 && stage < stages()) << "stage " << stage << " of " << stages();
  std::map<int64_t, double> by_prefill;
  for (const auto& [prefill, row] : rows_[stage]) {
    std::map<int64_t, double> by_decodes;
    for (const auto& [count, mean] : row) {
      by_decodes[count] = mean.sum_s / static_cast<double>(mean.count);
    }
    by_prefill[prefill] = Interpolate(by_decodes, decodes);
  }
  return Interpolate(by_prefill, prefill_tokens);
}

}  // namespace fabricast
