// Every metric from timelines written by hand. Times are quarters of seconds, so that sums are
// exact.
#include "runtime/metrics/recorder.h"

#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace fabricast {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::SizeIs;

Action Admit(RequestId request) {
  Action action;
  action.kind = Action::Kind::kAdmit;
  action.request = request;
  return action;
}

Action Finish(RequestId request, FinishReason reason = FinishReason::kLength) {
  Action action;
  action.kind = Action::Kind::kFinish;
  action.request = request;
  action.reason = reason;
  return action;
}

Action Of(Action::Kind kind, RequestId request) {
  Action action;
  action.kind = kind;
  action.request = request;
  return action;
}

MicroBatch Prefill(MicroBatchId id, RequestId request, int64_t first_token, int64_t tokens,
                   bool samples = true) {
  return {.id = id,
          .entries = {{.request = request,
                       .first_token = first_token,
                       .tokens = tokens,
                       .decode = false,
                       .samples = samples}}};
}

MicroBatch Decode(MicroBatchId id, RequestId request, int64_t first_token) {
  return {.id = id,
          .entries = {{.request = request,
                       .first_token = first_token,
                       .tokens = 1,
                       .decode = true,
                       .samples = true}}};
}

void Admitted(Recorder& recorder, RequestId request, double now) {
  const Action action = Admit(request);
  recorder.Acted({&action, 1}, now);
}

void Finished(Recorder& recorder, RequestId request, double now) {
  const Action action = Finish(request);
  recorder.Acted({&action, 1}, now);
}

// Two requests over two stages, on a clock that says 10 when the first arrives:
//
//   time     10      12  13  14  15  16  17  18  19  20  21  22
//   stage 0  |  mb0  |  mb1  |           |2|     |3| |4|
//   hop 0->1         |mb0|   |mb1|         |2-|    ||  ||
//   stage 1              |    mb0    |  mb1  ||mb2||mb3||mb4|
//   hop 1->0                         |mb0|   |mb1||2-||-3-||-4-|
//
// mb0: prompt of request 1 (6 tokens), mb1: prompt of request 2 (4); mb2, mb4: decodes of request
// 1; mb3: decode of request 2. Request 1 puts out tokens at 17, 20 and 22.75; request 2 at 19
// and 21.75.
class TwoStagesTest : public ::testing::Test {
 protected:
  void Play(Recorder& r) {
    const MicroBatch mb0 = Prefill(0, 1, 0, 6);
    const MicroBatch mb1 = Prefill(1, 2, 0, 4);
    const MicroBatch mb2 = Decode(2, 1, 6);
    const MicroBatch mb3 = Decode(3, 2, 4);
    const MicroBatch mb4 = Decode(4, 1, 7);
    ComputeTime chunk;
    chunk.set_matrix_compute_s(1.5);
    chunk.set_overhead_s(0.5);
    ComputeTime token;
    token.set_weight_read_s(0.25);
    token.set_decode_attention_s(0.125);

    r.RequestArrived(1, 6, 10);
    Admitted(r, 1, 10);
    r.StageStarted(0, mb0, 10);
    r.RequestArrived(2, 4, 11);
    r.StageComputed(0, mb0, 12, &chunk);
    r.SendStarted(0, 1, mb0, 600, 12);
    Admitted(r, 2, 12);
    r.StageStarted(0, mb1, 12);
    r.SendDelivered(0, 1, mb0, 13);
    r.StageStarted(1, mb0, 13);
    r.StageComputed(0, mb1, 14, &chunk);
    r.SendStarted(0, 1, mb1, 400, 14);
    r.SendDelivered(0, 1, mb1, 15);
    r.StageComputed(1, mb0, 16);
    r.SendStarted(1, 0, mb0, 4, 16);
    r.StageStarted(1, mb1, 16);
    r.SendDelivered(1, 0, mb0, 17);
    r.MicroBatchCompleted(mb0, 17);
    r.StageStarted(0, mb2, 17);
    r.StageComputed(0, mb2, 17.5, &token);
    r.SendStarted(0, 1, mb2, 100, 17.5);
    r.StageComputed(1, mb1, 18);
    r.SendStarted(1, 0, mb1, 4, 18);
    r.SendDelivered(0, 1, mb2, 18.25);
    r.StageStarted(1, mb2, 18.25);
    r.SendDelivered(1, 0, mb1, 19);
    r.MicroBatchCompleted(mb1, 19);
    r.StageStarted(0, mb3, 19);
    r.StageComputed(1, mb2, 19.25);
    r.SendStarted(1, 0, mb2, 4, 19.25);
    r.StageComputed(0, mb3, 19.5, &token);
    r.SendStarted(0, 1, mb3, 100, 19.5);
    r.SendDelivered(0, 1, mb3, 19.75);
    r.StageStarted(1, mb3, 19.75);
    r.SendDelivered(1, 0, mb2, 20);
    r.MicroBatchCompleted(mb2, 20);
    r.StageStarted(0, mb4, 20);
    r.StageComputed(0, mb4, 20.5, &token);
    r.SendStarted(0, 1, mb4, 100, 20.5);
    r.StageComputed(1, mb3, 20.75);
    r.SendStarted(1, 0, mb3, 4, 20.75);
    r.SendDelivered(0, 1, mb4, 20.75);
    r.StageStarted(1, mb4, 20.75);
    r.StageComputed(1, mb4, 21.75);
    r.SendDelivered(1, 0, mb3, 21.75);
    r.SendStarted(1, 0, mb4, 4, 21.75);
    r.MicroBatchCompleted(mb3, 21.75);
    Finished(r, 2, 21.75);
    r.SendDelivered(1, 0, mb4, 22.75);
    r.MicroBatchCompleted(mb4, 22.75);
    Finished(r, 1, 22.75);
  }

