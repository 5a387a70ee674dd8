#include "runtime/metrics/critical_path.h"

#include <gtest/gtest.h>

#include "runtime/metrics/testing.h"

namespace fabricast {
namespace {

constexpr double kTiny = 1e-12;

double SumOf(const PathParts& parts) {
  double sum = 0;
  for (int stage = 0; stage < parts.stages(); ++stage) {
    for (int kind = 0; kind < PathParts::kKinds; ++kind) {
      sum += parts.At(static_cast<PathKind>(kind), stage);
    }
  }
  return sum;
}

// One request alone on two stages: a prompt, then two tokens.
//
//   head    arrives 0, launches 1          launches 41            launches 60
//   stage 0   2-12 sends 13-15               42-47 sends 47-49      60-65 sends 65-67
//   stage 1         16-36 sends 36-40             49-55 sends 55-58      67-73 sends 73-76
RunEvents OneRequestAlone() {
  return HandMadeRun(2)
      .Arrive(0, 10, 0)
      .Run({Prefill(0, 0, 10, true)}, 1, {{2, 12, 13, 15}, {16, 36, 36, 40}})
      .Run({Decode(0, 10)}, 41, {{42, 47, 47, 49}, {49, 55, 55, 58}})
      .Run({Decode(0, 11)}, 60, {{60, 65, 65, 67}, {67, 73, 73, 76}})
      .End(0)
      .Events();
}

TEST(CriticalPathTest, ATokenAloneIsMadeOfItsOwnChain) {
  const RunEvents run = OneRequestAlone();
  PathParts parts(2);
  CriticalPath(run).Explain(1, 40 * kMs, parts);
  // From 40 to 58: the head until 41, stage 0 free until 42, 5 of compute, hop 2; stage 1 at once,
  // 6 of compute, hop 3.
  EXPECT_EQ(parts.At(PathKind::kHead, 0), 1 * kMs);
  EXPECT_EQ(parts.At(PathKind::kStartDelay, 0), 1 * kMs);
  EXPECT_EQ(parts.At(PathKind::kDecode, 0), 5 * kMs);
  EXPECT_EQ(parts.At(PathKind::kHop, 0), 2 * kMs);
  EXPECT_EQ(parts.At(PathKind::kStartDelay, 1), 0);
  EXPECT_EQ(parts.At(PathKind::kDecode, 1), 6 * kMs);
  EXPECT_EQ(parts.At(PathKind::kHop, 1), 3 * kMs);
  EXPECT_EQ(SumOf(parts), 18 * kMs);
}

TEST(CriticalPathTest, LatenciesOfARequestAreTheSumsOfTheirParts) {
  const std::vector<RequestPath> requests = ExplainRequests(OneRequestAlone());
  ASSERT_EQ(requests.size(), 1u);
  const RequestPath& of = requests[0];
  ASSERT_TRUE(of.has_ttft && of.has_tpot);
  // The first token at 40; two more until 76.
  EXPECT_NEAR(of.ttft_s, 0.040, kTiny);
  EXPECT_NEAR(of.tpot_s, 0.018, kTiny);
  EXPECT_NEAR(of.ttft.At(PathKind::kQueue, 0), 0.001, kTiny);
  EXPECT_NEAR(of.ttft.At(PathKind::kStartDelay, 0), 0.001, kTiny);
  EXPECT_NEAR(of.ttft.At(PathKind::kPrefill, 0), 0.010, kTiny);
  EXPECT_NEAR(of.ttft.At(PathKind::kSendWait, 0), 0.001, kTiny);
  EXPECT_NEAR(of.ttft.At(PathKind::kHop, 0), 0.002, kTiny);
  EXPECT_NEAR(of.ttft.At(PathKind::kStartDelay, 1), 0.001, kTiny);
  EXPECT_NEAR(of.ttft.At(PathKind::kPrefill, 1), 0.020, kTiny);
  EXPECT_NEAR(of.ttft.At(PathKind::kHop, 1), 0.004, kTiny);
  EXPECT_NEAR(SumOf(of.ttft), of.ttft_s, kTiny);
  // (1 + 2) / 2 at the head: 40 to 41 and 58 to 60.
  EXPECT_NEAR(of.tpot.At(PathKind::kHead, 0), 0.0015, kTiny);
  EXPECT_NEAR(of.tpot.At(PathKind::kDecode, 1), 0.006, kTiny);
  EXPECT_NEAR(SumOf(of.tpot), of.tpot_s, kTiny);
}

// A slow second stage: micro-batch 1 waits there for micro-batch 0, so what it waits for is that
// stage's computing, not a hop, and not the first stage.
TEST(CriticalPathTest, WaitingForABusyStageIsItsComputing) {
  const RunEvents run = HandMadeRun(2)
                            .Arrive(0, 10, 0)
                            .Arrive(1, 10, 0)
                            .Run({Prefill(0, 0, 10, true)}, 0, {{0, 5, 5, 6}, {6, 26, 26, 27}})
                            .Run({Decode(1, 10)}, 5, {{5, 10, 10, 11}, {28, 48, 48, 50}})
                            .Events();
  PathParts parts(2);
  CriticalPath(run).Explain(1, 0, parts);
  // Back from 50: hop 2, decode 20, the stage free from 26 to 28, the prefill before it 20, then
  // micro-batch 0's hop 1 and its first stage 5.
  EXPECT_EQ(parts.At(PathKind::kHop, 1), 2 * kMs);
  EXPECT_EQ(parts.At(PathKind::kDecode, 1), 20 * kMs);
  EXPECT_EQ(parts.At(PathKind::kStartDelay, 1), 2 * kMs);
  EXPECT_EQ(parts.At(PathKind::kPrefill, 1), 20 * kMs);
  EXPECT_EQ(parts.At(PathKind::kHop, 0), 1 * kMs);
  EXPECT_EQ(parts.At(PathKind::kPrefill, 0), 5 * kMs);
  EXPECT_EQ(SumOf(parts), 50 * kMs);
}

TEST(CriticalPathTest, APartOfAnEventCountsInAnIntervalThatBeginsWithinIt) {
  const RunEvents run = OneRequestAlone();
  PathParts parts(2);
  // 6 of the last stage's computing are from 49 to 55.
  CriticalPath(run).Explain(1, 51 * kMs, parts);
  EXPECT_EQ(parts.At(PathKind::kDecode, 1), 4 * kMs);
  EXPECT_EQ(SumOf(parts), 7 * kMs);
  PathParts none(2);
  CriticalPath(run).Explain(1, 58 * kMs, none);
  EXPECT_EQ(SumOf(none), 0);
}

TEST(CriticalPathTest, WhatWaitsForTheSendBeforeWaitsForThatHop) {
  // Sends go one by one: the second is computed at 7 and leaves at 15, when the first is there.
  const RunEvents run = HandMadeRun(2)
                            .Arrive(0, 10, 0)
                            .Arrive(1, 10, 0)
                            .Run({Prefill(0, 0, 10, true)}, 0, {{0, 5, 5, 15}, {15, 16, 16, 17}})
                            .Run({Prefill(1, 0, 10, true)}, 5, {{5, 7, 15, 25}, {25, 26, 26, 27}})
                            .Events();
  PathParts parts(2);
  CriticalPath(run).Explain(1, 0, parts);
  // Hops: 15 to 25, and 5 to 15 before it.
  EXPECT_EQ(parts.At(PathKind::kHop, 0), 20 * kMs);
  EXPECT_EQ(parts.At(PathKind::kSendWait, 0), 0);
  EXPECT_EQ(parts.At(PathKind::kPrefill, 0), 5 * kMs);
  EXPECT_EQ(SumOf(parts), 27 * kMs);
}

TEST(CriticalPathTest, ALaunchFollowsFromTheLastThingTheHeadHeard) {
  // One in flight at a time: micro-batch 1 follows from the tokens of micro-batch 0, known at 10.
  const RunEvents after_tokens = HandMadeRun(1)
                                     .Arrive(0, 10, 0)
                                     .Arrive(1, 10, 0)
                                     .Run({Prefill(0, 0, 10, true)}, 0, {{0, 8, 8, 10}})
                                     .Run({Prefill(1, 0, 10, true)}, 11, {{11, 19, 19, 20}})
                                     .Events();
  PathParts parts(1);
  CriticalPath(after_tokens).Explain(1, 0, parts);
  EXPECT_EQ(parts.At(PathKind::kHead, 0), 1 * kMs);
  EXPECT_EQ(parts.At(PathKind::kHop, 0), 3 * kMs);
  EXPECT_EQ(parts.At(PathKind::kPrefill, 0), 16 * kMs);
  // Two stages: micro-batch 1 follows from the first stage's being done with micro-batch 0.
  const RunEvents after_first_stage =
      HandMadeRun(2)
          .Arrive(0, 10, 0)
          .Arrive(1, 10, 0)
          .Run({Prefill(0, 0, 10, true)}, 0, {{0, 8, 8, 9}, {9, 10, 10, 11}})
          .Run({Prefill(1, 0, 10, true)}, 10, {{10, 18, 18, 19}, {19, 20, 20, 21}})
          .Events();
  PathParts two(2);
  CriticalPath(after_first_stage).Explain(1, 0, two);
  EXPECT_EQ(two.At(PathKind::kHead, 0), 2 * kMs);
  EXPECT_EQ(two.At(PathKind::kPrefill, 0), 16 * kMs);
  EXPECT_EQ(SumOf(two), 21 * kMs);
}

TEST(CriticalPathTest, ClocksThatDisagreeMakeNothingNegativeAndKeepTheSum) {
  // Stage 1 says that it had the activations at 10, before stage 0 sent them at 12.
  const RunEvents run = HandMadeRun(2)
                            .Arrive(0, 10, 0)
                            .Run({Prefill(0, 0, 10, true)}, 0, {{0, 12, 12, 10}, {11, 21, 21, 22}})
                            .Events();
  PathParts parts(2);
  CriticalPath(run).Explain(0, 0, parts);
  for (int stage = 0; stage < 2; ++stage) {
    for (int kind = 0; kind < PathParts::kKinds; ++kind) {
      EXPECT_GE(parts.At(static_cast<PathKind>(kind), stage), 0);
    }
  }
  EXPECT_EQ(SumOf(parts), 22 * kMs);
}

TEST(CriticalPathTest, CancelledAndFailedRequestsHaveNoLatencies) {
  const std::vector<RequestPath> requests =
      ExplainRequests(HandMadeRun(1)
                          .Arrive(0, 10, 0)
                          .Arrive(1, 10, 0)
                          .Arrive(2, 10, 0)
                          .Run({Prefill(0, 0, 10, true)}, 0, {{0, 1, 1, 2}})
                          .Run({Prefill(1, 0, 10, true)}, 2, {{2, 3, 3, 4}})
                          .End(0, EventLog::CANCELLED)
                          .End(1, EventLog::FAILED)
                          .Lose()
                          .Run({Prefill(2, 0, 10, true)}, 9, {{9, 10, 10, 11}})
                          .End(2)
                          .Events());
  EXPECT_FALSE(requests[0].has_ttft);
  EXPECT_FALSE(requests[1].has_ttft);
  ASSERT_TRUE(requests[2].has_ttft);
  EXPECT_FALSE(requests[2].has_tpot);  // one token
  // It waited from 0 to 9; nothing before the loss is on its path.
  EXPECT_NEAR(requests[2].ttft.At(PathKind::kQueue, 0), 0.009, kTiny);
  EXPECT_NEAR(SumOf(requests[2].ttft), 0.011, kTiny);
}

}  // namespace
}  // namespace fabricast
