#include "runtime/control/step_message.h"

#include <functional>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "runtime/control/protocol.h"

namespace fabricast {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::SizeIs;

Step SomeStep() {
  Step step;
  step.micro_batch.id = 7;
  step.micro_batch.entries = {
      {.request = 3, .first_token = 20, .tokens = 1, .decode = true, .samples = true},
      {.request = 9, .first_token = 0, .tokens = 3, .decode = false, .samples = false}};
  step.tokens = {5, 6, 7, 8};
  SamplingParams warm;
  warm.temperature = 0.7;
  warm.top_p = 0.9;
  warm.top_k = 40;
  warm.repetition_penalty = 1.1;
  warm.seed = ~uint64_t{0};
  warm.logprobs = 5;
  step.sampling = {warm, SamplingParams()};
  step.released = {1, 2};
  return step;
}

TEST(StepMessageTest, AStepComesBackAsItWas) {
  const Step step = SomeStep();
  const control::Step message = ToMessage(step, 4);
  EXPECT_EQ(message.generation(), 4);
  control::Step wire;
  ASSERT_TRUE(wire.ParseFromString(message.SerializeAsString()));
  const absl::StatusOr<std::shared_ptr<const Step>> back = FromMessage(wire);
  ASSERT_TRUE(back.ok()) << back.status();
  EXPECT_EQ((*back)->micro_batch.id, 7);
  ASSERT_THAT((*back)->micro_batch.entries, SizeIs(2));
  const BatchEntry& decode = (*back)->micro_batch.entries[0];
  EXPECT_EQ(decode.request, 3);
  EXPECT_EQ(decode.first_token, 20);
  EXPECT_EQ(decode.tokens, 1);
  EXPECT_TRUE(decode.decode);
  EXPECT_TRUE(decode.samples);
  const BatchEntry& chunk = (*back)->micro_batch.entries[1];
  EXPECT_EQ(chunk.tokens, 3);
  EXPECT_FALSE(chunk.decode);
  EXPECT_FALSE(chunk.samples);
  EXPECT_THAT((*back)->tokens, ElementsAre(5, 6, 7, 8));
  const SamplingParams& sampling = (*back)->sampling[0];
  EXPECT_EQ(sampling.temperature, 0.7);
  EXPECT_EQ(sampling.top_p, 0.9);
  EXPECT_EQ(sampling.top_k, 40);
  EXPECT_EQ(sampling.repetition_penalty, 1.1);
  EXPECT_EQ(sampling.seed, ~uint64_t{0});
  EXPECT_EQ(sampling.logprobs, 5);
  EXPECT_EQ((*back)->sampling[1].logprobs, -1);
  EXPECT_THAT((*back)->released, ElementsAre(1, 2));
}

TEST(StepMessageTest, SamplingThatAllShareIsSentOnce) {
  Step step = SomeStep();
  step.sampling[1] = step.sampling[0];
  step.sampling[1].seed = 9;
  const control::Step message = ToMessage(step, 0);
  EXPECT_EQ(message.sampling_size(), 1);
  const absl::StatusOr<std::shared_ptr<const Step>> back = FromMessage(message);
  ASSERT_TRUE(back.ok()) << back.status();
  ASSERT_THAT((*back)->sampling, SizeIs(2));
  EXPECT_EQ((*back)->sampling[0].seed, ~uint64_t{0});
  EXPECT_EQ((*back)->sampling[1].seed, 9u);
  EXPECT_EQ((*back)->sampling[1].temperature, 0.7);
  EXPECT_EQ((*back)->sampling[1].logprobs, 5);
  // What differs in anything else is sent for each.
  const std::function<void(SamplingParams&)> changes[] = {
      [](auto& params) { params.temperature = 1; }, [](auto& params) { params.top_p = 1; },
      [](auto& params) { params.top_k = 1; }, [](auto& params) { params.repetition_penalty = 2; },
      [](auto& params) { params.logprobs = -1; }};
  for (const auto& change : changes) {
    Step other = step;
    change(other.sampling[1]);
    EXPECT_EQ(ToMessage(other, 0).sampling_size(), 2);
  }
}

TEST(StepMessageTest, AStepThatMakesNoSenseIsAnError) {
  using Change = std::function<void(control::Step&)>;
  const std::vector<std::pair<std::string, Change>> changes = {
      {"it is empty", [](auto& step) { step.Clear(); }},
      {"different lengths", [](auto& step) { step.add_request(1); }},
      {"different lengths", [](auto& step) { step.add_first_token(1); }},
      {"different lengths", [](auto& step) { step.add_token_count(1); }},
      {"different lengths", [](auto& step) { step.add_decode(true); }},
      {"different lengths", [](auto& step) { step.add_samples(true); }},
      {"different lengths", [](auto& step) { *step.add_sampling() = step.sampling(0); }},
      {"different lengths", [](auto& step) { step.clear_sampling(); }},
      {"different lengths", [](auto& step) { step.add_seed(1); }},
      {"negative", [](auto& step) { step.set_micro_batch(-1); }},
      {"a position", [](auto& step) { step.set_first_token(0, -1); }},
      {"a position", [](auto& step) { step.set_first_token(0, INT64_MAX); }},
      {"a token count", [](auto& step) { step.set_token_count(1, 0); }},
      {"a token count", [](auto& step) { step.set_token_count(1, INT64_MAX); }},
      {"a decode of several", [](auto& step) { step.set_decode(1, true); }},
      {"do not add up", [](auto& step) { step.add_tokens(1); }},
      {"top_p", [](auto& step) { step.mutable_sampling(1)->set_top_p(0); }},
  };
  for (const auto& [what, change] : changes) {
    control::Step message = ToMessage(SomeStep(), 0);
    change(message);
    const absl::Status status = FromMessage(message).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(status.message()), HasSubstr(what));
  }
}