  Result Record() {
    Recorder recorder(2, /*keep_timeline=*/false);
    Play(recorder);
    return recorder.Finish();
  }
};

TEST_F(TwoStagesTest, CountsRequestsAndTokens) {
  const Result result = Record();
  EXPECT_EQ(result.schema(), "fabricast.result.v1");
  EXPECT_EQ(result.requests(), 2);
  EXPECT_EQ(result.finished(), 2);
  EXPECT_EQ(result.rejected(), 0);
  EXPECT_EQ(result.prompt_tokens(), 6 + 4);
  EXPECT_EQ(result.output_tokens(), 3 + 2);
  // From the first arrival at 10 to the last token at 22.75.
  EXPECT_EQ(result.duration_s(), 12.75);
  EXPECT_DOUBLE_EQ(result.output_tokens_per_s(), 5 / 12.75);
  EXPECT_DOUBLE_EQ(result.total_tokens_per_s(), 15 / 12.75);
  EXPECT_DOUBLE_EQ(result.requests_per_s(), 2 / 12.75);
}

TEST_F(TwoStagesTest, LatenciesAreThoseOfTheirDefinitions) {
  const Result result = Record();
  // Arrival to first token: 17 - 10 and 19 - 11.
  EXPECT_EQ(result.ttft().count(), 2);
  EXPECT_EQ(result.ttft().mean(), 7.5);
  EXPECT_EQ(result.ttft().max(), 8);
  // Arrival to last token: 22.75 - 10 and 21.75 - 11.
  EXPECT_EQ(result.e2e().mean(), (12.75 + 10.75) / 2);
  EXPECT_EQ(result.e2e().max(), 12.75);
  // (22.75 - 17) / 2 and (21.75 - 19) / 1.
  EXPECT_EQ(result.tpot().count(), 2);
  EXPECT_EQ(result.tpot().max(), 2.875);
  EXPECT_EQ(result.tpot().mean(), (2.875 + 2.75) / 2);
  // Gaps, pooled: 3 and 2.75 of request 1, 2.75 of request 2.
  EXPECT_EQ(result.itl().count(), 3);
  EXPECT_EQ(result.itl().p50(), 2.75);
  EXPECT_EQ(result.itl().max(), 3);
  // Scheduled at once, and after 1 s.
  EXPECT_EQ(result.queue_wait().mean(), 0.5);
  EXPECT_EQ(result.queue_wait().max(), 1);
}

TEST_F(TwoStagesTest, AStageIsBusyWhileItComputesAndABubbleOtherwise) {
  const Result result = Record();
  ASSERT_EQ(result.stages_size(), 2);
  const StageResult& first = result.stages(0);
  const StageResult& last = result.stages(1);
  EXPECT_EQ(first.stage(), 0);
  EXPECT_EQ(last.stage(), 1);
  EXPECT_EQ(first.micro_batches(), 5);
  EXPECT_EQ(last.micro_batches(), 5);
  EXPECT_EQ(first.busy_s(), 2 + 2 + 3 * 0.5);
  EXPECT_EQ(last.busy_s(), 3 + 2 + 3 * 1);
  EXPECT_DOUBLE_EQ(first.busy_fraction(), 5.5 / 12.75);
  EXPECT_DOUBLE_EQ(first.bubble_fraction(), 7.25 / 12.75);
  EXPECT_DOUBLE_EQ(last.bubble_fraction(), 4.75 / 12.75);
}

TEST_F(TwoStagesTest, SteadyStateIsBetweenTheLastStagesFirstWorkAndTheFirstEnd) {
  const Result result = Record();
  // The last stage starts at 13; nobody is admitted after 12, and the first request ends at 21.75.
  EXPECT_EQ(result.steady_start_s(), 3);
  EXPECT_EQ(result.steady_end_s(), 11.75);
  // Of those 8.75 s stage 0 computes 1 s of mb1 and three times half a second; stage 1 computes all
  // of its 8 s.
  ASSERT_TRUE(result.stages(0).has_steady_busy_fraction());
  EXPECT_DOUBLE_EQ(result.stages(0).steady_busy_fraction(), 2.5 / 8.75);
  EXPECT_DOUBLE_EQ(result.stages(0).steady_bubble_fraction(), 6.25 / 8.75);
  EXPECT_DOUBLE_EQ(result.stages(1).steady_busy_fraction(), 8 / 8.75);
  EXPECT_DOUBLE_EQ(result.stages(1).steady_bubble_fraction(), 0.75 / 8.75);
}

