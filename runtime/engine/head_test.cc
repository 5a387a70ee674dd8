#include "runtime/engine/head.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace fabricast {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::SizeIs;

// Token i is the i-th of these; the euro sign is three bytes in two tokens, 5 is special.
class LetterTokenizer : public Tokenizer {
 public:
  absl::StatusOr<std::vector<int32_t>> Encode(absl::string_view, bool) const override {
    return absl::UnimplementedError("not needed");
  }
  absl::StatusOr<std::vector<int32_t>> EncodeOrdinary(absl::string_view) const override {
    return absl::UnimplementedError("not needed");
  }
  std::string Decode(absl::Span<const int32_t> ids, bool) const override {
    std::string text;
    for (const int32_t id : ids) text += std::string(Bytes(id));
    return text;
  }
  absl::string_view Bytes(int32_t id) const override {
    static constexpr absl::string_view kTokens[] = {"a", "b", "c", "\xe2\x82", "\xac", "<end>"};
    return kTokens[id];
  }
  bool IsSpecial(int32_t id) const override { return id == 5; }
  std::optional<int32_t> Find(absl::string_view) const override { return std::nullopt; }
  int32_t size() const override { return 6; }
};

class HeadTest : public ::testing::Test {
 protected:
  HeadTest()
      : head_({.max_in_flight = 1,
               .max_batch_tokens = 8,
               .max_chunk_tokens = 4,
               .max_running = 4,
               .kv_blocks = 100},
              std::make_shared<LetterTokenizer>(), recorder_) {
    EXPECT_THAT(head_.Ready(now_), IsEmpty());
  }

  GenerationRequest Request(std::vector<int32_t> prompt, int64_t max_output_tokens) {
    GenerationRequest request;
    request.prompt = std::move(prompt);
    request.max_output_tokens = max_output_tokens;
    return request;
  }

  Head::Steps Submit(RequestId id, GenerationRequest request) {
    return head_.Submit(
        id, std::move(request),
        [this](const GenerationUpdate& update) { updates_.push_back(update); }, now_, now_);
  }

  // The only step in flight comes back with `tokens`.
  Head::Steps Complete(const Step& step, std::vector<int32_t> tokens) {
    now_ += 1;
    recorder_.StageStarted(0, step.micro_batch, now_);
    recorder_.StageComputed(0, step.micro_batch, now_);
    std::vector<SampledToken> sampled;
    for (const int32_t token : tokens) sampled.push_back({.token = token, .logprob = 0, .top = {}});
    const MicroBatchId id = step.micro_batch.id;
    EXPECT_THAT(head_.FirstStageDone(id, now_), IsEmpty());
    return head_.Completed(id, sampled, now_);
  }

  // Runs the one request on `output` and returns its text.
  std::string TextOf(GenerationRequest request, const std::vector<int32_t>& output) {
    updates_.clear();
    Head::Steps steps = Submit(next_id_++, std::move(request));
    for (const int32_t token : output) {
      if (steps.empty()) break;
      steps = Complete(*steps[0], {token});
    }
    EXPECT_TRUE(head_.idle());
    std::string text;
    for (const GenerationUpdate& update : updates_) text += update.text;
    return text;
  }

  double now_ = 0;
  RequestId next_id_ = 0;
  Recorder recorder_{1, false};
  Head head_;
  std::vector<GenerationUpdate> updates_;
};

TEST_F(HeadTest, StepsCarryTheTokensOfTheirEntries) {
  Head::Steps steps = Submit(7, Request({0, 1, 2, 0, 1}, 2));
  ASSERT_THAT(steps, SizeIs(1));
  EXPECT_THAT(steps[0]->tokens, ElementsAre(0, 1, 2, 0));  // a chunk of four
  steps = Complete(*steps[0], {});
  ASSERT_THAT(steps, SizeIs(1));
  EXPECT_THAT(steps[0]->tokens, ElementsAre(1));
  steps = Complete(*steps[0], {2});
  ASSERT_THAT(steps, SizeIs(1));
  EXPECT_THAT(steps[0]->tokens, ElementsAre(2));  // the token just sampled
  EXPECT_THAT(steps[0]->released, IsEmpty());
  EXPECT_THAT(Complete(*steps[0], {0}), IsEmpty());
  EXPECT_TRUE(head_.idle());
  // Its blocks are free from the next step on.
  steps = Submit(8, Request({1}, 1));
  ASSERT_THAT(steps, SizeIs(1));
  EXPECT_THAT(steps[0]->released, ElementsAre(7));
}