StageReport Computed(MicroBatchId id, int tokens, int alternatives) {
  StageReport report;
  report.kind = StageReport::Kind::kComputed;
  report.id = id;
  report.at = std::chrono::steady_clock::time_point(std::chrono::nanoseconds(1'000'000 + id));
  for (int t = 0; t < tokens; ++t) {
    SampledToken token{
        .token = t % 2 == 0 ? t : -t, .logprob = -0.5f * static_cast<float>(t), .top = {}};
    for (int a = 0; a < alternatives; ++a) token.top.push_back({-a, -1.0f * static_cast<float>(a)});
    report.sampled.push_back(token);
  }
  return report;
}

std::vector<StageReport> ThereAndBack(const std::vector<StageReport>& reports, int64_t offset_ns) {
  ReportReader reader;
  std::vector<StageReport> all;
  for (const control::Reports& message : ToMessages(reports, 3)) {
    EXPECT_EQ(message.generation(), 3);
    control::FromStage envelope;
    *envelope.mutable_reports() = message;
    const std::string bytes = envelope.SerializeAsString();
    EXPECT_LE(bytes.size(), static_cast<size_t>(kMaxBytesFromStage));
    control::FromStage wire;
    EXPECT_TRUE(wire.ParseFromString(bytes));
    absl::StatusOr<std::vector<StageReport>> back = reader.Take(wire.reports(), 2, offset_ns);
    EXPECT_TRUE(back.ok()) << back.status();
    if (!back.ok()) return all;
    for (StageReport& report : *back) all.push_back(std::move(report));
  }
  return all;
}