TEST_F(TwoStagesTest, HopsSumWhatCrossedThem) {
  const Result result = Record();
  ASSERT_EQ(result.hops_size(), 2);
  EXPECT_EQ(result.hops(0).from_stage(), 0);
  EXPECT_EQ(result.hops(0).to_stage(), 1);
  EXPECT_EQ(result.hops(0).messages(), 5);
  EXPECT_EQ(result.hops(0).bytes(), 600 + 400 + 3 * 100);
  EXPECT_EQ(result.hops(0).transfer_s(), 1 + 1 + 0.75 + 0.25 + 0.25);
  // Tokens go back to the head.
  EXPECT_EQ(result.hops(1).from_stage(), 1);
  EXPECT_EQ(result.hops(1).to_stage(), 0);
  EXPECT_EQ(result.hops(1).messages(), 5);
  EXPECT_EQ(result.hops(1).bytes(), 5 * 4);
  EXPECT_EQ(result.hops(1).transfer_s(), 1 + 1 + 0.75 + 1 + 1);
}

TEST_F(TwoStagesTest, ExposedIsWhatTheReceiverIdlesWhileTheBytesAreOnTheWire) {
  const Result result = Record();
  // mb0: stage 1 has nothing to do, all of 12 to 13 counts. mb1 comes while stage 1 computes: 0.
  // mb2 is on the wire from 17.5, stage 1 idles from 18 to 18.25. mb3: 19.5 to 19.75, idle since
  // 19.25. mb4 comes when stage 1 gets free: 0.
  EXPECT_EQ(result.hops(0).exposed_s(), 1 + 0 + 0.25 + 0.25 + 0);
  // The way back: stage 0 idles for all of mb0's and mb1's second, and from 19.5 of mb2's 19.25 to
  // 20. The tokens of mb3 and mb4 end their requests: nobody waits for them.
  EXPECT_EQ(result.hops(1).exposed_s(), 1 + 1 + 0.5);
}

TEST_F(TwoStagesTest, BusyTimeIsKeptByCauseForPrefillAndDecodeApart) {
  const Result result = Record();
  EXPECT_EQ(result.stages(0).prefill().matrix_compute_s(), 2 * 1.5);
  EXPECT_EQ(result.stages(0).prefill().overhead_s(), 2 * 0.5);
  EXPECT_EQ(result.stages(0).prefill().weight_read_s(), 0);
  EXPECT_EQ(result.stages(0).decode().weight_read_s(), 3 * 0.25);
  EXPECT_EQ(result.stages(0).decode().decode_attention_s(), 3 * 0.125);
  EXPECT_EQ(result.stages(0).decode().matrix_compute_s(), 0);
  EXPECT_EQ(result.stages(0).mixed().SerializeAsString(), "");
  // Stage 1 was not told.
  EXPECT_EQ(result.stages(1).decode().SerializeAsString(), "");
}

TEST_F(TwoStagesTest, TheTimelineHoldsEverySliceOnTheDriversClock) {
  Recorder recorder(2, /*keep_timeline=*/true);
  Play(recorder);
  const Timeline& timeline = recorder.timeline();
  ASSERT_THAT(timeline.stages, SizeIs(10));
  const StageSlice& first = timeline.stages[0];
  EXPECT_EQ(first.stage, 0);
  EXPECT_EQ(first.micro_batch, 0);
  EXPECT_EQ(first.start_s, 10);
  EXPECT_EQ(first.end_s, 12);
  EXPECT_EQ(first.decodes, 0);
  EXPECT_EQ(first.prefill_tokens, 6);
  const StageSlice& last = timeline.stages[9];
  EXPECT_EQ(last.stage, 1);
  EXPECT_EQ(last.micro_batch, 4);
  EXPECT_EQ(last.start_s, 20.75);
  EXPECT_EQ(last.end_s, 21.75);
  EXPECT_EQ(last.decodes, 1);
  EXPECT_EQ(last.prefill_tokens, 0);
  ASSERT_THAT(timeline.transfers, SizeIs(10));
  // The second to start, and back.
  EXPECT_EQ(timeline.transfers[1].start_s, 14);
  EXPECT_EQ(timeline.transfers[1].end_s, 15);
  EXPECT_EQ(timeline.transfers[1].bytes, 400);
  EXPECT_EQ(timeline.transfers[2].from_stage, 1);
  EXPECT_EQ(timeline.transfers[2].to_stage, 0);
  EXPECT_EQ(timeline.transfers[2].end_s, 17);

  Recorder forgetful(2, /*keep_timeline=*/false);
  Play(forgetful);
  EXPECT_THAT(forgetful.timeline().stages, IsEmpty());
  EXPECT_THAT(forgetful.timeline().transfers, IsEmpty());
}

