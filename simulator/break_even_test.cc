#include "simulator/break_even.h"

#include <gtest/gtest.h>

#include "runtime/metrics/metric_path.h"
#include "simulator/test_scenarios.h"

namespace fabricast {
namespace {

double LossAt(Scenario scenario, const std::string& metric, double gbps) {
  const Topology topology = scenario.topology;
  scenario.topology = topology.WithNetworkRate(100000);
  const double best = *MetricAt(MustSimulate(scenario), metric);
  scenario.topology = topology.WithNetworkRate(gbps);
  return *MetricAt(MustSimulate(scenario), metric) / best - 1;
}

TEST(BreakEvenTest, AtTheFoundRateTheFabricCostsTheGivenShare) {
  const Scenario scenario =
      MakeScenario("trinity_200g", "closed:concurrency=4,requests=12,input=512,output=32");
  const auto points = FindBreakEven(scenario, BreakEvenOptions(), nullptr);
  ASSERT_TRUE(points.ok()) << points.status();
  ASSERT_EQ(points->size(), 4u);
  for (const BreakEvenPoint& point : *points) {
    ASSERT_EQ(point.bound(), BreakEvenPoint::EXACT) << point.DebugString();
    EXPECT_NEAR(LossAt(scenario, point.metric(), point.network_gbps()), point.loss(),
                0.25 * point.loss())
        << point.DebugString();
  }
  // A larger loss needs a slower network.
  EXPECT_LT((*points)[1].network_gbps(), (*points)[0].network_gbps());
  EXPECT_LT((*points)[3].network_gbps(), (*points)[2].network_gbps());
}

TEST(BreakEvenTest, BothEndsOfTheRangeAreSaid) {
  const Scenario scenario =
      MakeScenario("trinity_200g", "closed:concurrency=1,requests=2,input=64,output=8");
  BreakEvenOptions options;
  options.lowest_gbps = 100;
  auto points = FindBreakEven(scenario, options, nullptr);
  ASSERT_TRUE(points.ok()) << points.status();
  EXPECT_EQ((*points)[0].bound(), BreakEvenPoint::BELOW_RANGE);
  EXPECT_EQ((*points)[0].network_gbps(), 100);
  options.lowest_gbps = 0.01;
  options.highest_gbps = 0.05;
  points = FindBreakEven(scenario, options, nullptr);
  ASSERT_TRUE(points.ok()) << points.status();
  EXPECT_EQ((*points)[0].bound(), BreakEvenPoint::ABOVE_RANGE);
}

TEST(BreakEvenTest, AHostWithoutANetworkHasNone) {
  const auto points =
      FindBreakEven(MakeScenario("h200_x4", "closed:concurrency=1,requests=1,input=64,output=2"),
                    BreakEvenOptions(), nullptr);
  ASSERT_TRUE(points.ok()) << points.status();
  EXPECT_TRUE(points->empty());
}

}  // namespace
}  // namespace fabricast
