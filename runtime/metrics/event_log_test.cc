#include "runtime/metrics/event_log.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "runtime/metrics/testing.h"

namespace fabricast {
namespace {

using ::testing::HasSubstr;
using ::testing::SizeIs;

TEST(EventLogTest, TheWayOfAMicroBatchIsReadAsItWasWritten) {
  const RunEvents events =
      HandMadeRun(2)
          .Arrive(7, 100, 50)
          .Run({Prefill(7, 0, 100, true)}, 51, {{52, 62, 63, 65}, {66, 86, 87, 90}})
          .Run({Decode(7, 100)}, 91, {{92, 93, 94, 95}, {96, 97, 98, 99}})
          .End(7)
          .Events();
  // Times are since the first arrival, at 50 ms.
  ASSERT_THAT(events.requests, SizeIs(1));
  EXPECT_EQ(events.requests[0].id, 7);
  EXPECT_EQ(events.requests[0].arrival_ns, 0);
  EXPECT_EQ(events.requests[0].prompt_tokens, 100);
  EXPECT_EQ(events.requests[0].outcome, EventLog::FINISHED);
  ASSERT_THAT(events.steps, SizeIs(2));
  EXPECT_EQ(events.steps[0].launched_ns, 1 * kMs);
  EXPECT_EQ(events.steps[0].prefill_tokens, 100);
  EXPECT_EQ(events.steps[1].launched_ns, 41 * kMs);
  EXPECT_EQ(events.steps[1].decodes, 1);
  const RunEvents::StageTimes& first = events.At(0, 0);
  EXPECT_EQ(first.ready_ns, 1 * kMs);
  EXPECT_EQ(first.started_ns, 2 * kMs);
  EXPECT_EQ(first.computed_ns, 12 * kMs);
  EXPECT_EQ(first.sent_ns, 13 * kMs);
  EXPECT_EQ(first.delivered_ns, 15 * kMs);
  EXPECT_EQ(events.At(0, 1).ready_ns, 15 * kMs);
  EXPECT_EQ(events.At(0, 1).started_ns, 16 * kMs);
  EXPECT_EQ(events.CompletedNs(0), 40 * kMs);
  EXPECT_EQ(events.CompletedNs(1), 49 * kMs);
  ASSERT_THAT(events.EntriesOf(1), SizeIs(1));
  EXPECT_EQ(events.EntriesOf(1)[0].first_token, 100);
  EXPECT_TRUE(events.EntriesOf(1)[0].decode);
  EXPECT_TRUE(events.EntriesOf(1)[0].samples);
}

TEST(EventLogTest, EntriesKeepTheirOrderChunksAndRecomputation) {
  const std::vector<StageMs> soon = {{1, 2, 2, 3}};
  const RunEvents events = HandMadeRun(1)
                               .Arrive(3, 10, 0)
                               .Arrive(1, 20, 0)
                               .Run({Prefill(3, 0, 6, false)}, 0, soon)
                               .Run({Prefill(3, 6, 4, true), Prefill(1, 0, 8, false)}, 0, soon)
                               .Run({Decode(3, 10), Prefill(1, 8, 12, true)}, 0, soon)
                               .Run({Prefill(3, 0, 11, false)}, 0, soon)
                               .Events();
  ASSERT_THAT(events.entries, SizeIs(6));
  const RunEvents::Entry& other = events.entries[2];
  EXPECT_EQ(events.requests[other.request].id, 1);
  EXPECT_EQ(other.first_token, 0);
  EXPECT_EQ(other.tokens, 8);
  EXPECT_FALSE(other.samples);
  EXPECT_EQ(events.entries[3].first_token, 10);
  EXPECT_EQ(events.entries[4].first_token, 8);
  EXPECT_EQ(events.entries[4].tokens, 12);
  EXPECT_TRUE(events.entries[4].samples);
  const RunEvents::Entry& again = events.entries[5];
  EXPECT_EQ(events.requests[again.request].id, 3);
  EXPECT_EQ(again.first_token, 0);
  EXPECT_EQ(again.tokens, 11);
}

TEST(EventLogTest, AfterALossMicroBatchesBeginAgainAndWhatWasInFlightNeverCame) {
  const RunEvents events =
      HandMadeRun(2)
          .Arrive(0, 5, 0)
          .Arrive(1, 5, 0)
          .Run({Prefill(0, 0, 5, true)}, 0, {{0, 1, 1, 2}, {2, 3, 3, 4}})
          .Run({Decode(0, 5)}, 4, {{5, 6, 6, 7}})
          .Run({Decode(0, 6)}, 5, {})
          .End(0, EventLog::FAILED)
          .Lose()
          .Run({Prefill(1, 0, 5, true)}, 20, {{20, 21, 21, 22}, {22, 23, 23, 24}})
          .End(1)
          .Events();
  EXPECT_EQ(events.generations, 2);
  ASSERT_THAT(events.steps, SizeIs(4));
  EXPECT_EQ(events.At(1, 0).delivered_ns, 7 * kMs);
  EXPECT_EQ(events.At(1, 1).ready_ns, 7 * kMs);
  EXPECT_EQ(events.At(1, 1).started_ns, kNever);
  EXPECT_EQ(events.CompletedNs(1), kNever);
  EXPECT_EQ(events.At(2, 0).ready_ns, 5 * kMs);
  EXPECT_EQ(events.At(2, 0).started_ns, kNever);
  EXPECT_EQ(events.steps[3].generation, 1);
  EXPECT_EQ(events.steps[3].id, 0);
  EXPECT_EQ(events.CompletedNs(3), 24 * kMs);
  EXPECT_EQ(events.requests[0].outcome, EventLog::FAILED);
}

TEST(EventLogTest, ALinkBetweenTwoClocksMayBeNegative) {
  const RunEvents events = HandMadeRun(2)
                               .Arrive(0, 5, 0)
                               .Run({Prefill(0, 0, 5, true)}, 0, {{1, 5, 5, 4}, {6, 7, 7, 8}})
                               .Events();
  EXPECT_EQ(events.At(0, 0).sent_ns, 5 * kMs);
  EXPECT_EQ(events.At(0, 0).delivered_ns, 4 * kMs);
}

// 16 decodes in each of 20,000 micro-batches on three stages, every time a little different:
// 240,000 times and 320,000 entries.
TEST(EventLogTest, AMicroBatchOnThreeStagesTakesLessThanFortyBytes) {
  constexpr int kSteps = 20'000;
  constexpr int kRequests = 96;  // six micro-batches of them
  std::mt19937 random(1);
  std::normal_distribution<double> jitter(0, 0.05);
  HandMadeRun run(3);
  for (int r = 0; r < kRequests; ++r) run.Arrive(r, 100, 0);
  for (int k = 0; k < kSteps; ++k) {
    std::vector<BatchEntry> entries;
    for (int i = 0; i < 16; ++i) entries.push_back(Decode((16 * k + i) % kRequests, 100 + k / 6));
    double at = 17.0 * k;
    const double launched = at;
    std::vector<StageMs> stages;
    for (int s = 0; s < 3; ++s) {
      const double started = at + 0.2 + jitter(random);
      const double computed = started + 17 + jitter(random);
      const double sent = computed + 0.01;
      at = sent + 0.1 + jitter(random);
      stages.push_back({started, computed, sent, at});
    }
    run.Run(std::move(entries), launched, stages);
  }
  const std::string log = run.Log();
  EXPECT_LT(log.size(), 40 * kSteps);
  RecordProperty("bytes", static_cast<int>(log.size()));
}

void ExpectRefused(const std::string& log, const std::string& why) {
  const absl::StatusOr<RunEvents> events = ReadEvents(log, 1);
  EXPECT_EQ(events.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(events.status().message(), HasSubstr(why));
}

EventLog OneStep() {
  EventLog log;
  log.add_request_id(0);
  log.add_arrival_ns(0);
  log.add_prompt_tokens(5);
  log.add_outcome(EventLog::FINISHED);
  EventLog::Generation& generation = *log.add_generations();
  generation.add_launched_ns(0);
  generation.add_decodes(0);
  generation.add_prefills(1);
  generation.add_request(0);
  generation.add_first_token(0);
  generation.add_prefill_tokens(5);
  generation.add_prefill_samples(true);
  EventLog::Stage& stage = *generation.add_stages();
  stage.add_wait_ns(1);
  stage.add_compute_ns(2);
  stage.add_send_wait_ns(0);
  stage.add_hop_ns(3);
  return log;
}

TEST(EventLogTest, ABrokenLogIsRefusedWithWhatIsWrong) {
  ASSERT_TRUE(ReadEvents(Pack(OneStep()), 1).ok());
  ExpectRefused("", "not a gzipped EventLog");
  ExpectRefused("noise", "not a gzipped EventLog");
  const std::string whole = Pack(OneStep());
  ExpectRefused(whole.substr(0, whole.size() / 2), "the events are broken");
  EXPECT_THAT(ReadEvents(whole, 2).status().message(), HasSubstr("1 stages instead of 2"));

  EventLog log = OneStep();
  log.add_outcome(EventLog::FAILED);
  ExpectRefused(Pack(log), "requests' columns differ in length");
  log = OneStep();
  log.mutable_generations(0)->add_decodes(1);
  ExpectRefused(Pack(log), "micro-batches' columns differ in length");
  log = OneStep();
  log.mutable_generations(0)->add_request(0);
  ExpectRefused(Pack(log), "entries' columns differ in length");
  log = OneStep();
  log.mutable_generations(0)->mutable_stages(0)->clear_compute_ns();
  ExpectRefused(Pack(log), "where it never went");
  log = OneStep();
  log.mutable_generations(0)->set_request(0, 4);
  ExpectRefused(Pack(log), "holds request 4, which never arrived");
  log = OneStep();
  log.mutable_generations(0)->set_first_token(0, -1);
  ExpectRefused(Pack(log), "tokens out of range");
  log = OneStep();
  log.mutable_generations(0)->mutable_stages(0)->set_hop_ns(0, INT64_MAX);
  ExpectRefused(Pack(log), "times are out of range");
  log = OneStep();
  log.mutable_generations(0)->set_launched_ns(0, INT64_MIN);
  ExpectRefused(Pack(log), "launch is out of range");
  log = OneStep();
  log.add_request_id(0);
  log.add_arrival_ns(0);
  log.add_prompt_tokens(5);
  log.add_outcome(EventLog::FINISHED);
  ExpectRefused(Pack(log), "request 0 comes twice");
}

}  // namespace
}  // namespace fabricast