// A request through both stages until its tokens are on the way back: from 3 to 4.
void PlayUntilReturn(Recorder& r) {
  const MicroBatch mb0 = Prefill(0, 1, 0, 6);
  r.RequestArrived(1, 6, 0);
  Admitted(r, 1, 0);
  r.StageStarted(0, mb0, 0);
  r.StageComputed(0, mb0, 1);
  r.SendStarted(0, 1, mb0, 600, 1);
  r.SendDelivered(0, 1, mb0, 2);
  r.StageStarted(1, mb0, 2);
  r.StageComputed(1, mb0, 3);
  r.SendStarted(1, 0, mb0, 4, 3);
  r.SendDelivered(1, 0, mb0, 4);
  r.MicroBatchCompleted(mb0, 4);
}

TEST(ReturnHopTest, OnlyADecodeOfATokenThatCameBackHasWaitedForIt) {
  Recorder decodes(2, false);
  PlayUntilReturn(decodes);
  decodes.StageStarted(0, Decode(1, 1, 6), 4);
  EXPECT_EQ(decodes.Finish().hops(1).exposed_s(), 1);

  // A new prompt that arrives at that very moment has not.
  Recorder prefills(2, false);
  PlayUntilReturn(prefills);
  prefills.RequestArrived(2, 4, 4);
  Admitted(prefills, 2, 4);
  prefills.StageStarted(0, Prefill(1, 2, 0, 4), 4);
  EXPECT_EQ(prefills.Finish().hops(1).exposed_s(), 0);
}

TEST(ReturnHopTest, ADecodeOfATokenThatCameEarlierHasNotWaitedForThisOne) {
  Recorder r(2, false);
  PlayUntilReturn(r);
  // Request 2 goes through as request 1 did, 4 s later; its token comes back from 7 to 8.
  const MicroBatch mb1 = Prefill(1, 2, 0, 6);
  r.RequestArrived(2, 6, 4);
  Admitted(r, 2, 4);
  r.StageStarted(0, mb1, 4);
  r.StageComputed(0, mb1, 5);
  r.SendStarted(0, 1, mb1, 600, 5);
  r.SendDelivered(0, 1, mb1, 6);
  r.StageStarted(1, mb1, 6);
  r.StageComputed(1, mb1, 7);
  r.SendStarted(1, 0, mb1, 4, 7);
  r.SendDelivered(1, 0, mb1, 8);
  r.MicroBatchCompleted(mb1, 8);
  // What runs then is a decode of request 1, whose token has been there since 4.
  r.StageStarted(0, Decode(2, 1, 6), 8);
  EXPECT_EQ(r.Finish().hops(1).exposed_s(), 0);
}

TEST(ReturnHopTest, WhatTheFirstStageComputedMeanwhileWasNotExposed) {
  // Another prompt from 1 to 3.75: of the second on the wire only the last quarter was idle.
  Recorder r(2, false);
  const MicroBatch mb0 = Prefill(0, 1, 0, 6);
  const MicroBatch mb1 = Prefill(1, 2, 0, 4);
  r.RequestArrived(1, 6, 0);
  r.RequestArrived(2, 4, 0);
  Admitted(r, 1, 0);
  r.StageStarted(0, mb0, 0);
  r.StageComputed(0, mb0, 1);
  r.SendStarted(0, 1, mb0, 600, 1);
  Admitted(r, 2, 1);
  r.StageStarted(0, mb1, 1);
  r.SendDelivered(0, 1, mb0, 2);
  r.StageStarted(1, mb0, 2);
  r.StageComputed(1, mb0, 3);
  r.SendStarted(1, 0, mb0, 4, 3);
  r.StageComputed(0, mb1, 3.75);
  r.SendDelivered(1, 0, mb0, 4);
  r.MicroBatchCompleted(mb0, 4);
  r.StageStarted(0, Decode(2, 1, 6), 4);
  EXPECT_EQ(r.Finish().hops(1).exposed_s(), 0.25);
}

TEST(ExposedTest, EndsWhenTheBytesAreThere) {
  // Stage 1 idles on from 2 to 2.5, stage 0 from 4 to 4.5: not for the wire.
  Recorder r(2, false);
  const MicroBatch mb0 = Prefill(0, 1, 0, 6);
  r.RequestArrived(1, 6, 0);
  Admitted(r, 1, 0);
  r.StageStarted(0, mb0, 0);
  r.StageComputed(0, mb0, 1);
  r.SendStarted(0, 1, mb0, 600, 1);
  r.SendDelivered(0, 1, mb0, 2);
  r.StageStarted(1, mb0, 2.5);
  r.StageComputed(1, mb0, 3);
  r.SendStarted(1, 0, mb0, 4, 3);
  r.SendDelivered(1, 0, mb0, 4);
  r.MicroBatchCompleted(mb0, 4);
  r.StageStarted(0, Decode(1, 1, 6), 4.5);
  const Result result = r.Finish();
  EXPECT_EQ(result.hops(0).exposed_s(), 1);
  EXPECT_EQ(result.hops(1).exposed_s(), 1);
}

