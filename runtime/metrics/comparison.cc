#include "runtime/metrics/comparison.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/string_view.h"
#include "runtime/metrics/compute_time.h"
#include "runtime/metrics/metric_path.h"

namespace fabricast {
namespace {

double RelativeChange(double before, double after) {
  return before == 0 ? 0 : (after - before) / before;
}

struct Part {
  absl::string_view name;
  double seconds;
};

std::vector<Part> Parts(const ComputeTime& time) {
  return {{"weight reading", time.weight_read_s()},
          {"matrix arithmetic", time.matrix_compute_s()},
          {"reading the KV cache", time.decode_attention_s()},
          {"prefill attention", time.prefill_attention_s()},
          {"norms and other elementwise kernels", time.elementwise_s()},
          {"all-reduces of tensor parallelism", time.collective_s()},
          {"fixed kernel and step overheads", time.overhead_s()}};
}

Part Largest(const ComputeTime& time) {
  const std::vector<Part> parts = Parts(time);
  return *std::max_element(parts.begin(), parts.end(),
                           [](const Part& a, const Part& b) { return a.seconds < b.seconds; });
}

// The stage that is busiest: a pipeline advances at its pace.
int BusiestStage(const Result& result) {
  int busiest = 0;
  for (int s = 1; s < result.stages_size(); ++s) {
    if (result.stages(s).busy_s() > result.stages(busiest).busy_s()) busiest = s;
  }
  return busiest;
}

std::string StageText(const Result& result, int stage) {
  if (stage >= result.plan().stages_size()) return absl::StrCat("stage ", stage);
  return absl::StrCat("stage ", stage, " (", GpusText(result.plan().stages(stage)), ")");
}

// "bound by weight reading on stage 2 (node_b.gpu0), 93 % of its decode time".
std::string Bound(const Result& result, int stage, const ComputeTime& time,
                  absl::string_view phase) {
  const double sum = TotalSeconds(time);
  if (sum <= 0) return absl::StrCat("bound by ", StageText(result, stage));
  const Part largest = Largest(time);
  return absl::StrFormat("bound by %s on %s, %.0f %% of its %s time", largest.name,
                         StageText(result, stage), 100 * largest.seconds / sum, phase);
}

// How long stages wait for bytes on the wire, as a share of the run: the most that a faster wire
// could take away.
std::string Waiting(const Result& result) {
  double worst = 0;
  int at = -1;
  for (int h = 0; h < result.hops_size(); ++h) {
    if (result.hops(h).exposed_s() >= worst) {
      worst = result.hops(h).exposed_s();
      at = h;
    }
  }
  if (at < 0 || result.duration_s() <= 0) return "nothing crosses a wire";
  return absl::StrFormat(
      "stage %d waits for the hop into it %.2f %% of the time, more than any other",
      result.hops(at).to_stage(), 100 * worst / result.duration_s());
}

std::string Time(double seconds) {
  return seconds >= 10 ? absl::StrFormat("%.1f s", seconds)
                       : absl::StrFormat("%.2f ms", 1e3 * seconds);
}

// "TPOT 164.22 ms -> 164.20 ms (-0.012 %)", or the value alone where there is nothing to compare
// with.
std::string Movement(absl::string_view name, double before, double after, bool compared) {
  if (!compared) return absl::StrCat(name, " ", Time(after));
  const double percent = 100 * RelativeChange(before, after);
  return absl::StrFormat("%s %s -> %s (%+.*f %%)", name, Time(before), Time(after),
                         std::fabs(percent) < 0.1 ? 4 : 2, percent);
}

// The share of the mean gap between tokens by which it exceeds the median gap: with prefill in less
// than half of the steps, the median is a gap without it.
double PrefillShareOfGaps(const Result& result) {
  return result.itl().mean() > 0 ? std::max(0.0, 1 - result.itl().p50() / result.itl().mean()) : 0;
}

std::string TpotCause(const Result& baseline, const Result& result) {
  const int stage = BusiestStage(result);
  const StageResult& busiest = result.stages(stage);
  const double mixed_s = TotalSeconds(busiest.mixed());
  std::string cause;
  if (mixed_s > TotalSeconds(busiest.decode())) {
    cause = absl::StrCat("tokens come at the pace of the prefill chunks in their micro-batches, ",
                         Bound(result, stage, busiest.mixed(), "mixed"));
  } else {
    cause = absl::StrCat("decode is ", Bound(result, stage, busiest.decode(), "decode"));
    const double share = PrefillShareOfGaps(result);
    if (share > 0.05) {
      absl::StrAppendFormat(&cause, "; %.0f %% of TPOT is waiting beside prefill chunks",
                            100 * share);
    }
  }
  return absl::StrCat(
      Movement("TPOT", baseline.tpot().mean(), result.tpot().mean(), &baseline != &result), ": ",
      cause, "; ", Waiting(result), ".");
}

std::string TtftCause(const Result& baseline, const Result& result) {
  const int stage = BusiestStage(result);
  const double queue_share =
      result.ttft().mean() > 0 ? result.queue_wait().mean() / result.ttft().mean() : 0;
  std::string cause;
  if (queue_share > 0.5) {
    cause = absl::StrFormat("%.0f %% of it is waiting for admission: %s", 100 * queue_share,
                            result.kv_peak_fraction() > 0.95
                                ? "the KV cache is full"
                                : "requests come faster than they are served");
  } else {
    ComputeTime prefill = result.stages(stage).prefill();
    AddScaled(result.stages(stage).mixed(), 1, prefill);
    cause = absl::StrCat("prefill is ", Bound(result, stage, prefill, "prefill"));
  }
  return absl::StrCat(
      Movement("TTFT", baseline.ttft().mean(), result.ttft().mean(), &baseline != &result), ": ",
      cause, ".");
}

// Changes below this share are not worth a fabric.
constexpr double kMatters = 0.01;

struct ChangeRange {
  double change = 0;
  double low = 0;
  double high = 0;
};

// The change of a metric in result `result` and its bounds; without intervals, these are the change
// itself.
ChangeRange RangeOf(const Comparison& comparison, int result, absl::string_view metric) {
  const double before = MetricAt(comparison.results(0), metric).value_or(0);
  const double after = MetricAt(comparison.results(result), metric).value_or(0);
  ChangeRange range;
  range.change = range.low = range.high = RelativeChange(before, after);
  for (const Interval& interval : comparison.intervals()) {
    if (interval.label() != comparison.results(result).label() ||
        metric != absl::string_view(interval.metric())) {
      continue;
    }
    range.low = interval.change_low();
    range.high = interval.change_high();
  }
  return range;
}

std::string RangeText(const ChangeRange& range, bool with_bounds) {
  const int digits = std::max(std::fabs(range.low), std::fabs(range.high)) < 1e-3 ? 4 : 2;
  std::string text = absl::StrFormat("%+.*f %%", digits, 100 * range.change);
  if (with_bounds) {
    absl::StrAppendFormat(&text, " (%+.*f to %+.*f)", digits, 100 * range.low, digits,
                          100 * range.high);
  }
  return text;
}

}  // namespace

namespace {

// "mean TPOT 3.10 ms for 3.68 ms (-15.8 %)".
std::string ForecastError(const Result& forecast, const Result& run, absl::string_view metric,
                          absl::string_view name) {
  const double forecasted = MetricAt(forecast, metric).value_or(0);
  const double measured = MetricAt(run, metric).value_or(0);
  return absl::StrFormat("%s %s for %s (%+.1f %%)", name, Time(forecasted), Time(measured),
                         100 * RelativeChange(measured, forecasted));
}

}  // namespace

std::string Answer(const Comparison& comparison, int index) {
  const int result = index + 1;
  const Result& first = comparison.results(0);
  const Result& second = comparison.results(result);
  if (first.kind() != second.kind()) {
    const bool forecast_first = first.kind() == SIMULATED;
    const Result& forecast = forecast_first ? first : second;
    const Result& run = forecast_first ? second : first;
    return absl::StrCat("the forecast, ", forecast.label(), ", of what ", run.label(), " is ",
                        ForecastError(forecast, run, "tpot.mean", "mean TPOT"), " and ",
                        ForecastError(forecast, run, "ttft.mean", "mean TTFT"), ".");
  }
  const bool bounds = !comparison.intervals().empty();
  const ChangeRange tpot = RangeOf(comparison, result, "tpot.mean");
  const ChangeRange ttft = RangeOf(comparison, result, "ttft.mean");
  double least = 0;
  double most = 0;
  for (const ChangeRange& range : {tpot, ttft}) {
    const bool crosses_zero = range.low < 0 && range.high > 0;
    const double small = crosses_zero ? 0 : std::min(std::fabs(range.low), std::fabs(range.high));
    least = std::max(least, small);
    most = std::max({most, std::fabs(range.low), std::fabs(range.high)});
  }
  return absl::StrFormat("%s instead of %s changes mean TPOT by %s and mean TTFT by %s: %s.",
                         comparison.results(result).label(), comparison.results(0).label(),
                         RangeText(tpot, bounds), RangeText(ttft, bounds),
                         most < kMatters     ? "less than 1 % either way"
                         : least >= kMatters ? "more than 1 %"
                                             : "more than 1 % or less, within what is known");
}

std::string GpusText(const StagePlan& stage) {
  if (stage.gpus_size() <= 2) return absl::StrJoin(stage.gpus(), "+");
  return absl::StrCat(stage.gpus(0), " and ", stage.gpus_size() - 1, " more");
}

std::vector<std::string> Causes(const Result& baseline, const Result& result) {
  std::vector<std::string> causes;
  if (result.stages_size() == 0 || result.finished() == 0) {
    causes.push_back("No request finished, so there is nothing to explain.");
    return causes;
  }
  if (result.tpot().count() > 0) causes.push_back(TpotCause(baseline, result));
  causes.push_back(TtftCause(baseline, result));
  return causes;
}

Comparison Compare(absl::Span<const Result> results) {
  Comparison comparison;
  comparison.set_schema("fabricast.comparison.v1");
  const Result& baseline = results.front();
  for (const Result& result : results) *comparison.add_results() = result;
  for (size_t i = 1; i < results.size(); ++i) {
    Comparison::Change& change = *comparison.add_changes();
    change.set_label(results[i].label());
    for (const std::string& path : ComparedMetrics(baseline)) {
      const absl::StatusOr<double> before = MetricAt(baseline, path);
      const absl::StatusOr<double> after = MetricAt(results[i], path);
      // A split into fewer stages has fewer stages to compare.
      if (!before.ok() || !after.ok()) continue;
      MetricChange& metric = *change.add_metrics();
      metric.set_metric(path);
      metric.set_baseline(*before);
      metric.set_value(*after);
      if (*before != 0 || *after == 0) metric.set_change(RelativeChange(*before, *after));
    }
    for (std::string& cause : Causes(baseline, results[i])) change.add_causes(std::move(cause));
  }
  return comparison;
}

}  // namespace fabricast
