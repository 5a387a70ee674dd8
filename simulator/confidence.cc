#include "simulator/confidence.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "runtime/check.h"
#include "runtime/metrics/metric_path.h"
#include "simulator/constants.h"

namespace fabricast {
namespace {

constexpr char kKernelTimes[] = "kernel times";
constexpr char kMessageLatencies[] = "message latencies";

void Widen(const Provenance& provenance, Variation& variation) {
  const bool stated = provenance.time_high_factor() > 0;
  const double low = stated ? provenance.time_low_factor() : 1 / (1 + provenance.residual_p90());
  const double high = stated ? provenance.time_high_factor() : 1 + provenance.residual_p90();
  variation.set_low_factor(std::min(variation.low_factor(), low));
  variation.set_high_factor(std::max(variation.high_factor(), high));
}

Variation Unvaried(const char* constants) {
  Variation variation;
  variation.set_constants(constants);
  variation.set_low_factor(1);
  variation.set_high_factor(1);
  return variation;
}

double At(const Result& result, const std::string& metric) {
  const absl::StatusOr<double> value = MetricAt(result, metric);
  FABRICAST_CHECK(value.ok()) << value.status();
  return *value;
}

double RelativeChange(double before, double after) { return before == 0 ? 0 : after / before - 1; }

}  // namespace

std::vector<Variation> VariationsOf(const Scenario& scenario) {
  Variation kernels = Unvaried(kKernelTimes);
  Variation messages = Unvaried(kMessageLatencies);
  for (const ConstantsInUse& constants : ConstantsOf(scenario)) {
    const bool is_kernel = constants.kind == ConstantsInUse::Kind::kKernelTimes;
    Widen(constants.provenance, is_kernel ? kernels : messages);
  }
  return {kernels, messages};
}

absl::Status AddIntervals(absl::Span<const Scenario> scenarios, const ProgressCallback& progress,
                          Comparison& comparison) {
  std::vector<Scenario> varied;
  for (const Variation& variation : VariationsOf(scenarios.front())) {
    if (variation.low_factor() == variation.high_factor()) continue;
    double Scenario::*const varies = variation.constants() == kKernelTimes
                                         ? &Scenario::kernel_time_factor
                                         : &Scenario::message_latency_factor;
    *comparison.add_variations() = variation;
    for (double factor : {variation.low_factor(), variation.high_factor()}) {
      for (const Scenario& scenario : scenarios) {
        varied.push_back(scenario);
        varied.back().trace_file.clear();
        varied.back().*varies = factor;
      }
    }
  }
  std::vector<Result> results(comparison.results().begin(), comparison.results().end());
  for (absl::StatusOr<Result>& result : SimulateAll(varied, progress)) {
    if (!result.ok()) return result.status();
    results.push_back(*std::move(result));
  }
  for (size_t i = 0; i < scenarios.size(); ++i) {
    for (const char* metric : {"tpot.mean", "ttft.mean"}) {
      Interval& interval = *comparison.add_intervals();
      interval.set_label(scenarios[i].label);
      interval.set_metric(metric);
      // Every round holds one result a scenario, the baseline's first.
      for (size_t round = 0; round < results.size(); round += scenarios.size()) {
        const double value = At(results[round + i], metric);
        const double change = RelativeChange(At(results[round], metric), value);
        const bool first = round == 0;
        interval.set_low(first ? value : std::min(interval.low(), value));
        interval.set_high(first ? value : std::max(interval.high(), value));
        interval.set_change_low(first ? change : std::min(interval.change_low(), change));
        interval.set_change_high(first ? change : std::max(interval.change_high(), change));
      }
    }
  }
  return absl::OkStatus();
}

}  // namespace fabricast