TEST(OneStageTest, HasNoHopsAndNoExposedTime) {
  Recorder r(1, false);
  r.RequestArrived(1, 6, 0);
  Admitted(r, 1, 0);
  const MicroBatch mb0 = Prefill(0, 1, 0, 6);
  r.StageStarted(0, mb0, 0);
  r.StageComputed(0, mb0, 2);
  r.MicroBatchCompleted(mb0, 2);
  Finished(r, 1, 2);
  const Result result = r.Finish();
  EXPECT_EQ(result.hops_size(), 0);
  EXPECT_EQ(result.duration_s(), 2);
  EXPECT_EQ(result.stages(0).bubble_fraction(), 0);
  // One output token has no time between tokens.
  EXPECT_EQ(result.ttft().count(), 1);
  EXPECT_EQ(result.tpot().count(), 0);
  EXPECT_EQ(result.itl().count(), 0);
}

TEST(SteadyStateTest, EndsWithTheLastAdmissionIfRequestsKeepComing) {
  // One stage, requests one after the other: admitted at 0, 2 and 4, each busy for 1 of 2 s.
  Recorder r(1, false);
  for (RequestId id : {0, 1, 2}) {
    const double start = 2.0 * id;
    const MicroBatch micro_batch = Prefill(id, id, 0, 6);
    r.RequestArrived(id, 6, start);
    Admitted(r, id, start);
    r.StageStarted(0, micro_batch, start);
    r.StageComputed(0, micro_batch, start + 1);
    r.MicroBatchCompleted(micro_batch, start + 1);
    Finished(r, id, start + 1);
  }
  const Result result = r.Finish();
  EXPECT_EQ(result.steady_start_s(), 0);
  EXPECT_EQ(result.steady_end_s(), 4);
  EXPECT_EQ(result.stages(0).steady_busy_fraction(), 0.5);
  // Of the whole run, which ends with the last token at 5: 3 of 5 s.
  EXPECT_DOUBLE_EQ(result.stages(0).busy_fraction(), 0.6);
}

TEST(SteadyStateTest, IsAbsentIfNothingEndedOrNothingReachedTheLastStage) {
  Recorder nothing_ended(1, false);
  nothing_ended.RequestArrived(1, 6, 0);
  Admitted(nothing_ended, 1, 0);
  nothing_ended.StageStarted(0, Prefill(0, 1, 0, 6), 0);
  const Result result = nothing_ended.Finish();
  EXPECT_FALSE(result.stages(0).has_steady_busy_fraction());
  EXPECT_FALSE(result.stages(0).has_steady_bubble_fraction());

  Recorder not_filled(2, false);
  not_filled.RequestArrived(1, 6, 0);
  Admitted(not_filled, 1, 1);
  EXPECT_FALSE(not_filled.Finish().stages(1).has_steady_busy_fraction());
}

TEST(EmptyRunTest, IsAllZero) {
  const Result result = Recorder(2, true).Finish();
  EXPECT_EQ(result.requests(), 0);
  EXPECT_EQ(result.duration_s(), 0);
  EXPECT_EQ(result.output_tokens_per_s(), 0);
  EXPECT_EQ(result.ttft().count(), 0);
  ASSERT_EQ(result.stages_size(), 2);
  EXPECT_EQ(result.stages(1).busy_fraction(), 0);
  EXPECT_EQ(result.hops_size(), 2);
}

TEST(PreemptionTest, TokensComputedAgainAreCounted) {
  Recorder r(1, false);
  double now = 0;
  const auto run = [&](const MicroBatch& micro_batch) {
    r.StageStarted(0, micro_batch, now);
    r.StageComputed(0, micro_batch, ++now);
    r.MicroBatchCompleted(micro_batch, now);
  };
  r.RequestArrived(1, 6, 0);
  Admitted(r, 1, 0);
  // A prompt of 6 in chunks of 4 and 2, and two decodes: positions 0 to 7 are computed.
  run(Prefill(0, 1, 0, 4, /*samples=*/false));
  run(Prefill(1, 1, 4, 2));
  run(Decode(2, 1, 6));
  run(Decode(3, 1, 7));
  EXPECT_EQ(r.finished(), 0);
  const Action preempt = Of(Action::Kind::kPreempt, 1);
  r.Acted({&preempt, 1}, now);
  // 6 + 3 tokens are known. The first 8 are computed again, the ninth for the first time.
  run(Prefill(4, 1, 0, 4, /*samples=*/false));
  run(Prefill(5, 1, 4, 5));
  run(Decode(6, 1, 9));
  Finished(r, 1, now);
  const Result result = r.Finish();
  EXPECT_EQ(result.preemptions(), 1);
  EXPECT_EQ(result.recomputed_tokens(), 4 + 4);
  // Tokens at 2, 3, 4, 6 and 7: the preemption is a longer gap, and TTFT stays the first token's.
  EXPECT_EQ(result.output_tokens(), 5);
  EXPECT_EQ(result.ttft().max(), 2);
  EXPECT_EQ(result.itl().count(), 4);
  EXPECT_EQ(result.itl().max(), 2);
  EXPECT_EQ(result.tpot().max(), (7.0 - 2) / 4);
  EXPECT_EQ(r.finished(), 1);
}

