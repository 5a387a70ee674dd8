// Pipelines that are lost and come back.
#include <algorithm>
#include <atomic>
#include <memory>
#include <mutex>
#include <optional>
#include <random>
#include <set>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "runtime/engine/engine.h"
#include "runtime/engine/fake_executor.h"
#include "runtime/engine/local_stages.h"
#include "runtime/engine/scheduler_replay.h"
#include "runtime/engine/scripted_stages.h"
#include "runtime/metrics/critical_path.h"
#include "runtime/metrics/event_log.h"

namespace fabricast {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

const absl::Status kCut = absl::UnavailableError("stage 1: connection reset");

SchedulerOptions Options(int max_in_flight) {
  return {.max_in_flight = max_in_flight,
          .max_batch_tokens = 64,
          .max_chunk_tokens = 8,
          .max_running = 2,
          .kv_block_tokens = 4,
          .kv_blocks = 1000};
}

GenerationRequest Request(std::vector<int32_t> prompt, int64_t max_output_tokens) {
  GenerationRequest request;
  request.prompt = std::move(prompt);
  request.max_output_tokens = max_output_tokens;
  return request;
}

// What a listener heard; written on the engine's thread, read when it is idle.
struct Heard {
  std::vector<int32_t> tokens;
  std::optional<FinishReason> finished;
  absl::Status error;
  std::atomic<int> ends = 0;

  GenerationListener listener() {
    return [this](const GenerationUpdate& update) {
      EXPECT_EQ(ends, 0) << "an update after the last";
      if (update.token.has_value()) tokens.push_back(update.token->token);
      if (!update.last()) return;
      finished = update.finished;
      error = update.error;
      ++ends;
    };
  }

  void ExpectLost() const {
    EXPECT_EQ(ends, 1);
    EXPECT_EQ(error, absl::UnavailableError("lost with the pipeline: stage 1: connection reset"));
  }
  void ExpectAll(std::vector<int32_t> prompt, int64_t count) const {
    EXPECT_EQ(ends, 1);
    EXPECT_EQ(finished, FinishReason::kLength) << error;
    EXPECT_EQ(tokens, FakeContinuation(std::move(prompt), count));
  }
};

// An engine whose two stages the test moves.
class EngineLossTest : public ::testing::Test {
 protected:
  EngineLossTest()
      : owned_(std::make_unique<ScriptedStages>(2)),
        stages_(*owned_),
        engine_({.scheduler = Options(2), .tokenizer = nullptr, .log = &log_}, std::move(owned_)) {}

  RequestId Submit(std::vector<int32_t> prompt, int64_t count, Heard& heard) {
    return engine_.Submit(Request(std::move(prompt), count), heard.listener());
  }

  // Runs steps until every request has ended.
  void Finish() {
    std::atomic<bool> idle = false;
    std::thread waiter([&] {
      EXPECT_TRUE(engine_.WaitUntilIdle().ok());
      idle = true;
    });
    while (!idle) {
      if (!stages_.TryRunStep()) std::this_thread::yield();
    }
    waiter.join();
  }

  // Ends the engine.
  Result Check() {
    Result result = engine_.Finish();
    ExpectSameActionsAgain(Options(2), log_);
    return result;
  }

