#include "simulator/break_even.h"

#include <cmath>
#include <map>
#include <utility>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "runtime/check.h"
#include "runtime/metrics/metric_path.h"

namespace fabricast {
namespace {

// Faster than any PCIe: what is left of the network's cost is latency.
constexpr double kUnlimitedGbps = 100000;
constexpr int kRefinements = 2;

class Search {
 public:
  Search(const Scenario& scenario, const BreakEvenOptions& options)
      : scenario_(scenario), options_(options) {}

  absl::Status Simulate(const std::vector<double>& rates, const ProgressCallback& progress) {
    std::vector<Scenario> scenarios;
    std::vector<double> fresh;
    for (double rate : rates) {
      if (results_.contains(rate)) continue;
      Scenario at_rate = scenario_;
      at_rate.topology = scenario_.topology.WithNetworkRate(rate);
      at_rate.trace_file.clear();
      scenarios.push_back(std::move(at_rate));
      fresh.push_back(rate);
    }
    std::vector<absl::StatusOr<Result>> results = SimulateAll(scenarios, progress);
    for (size_t i = 0; i < results.size(); ++i) {
      if (!results[i].ok()) return results[i].status();
      results_[fresh[i]] = *std::move(results[i]);
    }
    return absl::OkStatus();
  }

  // How much worse the metric is at `rate` than with an unlimited network.
  double Loss(const std::string& metric, double rate) const {
    const absl::StatusOr<double> best = MetricAt(results_.at(kUnlimitedGbps), metric);
    const absl::StatusOr<double> here = MetricAt(results_.at(rate), metric);
    FABRICAST_CHECK(best.ok() && here.ok()) << metric;
    return *best > 0 ? *here / *best - 1 : 0;
  }

  // The two rates tried, next to each other, between which the loss falls to `loss`, highest first
  // to look. False if there is no such pair; `bound` says on which side the crossing is.
  bool Bracket(const std::string& metric, double loss, double& low, double& high,
               BreakEvenPoint::Bound& bound) const {
    auto it = results_.lower_bound(kUnlimitedGbps);
    --it;
    if (Loss(metric, it->first) > loss) {
      bound = BreakEvenPoint::ABOVE_RANGE;
      high = it->first;
      return false;
    }
    while (it != results_.begin()) {
      high = it->first;
      --it;
      low = it->first;
      if (Loss(metric, low) > loss) return true;
    }
    bound = BreakEvenPoint::BELOW_RANGE;
    high = it->first;
    return false;
  }

 private:
  const Scenario& scenario_;
  const BreakEvenOptions& options_;
  std::map<double, Result> results_;
};

}  // namespace

absl::StatusOr<std::vector<BreakEvenPoint>> FindBreakEven(const Scenario& scenario,
                                                          const BreakEvenOptions& options,
                                                          const ProgressCallback& progress) {
  std::vector<BreakEvenPoint> points;
  if (scenario.topology.network_rate_gbps() == 0) return points;
  Search search(scenario, options);
  // The grid is most of the work; refinements report within the last fifth.
  const auto part = [&](double from, double to) -> ProgressCallback {
    if (!progress) return nullptr;
    return [=](double share) { progress(from + share * (to - from)); };
  };
  std::vector<double> grid = {kUnlimitedGbps};
  for (double rate = options.lowest_gbps; rate <= options.highest_gbps; rate *= 2) {
    grid.push_back(rate);
  }
  if (absl::Status status = search.Simulate(grid, part(0, 0.8)); !status.ok()) return status;
  for (int round = 0; round < kRefinements; ++round) {
    std::vector<double> between;
    for (const std::string& metric : options.metrics) {
      for (double loss : options.losses) {
        double low, high;
        BreakEvenPoint::Bound bound;
        if (search.Bracket(metric, loss, low, high, bound))
          between.push_back(std::sqrt(low * high));
      }
    }
    absl::Status status = search.Simulate(between, part(0.8 + 0.1 * round, 0.9 + 0.1 * round));
    if (!status.ok()) return status;
  }
  for (const std::string& metric : options.metrics) {
    for (double loss : options.losses) {
      BreakEvenPoint point;
      point.set_metric(metric);
      point.set_loss(loss);
      double low = 0, high = 0;
      BreakEvenPoint::Bound bound = BreakEvenPoint::EXACT;
      if (search.Bracket(metric, loss, low, high, bound)) {
        const double at_low = search.Loss(metric, low);
        const double at_high = search.Loss(metric, high);
        const double share = (at_low - loss) / (at_low - at_high);
        point.set_network_gbps(low * std::pow(high / low, share));
      } else {
        point.set_network_gbps(high);
        point.set_bound(bound);
      }
      points.push_back(point);
    }
  }
  return points;
}

}  // namespace fabricast
