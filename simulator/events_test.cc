// The events of forecasts, lined up: what differs is where the scenarios differ.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "absl/status/statusor.h"
#include "runtime/metrics/event_comparison.h"
#include "simulator/test_scenarios.h"

namespace fabricast {
namespace {

constexpr char kNetworkRate[] = "node_*.nic0.rate_gbps";

// Times are kept in nanoseconds.
constexpr double kRounding = 2e-9;

Result SimulateWithEvents(const std::string& workload, const std::string& network_gbps,
                          const PlanOptions& plan = {}) {
  Scenario scenario = MakeScenario("trinity_200g", workload, plan, {{kNetworkRate, network_gbps}});
  scenario.label = network_gbps + " Gbps";
  scenario.keep_events = true;
  return MustSimulate(scenario);
}

LinedUpRuns MustLineUp(const Result& first, const Result& second) {
  absl::StatusOr<LinedUpRuns> runs = LineUp(first, second);
  EXPECT_TRUE(runs.ok()) << runs.status();
  return *std::move(runs);
}

TEST(EventsTest, AnotherFabricDiffersInItsHopsOnly) {
  const std::string workload = "closed:concurrency=1,requests=2,input=400,output=20";
  const LinedUpRuns runs =
      MustLineUp(SimulateWithEvents(workload, "200"), SimulateWithEvents(workload, "25"));
  const EventComparison comparison = CompareEvents(runs);
  EXPECT_EQ(comparison.divergence(), "");
  EXPECT_EQ(comparison.pairs(), comparison.first_micro_batches());
  for (const DurationComparison& duration : comparison.durations()) {
    const std::string& what = duration.what();
    if (what == "hop" && duration.stage() == 1) {
      // From node_a to node_b: 32 KiB a token at an eighth of the rate.
      EXPECT_GT(duration.difference_p50_s(), 32768 * 8 * (1 / 25e9 - 1 / 200e9));
    } else if (what == "compute" || what == "wait") {
      EXPECT_LE(std::fabs(duration.worst_s()), kRounding) << what << " " << duration.stage();
    }
  }
  for (const Attribution& attribution : comparison.attributions()) {
    double hops = 0;
    for (const Attribution::Part& part : attribution.parts()) {
      const double difference = part.second_s() - part.first_s();
      if (part.what() == "hop") {
        hops += difference;
      } else if (part.what() != "queue" && part.what() != "send wait") {
        EXPECT_LE(std::fabs(difference), kRounding) << part.what() << " " << part.stage();
      }
    }
    EXPECT_GT(hops, 0);
  }
}

void ExpectExplained(const Result& result) {
  const EventComparison comparison = CompareEvents(MustLineUp(result, result));
  EXPECT_EQ(comparison.divergence(), "");
  ASSERT_EQ(comparison.attributions_size(), 2);
  for (const Attribution& attribution : comparison.attributions()) {
    double sum = 0;
    double delays = 0;  // of which a simulated pipeline has none: everything follows at once
    for (const Attribution::Part& part : attribution.parts()) {
      sum += part.first_s();
      if (part.what() == "compute" || part.what() == "hop" || part.what() == "queue") continue;
      delays += part.first_s();
    }
    EXPECT_NEAR(delays, 0, 1e-8) << attribution.metric();
    EXPECT_NEAR(sum, attribution.first_s(), 1e-9) << attribution.metric();
  }
  EXPECT_NEAR(comparison.attributions(0).first_s(), result.tpot().mean(), kRounding);
  EXPECT_NEAR(comparison.attributions(1).first_s(), result.ttft().mean(), kRounding);
}

TEST(EventsTest, TheEventsOfABusyPipelineExplainItsLatencies) {
  ExpectExplained(SimulateWithEvents(
      "poisson:rate=0.5,requests=40,input=uniform(10;1500),output=uniform(1;60)", "200"));
}

TEST(EventsTest, PreemptedRequestsAreExplainedToo) {
  PlanOptions plan;
  plan.kv_blocks = 100;  // 1,600 tokens for eight requests that grow to 400
  const Result result =
      SimulateWithEvents("closed:concurrency=8,requests=16,input=200,output=200", "200", plan);
  EXPECT_GT(result.preemptions(), 0);
  ExpectExplained(result);
}

TEST(EventsTest, OtherDecisionsAreLinedUpByTokens) {
  PlanOptions chunks;
  chunks.max_chunk_tokens = 128;
  const std::string workload = "closed:concurrency=4,requests=8,input=600,output=20";
  const LinedUpRuns runs =
      MustLineUp(SimulateWithEvents(workload, "200"), SimulateWithEvents(workload, "200", chunks));
  EXPECT_EQ(runs.alignment.same_steps, 0);
  // Every token that one computes the other computes too: 8 x (600 + 19), once each.
  int64_t tokens = 0;
  for (const StepPair& pair : runs.alignment.pairs) tokens += pair.tokens;
  EXPECT_EQ(tokens, 8 * (600 + 19));
  EXPECT_TRUE(runs.alignment.first_alone.empty());
  EXPECT_TRUE(runs.alignment.second_alone.empty());
}

TEST(EventsTest, EventsAreKeptOnlyIfAskedFor) {
  Scenario scenario =
      MakeScenario("trinity_200g", "closed:concurrency=1,requests=1,input=10,output=2");
  EXPECT_EQ(MustSimulate(scenario).event_log(), "");
}

}  // namespace
}  // namespace fabricast
