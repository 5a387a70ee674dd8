#include "benchmarks/validation/serving_log.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace fabricast {
namespace {

using ::testing::HasSubstr;
using ::testing::SizeIs;

constexpr char kMeta[] = R"({"model": "m", "vllm_version": "0.19.0",
    "engine_kwargs": {"max_num_seqs": 4, "max_num_batched_tokens": 100}})";

// Wall clock 1000 s ahead of the engine's, and 2 ms to reach it at best.
std::string Line(double arrival, double queued, double scheduled, double first, double last,
                 int64_t prompt, int64_t output) {
  return absl::StrFormat(
      R"({"input_toks": %d, "output_toks": %d, "arrival_time": %.6f, "queued_ts": %.6f, )"
      R"("scheduled_ts": %.6f, "first_token_ts": %.6f, "last_token_ts": %.6f})"
      "\n",
      prompt, output, 1000 + arrival, 0.002 + queued, 0.002 + scheduled, 0.002 + first,
      0.002 + last);
}

ServingLog MustParse(const std::string& lines) {
  absl::StatusOr<ServingLog> log = ParseServingLog(kMeta, lines);
  EXPECT_TRUE(log.ok()) << log.status();
  return log.value_or(ServingLog());
}

TEST(ServingLogTest, PutsBothClocksOnTheFirstArrival) {
  const ServingLog log = MustParse(Line(5.5, 5.6, 5.7, 6, 7, 20, 3) +  //
                                   Line(5, 5, 5.1, 5.5, 9, 10, 8));
  ASSERT_THAT(log.requests, SizeIs(2));
  EXPECT_EQ(log.max_running, 4);
  EXPECT_EQ(log.max_batch_tokens, 100);
  EXPECT_EQ(log.engine, "vLLM 0.19.0");
  EXPECT_NEAR(log.requests[0].arrival_s, 0, 1e-9);
  EXPECT_EQ(log.requests[0].prompt_tokens, 10);
  EXPECT_NEAR(log.requests[0].queued_s, 0, 1e-6);  // the luckiest: counts as 0
  EXPECT_NEAR(log.requests[0].first_token_s, 0.5, 1e-6);
  EXPECT_NEAR(log.requests[1].arrival_s, 0.5, 1e-6);
  EXPECT_NEAR(log.requests[1].queued_s, 0.6, 1e-6);
  const Workload replay = ReplayOf(log);
  ASSERT_THAT(replay.requests, SizeIs(2));
  EXPECT_NEAR(replay.requests[1].arrival_s, 0.5, 1e-6);
  EXPECT_EQ(replay.requests[1].output_tokens, 3);
}

TEST(ServingLogTest, MeasuresByTheProjectsDefinitions) {
  const Result result = Measured(MustParse(Line(0, 0, 0.1, 1, 3, 10, 5) +  //
                                           Line(1, 1, 1.5, 3, 3, 20, 1)));
  EXPECT_NEAR(result.ttft().mean(), (1 + 2) / 2.0, 1e-6);
  EXPECT_NEAR(result.ttft().p50(), 1.5, 1e-6);
  EXPECT_NEAR(result.e2e().mean(), (3 + 2) / 2.0, 1e-6);
  EXPECT_NEAR(result.queue_wait().mean(), (0.1 + 0.5) / 2, 1e-6);
  // The second has one output token and no TPOT. (3 s - 1 s) / (5 - 1).
  EXPECT_EQ(result.tpot().count(), 1);
  EXPECT_NEAR(result.tpot().mean(), 0.5, 1e-6);
  EXPECT_NEAR(result.duration_s(), 3, 1e-6);
  EXPECT_NEAR(result.output_tokens_per_s(), 2, 1e-6);
  EXPECT_EQ(result.prompt_tokens(), 30);
}