TEST(StepMessageTest, ReportsComeBackAsTheyWereByTheHeadsClock) {
  StageReport sent;
  sent.kind = StageReport::Kind::kSendStarted;
  sent.id = 12;
  sent.bytes = 4096;
  sent.at = std::chrono::steady_clock::time_point(std::chrono::nanoseconds(500));
  StageReport started = sent;
  started.kind = StageReport::Kind::kStarted;
  started.bytes = 0;
  StageReport delivered = started;
  delivered.kind = StageReport::Kind::kDelivered;
  const std::vector<StageReport> back =
      ThereAndBack({delivered, started, Computed(12, 3, 2), sent}, 100);
  ASSERT_THAT(back, SizeIs(4));
  EXPECT_EQ(back[0].kind, StageReport::Kind::kDelivered);
  EXPECT_EQ(back[1].kind, StageReport::Kind::kStarted);
  EXPECT_EQ(back[2].kind, StageReport::Kind::kComputed);
  EXPECT_EQ(back[3].kind, StageReport::Kind::kSendStarted);
  EXPECT_EQ(back[3].bytes, 4096);
  EXPECT_EQ(back[3].stage, 2);
  EXPECT_EQ(back[3].id, 12);
  EXPECT_EQ(back[3].at.time_since_epoch(), std::chrono::nanoseconds(400));
  ASSERT_THAT(back[2].sampled, SizeIs(3));
  EXPECT_EQ(back[2].sampled[1].token, -1);
  EXPECT_EQ(back[2].sampled[2].logprob, -1.0f);
  ASSERT_THAT(back[2].sampled[2].top, SizeIs(2));
  EXPECT_EQ(back[2].sampled[2].top[1].token, -1);
}

TEST(StepMessageTest, WhatDoesNotFitIntoOneMessageComesInSeveral) {
  for (const auto& [tokens, alternatives] :
       {std::pair(1, kMaxLogprobs), std::pair(17, 1000), std::pair(20'000, 0), std::pair(0, 0)}) {
    const StageReport report = Computed(1, tokens, alternatives);
    const std::vector<StageReport> back = ThereAndBack({report, Computed(2, 1, 1)}, 0);
    ASSERT_THAT(back, SizeIs(2));
    ASSERT_THAT(back[0].sampled, SizeIs(tokens));
    for (int t = 0; t < tokens; ++t) {
      EXPECT_EQ(back[0].sampled[t].token, report.sampled[t].token);
      ASSERT_THAT(back[0].sampled[t].top, SizeIs(alternatives));
    }
    EXPECT_THAT(back[1].sampled, SizeIs(1));
  }
}

TEST(StepMessageTest, ReportsThatMakeNoSenseAreAnError) {
  using Change = std::function<void(control::Report&)>;
  const std::vector<std::pair<std::string, Change>> changes = {
      {"negative", [](auto& report) { report.set_micro_batch(-1); }},
      {"negative", [](auto& report) { report.set_bytes(-1); }},
      {"no known kind",
       [](auto& report) { report.set_kind(static_cast<control::Report::Kind>(9)); }},
      {"different lengths", [](auto& report) { report.mutable_sampled()->add_token(1); }},
      {"different lengths", [](auto& report) { report.mutable_sampled()->add_top_count(1); }},
      {"different lengths", [](auto& report) { report.mutable_sampled()->add_top_token(1); }},
      {"more alternatives", [](auto& report) { report.mutable_sampled()->set_top_count(0, 9); }},
      {"more alternatives", [](auto& report) { report.mutable_sampled()->set_top_count(0, -1); }},
      {"of no token", [](auto& report) { report.mutable_sampled()->set_top_count(1, 0); }},
  };
  for (const auto& [what, change] : changes) {
    control::Reports message = ToMessages({Computed(1, 2, 3)}, 0).front();
    change(*message.mutable_reports(0));
    const absl::Status status = ReportReader().Take(message, 0, 0).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << what;
    EXPECT_THAT(std::string(status.message()), HasSubstr(what));
  }
}

TEST(StepMessageTest, AReportThatNeverEndsIsNotKept) {
  control::Reports message = ToMessages({Computed(1, 4000, 0)}, 0).front();
  message.mutable_reports(message.reports_size() - 1)->set_continued(true);
  ReportReader reader;
  absl::Status status;
  size_t taken = 0;
  while (status.ok() && taken <= 2 * ReportReader::kMaxSampled) {
    status = reader.Take(message, 0, 0).status();
    taken += 2000;
  }
  EXPECT_THAT(std::string(status.message()), HasSubstr("too many tokens"));
}

}  // namespace
}  // namespace fabricast
