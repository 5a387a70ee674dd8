#include "runtime/executor/cuda/stage_requests.h"

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace fabricast {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr StageRequestsOptions kOptions = {
    .vocabulary = 100, .samples = true, .kv_blocks = 4, .max_running = 2};

Step StepOf(RequestId request, int64_t first_token, std::vector<int32_t> tokens,
            std::vector<RequestId> released = {}, double repetition_penalty = 1) {
  Step step;
  step.micro_batch.entries.push_back({.request = request,
                                      .first_token = first_token,
                                      .tokens = static_cast<int64_t>(tokens.size()),
                                      .decode = false,
                                      .samples = true});
  step.tokens = std::move(tokens);
  step.sampling.push_back({.repetition_penalty = repetition_penalty});
  step.released = std::move(released);
  return step;
}

TEST(StageRequestsTest, ARequestHasABlockForEach16Tokens) {
  StageRequests requests(kOptions);
  ASSERT_TRUE(requests.Take(StepOf(7, 0, std::vector<int32_t>(16, 1))).ok());
  EXPECT_THAT(requests.blocks(7), ElementsAre(0));
  ASSERT_TRUE(requests.Take(StepOf(7, 16, {1})).ok());
  EXPECT_THAT(requests.blocks(7), ElementsAre(0, 1));
  ASSERT_TRUE(requests.Take(StepOf(8, 0, {1})).ok());
  EXPECT_THAT(requests.blocks(8), ElementsAre(2));
  EXPECT_EQ(requests.blocks_used(), 3);
}

TEST(StageRequestsTest, ReleasedBlocksServeTheStepThatReleasesThem) {
  StageRequests requests(kOptions);
  ASSERT_TRUE(requests.Take(StepOf(7, 0, std::vector<int32_t>(64, 1))).ok());
  EXPECT_EQ(requests.blocks_used(), 4);
  ASSERT_TRUE(requests.Take(StepOf(8, 0, std::vector<int32_t>(20, 1), {7, 99})).ok());
  EXPECT_THAT(requests.blocks(8), ElementsAre(0, 1));
  // One that was preempted begins again.
  ASSERT_TRUE(requests.Take(StepOf(7, 0, std::vector<int32_t>(20, 1))).ok());
  EXPECT_THAT(requests.blocks(7), ElementsAre(2, 3));
}

TEST(StageRequestsTest, SaysSoWhenBlocksRunOut) {
  StageRequests requests(kOptions);
  ASSERT_TRUE(requests.Take(StepOf(7, 0, std::vector<int32_t>(60, 1))).ok());
  const absl::Status status = requests.Take(StepOf(8, 0, {1}));
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(status.message(),
            "request 8 needs 1 KV blocks of 16 tokens, has 0, and all 4 of this stage are taken: "
            "give the scheduler no more blocks");
  requests.Clear();
  EXPECT_EQ(requests.blocks_used(), 0);
  EXPECT_TRUE(requests.Take(StepOf(8, 0, {1})).ok());
}

TEST(StageRequestsTest, TokensAreOfTheVocabulary) {
  for (const int32_t token : {-1, 100}) {
    StageRequests requests(kOptions);
    const absl::Status status = requests.Take(StepOf(8, 0, {1, token}));
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(status.message()),
                HasSubstr("at position 1 is not in the vocabulary of 100"));
  }
}

TEST(StageRequestsTest, HistoriesAreOfRequestsWithAPenalty) {
  StageRequests requests(kOptions);
  ASSERT_TRUE(requests.Take(StepOf(1, 0, {4, 5}, {}, 1.5)).ok());
  EXPECT_THAT(requests.fresh_histories(), ElementsAre(0));
  ASSERT_TRUE(requests.Take(StepOf(1, 2, {6}, {}, 1.5)).ok());
  EXPECT_THAT(requests.fresh_histories(), IsEmpty());
  EXPECT_THAT(requests.history(1), ElementsAre(4, 5, 6));
  ASSERT_TRUE(requests.Take(StepOf(2, 0, {9})).ok());
  EXPECT_EQ(requests.history_index(2), -1);
  EXPECT_THAT(requests.history(2), IsEmpty());
  ASSERT_TRUE(requests.Take(StepOf(3, 0, {9}, {}, 0.5)).ok());
  EXPECT_EQ(requests.history_index(3), 1);
  // The bitmap of one that ended is another's, to be cleared.
  ASSERT_TRUE(requests.Take(StepOf(4, 0, {9}, {1}, 1.5)).ok());
  EXPECT_EQ(requests.history_index(4), 0);
  EXPECT_THAT(requests.fresh_histories(), ElementsAre(0));
}

TEST(StageRequestsTest, OnlyTheLastStageKeepsHistories) {
  StageRequestsOptions options = kOptions;
  options.samples = false;
  StageRequests requests(options);
  ASSERT_TRUE(requests.Take(StepOf(1, 0, {4, 5}, {}, 1.5)).ok());
  EXPECT_EQ(requests.history_index(1), -1);
}

}  // namespace
}  // namespace fabricast
