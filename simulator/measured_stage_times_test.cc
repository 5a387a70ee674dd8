#include "simulator/measured_stage_times.h"

#include <gmock/gmock.h>

#include "simulator/test_scenarios.h"

namespace fabricast {
namespace {

using ::testing::HasSubstr;

StageSlice Slice(int stage, int64_t decodes, int64_t prefill_tokens, double seconds) {
  return {.stage = stage,
          .micro_batch = 0,
          .start_s = 10,
          .end_s = 10 + seconds,
          .decodes = decodes,
          .prefill_tokens = prefill_tokens};
}

MeasuredStageTimes MustFit(int stages, const std::vector<StageSlice>& slices) {
  return MeasuredStageTimes::Fit(stages, slices).value();
}

TEST(MeasuredStageTimesTest, WhatWasMeasuredIsTheMeanOfIt) {
  const MeasuredStageTimes times =
      MustFit(2, {Slice(0, 1, 0, 2), Slice(0, 1, 0, 4), Slice(0, 2, 64, 7), Slice(1, 1, 0, 100)});
  EXPECT_EQ(times.stages(), 2);
  EXPECT_EQ(times.samples(), 4);
  EXPECT_NEAR(times.Seconds(0, 1, 0), 3, 1e-9);
  EXPECT_NEAR(times.Seconds(0, 2, 64), 7, 1e-9);
  EXPECT_NEAR(times.Seconds(1, 1, 0), 100, 1e-9);
}

TEST(MeasuredStageTimesTest, BetweenItIsLinearInDecodesThenInPrefill) {
  const MeasuredStageTimes times =
      MustFit(1, {Slice(0, 2, 0, 1), Slice(0, 4, 0, 2), Slice(0, 8, 0, 10), Slice(0, 2, 100, 21)});
  EXPECT_NEAR(times.Seconds(0, 3, 0), 1.5, 1e-9);  // between 2 and 4, not on the way to 8
  EXPECT_NEAR(times.Seconds(0, 6, 0), 6, 1e-9);
  EXPECT_NEAR(times.Seconds(0, 2, 25), 6, 1e-9);  // a quarter of the way from 1 to 21
  // 2 without prefill, 21 with 100: the row of one point says the same for any decodes.
  EXPECT_NEAR(times.Seconds(0, 4, 50), 11.5, 1e-9);
}

TEST(MeasuredStageTimesTest, BeyondTheEndsItGoesOnAsFromTheFirstToTheLast) {
  const MeasuredStageTimes times =
      MustFit(1, {Slice(0, 2, 0, 3), Slice(0, 3, 0, 9), Slice(0, 6, 0, 7)});
  EXPECT_NEAR(times.Seconds(0, 10, 0), 11, 1e-9);  // 1 a decode
  EXPECT_NEAR(times.Seconds(0, 1, 0), 2, 1e-9);
  // Never less than nothing, and where noise makes the line fall, the end's own.
  const MeasuredStageTimes steep = MustFit(1, {Slice(0, 4, 0, 1), Slice(0, 6, 0, 11)});
  EXPECT_EQ(steep.Seconds(0, 1, 0), 0);
  const MeasuredStageTimes falling = MustFit(1, {Slice(0, 4, 0, 11), Slice(0, 6, 0, 1)});
  EXPECT_NEAR(falling.Seconds(0, 40, 0), 1, 1e-9);
  EXPECT_NEAR(falling.Seconds(0, 1, 0), 11, 1e-9);
}

TEST(MeasuredStageTimesTest, ATimelineOfAnotherPlanIsRefused) {
  const std::vector<StageSlice> slices = {Slice(0, 1, 0, 1), Slice(2, 1, 0, 1)};
  EXPECT_THAT(std::string(MeasuredStageTimes::Fit(2, slices).status().message()),
              HasSubstr("there is a stage 2, but the plan has 2"));
  EXPECT_THAT(std::string(MeasuredStageTimes::Fit(3, slices).status().message()),
              HasSubstr("stage 1 computed nothing"));
}

// Stages of 1, 2 and 4 s for a prompt of 64 tokens and 0.1, 0.2 and 0.4 s a decode.
std::vector<StageSlice> KnownSlices() {
  std::vector<StageSlice> slices;
  for (int stage = 0; stage < 3; ++stage) {
    const double factor = 1 << stage;
    slices.push_back(Slice(stage, 0, 64, factor));
    slices.push_back(Slice(stage, 1, 0, 0.1 * factor));
  }
  return slices;
}

TEST(MeasuredStageTimesTest, TheSimulatorComputesForAsLongAsWasMeasured) {
  Scenario scenario = MakeScenario("local_cpu", "closed:concurrency=1,requests=2,input=64,output=5",
                                   {}, {}, "llama-3.2-1b-instruct");
  scenario.measured = std::make_shared<const MeasuredStageTimes>(MustFit(3, KnownSlices()));
  const Result result = MustSimulate(scenario);
  // Two requests: a prompt and four decodes each.
  EXPECT_NEAR(result.stages(0).busy_s(), 2 * (1 + 4 * 0.1), 1e-9);
  EXPECT_NEAR(result.stages(1).busy_s(), 2 * (2 + 4 * 0.2), 1e-9);
  EXPECT_NEAR(result.stages(2).busy_s(), 2 * (4 + 4 * 0.4), 1e-9);
  // Hops within a host take microseconds.
  EXPECT_NEAR(result.ttft().mean(), 7, 0.01);
  EXPECT_NEAR(result.tpot().mean(), 0.7, 0.001);
  // The causes are not known, the source is.
  EXPECT_FALSE(result.stages(0).prefill().ByteSizeLong());
  EXPECT_THAT(result.constants(0), HasSubstr("stages, measured: 6 micro-batches"));
  for (const std::string& constant : result.constants()) {
    EXPECT_THAT(constant, ::testing::Not(HasSubstr("matrix products")));
  }
}

TEST(MeasuredStageTimesTest, TheFactorOnKernelTimesHoldsForThemToo) {
  Scenario scenario = MakeScenario("local_cpu", "closed:concurrency=1,requests=1,input=64,output=2",
                                   {}, {}, "llama-3.2-1b-instruct");
  scenario.measured = std::make_shared<const MeasuredStageTimes>(MustFit(3, KnownSlices()));
  scenario.kernel_time_factor = 2;
  EXPECT_NEAR(MustSimulate(scenario).stages(0).busy_s(), 2 * 1.1, 1e-9);
}

TEST(MeasuredStageTimesTest, TimesOfAnotherNumberOfStagesAreRefused) {
  Scenario scenario = MakeScenario("local_cpu", "closed:concurrency=1,requests=1,input=64,output=2",
                                   {}, {}, "llama-3.2-1b-instruct");
  scenario.measured = std::make_shared<const MeasuredStageTimes>(MustFit(1, {Slice(0, 1, 0, 1)}));
  const absl::Status status = Simulate(scenario).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("of 1 stages, but the plan has 3"));
}

}  // namespace
}  // namespace fabricast
