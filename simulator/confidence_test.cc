#include "simulator/confidence.h"

#include <gtest/gtest.h>

#include "runtime/metrics/comparison.h"
#include "simulator/test_scenarios.h"

namespace fabricast {
namespace {

TEST(ConfidenceTest, KernelTimesThatAreTwiceAsLongDoubleTpotButForTheHops) {
  Scenario scenario =
      MakeScenario("trinity_200g", "closed:concurrency=1,requests=1,input=64,output=20");
  const double once = MustSimulate(scenario).tpot().mean();
  scenario.kernel_time_factor = 2;
  const double twice = MustSimulate(scenario).tpot().mean();
  // Hops are three messages of about 35 us in 132 ms.
  EXPECT_LT(twice, 2 * once);
  EXPECT_GT(twice, 1.998 * once);
}

TEST(ConfidenceTest, BoundsComeFromTheCalibrationsInUse) {
  const Scenario scenario =
      MakeScenario("trinity_200g", "closed:concurrency=1,requests=1,input=64,output=2");
  const std::vector<Variation> variations = VariationsOf(scenario);
  ASSERT_EQ(variations.size(), 2u);
  double low = 0;
  double high = 0;
  for (const GemmCurve& curve : scenario.topology.kernels(0).gemms()) {
    if (curve.weight_format() != "int4") continue;
    low = curve.provenance().time_low_factor();
    high = curve.provenance().time_high_factor();
  }
  EXPECT_EQ(variations[0].low_factor(), low);
  EXPECT_EQ(variations[0].high_factor(), high);
  EXPECT_LT(variations[1].low_factor(), 1);
  EXPECT_GT(variations[1].high_factor(), 1);
}

TEST(ConfidenceTest, IntervalsContainTheAnswer) {
  const char* workload = "closed:concurrency=2,requests=4,input=256,output=16";
  const std::vector<Scenario> scenarios = {MakeScenario("trinity_200g", workload),
                                           MakeScenario("trinity_400g", workload)};
  const std::vector<Result> results = {MustSimulate(scenarios[0]), MustSimulate(scenarios[1])};
  Comparison comparison = Compare(results);
  const absl::Status status = AddIntervals(scenarios, nullptr, comparison);
  ASSERT_TRUE(status.ok()) << status;
  ASSERT_EQ(comparison.intervals_size(), 4);
  for (const Interval& interval : comparison.intervals()) {
    const bool baseline = interval.label() == "trinity_200g";
    const Result& result = results[baseline ? 0 : 1];
    const double value =
        interval.metric() == "tpot.mean" ? result.tpot().mean() : result.ttft().mean();
    EXPECT_LT(interval.low(), value) << interval.DebugString();
    EXPECT_GT(interval.high(), value) << interval.DebugString();
    EXPECT_LE(interval.change_low(), interval.change_high());
    if (baseline) {
      EXPECT_EQ(interval.change_low(), 0);
      EXPECT_EQ(interval.change_high(), 0);
    }
  }
}

}  // namespace
}  // namespace fabricast