  SchedulerLog log_;
  std::unique_ptr<ScriptedStages> owned_;
  ScriptedStages& stages_;
  Engine engine_;
};

TEST_F(EngineLossTest, RequestsWaitForTheFirstReady) {
  Heard a, b;
  Submit({1, 2}, 3, a);
  Submit({3}, 4, b);
  stages_.BecomeReady();
  Finish();
  a.ExpectAll({1, 2}, 3);
  b.ExpectAll({3}, 4);
  EXPECT_EQ(Check().failed(), 0);
}

TEST_F(EngineLossTest, WhoWaitsForTheStagesHearsWhenTheyAreReady) {
  std::atomic<bool> heard = false;
  std::thread waiter([&] {
    EXPECT_TRUE(engine_.WaitUntilReady().ok());
    heard = true;
  });
  stages_.Lose(kCut);
  EXPECT_TRUE(engine_.WaitUntilIdle().ok());
  EXPECT_FALSE(heard);
  stages_.BecomeReady();
  waiter.join();
  stages_.Lose(kCut);
  EXPECT_TRUE(engine_.WaitUntilReady().ok());  // for the first time only
}

TEST_F(EngineLossTest, WhoWaitsForTheStagesHearsWhenTheyWillNotCome) {
  std::thread waiter([&] { EXPECT_EQ(engine_.WaitUntilReady(), kCut); });
  stages_.Leave(kCut);
  waiter.join();
}

TEST_F(EngineLossTest, ALossBeforeTheFirstReadyEndsNobody) {
  Heard a;
  Submit({1, 2}, 3, a);
  stages_.Lose(kCut);
  stages_.BecomeReady();
  Finish();
  a.ExpectAll({1, 2}, 3);
  EXPECT_EQ(Check().failed(), 0);
}

TEST_F(EngineLossTest, ALossWhileIdleEndsNobody) {
  stages_.BecomeReady();
  Heard a, b;
  Submit({1}, 2, a);
  Finish();
  stages_.Lose(kCut);
  stages_.BecomeReady();
  Submit({2}, 3, b);
  Finish();
  a.ExpectAll({1}, 2);
  b.ExpectAll({2}, 3);
  const Result result = Check();
  EXPECT_EQ(result.failed(), 0);
  EXPECT_THAT(result.warnings(), ElementsAre("the pipeline was lost (times: 1, failed requests: "
                                             "0): stage 1: connection reset"));
}

// 20 tokens in chunks of 8.
TEST_F(EngineLossTest, ALossInTheMiddleOfAPromptEndsItsRequest) {
  const std::vector<int32_t> prompt(20, 5);
  stages_.BecomeReady();
  Heard a, b;
  Submit(prompt, 3, a);
  stages_.RunStep();
  stages_.RunPartOfStep();
  stages_.Lose(kCut);
  stages_.BecomeReady();
  Submit(prompt, 3, b);
  Finish();
  a.ExpectLost();
  EXPECT_THAT(a.tokens, IsEmpty());
  b.ExpectAll(prompt, 3);
  const Result result = Check();
  EXPECT_EQ(result.failed(), 1);
  EXPECT_EQ(result.finished(), 1);
  EXPECT_EQ(result.requests(), 2);
}

TEST_F(EngineLossTest, ALossWhileDecodingEndsWhatRunsAndWhatWaitedRuns) {
  stages_.BecomeReady();
  std::vector<Heard> heard(5);  // two run at a time
  for (size_t i = 0; i < heard.size(); ++i) Submit({static_cast<int32_t>(i)}, 6, heard[i]);
  for (int i = 0; i < 4; ++i) stages_.RunStep();
  stages_.Lose(kCut);
  stages_.BecomeReady();
  Finish();
  for (int i : {0, 1}) {
    heard[i].ExpectLost();
    EXPECT_GE(heard[i].tokens.size(), 1u);
    EXPECT_EQ(heard[i].tokens, FakeContinuation({i}, static_cast<int64_t>(heard[i].tokens.size())));
  }
  for (int i : {2, 3, 4}) heard[i].ExpectAll({i}, 6);
  EXPECT_EQ(Check().failed(), 2);
  // Those that waited were offered again in their order.
  std::vector<RequestId> offered;
  bool lost = false;
  for (const SchedulerLog::Entry& entry : log_.entries) {
    lost = lost || entry.event.kind == SchedulerEvent::Kind::kPipelineLost;
    if (lost && entry.event.kind == SchedulerEvent::Kind::kRequestArrived) {
      offered.push_back(entry.event.id);
    }
  }
  EXPECT_THAT(offered, ElementsAre(2, 3, 4));
}

TEST_F(EngineLossTest, APreemptedRequestHasRunAndIsLost) {
  // Request 0 takes 10 tokens at once, and decodes until request 1 must give its blocks.
  SchedulerOptions options = Options(1);
  options.kv_blocks = 7;
  options.max_chunk_tokens = 32;
  auto owned = std::make_unique<ScriptedStages>(2);
  ScriptedStages& stages = *owned;
  SchedulerLog log;
  Engine engine({.scheduler = options, .tokenizer = nullptr, .log = &log}, std::move(owned));
  stages.BecomeReady();
  Heard a, b;
  engine.Submit(Request(std::vector<int32_t>(10, 1), 14), a.listener());
  engine.Submit(Request(std::vector<int32_t>(10, 2), 14), b.listener());
  for (int i = 0; i < 8; ++i) stages.RunStep();
  stages.Lose(kCut);
  stages.BecomeReady();
  EXPECT_TRUE(engine.WaitUntilIdle().ok());
  a.ExpectLost();
  b.ExpectLost();
  EXPECT_EQ(engine.Finish().failed(), 2);
  const ReplayCounts counts = ExpectSameActionsAgain(options, log);
  EXPECT_EQ(counts.preemptions, 1);
  EXPECT_THAT(counts.lost, ElementsAre(0, 1));
}

TEST_F(EngineLossTest, TwoLossesInARowAreAsOne) {
  stages_.BecomeReady();
  std::vector<Heard> heard(3);
  for (size_t i = 0; i < heard.size(); ++i) Submit({static_cast<int32_t>(i)}, 4, heard[i]);
  stages_.RunStep();
  stages_.Lose(kCut);
  stages_.Lose(absl::UnavailableError("stage 0: cannot be reached"));
  stages_.BecomeReady();
  Finish();
  heard[0].ExpectLost();
  heard[2].ExpectAll({2}, 4);
  EXPECT_EQ(Check().failed(), heard[1].error.ok() ? 1 : 2);
}

TEST_F(EngineLossTest, AnotherLossAfterTheRecoveryEndsTheNextOnes) {
  stages_.BecomeReady();
  std::vector<Heard> heard(5);
  for (size_t i = 0; i < heard.size(); ++i) Submit({static_cast<int32_t>(i)}, 4, heard[i]);
  for (int loss = 0; loss < 2; ++loss) {
    for (int i = 0; i < 3; ++i) stages_.RunStep();
    stages_.Lose(kCut);
    stages_.BecomeReady();
  }
  Finish();
  for (int i : {0, 1, 2, 3}) heard[i].ExpectLost();
  heard[4].ExpectAll({4}, 4);
  const Result result = Check();
  EXPECT_EQ(result.failed(), 4);
  EXPECT_THAT(result.warnings(), ElementsAre("the pipeline was lost (times: 2, failed requests: "
                                             "4): stage 1: connection reset"));
}

TEST_F(EngineLossTest, AHeldRequestCanBeCancelled) {
  Heard before, a, b, during;
  engine_.Cancel(Submit({1}, 3, before));
  stages_.BecomeReady();
  Submit({2}, 3, a);
  stages_.RunStep();
  stages_.Lose(kCut);
  engine_.Cancel(Submit({3}, 3, during));
  Submit({4}, 3, b);
  stages_.BecomeReady();
  Finish();
  EXPECT_EQ(before.finished, FinishReason::kCancelled);
  EXPECT_EQ(during.finished, FinishReason::kCancelled);
  a.ExpectLost();
  b.ExpectAll({4}, 3);
  const Result result = Check();
  EXPECT_EQ(result.cancelled(), 2);
  EXPECT_EQ(result.failed(), 1);
  EXPECT_EQ(result.finished(), 1);
}

TEST_F(EngineLossTest, CancelAllEndsWhatIsHeldAtOnce) {
  std::vector<Heard> heard(3);
  for (Heard& h : heard) Submit({1}, 3, h);
  engine_.CancelAll();
  EXPECT_TRUE(engine_.WaitUntilIdle().ok());
  for (const Heard& h : heard) EXPECT_EQ(h.finished, FinishReason::kCancelled);
  EXPECT_EQ(Check().cancelled(), 3);
}

// Its micro-batch never completes: the loss is its end, and it was not the user's loss.
TEST_F(EngineLossTest, ACancelledRequestThatIsInFlightEndsAsCancelledWithThePipeline) {
  stages_.BecomeReady();
  Heard a;
  const RequestId id = Submit({1}, 30, a);
  stages_.RunStep();
  while (stages_.launched() < 2) std::this_thread::yield();
  engine_.Cancel(id);
  stages_.Lose(kCut);
  EXPECT_TRUE(engine_.WaitUntilIdle().ok());
  EXPECT_EQ(a.ends, 1);
  EXPECT_EQ(a.finished, FinishReason::kCancelled);
  const Result result = Check();
  EXPECT_EQ(result.cancelled(), 1);
  EXPECT_EQ(result.failed(), 0);
}

TEST_F(EngineLossTest, WhatCanNeverFitIsRejectedWhenTheStagesAreReady) {
  Heard too_long, fits;
  Submit({1}, 100'000, too_long);
  Submit({2}, 3, fits);
  stages_.BecomeReady();
  Finish();
  EXPECT_EQ(too_long.error.code(), absl::StatusCode::kResourceExhausted);
  fits.ExpectAll({2}, 3);
  EXPECT_EQ(Check().rejected(), 1);
}

TEST_F(EngineLossTest, StagesThatAreGoneEndEveryRequestAndAllThatCome) {
  const absl::Status gone = absl::FailedPreconditionError("stage 1: has another model");
  stages_.BecomeReady();
  std::vector<Heard> heard(4);  // two run, two wait
  for (size_t i = 0; i < heard.size(); ++i) Submit({static_cast<int32_t>(i)}, 6, heard[i]);
  stages_.RunStep();
  EXPECT_TRUE(engine_.status().ok());
  stages_.Leave(gone);
  EXPECT_EQ(engine_.WaitUntilIdle(), gone);
  EXPECT_EQ(engine_.status(), gone);
  Heard later;
  engine_.CancelAll();
  engine_.Cancel(Submit({9}, 1, later));
  EXPECT_EQ(engine_.WaitUntilIdle(), gone);
  for (const Heard& h : heard) EXPECT_EQ(h.error, gone);
  EXPECT_EQ(later.error, gone);
  EXPECT_EQ(later.ends, 1);
  const Result result = Check();
  EXPECT_EQ(result.requests(), 4);
  EXPECT_EQ(result.failed(), 4);
}

TEST_F(EngineLossTest, StagesThatNeverComeEndWhatWaitsForThem) {
  Heard a;
  Submit({1}, 2, a);
  stages_.Lose(kCut);
  stages_.Leave(absl::DeadlineExceededError("stage 1: did not join"));
  EXPECT_EQ(engine_.WaitUntilIdle().message(), "stage 1: did not join");
  EXPECT_EQ(a.error.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(Check().failed(), 1);
}

// The head is busy with the first request's token when the second's, and then the loss, come in.
TEST_F(EngineLossTest, WhatWasComputedBeforeTheLossCounts) {
  std::mutex mutex;
  mutex.lock();
  Heard a, b;
  const GenerationListener listener = a.listener();
  engine_.Submit(Request({1}, 1), [&](const GenerationUpdate& update) {
    const std::lock_guard<std::mutex> lock(mutex);
    listener(update);
  });
  Submit({2}, 1, b);
  stages_.BecomeReady();
  stages_.RunStep();
  stages_.RunStep();
  stages_.Lose(kCut);
  mutex.unlock();
  EXPECT_TRUE(engine_.WaitUntilIdle().ok());
  a.ExpectAll({1}, 1);
  b.ExpectAll({2}, 1);
  EXPECT_EQ(Check().failed(), 0);
}

TEST_F(EngineLossTest, AListenerMaySubmitAgainWhatWasLost) {
  stages_.BecomeReady();
  Heard again;
  engine_.Submit(Request({1}, 5), [&](const GenerationUpdate& update) {
    if (!update.error.ok()) Submit({1}, 5, again);
  });
  stages_.RunStep();
  stages_.Lose(kCut);
  stages_.BecomeReady();
  Finish();
  again.ExpectAll({1}, 5);
}

// A loss says nothing of latencies.
TEST_F(EngineLossTest, LostRequestsAreInNoLatency) {
  stages_.BecomeReady();
  Heard a, b;
  Submit({1}, 50, a);
  for (int i = 0; i < 6; ++i) stages_.RunStep();
  stages_.Lose(kCut);
  stages_.BecomeReady();
  Submit({2}, 3, b);
  Finish();
  a.ExpectLost();
  const Result result = Check();
  EXPECT_EQ(result.ttft().count(), 1);
  EXPECT_EQ(result.itl().count(), 2);
  EXPECT_EQ(result.queue_wait().count(), 1);
  EXPECT_EQ(result.output_tokens(), 3);
}

TEST(EngineLossCausesTest, ManyDifferentCausesAreCountedTogether) {
  auto owned = std::make_unique<ScriptedStages>(1);
  ScriptedStages& stages = *owned;
  Engine engine({.scheduler = Options(1), .tokenizer = nullptr}, std::move(owned));
  for (int i = 0; i < 20; ++i) {
    stages.BecomeReady();
    stages.Lose(absl::UnavailableError(absl::StrCat("stage 0: cause ", i)));
  }
  // Cancelling is behind them in the mailbox.
  Heard a;
  engine.Cancel(engine.Submit(Request({1}, 1), a.listener()));
  EXPECT_TRUE(engine.WaitUntilIdle().ok());
  const Result result = engine.Finish();
  ASSERT_EQ(result.warnings_size(), 9);
  EXPECT_THAT(result.warnings(), ::testing::Contains("the pipeline was lost (times: 12, failed "
                                                     "requests: 0): other causes"));
}

struct Client {
  std::vector<int32_t> prompt;
  int64_t count = 0;
  bool cancelled = false;
  Heard heard;
};

void MakeRandom(std::mt19937_64& random, Client& client) {
  for (size_t n = 1 + random() % 30; n > 0; --n) {
    client.prompt.push_back(static_cast<int32_t>(random() % 1000));
  }
  client.count = 1 + static_cast<int64_t>(random() % 12);
}

// Every request has ended once: lost if it was admitted when the pipeline was lost (`lost`),
// cancelled if somebody did that, and with all its tokens otherwise.
void ExpectEnds(const std::vector<std::unique_ptr<Client>>& clients,
                const std::vector<RequestId>& lost_ids, const Result& result) {
  const std::set<RequestId> lost(lost_ids.begin(), lost_ids.end());
  int64_t failed = 0;
  for (size_t id = 0; id < clients.size(); ++id) {
    const Client& client = *clients[id];
    const Heard& heard = client.heard;
    ASSERT_EQ(heard.ends, 1) << id;
    EXPECT_EQ(heard.tokens,
              FakeContinuation(client.prompt, static_cast<int64_t>(heard.tokens.size())));
    if (heard.finished == FinishReason::kCancelled) {
      EXPECT_TRUE(client.cancelled) << id;
    } else if (lost.count(static_cast<RequestId>(id)) > 0) {
      EXPECT_FALSE(heard.error.ok()) << id;
      ++failed;
    } else {
      heard.ExpectAll(client.prompt, client.count);
    }
  }
  EXPECT_EQ(result.failed(), failed);
  EXPECT_EQ(result.finished() + result.cancelled() + result.failed(),
            static_cast<int64_t>(clients.size()));
}

// The events are those of the micro-batches that were launched, and explain the latencies of what
// finished.
void ExpectEvents(const Result& result, const SchedulerLog& log) {
  const absl::StatusOr<RunEvents> events = ReadEvents(result.event_log(), result.stages_size());
  ASSERT_TRUE(events.ok()) << events.status();
  size_t step = 0;
  for (const SchedulerLog::Entry& entry : log.entries) {
    for (const Action& action : entry.actions) {
      if (action.kind != Action::Kind::kLaunch) continue;
      ASSERT_LT(step, events->steps.size());
      EXPECT_EQ(events->steps[step].id, action.micro_batch.id);
      const auto entries = events->EntriesOf(static_cast<int>(step++));
      ASSERT_EQ(entries.size(), action.micro_batch.entries.size());
      for (size_t i = 0; i < entries.size(); ++i) {
        const BatchEntry& launched = action.micro_batch.entries[i];
        EXPECT_EQ(events->requests[entries[i].request].id, launched.request);
        EXPECT_EQ(entries[i].first_token, launched.first_token);
        EXPECT_EQ(entries[i].tokens, launched.tokens);
        EXPECT_EQ(entries[i].samples, launched.samples);
      }
    }
  }
  EXPECT_EQ(step, events->steps.size());
  int64_t finished = 0, with_tpot = 0;
  double ttft_s = 0, tpot_s = 0;
  for (const RequestPath& path : ExplainRequests(*events)) {
    finished += path.has_ttft ? 1 : 0;
    with_tpot += path.has_tpot ? 1 : 0;
    ttft_s += path.ttft_s;
    tpot_s += path.tpot_s;
  }
  EXPECT_EQ(finished, result.finished());
  EXPECT_EQ(with_tpot, result.tpot().count());
  // Each time is rounded to a nanosecond.
  EXPECT_NEAR(ttft_s, result.ttft().mean() * static_cast<double>(finished), 2e-9 * finished);
  EXPECT_NEAR(tpot_s, result.tpot().mean() * static_cast<double>(with_tpot), 2e-9 * with_tpot);
}

TEST(EngineLossPropertyTest, EveryRequestEndsOnceWhateverIsLostWhen) {
  std::mt19937_64 random(17);
  int64_t failed = 0, finished = 0, cancelled = 0, preemptions = 0;
  for (int round = 0; round < 60; ++round) {
    SchedulerOptions options = Options(1 + static_cast<int>(random() % 4));
    options.max_chunk_tokens = 1 + static_cast<int64_t>(random() % 20);
    options.max_running = 1 + static_cast<int>(random() % 5);
    options.kv_blocks = 14 + static_cast<int64_t>(random() % 20);
    SchedulerLog log;
    std::vector<std::unique_ptr<Client>> clients;
    auto owned = std::make_unique<ScriptedStages>(1 + static_cast<int>(random() % 4), random());
    ScriptedStages& stages = *owned;
    Engine engine({.scheduler = options,
                   .tokenizer = nullptr,
                   .keep_timeline = true,
                   .keep_events = true,
                   .log = &log},
                  std::move(owned));
    bool ready = false;
    const auto lose = [&] {
      stages.Lose(kCut);
      ready = false;
    };
    for (int action = 0; action < 150; ++action) {
      const uint64_t what = random() % 32;
      if (what < 6) {
        MakeRandom(random, *clients.emplace_back(std::make_unique<Client>()));
        Client& client = *clients.back();
        const RequestId id =
            engine.Submit(Request(client.prompt, client.count), client.heard.listener());
        EXPECT_EQ(id, static_cast<RequestId>(clients.size()) - 1);
      } else if (what == 6 && !clients.empty()) {
        const size_t id = random() % clients.size();
        clients[id]->cancelled = true;
        engine.Cancel(static_cast<RequestId>(id));
      } else if (!ready) {
        if (what == 7) lose();
        if (what < 16) stages.BecomeReady(), ready = true;
      } else if (what == 7) {
        lose();
      } else if (stages.TryRunStep()) {
        if (what == 8) lose();
      } else {
        std::this_thread::yield();
      }
    }
    if (!ready) stages.BecomeReady();
    const auto ended = [&] {
      return std::all_of(clients.begin(), clients.end(),
                         [](const auto& client) { return client->heard.ends > 0; });
    };
    while (!ended()) {
      if (!stages.TryRunStep()) std::this_thread::yield();
    }
    ASSERT_TRUE(engine.WaitUntilIdle().ok());
    const Result result = engine.Finish();
    const ReplayCounts counts = ExpectSameActionsAgain(options, log);
    ExpectEnds(clients, counts.lost, result);
    ExpectEvents(result, log);
    for (const HopResult& hop : result.hops()) EXPECT_GE(hop.transfer_s(), 0);
    for (const auto& slice : engine.timeline().stages) EXPECT_LE(slice.start_s, slice.end_s);
    for (const auto& slice : engine.timeline().transfers) EXPECT_LE(slice.start_s, slice.end_s);
    failed += result.failed();
    finished += result.finished();
    cancelled += result.cancelled();
    preemptions += result.preemptions();
  }
  EXPECT_GT(failed, 50);
  EXPECT_GT(finished, 500);
  EXPECT_GT(cancelled, 20);
  EXPECT_GT(preemptions, 5);
}

// The same with threads: executors that fail now and then.
TEST(EngineLossPropertyTest, LocalStagesRecoverFromEveryFailure) {
  std::mt19937_64 random(23);
  int64_t failed = 0;
  for (int round = 0; round < 20; ++round) {
    const int stages = 1 + static_cast<int>(random() % 3);
    const SchedulerOptions options = Options(stages);
    std::vector<std::unique_ptr<StageExecutor>> executors;
    std::atomic<int> left = 4;  // failures
    for (int s = 0; s < stages; ++s) {
      // Each stage has its own: they run at the same time.
      auto dice = std::make_shared<std::mt19937_64>(random());
      executors.push_back(
          std::make_unique<FakeExecutor>(s, stages, [dice, &left](const Step&) -> absl::Status {
            if ((*dice)() % 30 > 0 || left-- <= 0) return absl::OkStatus();
            return absl::InternalError("broken");
          }));
    }
    SchedulerLog log;
    std::vector<std::unique_ptr<Client>> clients;
    Engine engine({.scheduler = options, .tokenizer = nullptr, .log = &log},
                  MakeLocalStages(std::move(executors)));
    for (int i = 0; i < 20; ++i) {
      MakeRandom(random, *clients.emplace_back(std::make_unique<Client>()));
      Client& client = *clients.back();
      engine.Submit(Request(client.prompt, client.count), client.heard.listener());
    }
    ASSERT_TRUE(engine.WaitUntilIdle().ok());
    const Result result = engine.Finish();
    const ReplayCounts counts = ExpectSameActionsAgain(options, log);
    ExpectEnds(clients, counts.lost, result);
    failed += result.failed();
  }
  EXPECT_GT(failed, 20);
}

}  // namespace
}  // namespace fabricast