TEST_F(HeadTest, EachEntryHasItsRequestsSampling) {
  GenerationRequest first = Request({0}, 5);
  first.sampling.temperature = 0.5;
  GenerationRequest second = Request({1}, 5);
  second.sampling.seed = 99;
  Head::Steps steps = Submit(0, std::move(first));
  Submit(1, std::move(second));
  steps = Complete(*steps[0], {1});
  ASSERT_THAT(steps, SizeIs(1));
  ASSERT_THAT(steps[0]->micro_batch.entries, SizeIs(2));
  ASSERT_THAT(steps[0]->sampling, SizeIs(2));
  EXPECT_EQ(steps[0]->sampling[0].temperature, 0.5);
  EXPECT_EQ(steps[0]->sampling[1].seed, 99);
}

TEST_F(HeadTest, TextNeverHoldsHalfACharacter) {
  EXPECT_EQ(TextOf(Request({0}, 3), {0, 3, 4}), "a\xe2\x82\xac");
  ASSERT_THAT(updates_, SizeIs(3));
  EXPECT_EQ(updates_[1].text, "");
  EXPECT_EQ(updates_[2].finished, FinishReason::kLength);
  // What never became a character is shown as U+FFFD.
  EXPECT_EQ(TextOf(Request({0}, 2), {0, 3}), "a\xef\xbf\xbd");
}

TEST_F(HeadTest, TheEndTokenIsNoTextAndStops) {
  GenerationRequest request = Request({0}, 10);
  request.stop_tokens = {5};
  EXPECT_EQ(TextOf(std::move(request), {0, 1, 5}), "ab");
  EXPECT_EQ(updates_.back().finished, FinishReason::kStop);
  EXPECT_EQ(updates_.back().token->token, 5);
  EXPECT_EQ(updates_.back().stop, "");
}

TEST_F(HeadTest, AnOrdinaryTokenThatStopsIsNoTextEither) {
  GenerationRequest request = Request({0}, 10);
  request.stop_tokens = {2};
  EXPECT_EQ(TextOf(std::move(request), {0, 1, 2}), "ab");
  EXPECT_EQ(updates_.back().finished, FinishReason::kStop);
}

TEST_F(HeadTest, AStopStringAcrossTokensIsNotShown) {
  GenerationRequest request = Request({0}, 10);
  request.stop = {"bc"};
  EXPECT_EQ(TextOf(std::move(request), {0, 1, 1, 2}), "ab");
  EXPECT_EQ(updates_.back().finished, FinishReason::kStop);
  EXPECT_EQ(updates_.back().stop, "bc");
  EXPECT_THAT(updates_, SizeIs(4));
}

TEST_F(HeadTest, WhatWasHeldBackForAStopStringIsShownAtTheEnd) {
  GenerationRequest by_length = Request({0}, 2);
  by_length.stop = {"bc"};
  EXPECT_EQ(TextOf(std::move(by_length), {0, 1}), "ab");
  EXPECT_EQ(updates_.back().finished, FinishReason::kLength);
  GenerationRequest by_token = Request({0}, 5);
  by_token.stop = {"bc"};
  by_token.stop_tokens = {5};
  EXPECT_EQ(TextOf(std::move(by_token), {0, 1, 5}), "ab");
}

TEST_F(HeadTest, AStopStringInTheLastTokenCountsAsStop) {
  GenerationRequest request = Request({0}, 2);
  request.stop = {"b"};
  EXPECT_EQ(TextOf(std::move(request), {0, 1}), "a");
  EXPECT_EQ(updates_.back().finished, FinishReason::kStop);
}