TEST(PreemptionTest, ASecondTimeCountsAgain) {
  Recorder r(1, false);
  r.RequestArrived(1, 6, 0);
  for (int64_t i = 0; i < 3; ++i) {
    const MicroBatch micro_batch = Prefill(i, 1, 0, 6);
    r.StageStarted(0, micro_batch, static_cast<double>(i));
    r.StageComputed(0, micro_batch, static_cast<double>(i) + 0.5);
  }
  EXPECT_EQ(r.Finish().recomputed_tokens(), 2 * 6);
}

TEST(EndsTest, CancelledAndRejectedRequestsAreInNoDistribution) {
  Recorder r(1, false);
  r.RequestArrived(1, 6, 0);
  r.RequestArrived(2, 1000, 0);
  const Action reject = Of(Action::Kind::kReject, 2);
  r.Acted({&reject, 1}, 0);
  Admitted(r, 1, 0);
  const MicroBatch mb0 = Prefill(0, 1, 0, 6);
  r.StageStarted(0, mb0, 0);
  r.StageComputed(0, mb0, 1);
  r.MicroBatchCompleted(mb0, 1);
  const Action cancelled = Finish(1, FinishReason::kCancelled);
  r.Acted({&cancelled, 1}, 1);
  const Result result = r.Finish();
  EXPECT_EQ(result.requests(), 2);
  EXPECT_EQ(result.rejected(), 1);
  EXPECT_EQ(result.finished(), 0);
  EXPECT_EQ(result.prompt_tokens(), 0);
  EXPECT_EQ(result.output_tokens(), 0);
  EXPECT_EQ(result.ttft().count(), 0);
  EXPECT_EQ(result.e2e().count(), 0);
  // It did wait to be admitted.
  EXPECT_EQ(result.queue_wait().count(), 1);
}

TEST(EndsTest, AStopIsAnEndLikeAnyOther) {
  Recorder r(1, false);
  r.RequestArrived(1, 6, 0);
  Admitted(r, 1, 0);
  const MicroBatch mb0 = Prefill(0, 1, 0, 6);
  r.StageStarted(0, mb0, 0);
  r.StageComputed(0, mb0, 1);
  r.MicroBatchCompleted(mb0, 1);
  const Action stopped = Finish(1, FinishReason::kStop);
  r.Acted({&stopped, 1}, 1);
  EXPECT_EQ(r.Finish().finished(), 1);
}

// Request 1 has tokens at 1, 2 and 3 and is lost at 4, 3 gives up waiting; 2 runs then.
TEST(LossTest, FailedRequestsAreInNoDistribution) {
  Recorder r(1, /*keep_timeline=*/true);
  r.RequestArrived(1, 6, 0);
  r.RequestArrived(2, 6, 0.25);
  r.RequestArrived(3, 6, 0.5);
  Admitted(r, 1, 0.5);
  const auto run = [&](const MicroBatch& micro_batch, double now) {
    r.StageStarted(0, micro_batch, now);
    r.StageComputed(0, micro_batch, now + 0.5);
    r.MicroBatchCompleted(micro_batch, now + 0.5);
  };
  run(Prefill(0, 1, 0, 6), 0.5);
  run(Decode(1, 1, 6), 1.5);
  run(Decode(2, 1, 7), 2.5);
  r.StageStarted(0, Decode(3, 1, 8), 3.5);
  r.RequestFailed(1);
  r.PipelineLost(4);
  ASSERT_FALSE(r.timeline().load.empty());
  EXPECT_EQ(r.timeline().load.back().at_s, 4);
  EXPECT_EQ(r.timeline().load.back().waiting, 2);
  EXPECT_EQ(r.timeline().load.back().running, 0);
  EXPECT_EQ(r.timeline().load.back().kv_blocks, 0);
  r.RequestFailed(3);  // never admitted
  Admitted(r, 2, 5);
  run(Prefill(0, 2, 0, 6), 5);
  run(Decode(1, 2, 6), 6);
  Finished(r, 2, 6.5);
  const Result result = r.Finish();
  EXPECT_EQ(result.requests(), 3);
  EXPECT_EQ(result.failed(), 2);
  EXPECT_EQ(result.finished(), 1);
  EXPECT_EQ(result.output_tokens(), 2);
  EXPECT_EQ(result.ttft().count(), 1);
  // Between 5.5 and 6.5, as between those of request 1; only one is left.
  EXPECT_EQ(result.itl().count(), 1);
  EXPECT_EQ(result.itl().mean(), 1);
  EXPECT_EQ(result.queue_wait().count(), 1);
  EXPECT_EQ(result.queue_wait().max(), 4.75);
  // Five half seconds, and half a second until the loss.
  EXPECT_EQ(result.stages(0).busy_s(), 3);
  EXPECT_EQ(result.stages(0).micro_batches(), 5);
}