TEST(ServingLogTest, CountsStepsBetweenTheLastTokensOfRequestsThatStartedTogether) {
  // From 2 s, the end of the 40-token request, to 4 s, the end of the 60-token one: 20 steps of 0.1
  // s. A third runs throughout: 10 + (2 ... 4 s of 1 ... 7 s) x 60 of its tokens.
  const ServingLog log = MustParse(Line(0, 0, 0, 1, 2, 100, 40) +  //
                                   Line(0, 0, 0, 1, 4, 200, 60) +  //
                                   Line(0, 0, 0, 0.5, 6.5, 10, 60));
  const std::vector<DecodeWindow> windows = DecodeWindows(log);
  ASSERT_THAT(windows, SizeIs(1));
  EXPECT_EQ(windows[0].steps, 20);
  EXPECT_NEAR(windows[0].step_s, 0.1, 1e-6);
  EXPECT_NEAR(windows[0].requests, 2, 1e-9);
  // Half way, at 3 s: 200 + 2 / 3 x 60 = 240; 10 + 2.5 / 6 x 60 = 35.
  EXPECT_NEAR(windows[0].context, 275, 0.01);
}

TEST(ServingLogTest, SeesNoWindowWherePromptsComeIn) {
  EXPECT_THAT(DecodeWindows(MustParse(Line(0, 0, 0, 1, 2, 100, 40) +  //
                                      Line(0, 0, 0, 1, 4, 200, 60) +  //
                                      Line(0, 0, 0, 3, 5, 10, 60))),
              SizeIs(0));
}

TEST(ServingLogTest, TimesStepsWithPromptsFromTheBoundaryBefore) {
  // Scheduled at 2.00 while a step runs until 2.02, at which the first request ends; its own step
  // lasts from there to 2.07. The second request decodes meanwhile, 50 + 1.07 / 4 x 40 tokens long.
  const ServingLog log = MustParse(Line(0, 0, 0, 1, 2.02, 50, 40) +  //
                                   Line(0, 0, 0, 1, 5, 50, 40) +     //
                                   Line(1.9, 1.99, 2, 2.07, 3, 30, 9));
  const std::vector<PromptStep> steps = PromptSteps(log);
  ASSERT_THAT(steps, SizeIs(1));
  EXPECT_THAT(steps[0].prompts, ::testing::ElementsAre(30));
  EXPECT_EQ(steps[0].decodes, 1);
  EXPECT_NEAR(steps[0].step_s, 0.05, 1e-6);
  EXPECT_NEAR(steps[0].context, 60.7, 0.01);
}

TEST(ServingLogTest, LeavesOutPromptsThatDoNotFitOneStep) {
  EXPECT_THAT(PromptSteps(MustParse(Line(0, 0, 0, 1, 2.02, 50, 40) +  //
                                    Line(0, 0, 0, 1, 5, 50, 40) +     //
                                    Line(1.9, 1.99, 2, 2.07, 3, 100, 9))),
              SizeIs(0));
}

TEST(ServingLogTest, NamesTheLineAndFieldThatAreWrong) {
  const std::string good = Line(0, 0, 0, 1, 2, 10, 5);
  EXPECT_THAT(ParseServingLog(kMeta, good + "{\"input_toks\": 3}\n").status().message(),
              HasSubstr("line 2: no number 'output_toks'"));
  EXPECT_THAT(ParseServingLog(kMeta, good + "not json\n").status().message(),
              HasSubstr("line 2: no number 'input_toks'"));
  EXPECT_THAT(ParseServingLog(kMeta, Line(0, 0, 0, 2, 1, 10, 5)).status().message(),
              HasSubstr("line 1: times go back"));
  EXPECT_THAT(ParseServingLog(kMeta, Line(0, 0, 0, 1, 2, 0, 5)).status().message(),
              HasSubstr("0 in and 5 out"));
  EXPECT_THAT(ParseServingLog("{}", good).status().message(), HasSubstr("engine_kwargs"));
  EXPECT_THAT(ParseServingLog(R"({"engine_kwargs": {"max_num_seqs": 4}})", good).status().message(),
              HasSubstr("max_num_batched_tokens"));
  EXPECT_THAT(ParseServingLog(kMeta, "").status().message(), HasSubstr("no requests"));
}

}  // namespace
}  // namespace fabricast