TEST_F(HeadTest, ACancelledRequestEndsWhenItsStepComesBackAndItsTokenIsDropped) {
  Head::Steps steps = Submit(0, Request({0}, 10));
  steps = Complete(*steps[0], {3});
  EXPECT_THAT(head_.Cancel(0, now_), IsEmpty());
  EXPECT_THAT(updates_, SizeIs(1));
  EXPECT_THAT(head_.requests(), ElementsAre(0));
  EXPECT_THAT(Complete(*steps[0], {1}), IsEmpty());
  ASSERT_THAT(updates_, SizeIs(2));
  EXPECT_FALSE(updates_[1].token.has_value());
  EXPECT_EQ(updates_[1].finished, FinishReason::kCancelled);
  EXPECT_EQ(updates_[1].text, "\xef\xbf\xbd");
  EXPECT_THAT(head_.Cancel(0, now_), IsEmpty());  // has ended
  EXPECT_THAT(updates_, SizeIs(2));
}

TEST_F(HeadTest, BadLengthsAreRejected) {
  EXPECT_THAT(Submit(0, Request({}, 5)), IsEmpty());
  EXPECT_THAT(Submit(1, Request({1}, 0)), IsEmpty());
  ASSERT_THAT(updates_, SizeIs(2));
  EXPECT_EQ(updates_[0].error.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(updates_[1].error.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_TRUE(head_.idle());
}

TEST_F(HeadTest, ALossEndsWhatWasInAMicroBatchAndHoldsTheRest) {
  Head::Steps steps = Submit(0, Request({0}, 10));
  Submit(1, Request({1}, 10));  // waits: one micro-batch at a time
  steps = Complete(*steps[0], {2});
  ASSERT_THAT(steps[0]->micro_batch.entries, SizeIs(2));
  Submit(9, Request({2}, 1));
  Submit(8, Request({1}, 1));
  updates_.clear();
  EXPECT_EQ(head_.Lost(absl::DataLossError("stage 0: a cable"), ++now_), 2);
  ASSERT_THAT(updates_, SizeIs(2));
  for (const RequestId id : {0, 1}) {
    EXPECT_EQ(updates_[id].request, id);
    EXPECT_EQ(updates_[id].error, absl::DataLossError("lost with the pipeline: stage 0: a cable"));
    EXPECT_TRUE(updates_[id].last());
  }
  EXPECT_THAT(head_.requests(), ElementsAre(8, 9));
  EXPECT_DEATH(head_.step(1), "micro-batch 1 is not in flight");
  EXPECT_THAT(Submit(7, Request({0}, 1)), IsEmpty());
  // In the order of arrival, from micro-batch 0, with nothing to release.
  steps = head_.Ready(++now_);
  ASSERT_THAT(steps, SizeIs(1));
  EXPECT_EQ(steps[0]->micro_batch.id, 0);
  EXPECT_EQ(steps[0]->micro_batch.entries[0].request, 9);
  EXPECT_THAT(steps[0]->tokens, ElementsAre(2));
  EXPECT_THAT(steps[0]->released, IsEmpty());
  steps = Complete(*steps[0], {1});
  ASSERT_THAT(steps, SizeIs(1));
  EXPECT_THAT(steps[0]->tokens, ElementsAre(1, 0));
  EXPECT_THAT(steps[0]->released, ElementsAre(9));
}

TEST_F(HeadTest, WhatEndedBeforeALossIsNotReleasedAfterIt) {
  Head::Steps steps = Submit(0, Request({0}, 1));
  EXPECT_THAT(Complete(*steps[0], {1}), IsEmpty());  // the next step would release it
  EXPECT_EQ(head_.Lost(absl::UnavailableError("stage 0"), now_), 0);
  EXPECT_THAT(head_.Ready(now_), IsEmpty());
  steps = Submit(1, Request({0}, 1));
  ASSERT_THAT(steps, SizeIs(1));
  EXPECT_THAT(steps[0]->released, IsEmpty());
}

TEST_F(HeadTest, TextThatWasHeldBackIsShownToOneWhoCancelledBeforeTheLoss) {
  Head::Steps steps = Submit(0, Request({0}, 10));
  steps = Complete(*steps[0], {3});
  head_.Cancel(0, now_);
  EXPECT_EQ(head_.Lost(absl::UnavailableError("stage 0"), now_), 0);
  ASSERT_THAT(updates_, SizeIs(2));
  EXPECT_EQ(updates_[1].finished, FinishReason::kCancelled);
  EXPECT_TRUE(updates_[1].error.ok());
  EXPECT_EQ(updates_[1].text, "\xef\xbf\xbd");
  EXPECT_TRUE(head_.idle());
}

}  // namespace
}  // namespace fabricast
