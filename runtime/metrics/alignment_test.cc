#include "runtime/metrics/alignment.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <tuple>

#include "absl/status/statusor.h"
#include "runtime/metrics/testing.h"

namespace fabricast {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

// When nothing depends on times.
const std::vector<StageMs> kSoon = {{1, 2, 2, 3}};

using Pair = std::tuple<int, int, int64_t, bool>;  // first, second, tokens, alike

std::vector<Pair> PairsOf(const Alignment& alignment) {
  std::vector<Pair> pairs;
  for (const StepPair& pair : alignment.pairs) {
    pairs.emplace_back(pair.first, pair.second, pair.tokens, pair.alike);
  }
  return pairs;
}

Alignment MustAlign(const RunEvents& first, const RunEvents& second) {
  absl::StatusOr<Alignment> alignment = Align(first, second);
  EXPECT_TRUE(alignment.ok()) << alignment.status();
  return *std::move(alignment);
}

HandMadeRun TwoRequests() { return std::move(HandMadeRun(1).Arrive(0, 10, 0).Arrive(1, 20, 0)); }

TEST(AlignTest, MicroBatchesOfTheSameDecisionsCorrespondByTheirNumbers) {
  const auto run = [] {
    return TwoRequests()
        .Run({Prefill(0, 0, 10, true)}, 0, kSoon)
        .Run({Decode(0, 10), Prefill(1, 0, 20, true)}, 0, kSoon)
        .Events();
  };
  const Alignment alignment = MustAlign(run(), run());
  EXPECT_EQ(alignment.same_steps, 2);
  EXPECT_EQ(alignment.only_in_first, "");
  EXPECT_EQ(alignment.only_in_second, "");
  // 10 tokens, then 1 + 20.
  EXPECT_THAT(PairsOf(alignment), ElementsAre(Pair(0, 0, 10, true), Pair(1, 1, 21, true)));
  EXPECT_THAT(alignment.first_alone, IsEmpty());
  EXPECT_THAT(alignment.second_alone, IsEmpty());
}

TEST(AlignTest, TheOrderOfEntriesIsNoDecision) {
  const auto run = [](RequestId a, RequestId b) {
    return TwoRequests().Run({Decode(a, 30), Decode(b, 30)}, 0, kSoon).Events();
  };
  EXPECT_EQ(MustAlign(run(0, 1), run(1, 0)).same_steps, 1);
}

TEST(AlignTest, RequestsCorrespondByIdHoweverTheyArrived) {
  const RunEvents first = HandMadeRun(1)
                              .Arrive(0, 10, 0)
                              .Arrive(1, 20, 1)
                              .Run({Prefill(1, 0, 20, true)}, 0, kSoon)
                              .Events();
  const RunEvents second = HandMadeRun(1)
                               .Arrive(1, 20, 0)
                               .Arrive(0, 10, 1)
                               .Run({Prefill(1, 0, 20, true)}, 0, kSoon)
                               .Events();
  EXPECT_EQ(MustAlign(first, second).same_steps, 1);
}

TEST(AlignTest, AfterTheFirstDifferenceTokensFindTheMicroBatchThatComputedThem) {
  // The second world decodes both requests together, the first one after the other.
  const RunEvents first = TwoRequests()
                              .Run({Prefill(0, 0, 10, true), Prefill(1, 0, 20, true)}, 0, kSoon)
                              .Run({Decode(0, 10)}, 0, kSoon)
                              .Run({Decode(1, 20)}, 0, kSoon)
                              .Run({Decode(0, 11)}, 0, kSoon)
                              .Events();
  const RunEvents second = TwoRequests()
                               .Run({Prefill(0, 0, 10, true), Prefill(1, 0, 20, true)}, 0, kSoon)
                               .Run({Decode(0, 10), Decode(1, 20)}, 0, kSoon)
                               .Run({Decode(0, 11)}, 0, kSoon)
                               .Events();
  const Alignment alignment = MustAlign(first, second);
  EXPECT_EQ(alignment.same_steps, 1);
  EXPECT_EQ(alignment.only_in_first, "");
  EXPECT_EQ(alignment.only_in_second, "the decode of request 1 at token 20");
  EXPECT_THAT(PairsOf(alignment), ElementsAre(Pair(0, 0, 30, true), Pair(1, 1, 1, false),
                                              Pair(2, 1, 1, false), Pair(3, 2, 1, true)));
  EXPECT_EQ(SharedTokens(first, 0, second, 0), "0:0-9 1:0-19");
  EXPECT_EQ(SharedTokens(first, 2, second, 1), "1:20");
}

TEST(AlignTest, ChunksCorrespondByPositionsWhateverTheirSizes) {
  // Chunks of 8, 8 and 4 beside chunks of 12 and 8.
  const RunEvents first = TwoRequests()
                              .Run({Prefill(1, 0, 8, false)}, 0, kSoon)
                              .Run({Prefill(1, 8, 8, false)}, 0, kSoon)
                              .Run({Prefill(1, 16, 4, true)}, 0, kSoon)
                              .Events();
  const RunEvents second = TwoRequests()
                               .Run({Prefill(1, 0, 12, false)}, 0, kSoon)
                               .Run({Prefill(1, 12, 8, true)}, 0, kSoon)
                               .Events();
  const Alignment alignment = MustAlign(first, second);
  EXPECT_EQ(alignment.same_steps, 0);
  EXPECT_EQ(alignment.only_in_first, "the prefill of request 1's tokens 0-7");
  EXPECT_EQ(alignment.only_in_second, "the prefill of request 1's tokens 0-11");
  EXPECT_THAT(PairsOf(alignment), ElementsAre(Pair(0, 0, 8, false), Pair(1, 0, 4, false),
                                              Pair(1, 1, 4, true), Pair(2, 1, 4, false)));
}

TEST(AlignTest, WhatAPreemptedRequestComputesAgainHasItsLikeOnlyInTheSamePass) {
  // In the first world request 0 loses its blocks after a decode and computes 11 tokens again.
  const RunEvents first = TwoRequests()
                              .Run({Prefill(0, 0, 10, true)}, 0, kSoon)
                              .Run({Decode(0, 10)}, 0, kSoon)
                              .Run({Prefill(0, 0, 11, false)}, 0, kSoon)
                              .Run({Decode(0, 11)}, 0, kSoon)
                              .Events();
  const RunEvents second = TwoRequests()
                               .Run({Prefill(0, 0, 10, true)}, 0, kSoon)
                               .Run({Decode(0, 10)}, 0, kSoon)
                               .Run({Decode(0, 11)}, 0, kSoon)
                               .Events();
  const Alignment alignment = MustAlign(first, second);
  EXPECT_EQ(alignment.same_steps, 2);
  EXPECT_THAT(PairsOf(alignment),
              ElementsAre(Pair(0, 0, 10, true), Pair(1, 1, 1, true), Pair(3, 2, 1, true)));
  EXPECT_THAT(alignment.first_alone, ElementsAre(2));
  const Alignment again = MustAlign(first, first);
  EXPECT_EQ(again.same_steps, 4);
}

TEST(AlignTest, ARunThatEndsEarlierHasNoMoreMicroBatches) {
  const RunEvents whole = TwoRequests()
                              .Run({Prefill(0, 0, 10, true)}, 0, kSoon)
                              .Run({Decode(0, 10)}, 0, kSoon)
                              .Events();
  const RunEvents part = TwoRequests().Run({Prefill(0, 0, 10, true)}, 0, kSoon).Events();
  const Alignment alignment = MustAlign(whole, part);
  EXPECT_EQ(alignment.same_steps, 1);
  EXPECT_EQ(alignment.only_in_second, "no more micro-batches");
  EXPECT_THAT(alignment.first_alone, ElementsAre(1));
}

TEST(AlignTest, AfterALossMicroBatchZeroIsAnotherOne) {
  const RunEvents lost = TwoRequests()
                             .Run({Prefill(0, 0, 10, true)}, 0, kSoon)
                             .Lose()
                             .Run({Prefill(1, 0, 20, true)}, 0, kSoon)
                             .Run({Decode(1, 20)}, 0, kSoon)
                             .Events();
  const RunEvents whole = TwoRequests()
                              .Run({Prefill(0, 0, 10, true)}, 0, kSoon)
                              .Run({Prefill(1, 0, 20, true)}, 0, kSoon)
                              .Run({Decode(1, 20)}, 0, kSoon)
                              .Events();
  const Alignment alignment = MustAlign(lost, whole);
  EXPECT_EQ(alignment.same_steps, 1);
  EXPECT_EQ(alignment.only_in_first, "the pipeline was lost before it");
  EXPECT_THAT(PairsOf(alignment),
              ElementsAre(Pair(0, 0, 10, true), Pair(1, 1, 20, true), Pair(2, 2, 1, true)));
}

TEST(AlignTest, ManyDifferencesAreCounted) {
  HandMadeRun first(1);
  HandMadeRun second(1);
  std::vector<BatchEntry> entries;
  for (int r = 0; r < 5; ++r) {
    first.Arrive(r, 10, 0);
    second.Arrive(r, 10, 0);
    entries.push_back(Decode(r, 10));
  }
  const Alignment alignment =
      MustAlign(first.Run(entries, 0, kSoon).Events(), second.Run({}, 0, kSoon).Events());
  EXPECT_EQ(alignment.only_in_first,
            "the decode of request 0 at token 10; the decode of request 1 at token 10; the decode "
            "of request 2 at token 10; and 2 more");
}

TEST(AlignTest, RunsOfOtherWorkloadsOrStagesAreRefused) {
  const RunEvents run = HandMadeRun(1).Arrive(3, 10, 0).Events();
  EXPECT_THAT(Align(run, HandMadeRun(1).Arrive(3, 11, 0).Events()).status().message(),
              HasSubstr("request 3 has a prompt of 10 tokens in one and of 11"));
  EXPECT_THAT(Align(run, HandMadeRun(2).Arrive(3, 10, 0).Events()).status().message(),
              HasSubstr("not the same number of stages: 1 and 2"));
}

}  // namespace
}  // namespace fabricast
