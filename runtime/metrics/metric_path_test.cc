#include "runtime/metrics/metric_path.h"

#include <set>
#include <string>

#include "absl/status/status.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace fabricast {
namespace {

using ::testing::AllOf;
using ::testing::Contains;
using ::testing::HasSubstr;
using ::testing::Not;

// Two stages, one hop; every number its own.
Result SomeRun() {
  Result result;
  result.set_output_tokens_per_s(12.5);
  result.set_finished(7);
  result.mutable_tpot()->set_count(3);
  result.mutable_tpot()->set_p50(0.125);
  result.add_stages()->set_bubble_fraction(0.25);
  StageResult& stage = *result.add_stages();
  stage.set_bubble_fraction(0.5);
  stage.set_steady_bubble_fraction(0);
  stage.mutable_decode()->set_weight_read_s(3);
  HopResult& hop = *result.add_hops();
  hop.set_exposed_s(0.75);
  hop.set_bytes(int64_t{1} << 40);
  hop.set_gpudirect(true);
  result.mutable_inputs()->set_seed(42);
  result.mutable_plan()->add_memory()->set_weight_bytes(9);
  return result;
}

double At(absl::string_view path) {
  const absl::StatusOr<double> value = MetricAt(SomeRun(), path);
  EXPECT_TRUE(value.ok()) << value.status();
  return value.ok() ? *value : -1;
}

std::string Error(absl::string_view path, absl::StatusCode code) {
  const absl::Status status = MetricAt(SomeRun(), path).status();
  EXPECT_EQ(status.code(), code) << path << ": " << status;
  return std::string(status.message());
}

TEST(MetricAtTest, FindsNumbersOfEveryTypeByTheirPath) {
  EXPECT_EQ(At("output_tokens_per_s"), 12.5);
  EXPECT_EQ(At("finished"), 7);
  EXPECT_EQ(At("tpot.p50"), 0.125);
  EXPECT_EQ(At("tpot.count"), 3);
  EXPECT_EQ(At("stages[0].bubble_fraction"), 0.25);
  EXPECT_EQ(At("stages[1].bubble_fraction"), 0.5);
  EXPECT_EQ(At("stages[1].decode.weight_read_s"), 3);
  EXPECT_EQ(At("stages[0].stage"), 0);
  EXPECT_EQ(At("hops[0].exposed_s"), 0.75);
  EXPECT_EQ(At("hops[0].bytes"), 1099511627776.0);
  EXPECT_EQ(At("hops[0].gpudirect"), 1);
  EXPECT_EQ(At("inputs.seed"), 42);
  EXPECT_EQ(At("plan.memory[0].weight_bytes"), 9);
  // What was not set is 0, as in the file.
  EXPECT_EQ(At("rejected"), 0);
}

TEST(MetricAtTest, UnknownNamesListTheFieldsWhereThePathWentWrong) {
  EXPECT_THAT(Error("tpott.p50", absl::StatusCode::kInvalidArgument),
              AllOf(HasSubstr("no metric is called 'tpott.p50': at 'tpott' use one of"),
                    HasSubstr("ttft, tpot, itl"), HasSubstr("stages[i]")));
  EXPECT_EQ(Error("tpot.p95", absl::StatusCode::kInvalidArgument),
            "no metric is called 'tpot.p95': at 'p95' use one of count, mean, p50, p90, p99, max");
  // Texts are no metrics.
  EXPECT_THAT(Error("label", absl::StatusCode::kInvalidArgument), Not(HasSubstr("label,")));
  EXPECT_THAT(Error("warnings[0]", absl::StatusCode::kInvalidArgument), HasSubstr("use one of"));
  EXPECT_THAT(Error("kind", absl::StatusCode::kInvalidArgument), HasSubstr("use one of"));
}

TEST(MetricAtTest, GroupsAskForOneOfTheirFields) {
  EXPECT_EQ(Error("tpot", absl::StatusCode::kInvalidArgument),
            "metric 'tpot' is a group: add one of count, mean, p50, p90, p99, max");
  EXPECT_THAT(Error("stages[0]", absl::StatusCode::kInvalidArgument),
              AllOf(HasSubstr("'stages[0]' is a group"), HasSubstr("bubble_fraction")));
}

TEST(MetricAtTest, NumbersHaveNoFields) {
  EXPECT_EQ(Error("finished.p50", absl::StatusCode::kInvalidArgument),
            "metric 'finished.p50': 'finished' is a number and has no fields");
}

TEST(MetricAtTest, ListsNeedAnIndexAndNothingElseTakesOne) {
  for (const char* path :
       {"stages.busy_s", "tpot[0].p50", "finished[0]", "stages[].busy_s", "stages[x].busy_s",
        "stages[-1].busy_s", "stages[0.busy_s", "stages0].busy_s", "stages[0]x.busy_s",
        "stages[0][0].busy_s", "stages[99999999999].busy_s", "[0].busy_s", "", ".", "tpot.",
        ".tpot.p50", "tpot..p50"}) {
    EXPECT_THAT(Error(path, absl::StatusCode::kInvalidArgument), HasSubstr("use one of")) << path;
  }
}

TEST(MetricAtTest, AnIndexPastTheEndSaysHowManyThereAre) {
  EXPECT_EQ(Error("stages[2].busy_s", absl::StatusCode::kOutOfRange),
            "metric 'stages[2].busy_s': the run has 2 stages, counted from 0");
  EXPECT_EQ(Error("links[0].bytes", absl::StatusCode::kOutOfRange),
            "metric 'links[0].bytes': the run has 0 links, counted from 0");
  // The name is wrong whatever the index.
  EXPECT_THAT(Error("stages[2].busy", absl::StatusCode::kInvalidArgument), HasSubstr("'busy'"));
}

TEST(MetricAtTest, AnAbsentValueIsNotZero) {
  // Stage 0 had no steady state; stage 1 had one without bubbles.
  EXPECT_EQ(Error("stages[0].steady_bubble_fraction", absl::StatusCode::kNotFound),
            "metric 'stages[0].steady_bubble_fraction': this run has no value for it");
  EXPECT_EQ(At("stages[1].steady_bubble_fraction"), 0);
}

TEST(CheckMetricPathTest, NeedsNoRun) {
  EXPECT_TRUE(CheckMetricPath("stages[100].steady_bubble_fraction").ok());
  EXPECT_TRUE(CheckMetricPath("plan.stages[0].num_layers").ok());
  EXPECT_EQ(CheckMetricPath("plan.stages[0].layers").code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(CheckMetricPath("tpot").code(), absl::StatusCode::kInvalidArgument);
}

TEST(ComparedMetricsTest, AreAllThereOnceAndCoverEveryStageAndHop) {
  const Result run = SomeRun();
  const std::vector<std::string> paths = ComparedMetrics(run);
  for (const std::string& path : paths) {
    EXPECT_TRUE(MetricAt(run, path).ok()) << path;
  }
  EXPECT_EQ(std::set<std::string>(paths.begin(), paths.end()).size(), paths.size());
  for (const char* path :
       {"ttft.p99", "tpot.mean", "itl.p50", "e2e.p90", "queue_wait.mean", "output_tokens_per_s",
        "stages[0].bubble_fraction", "stages[1].bubble_fraction", "hops[0].exposed_s"}) {
    EXPECT_THAT(paths, Contains(path));
  }
}

}  // namespace
}  // namespace fabricast
