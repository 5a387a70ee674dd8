#include "runtime/scheduler/scheduler.h"

#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "runtime/scheduler/checked_scheduler.h"

namespace fabricast {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

// Actions in words; each event is also checked by CheckedScheduler.
class Tester {
 public:
  explicit Tester(const SchedulerOptions& options) : scheduler_(options) {}
  ~Tester() { EXPECT_EQ(scheduler_.error(), ""); }

  std::vector<std::string> Arrive(RequestId id, int64_t prompt, int64_t output) {
    return Words(scheduler_.RequestArrived(id, prompt, output));
  }
  std::vector<std::string> FirstStageDone(MicroBatchId id) {
    return Words(scheduler_.FirstStageDone(id));
  }
  std::vector<std::string> Completed(MicroBatchId id, std::vector<RequestId> stopped = {}) {
    return Words(scheduler_.MicroBatchCompleted(id, stopped));
  }
  // With one stage, or where only the completion matters.
  std::vector<std::string> Done(MicroBatchId id, std::vector<RequestId> stopped = {}) {
    std::vector<std::string> words = FirstStageDone(id);
    for (std::string& word : Completed(id, stopped)) words.push_back(std::move(word));
    return words;
  }
  std::vector<std::string> Cancel(RequestId id) { return Words(scheduler_.RequestCancelled(id)); }

  const Scheduler& scheduler() const { return scheduler_.scheduler(); }