TEST(LossTest, StagesBeginAnewAndWhatWasOnItsWayIsForgotten) {
  Recorder r(2, /*keep_timeline=*/true);
  const MicroBatch mb0 = Prefill(0, 1, 0, 6);
  r.RequestArrived(1, 6, 0);
  Admitted(r, 1, 0);
  r.StageStarted(0, mb0, 0);
  r.StageComputed(0, mb0, 1);
  r.SendStarted(0, 1, mb0, 600, 1);
  const MicroBatch mb1 = Prefill(1, 1, 6, 6);
  r.StageStarted(0, mb1, 1);
  r.StageComputed(0, mb1, 2);
  r.SendDelivered(0, 1, mb0, 2);
  r.SendStarted(0, 1, mb1, 600, 2);
  r.RequestFailed(1);
  r.PipelineLost(3);
  r.RequestArrived(2, 6, 3);
  Admitted(r, 2, 4);
  const MicroBatch again = Prefill(0, 2, 0, 6);
  r.StageStarted(0, again, 4);
  r.StageComputed(0, again, 5);
  r.SendStarted(0, 1, again, 600, 5);
  r.SendDelivered(0, 1, again, 6);
  r.StageStarted(1, again, 6);
  r.StageComputed(1, again, 7);
  const Result result = r.Finish();
  EXPECT_EQ(result.hops(0).messages(), 3);
  EXPECT_EQ(result.hops(0).transfer_s(), 1 + 1);
  EXPECT_EQ(result.hops(0).exposed_s(), 1);  // 5 to 6
  ASSERT_THAT(r.timeline().transfers, SizeIs(3));
  EXPECT_EQ(r.timeline().transfers[0].end_s, 2);
  EXPECT_EQ(r.timeline().transfers[1].end_s, 2);  // never arrived
  EXPECT_EQ(r.timeline().transfers[2].end_s, 6);
}

TEST(LossTest, AnIdlePipelineStaysIdle) {
  Recorder r(1, false);
  r.RequestArrived(1, 6, 0);
  r.PipelineLost(1);
  Admitted(r, 1, 2);
  const MicroBatch mb0 = Prefill(0, 1, 0, 6);
  r.StageStarted(0, mb0, 2);
  r.StageComputed(0, mb0, 3);
  r.MicroBatchCompleted(mb0, 3);
  Finished(r, 1, 3);
  const Result result = r.Finish();
  EXPECT_EQ(result.stages(0).busy_s(), 1);
  EXPECT_EQ(result.failed(), 0);
}

// Stage 1's clock is a second slow, stage 0's tells the time.
TEST(ClocksTest, AMessageThatSeemsToArriveBeforeItLeftTookNoTime) {
  Recorder r(2, /*keep_timeline=*/true);
  const MicroBatch mb0 = Prefill(0, 1, 0, 6);
  r.RequestArrived(1, 6, 0);
  Admitted(r, 1, 0);
  r.StageStarted(0, mb0, 0);
  r.StageComputed(0, mb0, 2);
  r.SendStarted(0, 1, mb0, 600, 2);
  r.SendDelivered(0, 1, mb0, 1.25);
  r.StageStarted(1, mb0, 1.25);
  r.StageComputed(1, mb0, 2.25);
  r.SendStarted(1, 0, mb0, 4, 2.25);
  r.SendDelivered(1, 0, mb0, 2);  // by the head's clock
  r.MicroBatchCompleted(mb0, 3.5);
  const Result result = r.Finish();
  EXPECT_EQ(result.hops(0).transfer_s(), 0);
  EXPECT_EQ(result.hops(0).exposed_s(), 0);
  EXPECT_EQ(result.hops(1).transfer_s(), 0);
  EXPECT_EQ(result.stages(1).busy_s(), 1);
  for (const TransferSlice& slice : r.timeline().transfers) EXPECT_EQ(slice.start_s, slice.end_s);
}