 private:
  static std::vector<std::string> Words(const std::vector<Action>& actions) {
    std::vector<std::string> words;
    for (const Action& action : actions) words.push_back(ToString(action));
    return words;
  }
  CheckedScheduler scheduler_;
};

// Room for everything; tests narrow what they are about.
SchedulerOptions Roomy() {
  return {.max_in_flight = 1,
          .first_stage_queue = 1,
          .max_batch_tokens = 1000,
          .max_chunk_tokens = 100,
          .max_running = 100,
          .kv_block_tokens = 4,
          .kv_blocks = 1000};
}

SchedulerOptions With(void (*change)(SchedulerOptions&)) {
  SchedulerOptions options = Roomy();
  change(options);
  return options;
}

// Options

TEST(SchedulerTest, ValidateAcceptsTheDefaultsOnceTheCacheIsGiven) {
  EXPECT_THAT(std::string(Scheduler::Validate({}).message()), HasSubstr("kv_blocks is 0"));
  EXPECT_TRUE(Scheduler::Validate({.kv_blocks = 1}).ok());
}

TEST(SchedulerTest, ValidateNamesTheOptionThatIsOutOfRange) {
  const auto why = [](void (*change)(SchedulerOptions&)) {
    const absl::Status status = Scheduler::Validate(With(change));
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    return std::string(status.message());
  };
  EXPECT_THAT(why([](auto& o) { o.max_in_flight = 0; }), HasSubstr("max_in_flight is 0"));
  EXPECT_THAT(why([](auto& o) { o.first_stage_queue = -1; }), HasSubstr("first_stage_queue is -1"));
  EXPECT_THAT(why([](auto& o) { o.max_batch_tokens = 0; }), HasSubstr("max_batch_tokens is 0"));
  EXPECT_THAT(why([](auto& o) { o.max_chunk_tokens = 0; }), HasSubstr("max_chunk_tokens is 0"));
  EXPECT_THAT(why([](auto& o) { o.max_running = 0; }), HasSubstr("max_running is 0"));
  EXPECT_THAT(why([](auto& o) { o.kv_block_tokens = 0; }), HasSubstr("kv_block_tokens is 0"));
  EXPECT_THAT(why([](auto& o) { o.kv_blocks = std::numeric_limits<int64_t>::max(); }),
              HasSubstr("kv_blocks is 9223372036854775807"));
}

TEST(SchedulerTest, ValidateWantsRoomForPrefillBesideTheLargestShareOfDecodes) {
  // ceil(100 / 8) = 13 decodes.
  SchedulerOptions options = Roomy();
  options.max_running = 100;
  options.max_in_flight = 8;
  options.max_batch_tokens = 13;
  EXPECT_THAT(std::string(Scheduler::Validate(options).message()),
              HasSubstr("max_batch_tokens is 13; must be more than 13"));
  options.max_batch_tokens = 14;
  EXPECT_TRUE(Scheduler::Validate(options).ok());
}

// The life of a request

TEST(SchedulerTest, ARequestIsPrefilledThenDecodesTokenByTokenUntilItsLength) {
  Tester t(Roomy());
  // 10 + 3 tokens: the prefill samples output 1 of 3; the decode of output 1, at position 10,
  // samples output 2; that of output 2 samples output 3, which is never computed.
  EXPECT_THAT(t.Arrive(7, 10, 3), ElementsAre("admit 7", "launch 0: 7[0,10]s"));
  EXPECT_THAT(t.FirstStageDone(0), IsEmpty());
  EXPECT_THAT(t.Completed(0), ElementsAre("launch 1: 7[10,1]d"));
  EXPECT_THAT(t.FirstStageDone(1), IsEmpty());
  EXPECT_THAT(t.Completed(1), ElementsAre("launch 2: 7[11,1]d"));
  EXPECT_EQ(t.scheduler().kv_blocks_used(), 3);  // ceil(12 / 4)
  EXPECT_THAT(t.Done(2), ElementsAre("finish 7 length"));
  EXPECT_TRUE(t.scheduler().idle());
  EXPECT_EQ(t.scheduler().kv_blocks_used(), 0);
}

TEST(SchedulerTest, OneOutputTokenNeedsNoDecode) {
  Tester t(Roomy());
  EXPECT_THAT(t.Arrive(1, 1, 1), ElementsAre("admit 1", "launch 0: 1[0,1]s"));
  EXPECT_THAT(t.Done(0), ElementsAre("finish 1 length"));
}

TEST(SchedulerTest, AStoppedRequestFinishesWithTheTokenThatStoppedIt) {
  Tester t(Roomy());
  t.Arrive(1, 5, 100);
  t.Arrive(2, 5, 100);
  EXPECT_THAT(t.Done(0), ElementsAre("admit 2", "launch 1: 1[5,1]d 2[0,5]s"));
  EXPECT_THAT(t.Done(1, {2}), ElementsAre("finish 2 stop", "launch 2: 1[6,1]d"));
  EXPECT_THAT(t.Done(2, {1}), ElementsAre("finish 1 stop"));
}

TEST(SchedulerTest, StoppingAtTheLastAllowedTokenIsAStop) {
  Tester t(Roomy());
  t.Arrive(1, 5, 1);
  EXPECT_THAT(t.Done(0, {1}), ElementsAre("finish 1 stop"));
}

// Prefill

TEST(SchedulerTest, ChunksOfAPromptFollowEachOtherWithoutWaitingForCompletion) {
  Tester t(With([](auto& o) {
    o.max_in_flight = 3;
    o.max_chunk_tokens = 4;
  }));
  // 10 = 4 + 4 + 2; the first stage takes one at a time.
  EXPECT_THAT(t.Arrive(1, 10, 5), ElementsAre("admit 1", "launch 0: 1[0,4]"));
  EXPECT_THAT(t.FirstStageDone(0), ElementsAre("launch 1: 1[4,4]"));
  EXPECT_THAT(t.FirstStageDone(1), ElementsAre("launch 2: 1[8,2]s"));
  EXPECT_EQ(t.scheduler().in_flight(), 3);
  EXPECT_THAT(t.FirstStageDone(2), IsEmpty());
  EXPECT_THAT(t.Completed(0), IsEmpty());  // nothing left to compute before its token is known
  EXPECT_THAT(t.Completed(1), IsEmpty());
  EXPECT_THAT(t.Completed(2), ElementsAre("launch 3: 1[10,1]d"));
}

TEST(SchedulerTest, AQueueAtTheFirstStageIsFilled) {
  Tester t(With([](auto& o) {
    o.max_in_flight = 4;
    o.first_stage_queue = 2;
    o.max_chunk_tokens = 4;
  }));
  EXPECT_THAT(t.Arrive(1, 100, 5), ElementsAre("admit 1", "launch 0: 1[0,4]", "launch 1: 1[4,4]"));
  EXPECT_THAT(t.FirstStageDone(0), ElementsAre("launch 2: 1[8,4]"));
  EXPECT_THAT(t.FirstStageDone(1), ElementsAre("launch 3: 1[12,4]"));
  EXPECT_THAT(t.FirstStageDone(2), IsEmpty());  // 4 in flight
  EXPECT_THAT(t.Completed(0), ElementsAre("launch 4: 1[16,4]"));
}

TEST(SchedulerTest, SeveralPromptsShareTheChunkTokensOfAMicroBatch) {
  Tester t(With([](auto& o) { o.max_chunk_tokens = 6; }));
  t.Arrive(1, 6, 9);
  t.Arrive(2, 3, 9);
  t.Arrive(3, 5, 9);
  t.Arrive(4, 2, 9);
  // 6 = 3 + 3, then 6 > 2 + 2.
  EXPECT_THAT(t.Done(0), ElementsAre("admit 2", "admit 3", "launch 1: 1[6,1]d 2[0,3]s 3[0,3]"));
  EXPECT_THAT(t.Done(1), ElementsAre("admit 4", "launch 2: 1[7,1]d 2[3,1]d 3[3,2]s 4[0,2]s"));
}

TEST(SchedulerTest, DecodesCountAgainstTheTokensOfAMicroBatch) {
  Tester t(With([](auto& o) {
    o.max_running = 3;
    o.max_batch_tokens = 5;
  }));
  EXPECT_THAT(t.Arrive(1, 1, 9), ElementsAre("admit 1", "launch 0: 1[0,1]s"));
  t.Arrive(2, 1, 9);
  t.Arrive(3, 20, 9);
  // 5 = 1 decode + 1 + 3, then 5 = 2 decodes + 3.
  EXPECT_THAT(t.Done(0), ElementsAre("admit 2", "admit 3", "launch 1: 1[1,1]d 2[0,1]s 3[0,3]"));
  EXPECT_THAT(t.Done(1), ElementsAre("launch 2: 1[2,1]d 2[1,1]d 3[3,3]"));
}

// Decode

TEST(SchedulerTest, ADecodeWaitsForTheTokenBeforeIt) {
  Tester t(With([](auto& o) { o.max_in_flight = 4; }));
  t.Arrive(1, 4, 9);
  EXPECT_THAT(t.FirstStageDone(0), IsEmpty());  // three more could be in flight
  EXPECT_THAT(t.Completed(0), ElementsAre("launch 1: 1[4,1]d"));
  EXPECT_THAT(t.FirstStageDone(1), IsEmpty());
}

TEST(SchedulerTest, DecodesAreSpreadOverTheMicroBatchesInFlight) {
  Tester t(With([](auto& o) {
    o.max_in_flight = 4;
    o.max_chunk_tokens = 9;
  }));
  t.Arrive(0, 9, 1);  // so that all nine others are prefilled together
  for (RequestId id = 1; id <= 9; ++id) t.Arrive(id, 1, 100);
  t.FirstStageDone(0);
  EXPECT_THAT(t.Completed(0), ElementsAre("finish 0 length"));
  EXPECT_THAT(t.FirstStageDone(1), IsEmpty());
  // ceil(9 / 4) = 3 each, in the order in which they became ready.
  EXPECT_THAT(t.Completed(1), ElementsAre("launch 2: 1[1,1]d 2[1,1]d 3[1,1]d"));
  EXPECT_THAT(t.FirstStageDone(2), ElementsAre("launch 3: 4[1,1]d 5[1,1]d 6[1,1]d"));
  EXPECT_THAT(t.FirstStageDone(3), ElementsAre("launch 4: 7[1,1]d 8[1,1]d 9[1,1]d"));
  EXPECT_THAT(t.FirstStageDone(4), IsEmpty());
  EXPECT_THAT(t.Completed(2), ElementsAre("launch 5: 1[2,1]d 2[2,1]d 3[2,1]d"));
}

TEST(SchedulerTest, DecodesTakeTurns) {
  Tester t(With([](auto& o) {
    o.max_in_flight = 2;
    o.max_chunk_tokens = 3;
  }));
  t.Arrive(0, 3, 1);
  for (RequestId id = 1; id <= 3; ++id) t.Arrive(id, 1, 100);
  t.FirstStageDone(0);
  t.Completed(0);
  t.FirstStageDone(1);
  // ceil(3 / 2) = 2 and the rest; then those that became ready first.
  EXPECT_THAT(t.Completed(1), ElementsAre("launch 2: 1[1,1]d 2[1,1]d"));
  EXPECT_THAT(t.FirstStageDone(2), ElementsAre("launch 3: 3[1,1]d"));
  EXPECT_THAT(t.Completed(2), IsEmpty());  // the first stage is busy with 3
  EXPECT_THAT(t.FirstStageDone(3), ElementsAre("launch 4: 1[2,1]d 2[2,1]d"));
  EXPECT_THAT(t.FirstStageDone(4), IsEmpty());
  EXPECT_THAT(t.Completed(3), ElementsAre("launch 5: 3[2,1]d"));
}

TEST(SchedulerTest, ALongPromptDoesNotHoldUpDecodesNorTheyIt) {
  Tester t(With([](auto& o) { o.max_chunk_tokens = 4; }));
  t.Arrive(1, 4, 100);
  t.Arrive(2, 12, 100);
  EXPECT_THAT(t.Done(0), ElementsAre("admit 2", "launch 1: 1[4,1]d 2[0,4]"));
  EXPECT_THAT(t.Done(1), ElementsAre("launch 2: 1[5,1]d 2[4,4]"));
  EXPECT_THAT(t.Done(2), ElementsAre("launch 3: 1[6,1]d 2[8,4]s"));
  EXPECT_THAT(t.Done(3), ElementsAre("launch 4: 1[7,1]d 2[12,1]d"));
}

TEST(SchedulerTest, NothingIsLaunchedWhenThereIsNothingToCompute) {
  Tester t(With([](auto& o) { o.max_in_flight = 2; }));
  t.Arrive(1, 4, 2);
  EXPECT_THAT(t.FirstStageDone(0), IsEmpty());
  EXPECT_THAT(t.Completed(0), ElementsAre("launch 1: 1[4,1]d"));
  EXPECT_THAT(t.FirstStageDone(1), IsEmpty());
  EXPECT_THAT(t.Completed(1), ElementsAre("finish 1 length"));
}

// Admission

TEST(SchedulerTest, OnlyWhatCanNeverFitTheCacheIsRejected) {
  // 4 blocks x 4 = 16 places. The last output token takes none: 10 + 7 - 1 = 16.
  Tester t(With([](auto& o) { o.kv_blocks = 4; }));
  EXPECT_THAT(t.Arrive(1, 10, 8),
              ElementsAre("reject 1 RESOURCE_EXHAUSTED: a prompt of 10 tokens with up to 8 of "
                          "output, the last of which is not cached, does not fit the KV cache of 4 "
                          "blocks x 4 = 16 tokens: shorten one of them or give the cache more "
                          "blocks"));
  EXPECT_TRUE(t.scheduler().idle());
  EXPECT_THAT(t.Arrive(2, 10, 7), ElementsAre("admit 2", "launch 0: 2[0,10]s"));
  for (MicroBatchId id = 0; id < 6; ++id) t.Done(id);
  EXPECT_EQ(t.scheduler().kv_blocks_used(), 4);
  EXPECT_THAT(t.Done(6), ElementsAre("finish 2 length"));
  EXPECT_THAT(t.Arrive(3, 16, 1), ElementsAre("admit 3", "launch 7: 3[0,16]s"));
  EXPECT_THAT(t.Arrive(4, 17, 1), ElementsAre(HasSubstr("reject 4 RESOURCE_EXHAUSTED")));
}

TEST(SchedulerTest, EmptyPromptsEmptyOutputsAndHugeNumbersAreRejected) {
  Tester t(Roomy());
  const int64_t huge = std::numeric_limits<int64_t>::max();
  EXPECT_THAT(t.Arrive(1, 0, 1), ElementsAre(HasSubstr("reject 1 INVALID_ARGUMENT: the prompt")));
  EXPECT_THAT(t.Arrive(2, 1, 0), ElementsAre(HasSubstr("reject 2 INVALID_ARGUMENT: max_output")));
  EXPECT_THAT(t.Arrive(3, -huge, 1), ElementsAre(HasSubstr("reject 3 INVALID_ARGUMENT")));
  EXPECT_THAT(t.Arrive(4, huge, huge), ElementsAre(HasSubstr("reject 4 RESOURCE_EXHAUSTED")));
  EXPECT_THAT(t.Arrive(5, 1, huge), ElementsAre(HasSubstr("reject 5 RESOURCE_EXHAUSTED")));
}

TEST(SchedulerTest, NoRequestIsAdmittedBeyondMaxRunning) {
  Tester t(With([](auto& o) { o.max_running = 2; }));
  t.Arrive(1, 4, 2);
  t.Arrive(2, 4, 3);
  t.Arrive(3, 4, 2);
  EXPECT_THAT(t.Done(0), ElementsAre("admit 2", "launch 1: 1[4,1]d 2[0,4]s"));
  EXPECT_EQ(t.scheduler().running(), 2);
  EXPECT_EQ(t.scheduler().waiting(), 1);
  EXPECT_THAT(t.Done(1), ElementsAre("finish 1 length", "admit 3", "launch 2: 2[4,1]d 3[0,4]s"));
}

TEST(SchedulerTest, AdmissionLeavesOnePercentOfTheBlocks) {
  // ceil(101 / 100) = 2 of 101 blocks stay free, so beside 1 block 98 may be taken.
  const auto options = With([](auto& o) {
    o.kv_blocks = 101;
    o.max_chunk_tokens = 500;
  });
  Tester fits(options);
  fits.Arrive(1, 3, 9);
  fits.Arrive(2, 98 * 4, 1);
  EXPECT_THAT(fits.Done(0), ElementsAre("admit 2", "launch 1: 1[3,1]d 2[0,392]s"));
  Tester does_not(options);
  does_not.Arrive(1, 3, 9);
  does_not.Arrive(2, 98 * 4 + 1, 1);
  EXPECT_THAT(does_not.Done(0), ElementsAre("launch 1: 1[3,1]d"));
}

TEST(SchedulerTest, WithNothingRunningARequestMayTakeTheWholeCache) {
  Tester t(With([](auto& o) { o.kv_blocks = 3; }));
  EXPECT_THAT(t.Arrive(1, 12, 1), ElementsAre("admit 1", "launch 0: 1[0,12]s"));
  EXPECT_EQ(t.scheduler().kv_blocks_used(), 3);
}

TEST(SchedulerTest, OnlyTheFirstChunkNeedsItsBlocksForAdmission) {
  Tester t(With([](auto& o) {
    o.kv_blocks = 10;
    o.max_chunk_tokens = 8;
  }));
  t.Arrive(1, 8, 9);
  t.Arrive(2, 32, 1);  // 8 blocks in all, 2 for the first chunk
  EXPECT_THAT(t.Done(0), ElementsAre("admit 2", "launch 1: 1[8,1]d 2[0,8]"));
}

TEST(SchedulerTest, ASmallRequestDoesNotOvertakeALargeOne) {
  Tester t(With([](auto& o) { o.kv_blocks = 10; }));
  t.Arrive(1, 4, 2);
  t.Arrive(2, 33, 1);  // 9 blocks and 1 that stays free; 2 are used by the next decode of 1
  t.Arrive(3, 1, 1);
  EXPECT_THAT(t.Done(0), ElementsAre("launch 1: 1[4,1]d"));
  EXPECT_THAT(t.Done(1), ElementsAre("finish 1 length", "admit 2", "launch 2: 2[0,33]s"));
  // 10 - 9 - 1 = 0 for 3.
  EXPECT_THAT(t.Done(2), ElementsAre("finish 2 length", "admit 3", "launch 3: 3[0,1]s"));
}

// KV blocks and preemption

TEST(SchedulerTest, ADecodeWithoutABlockPreemptsTheRequestThatArrivedLast) {
  Tester t(With([](auto& o) { o.kv_blocks = 6; }));
  t.Arrive(1, 7, 9);  // 2 blocks, a 3rd with its 9th token
  t.Arrive(2, 3, 9);  // 1 block, a 2nd with its 5th token
  t.Arrive(3, 4, 9);  // 1 block, a 2nd with its 5th token; 2 + 1 + 1 + 1 that stays free <= 6
  EXPECT_THAT(t.Done(0), ElementsAre("admit 2", "admit 3", "launch 1: 1[7,1]d 2[0,3]s 3[0,4]s"));
  EXPECT_EQ(t.scheduler().kv_blocks_used(), 4);
  // 3 blocks for 9 tokens of 1, 1 for 4 of 2, 2 for 5 of 3: 6 of 6.
  EXPECT_THAT(t.Done(1), ElementsAre("launch 2: 1[8,1]d 2[3,1]d 3[4,1]d"));
  EXPECT_EQ(t.scheduler().kv_blocks_used(), 6);
  // 2 needs a block for its 5th token; 3, idle and the last to arrive, gives it.
  EXPECT_THAT(t.Done(2), ElementsAre("preempt 3", "launch 3: 1[9,1]d 2[4,1]d"));
  EXPECT_EQ(t.scheduler().kv_blocks_used(), 5);
  EXPECT_EQ(t.scheduler().preemptions(), 1);
  EXPECT_EQ(t.scheduler().running(), 2);
  EXPECT_EQ(t.scheduler().waiting(), 1);
}

TEST(SchedulerTest, APreemptedRequestIsComputedAgainWithItsOutputsAndSamplesTheNextOne) {
  Tester t(With([](auto& o) { o.kv_blocks = 4; }));
  t.Arrive(1, 7, 7);
  t.Arrive(2, 4, 3);
  t.Arrive(3, 1, 1);
  // 2 + 1 blocks, and the 4th stays free: 3 waits.
  EXPECT_THAT(t.Done(0), ElementsAre("admit 2", "launch 1: 1[7,1]d 2[0,4]s"));
  // 1 takes the last block for its 9th token; 2 finds none for its 5th, and no running request
  // arrived later: it waits.
  EXPECT_THAT(t.Done(1), ElementsAre("launch 2: 1[8,1]d"));
  EXPECT_EQ(t.scheduler().kv_blocks_used(), 4);
  EXPECT_THAT(t.Done(2), ElementsAre("launch 3: 1[9,1]d"));
  t.Done(3);
  t.Done(4);  // token 12 of 1, the last of its third block, is in flight
  // Output 7 of 1 is sampled by its 13th token, which needs the 4th block: of 2, which has
  // sampled 1.
  EXPECT_THAT(t.Done(5), ElementsAre("preempt 2", "launch 6: 1[12,1]d"));
  // 2 comes before 3, which arrived later. Its 4 + 1 known tokens are computed again, and the last
  // chunk samples output 2 of 3, so one decode follows.
  EXPECT_THAT(t.Done(6), ElementsAre("finish 1 length", "admit 3", "launch 7: 2[0,5]s 3[0,1]s"));
  EXPECT_THAT(t.Done(7), ElementsAre("finish 3 length", "launch 8: 2[5,1]d"));
  EXPECT_THAT(t.Done(8), ElementsAre("finish 2 length"));
}

TEST(SchedulerTest, ARequestInFlightIsNeverPreempted) {
  Tester t(With([](auto& o) {
    o.kv_blocks = 4;
    o.max_in_flight = 2;
  }));
  // 2 blocks for 6 tokens of 1, 1 for 4 of 2, and 1 stays free. ceil(2 / 2) = 1 decode each.
  t.Arrive(1, 6, 9);
  t.Arrive(2, 4, 9);
  EXPECT_THAT(t.FirstStageDone(0), ElementsAre("admit 2", "launch 1: 2[0,4]s"));
  EXPECT_THAT(t.FirstStageDone(1), IsEmpty());
  EXPECT_THAT(t.Completed(0), ElementsAre("launch 2: 1[6,1]d"));
  EXPECT_THAT(t.FirstStageDone(2), IsEmpty());
  EXPECT_THAT(t.Completed(1), ElementsAre("launch 3: 2[4,1]d"));  // the last block
  EXPECT_THAT(t.FirstStageDone(3), IsEmpty());
  EXPECT_THAT(t.Completed(2), ElementsAre("launch 4: 1[7,1]d"));
  EXPECT_THAT(t.FirstStageDone(4), IsEmpty());
  EXPECT_THAT(t.Completed(3), ElementsAre("launch 5: 2[5,1]d"));
  EXPECT_THAT(t.FirstStageDone(5), IsEmpty());
  // 1 needs a third block, but 2 is in flight; when it is back, it gives its blocks.
  EXPECT_THAT(t.Completed(4), IsEmpty());
  EXPECT_EQ(t.scheduler().preemptions(), 0);
  EXPECT_THAT(t.Completed(5), ElementsAre("preempt 2", "launch 6: 1[8,1]d"));
}

TEST(SchedulerTest, ADecodeDoesNotPreemptAnOlderRequest) {
  Tester t(With([](auto& o) {
    o.kv_blocks = 3;
    o.max_in_flight = 2;
  }));
  // 1 block each, and 1 stays free.
  t.Arrive(1, 3, 9);
  t.Arrive(2, 3, 9);
  EXPECT_THAT(t.FirstStageDone(0), ElementsAre("admit 2", "launch 1: 2[0,3]s"));
  EXPECT_THAT(t.FirstStageDone(1), IsEmpty());
  EXPECT_THAT(t.Completed(0), ElementsAre("launch 2: 1[3,1]d"));
  EXPECT_THAT(t.FirstStageDone(2), IsEmpty());
  EXPECT_THAT(t.Completed(1), ElementsAre("launch 3: 2[3,1]d"));
  EXPECT_THAT(t.FirstStageDone(3), IsEmpty());
  EXPECT_THAT(t.Completed(2), ElementsAre("launch 4: 1[4,1]d"));  // the last block
  EXPECT_THAT(t.FirstStageDone(4), IsEmpty());
  // 2 needs a block; none arrived later. It keeps its place and its block, and waits.
  EXPECT_THAT(t.Completed(3), IsEmpty());
  EXPECT_THAT(t.Completed(4), ElementsAre("launch 5: 1[5,1]d"));
  EXPECT_EQ(t.scheduler().preemptions(), 0);
  EXPECT_EQ(t.scheduler().kv_blocks_used(), 3);
}

TEST(SchedulerTest, APreemptedRequestWaitsUntilAllItsKnownTokensFit) {
  Tester t(With([](auto& o) {
    o.kv_blocks = 6;
    o.max_chunk_tokens = 4;
  }));
  t.Arrive(1, 4, 20);
  t.Arrive(2, 12, 2);
  MicroBatchId last = 0;
  // 2 has 3 blocks after its chunks of 4; 1 has 2.
  EXPECT_THAT(t.Done(last++), ElementsAre("admit 2", "launch 1: 1[4,1]d 2[0,4]"));
  EXPECT_THAT(t.Done(last++), ElementsAre("launch 2: 1[5,1]d 2[4,4]"));
  EXPECT_THAT(t.Done(last++), ElementsAre("launch 3: 1[6,1]d 2[8,4]s"));
  // 2's 13th token takes the 6th and last block, and is the last that it computes.
  EXPECT_THAT(t.Done(last++), ElementsAre("launch 4: 1[7,1]d 2[12,1]d"));
  EXPECT_THAT(t.Done(last++), ElementsAre("finish 2 length", "launch 5: 1[8,1]d"));
  // A third one is preempted while it prefills: 1 has 3 blocks, 3 gets up to 3.
  t.Arrive(3, 14, 1);
  EXPECT_THAT(t.Done(last++), ElementsAre("admit 3", "launch 6: 1[9,1]d 3[0,4]"));
  EXPECT_THAT(t.Done(last++), ElementsAre("launch 7: 1[10,1]d 3[4,4]"));
  EXPECT_THAT(t.Done(last++), ElementsAre("launch 8: 1[11,1]d 3[8,4]"));
  EXPECT_THAT(t.Done(last++), ElementsAre("preempt 3", "launch 9: 1[12,1]d"));
  // 6 - 4 = 2 blocks are free: enough for a chunk of 4 tokens and one that stays free, but not for
  // all 14 tokens.
  EXPECT_EQ(t.scheduler().kv_blocks_used(), 4);
  while (!t.scheduler().idle() && t.scheduler().waiting() > 0) t.Done(last++);
  EXPECT_EQ(t.scheduler().kv_blocks_used(), 1);
  EXPECT_EQ(t.scheduler().running(), 1);
}

TEST(SchedulerTest, AChunkIsCutToTheFreeBlocks) {
  Tester t(With([](auto& o) {
    o.kv_blocks = 6;
    o.max_chunk_tokens = 8;
  }));
  t.Arrive(1, 8, 9);
  t.Arrive(2, 20, 1);
  EXPECT_THAT(t.Done(0), ElementsAre("admit 2", "launch 1: 1[8,1]d 2[0,8]"));
  EXPECT_EQ(t.scheduler().kv_blocks_used(), 5);
  EXPECT_THAT(t.Done(1), ElementsAre("launch 2: 1[9,1]d 2[8,4]"));
  // No block is left: the chunk waits, and does not preempt, for 1 is older.
  EXPECT_THAT(t.Done(2), ElementsAre("launch 3: 1[10,1]d"));
  EXPECT_EQ(t.scheduler().preemptions(), 0);
}

TEST(SchedulerTest, TheOldestRequestPreemptsForItsPrompt) {
  // A block is a token. 28 hold 1 (10 + 6 - 1 = 15) and either 2 (13 + 4 = 17) or 3 (12 + 4 = 16).
  Tester t(With([](auto& o) {
    o.max_in_flight = 2;
    o.max_chunk_tokens = 3;
    o.kv_block_tokens = 1;
    o.kv_blocks = 28;
  }));
  t.Arrive(1, 10, 6);
  t.FirstStageDone(0);
  t.Arrive(2, 13, 5);
  t.FirstStageDone(1);
  t.Completed(0);
  t.FirstStageDone(2);
  EXPECT_THAT(t.Completed(1), ElementsAre("admit 2", "launch 3: 1[9,1]s 2[0,2]"));
  t.FirstStageDone(3);
  t.Completed(2);
  t.Completed(3);
  t.FirstStageDone(4);
  t.FirstStageDone(5);
  t.Arrive(3, 12, 5);
  t.Completed(4);
  t.FirstStageDone(6);
  EXPECT_THAT(t.Completed(5), ElementsAre("admit 3", "launch 7: 1[11,1]d 2[11,2]s 3[0,1]"));
  t.FirstStageDone(7);
  EXPECT_THAT(t.Completed(6), ElementsAre("launch 8: 3[1,2]"));
  t.FirstStageDone(8);
  // 12 + 13 + 3 = 28 blocks. 1 needs one; 3 is younger than 2, but in flight.
  EXPECT_THAT(t.Completed(7), ElementsAre("preempt 2", "launch 9: 1[12,1]d 3[3,3]"));
  t.FirstStageDone(9);
  t.Completed(8);
  t.FirstStageDone(10);
  EXPECT_THAT(t.Completed(9), ElementsAre("launch 11: 1[13,1]d 3[9,3]s"));
  t.FirstStageDone(11);
  t.Completed(10);
  t.Completed(11);
  t.FirstStageDone(12);
  // 1 ends. 13 blocks are 3's; 15 are free, enough for the 13 + 1 tokens of 2 and one beside.
  EXPECT_THAT(t.Completed(12), ElementsAre("finish 1 length"));
  EXPECT_THAT(t.FirstStageDone(13), ElementsAre("launch 14: 2[0,3]"));
  t.FirstStageDone(14);
  EXPECT_THAT(t.Completed(13), ElementsAre("launch 15: 3[13,1]d 2[3,3]"));
  t.FirstStageDone(15);
  t.Completed(14);
  t.Completed(15);
  t.FirstStageDone(16);
  t.Completed(16);
  // 15 of 3 and 12 of 2 leave one block, which 2, now the oldest, gets.
  EXPECT_EQ(t.scheduler().kv_blocks_used(), 27);
  EXPECT_THAT(t.FirstStageDone(17), ElementsAre("launch 18: 2[12,1]"));
  t.Completed(17);
  // Its last chunk finds none. Without preemption 2 and 3 would wait for each other for ever.
  EXPECT_THAT(t.FirstStageDone(18), ElementsAre("preempt 3", "launch 19: 2[13,1]s"));
}

// Cancellation

TEST(SchedulerTest, ACancelledRequestThatWaitsEndsAtOnce) {
  Tester t(Roomy());
  t.Arrive(1, 4, 9);
  t.Arrive(2, 4, 9);
  EXPECT_THAT(t.Cancel(2), ElementsAre("finish 2 cancelled"));
  EXPECT_THAT(t.Done(0), ElementsAre("launch 1: 1[4,1]d"));
}

TEST(SchedulerTest, ACancelledRequestInFlightEndsWhenItsMicroBatchesComplete) {
  Tester t(With([](auto& o) {
    o.max_in_flight = 3;
    o.max_chunk_tokens = 4;
  }));
  t.Arrive(1, 100, 9);
  t.FirstStageDone(0);
  EXPECT_THAT(t.Cancel(1), IsEmpty());
  EXPECT_EQ(t.scheduler().running(), 1);
  EXPECT_EQ(t.scheduler().kv_blocks_used(), 2);
  EXPECT_THAT(t.FirstStageDone(1), IsEmpty());  // no further chunk
  EXPECT_THAT(t.Completed(0), IsEmpty());
  EXPECT_THAT(t.Completed(1), ElementsAre("finish 1 cancelled"));
  EXPECT_EQ(t.scheduler().kv_blocks_used(), 0);
}

TEST(SchedulerTest, ARequestThatStopsAfterItsCancellationIsCancelled) {
  Tester t(Roomy());
  t.Arrive(1, 4, 9);
  EXPECT_THAT(t.Cancel(1), IsEmpty());
  EXPECT_THAT(t.Cancel(1), IsEmpty());  // once is enough
  EXPECT_THAT(t.Done(0, {1}), ElementsAre("finish 1 cancelled"));
}

TEST(SchedulerTest, ARequestCancelledInFlightIsCancelledEvenIfItsLastTokenIsSampled) {
  Tester t(Roomy());
  t.Arrive(1, 4, 1);
  EXPECT_THAT(t.Cancel(1), IsEmpty());
  EXPECT_THAT(t.Done(0), ElementsAre("finish 1 cancelled"));
}

TEST(SchedulerTest, CancellingAnIdleRequestMakesRoomForTheNext) {
  Tester t(With([](auto& o) {
    o.kv_blocks = 3;
    o.max_in_flight = 2;
  }));
  t.Arrive(1, 3, 9);
  t.Arrive(2, 3, 9);
  t.Arrive(3, 4, 1);
  t.FirstStageDone(0);
  t.FirstStageDone(1);
  t.Completed(0);
  t.FirstStageDone(2);
  t.Completed(1);
  t.FirstStageDone(3);
  t.Completed(2);
  t.FirstStageDone(4);
  EXPECT_THAT(t.Completed(3), IsEmpty());  // 2 lacks a block and is idle; 3 waits behind it
  EXPECT_THAT(t.Cancel(2), ElementsAre("finish 2 cancelled"));  // 1 of 3 free: it stays free
  EXPECT_THAT(t.Cancel(1), IsEmpty());
  EXPECT_THAT(t.Completed(4), ElementsAre("finish 1 cancelled", "admit 3", "launch 5: 3[0,4]s"));
}

TEST(SchedulerTest, APreemptedRequestCanBeCancelled) {
  Tester t(With([](auto& o) { o.kv_blocks = 6; }));
  t.Arrive(1, 7, 9);
  t.Arrive(2, 3, 9);
  t.Arrive(3, 4, 9);
  t.Done(0);
  t.Done(1);
  EXPECT_THAT(t.Done(2), ElementsAre("preempt 3", "launch 3: 1[9,1]d 2[4,1]d"));
  EXPECT_THAT(t.Cancel(3), ElementsAre("finish 3 cancelled"));
  EXPECT_EQ(t.scheduler().waiting(), 0);
}

TEST(SchedulerTest, CancellingWhatIsUnknownOrOverIsIgnored) {
  Tester t(Roomy());
  EXPECT_THAT(t.Cancel(1), IsEmpty());
  EXPECT_THAT(t.Arrive(1, 4, 1), ElementsAre("admit 1", "launch 0: 1[0,4]s"));
  t.Done(0);
  EXPECT_THAT(t.Cancel(1), IsEmpty());
}

// The driver's mistakes

using SchedulerDeathTest = ::testing::Test;

TEST(SchedulerDeathTest, OptionsMustBeValid) {
  EXPECT_DEATH(Scheduler(SchedulerOptions{}), "kv_blocks is 0");
}

TEST(SchedulerDeathTest, ARequestArrivesOnce) {
  Scheduler scheduler(Roomy());
  scheduler.RequestArrived(5, 4, 4);
  EXPECT_DEATH(scheduler.RequestArrived(5, 4, 4), "request 5 arrives while it is known");
  EXPECT_DEATH(scheduler.RequestArrived(5, 0, 4), "request 5 arrives while it is known");
}

TEST(SchedulerDeathTest, MicroBatchesPassTheFirstStageInOrder) {
  Scheduler scheduler(Roomy());
  EXPECT_DEATH(scheduler.FirstStageDone(0), "micro-batch 0; 0 are launched");
  scheduler.RequestArrived(1, 4, 4);
  EXPECT_DEATH(scheduler.FirstStageDone(1), "micro-batch 1; 1 are launched, .* to be done is 0");
  scheduler.FirstStageDone(0);
  EXPECT_DEATH(scheduler.FirstStageDone(0), "micro-batch 0; 1 are launched, .* to be done is 1");
}

TEST(SchedulerDeathTest, MicroBatchesCompleteInOrderAndAfterTheFirstStage) {
  SchedulerOptions options = Roomy();
  options.max_in_flight = 2;
  options.max_chunk_tokens = 4;
  Scheduler scheduler(options);
  scheduler.RequestArrived(1, 100, 4);
  EXPECT_DEATH(scheduler.MicroBatchCompleted(0), "micro-batch 0 is completed; 0 are through");
  scheduler.FirstStageDone(0);
  scheduler.FirstStageDone(1);
  EXPECT_DEATH(scheduler.MicroBatchCompleted(1), "micro-batch 1 .* to be completed is 0");
}

TEST(SchedulerDeathTest, OnlyARequestThatSampledCanHaveStopped) {
  SchedulerOptions options = Roomy();
  options.max_chunk_tokens = 4;
  Scheduler scheduler(options);
  scheduler.RequestArrived(1, 5, 4);
  scheduler.FirstStageDone(0);
  const RequestId one[] = {1}, unknown[] = {9}, twice[] = {1, 1};
  EXPECT_DEATH(scheduler.MicroBatchCompleted(0, unknown), "request 9 stopped in micro-batch 0");
  EXPECT_DEATH(scheduler.MicroBatchCompleted(0, one), "request 1 stopped .* 0 but samples in -1");
  scheduler.MicroBatchCompleted(0);
  scheduler.FirstStageDone(1);
  EXPECT_DEATH(scheduler.MicroBatchCompleted(1, twice), "request 1 is named twice");
}

}  // namespace
}  // namespace fabricast