TEST(ClocksTest, ABusyTimeIsNeverNegative) {
  Recorder r(2, /*keep_timeline=*/true);
  const MicroBatch mb0 = Prefill(0, 1, 0, 6);
  r.RequestArrived(1, 6, 0);
  r.StageStarted(0, mb0, 2);  // its clock is fast
  Admitted(r, 1, 1);
  r.PipelineLost(1);
  r.StageStarted(0, mb0, 3);
  r.StageComputed(0, mb0, 2.5);
  EXPECT_EQ(r.Finish().stages(0).busy_s(), 0);
  EXPECT_EQ(r.timeline().stages[0].start_s, 3);
  EXPECT_EQ(r.timeline().stages[0].end_s, 3);
}

TEST(MixedMicroBatchTest, IsKeptApartAndEachEntryCountsByItself) {
  Recorder r(1, /*keep_timeline=*/true);
  r.RequestArrived(1, 6, 0);
  r.RequestArrived(2, 4, 0);
  const MicroBatch mb0 = Prefill(0, 1, 0, 6);
  r.StageStarted(0, mb0, 0);
  r.StageComputed(0, mb0, 1);
  r.MicroBatchCompleted(mb0, 1);
  MicroBatch mixed = Decode(1, 1, 6);
  mixed.entries.push_back(
      {.request = 2, .first_token = 0, .tokens = 4, .decode = false, .samples = true});
  ComputeTime time;
  time.set_elementwise_s(1);
  time.set_collective_s(2);
  time.set_prefill_attention_s(3);
  r.StageStarted(0, mixed, 1);
  r.StageComputed(0, mixed, 7, &time);
  r.MicroBatchCompleted(mixed, 7);
  Finished(r, 1, 7);
  Finished(r, 2, 7);
  EXPECT_EQ(r.timeline().stages[1].decodes, 1);
  EXPECT_EQ(r.timeline().stages[1].prefill_tokens, 4);
  const Result result = r.Finish();
  EXPECT_EQ(result.stages(0).mixed().elementwise_s(), 1);
  EXPECT_EQ(result.stages(0).mixed().collective_s(), 2);
  EXPECT_EQ(result.stages(0).mixed().prefill_attention_s(), 3);
  EXPECT_EQ(result.stages(0).prefill().SerializeAsString(), "");
  EXPECT_EQ(result.stages(0).decode().SerializeAsString(), "");
  EXPECT_EQ(result.itl().count(), 1);
  EXPECT_EQ(result.itl().max(), 6);
  EXPECT_EQ(result.ttft().count(), 2);
}

TEST(LoadTest, ThePeakOfTheKvCacheIsKeptAndEqualSamplesAreOne) {
  Scheduler scheduler({.max_batch_tokens = 100,
                       .max_chunk_tokens = 50,
                       .max_running = 10,
                       .kv_block_tokens = 4,
                       .kv_blocks = 100});
  Recorder r(1, /*keep_timeline=*/true);
  r.Load(scheduler, 0);
  // 10 prompt tokens are 3 blocks of 4; one output token ends the request.
  scheduler.RequestArrived(1, 10, 1);
  ASSERT_EQ(scheduler.kv_blocks_used(), 3);
  r.Load(scheduler, 1);
  r.Load(scheduler, 2);  // nothing new
  scheduler.FirstStageDone(0);
  scheduler.MicroBatchCompleted(0);
  ASSERT_EQ(scheduler.kv_blocks_used(), 0);
  r.Load(scheduler, 3);
  EXPECT_EQ(r.Finish().kv_peak_blocks(), 3);
  std::vector<double> times;
  std::vector<int64_t> blocks;
  for (const LoadSample& sample : r.timeline().load) {
    times.push_back(sample.at_s);
    blocks.push_back(sample.kv_blocks);
  }
  EXPECT_THAT(times, ElementsAre(0, 1, 3));
  EXPECT_THAT(blocks, ElementsAre(0, 3, 0));
  EXPECT_EQ(r.timeline().load[1].running, 1);
  EXPECT_EQ(r.timeline().load[1].waiting, 0);
}

TEST(RecorderDeathTest, WhatADriverCannotHaveSeenIsABug) {
  const MicroBatch mb0 = Prefill(0, 1, 0, 6);
  const MicroBatch mb1 = Prefill(1, 1, 6, 6);
  Recorder r(2, false);
  r.RequestArrived(1, 12, 0);
  EXPECT_DEATH(r.StageComputed(0, mb0, 0), "stage 0 ends 0");
  EXPECT_DEATH(r.StageStarted(1, mb0, 0), "stage 1 runs 0 before its activations arrived");
  r.StageStarted(0, mb0, 0);
  EXPECT_DEATH(r.StageStarted(0, mb1, 0), "stage 0 starts 1");
  r.StageComputed(0, mb0, 1);
  r.SendStarted(0, 1, mb0, 600, 1);
  EXPECT_DEATH(r.SendDelivered(0, 1, mb1, 1), "hop 0 to 1 delivers 1 out of order");
}

}  // namespace
}  // namespace fabricast
