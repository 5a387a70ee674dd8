#include "runtime/engine/engine.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <map>
#include <mutex>
#include <random>
#include <thread>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "runtime/engine/fake_executor.h"
#include "runtime/engine/local_stages.h"
#include "runtime/engine/scheduler_replay.h"

namespace fabricast {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

SchedulerOptions Options(int max_in_flight, int64_t kv_blocks = 1000) {
  return {.max_in_flight = max_in_flight,
          .max_batch_tokens = 64,
          .max_chunk_tokens = 32,
          .max_running = 16,
          .kv_block_tokens = 4,
          .kv_blocks = kv_blocks};
}

GenerationRequest Request(std::vector<int32_t> prompt, int64_t max_output_tokens) {
  GenerationRequest request;
  request.prompt = std::move(prompt);
  request.max_output_tokens = max_output_tokens;
  return request;
}

// All that listeners heard; written on the engine's thread, read when it is idle.
struct Heard {
  std::vector<int32_t> tokens;
  std::optional<FinishReason> finished;
  absl::Status error;
  int ends = 0;

  GenerationListener listener() {
    return [this](const GenerationUpdate& update) {
      EXPECT_EQ(ends, 0) << "an update after the last";
      if (update.token.has_value()) tokens.push_back(update.token->token);
      if (!update.last()) return;
      ++ends;
      finished = update.finished;
      error = update.error;
    };
  }
};

TEST(EngineTest, ARequestGetsTheModelsTokens) {
  for (const int stages : {1, 2, 3}) {
    Engine engine({.scheduler = Options(stages), .tokenizer = nullptr},
                  MakeLocalStages(FakeStages(stages)));
    Heard heard;
    engine.Submit(Request({5, 6, 7}, 20), heard.listener());
    ASSERT_TRUE(engine.WaitUntilIdle().ok());
    EXPECT_EQ(heard.tokens, FakeContinuation({5, 6, 7}, 20));
    EXPECT_EQ(heard.finished, FinishReason::kLength);
    EXPECT_EQ(heard.ends, 1);
  }
}

TEST(EngineTest, AStopTokenEndsARequestAndCounts) {
  const std::vector<int32_t> expected = FakeContinuation({1, 2}, 8);
  ASSERT_EQ(std::count(expected.begin(), expected.end(), expected[4]), 1);
  Engine engine({.scheduler = Options(2), .tokenizer = nullptr}, MakeLocalStages(FakeStages(2)));
  Heard heard;
  GenerationRequest request = Request({1, 2}, 100);
  request.stop_tokens = {expected[4], 2000};
  engine.Submit(std::move(request), heard.listener());
  ASSERT_TRUE(engine.WaitUntilIdle().ok());
  EXPECT_EQ(heard.tokens, std::vector<int32_t>(expected.begin(), expected.begin() + 5));
  EXPECT_EQ(heard.finished, FinishReason::kStop);
  const Result result = engine.Finish();
  EXPECT_EQ(result.finished(), 1);
  EXPECT_EQ(result.output_tokens(), 5);
}

// The scheduler's whole freedom: chunks, micro-batches, neighbours, preemption.
TEST(EngineTest, TokensDoNotDependOnHowTheyAreScheduled) {
  std::mt19937 random(11);
  int64_t preemptions = 0;
  for (int round = 0; round < 60; ++round) {
    const int stages = 1 + static_cast<int>(random() % 4);
    SchedulerOptions options = Options(1 + static_cast<int>(random() % 5));
    options.first_stage_queue = 1 + static_cast<int>(random() % 2);
    options.max_chunk_tokens = 1 + static_cast<int64_t>(random() % 20);
    options.kv_block_tokens = 1 + static_cast<int64_t>(random() % 5);
    options.kv_blocks = 60 / options.kv_block_tokens + 4;
    Engine engine({.scheduler = options, .tokenizer = nullptr},
                  MakeLocalStages(FakeStages(stages)));
    std::vector<std::vector<int32_t>> prompts(20);
    std::vector<int64_t> lengths;
    std::vector<Heard> heard(prompts.size());
    for (size_t i = 0; i < prompts.size(); ++i) {
      for (size_t n = 1 + random() % 30; n > 0; --n) {
        prompts[i].push_back(static_cast<int32_t>(random() % 1000));
      }
      lengths.push_back(1 + static_cast<int64_t>(random() % 25));
      engine.Submit(Request(prompts[i], lengths[i]), heard[i].listener());
    }
    ASSERT_TRUE(engine.WaitUntilIdle().ok());
    for (size_t i = 0; i < prompts.size(); ++i) {
      EXPECT_EQ(heard[i].tokens, FakeContinuation(prompts[i], lengths[i])) << "round " << round;
    }
    const Result result = engine.Finish();
    EXPECT_EQ(result.finished(), 20);
    preemptions += result.preemptions();
  }
  EXPECT_GT(preemptions, 20);
}

// One scheduler, two drivers: what it decided in a real run it decides again from the same events.
TEST(EngineTest, AFreshSchedulerGivesTheSameActionsToTheEventsOfARun) {
  for (const int stages : {1, 3}) {
    const SchedulerOptions options = Options(stages, /*kv_blocks=*/40);
    SchedulerLog log;
    {
      Engine engine({.scheduler = options, .tokenizer = nullptr, .log = &log},
                    MakeLocalStages(FakeStages(stages)));
      std::mt19937 random(stages);
      std::vector<Heard> heard(40);
      for (size_t i = 0; i < heard.size(); ++i) {
        std::vector<int32_t> prompt(1 + random() % 40, static_cast<int32_t>(i));
        GenerationRequest request = Request(std::move(prompt), 1 + random() % 60);
        request.stop_tokens = {static_cast<int32_t>(random() % 1000)};
        const RequestId id = engine.Submit(std::move(request), heard[i].listener());
        if (i % 7 == 3) engine.Cancel(id);
      }
      ASSERT_TRUE(engine.WaitUntilIdle().ok());
      engine.Finish();
    }
    const ReplayCounts counts = ExpectSameActionsAgain(options, log);
    EXPECT_GT(counts.launches, 40);
    EXPECT_GT(counts.preemptions, 0);
    EXPECT_EQ(counts.rejections, 0);
  }
}

TEST(EngineTest, WhatCanNeverFitIsRejectedAndTheOthersRun) {
  Engine engine({.scheduler = Options(1, /*kv_blocks=*/10), .tokenizer = nullptr},
                MakeLocalStages(FakeStages(1)));
  Heard too_long, fits;
  // 10 blocks of 4 tokens; 30 + 12 - 1 = 41 places.
  engine.Submit(Request(std::vector<int32_t>(30, 1), 12), too_long.listener());
  engine.Submit(Request({1, 2}, 3), fits.listener());
  ASSERT_TRUE(engine.WaitUntilIdle().ok());
  EXPECT_EQ(too_long.error.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(too_long.tokens, IsEmpty());
  EXPECT_EQ(fits.finished, FinishReason::kLength);
  EXPECT_EQ(engine.Finish().rejected(), 1);
}

TEST(EngineTest, CancelAllEndsEveryRequestWithWhatItHas) {
  std::atomic<int> steps = 0;
  Engine engine({.scheduler = Options(2), .tokenizer = nullptr},
                MakeLocalStages(FakeStages(2, [&steps](const Step&) {
                  ++steps;
                  return absl::OkStatus();
                })));
  std::vector<Heard> heard(30);  // more than run at a time
  for (Heard& h : heard) engine.Submit(Request({1}, 3000), h.listener());
  while (steps < 20) std::this_thread::yield();
  engine.CancelAll();
  ASSERT_TRUE(engine.WaitUntilIdle().ok());
  for (const Heard& h : heard) {
    EXPECT_EQ(h.finished, FinishReason::kCancelled);
    EXPECT_EQ(h.ends, 1);
    const std::vector<int32_t> expected =
        FakeContinuation({1}, static_cast<int64_t>(h.tokens.size()));
    EXPECT_EQ(h.tokens, expected);
  }
  const Result result = engine.Finish();
  EXPECT_EQ(result.requests(), 30);
  EXPECT_EQ(result.finished(), 0);
  EXPECT_EQ(result.cancelled(), 30);
}

// The request that waits at the front does not fit, the one behind it does: cancelling the first
// launches the second, which is then cancelled in its turn.
TEST(EngineTest, CancelAllLaunchesWhatACancellationMakesRoomFor) {
  std::mutex mutex;
  mutex.lock();  // the first step computes until it is unlocked
  std::atomic<int> steps = 0;
  SchedulerOptions options = Options(2, /*kv_blocks=*/10);
  options.first_stage_queue = 2;
  Engine engine({.scheduler = options, .tokenizer = nullptr},
                MakeLocalStages(FakeStages(1, [&](const Step&) {
                  ++steps;
                  const std::lock_guard<std::mutex> lock(mutex);
                  return absl::OkStatus();
                })));
  std::vector<Heard> heard(3);
  // 28 tokens are 7 of the 10 blocks; one stays free for decodes.
  engine.Submit(Request(std::vector<int32_t>(28, 1), 5), heard[0].listener());
  while (steps < 1) std::this_thread::yield();
  engine.Submit(Request(std::vector<int32_t>(16, 2), 5), heard[1].listener());
  engine.Submit(Request({3}, 5), heard[2].listener());
  engine.CancelAll();
  mutex.unlock();
  ASSERT_TRUE(engine.WaitUntilIdle().ok());
  for (const Heard& h : heard) EXPECT_EQ(h.finished, FinishReason::kCancelled);
  EXPECT_EQ(steps, 2);
}

TEST(EngineTest, AListenerMaySubmitTheNextRequest) {
  Engine engine({.scheduler = Options(2), .tokenizer = nullptr}, MakeLocalStages(FakeStages(2)));
  std::atomic<int> finished = 0;
  std::function<void(const GenerationUpdate&)> listener = [&](const GenerationUpdate& update) {
    if (update.last() && ++finished < 50) engine.Submit(Request({1, 2, 3}, 4), listener);
  };
  engine.Submit(Request({1, 2, 3}, 4), listener);
  ASSERT_TRUE(engine.WaitUntilIdle().ok());
  EXPECT_EQ(finished, 50);
}

TEST(EngineTest, AStageThatFailsEndsEveryRequestThatRunsAndTheNextOnesRun) {
  for (const int stages : {1, 3}) {
    std::mutex mutex;
    mutex.lock();  // the first step computes until both are submitted
    std::atomic<int> steps = 0;
    std::vector<std::unique_ptr<StageExecutor>> executors = FakeStages(stages);
    executors.back() =
        std::make_unique<FakeExecutor>(stages - 1, stages, [&](const Step&) -> absl::Status {
          const std::lock_guard<std::mutex> lock(mutex);
          if (++steps != 10) return absl::OkStatus();
          return absl::InternalError("request 0: layer 3: not a number");
        });
    Engine engine({.scheduler = Options(stages), .tokenizer = nullptr},
                  MakeLocalStages(std::move(executors)));
    Heard a, b, later;
    engine.Submit(Request({1}, 1000), a.listener());
    engine.Submit(Request({2}, 1000), b.listener());
    mutex.unlock();
    EXPECT_TRUE(engine.WaitUntilIdle().ok());
    for (const Heard* heard : {&a, &b}) {
      EXPECT_EQ(heard->error.code(), absl::StatusCode::kInternal);
      EXPECT_EQ(std::string(heard->error.message()),
                absl::StrCat("lost with the pipeline: stage ", stages - 1,
                             ": request 0: layer 3: not a number"));
      EXPECT_EQ(heard->ends, 1);
    }
    engine.Submit(Request({3}, 10), later.listener());
    EXPECT_TRUE(engine.WaitUntilIdle().ok());
    EXPECT_EQ(later.tokens, FakeContinuation({3}, 10));
    EXPECT_EQ(later.finished, FinishReason::kLength);
    const Result result = engine.Finish();
    EXPECT_EQ(result.failed(), 2);
    EXPECT_EQ(result.finished(), 1);
    EXPECT_THAT(
        result.warnings(),
        ElementsAre(absl::StrCat("the pipeline was lost (times: 1, failed requests: 2): stage ",
                                 stages - 1, ": request 0: layer 3: not a number")));
  }
}

TEST(EngineTest, AnEngineCanGoAwayWhileItWorks) {
  for (int round = 0; round < 20; ++round) {
    std::vector<Heard> heard(4);
    Engine engine({.scheduler = Options(3), .tokenizer = nullptr}, MakeLocalStages(FakeStages(3)));
    for (Heard& h : heard) engine.Submit(Request({1, 2, 3}, 1000), h.listener());
    std::this_thread::sleep_for(std::chrono::microseconds(50 * round));
  }
}

// The recorder sees the same kinds of events as in a simulation.
TEST(EngineTest, TheResultHasEveryMetricOfASimulatedOne) {
  Engine engine({.scheduler = Options(3), .tokenizer = nullptr, .keep_timeline = true},
                MakeLocalStages(FakeStages(3, [](const Step&) {
                  std::this_thread::sleep_for(std::chrono::milliseconds(2));
                  return absl::OkStatus();
                })));
  std::vector<Heard> heard(6);
  for (Heard& h : heard) engine.Submit(Request(std::vector<int32_t>(40, 1), 8), h.listener());
  ASSERT_TRUE(engine.WaitUntilIdle().ok());
  const Result result = engine.Finish();
  EXPECT_EQ(result.requests(), 6);
  EXPECT_EQ(result.finished(), 6);
  EXPECT_EQ(result.prompt_tokens(), 240);
  EXPECT_EQ(result.output_tokens(), 48);
  EXPECT_EQ(result.ttft().count(), 6);
  EXPECT_EQ(result.itl().count(), 42);
  EXPECT_GT(result.ttft().p50(), 0.002);
  EXPECT_LE(result.ttft().max(), result.e2e().max());
  ASSERT_EQ(result.stages_size(), 3);
  const int64_t micro_batches = result.stages(0).micro_batches();
  EXPECT_GE(micro_batches, 16);  // 240 prompt tokens in chunks of 32 and 7 decodes at least
  for (const StageResult& stage : result.stages()) {
    EXPECT_EQ(stage.micro_batches(), micro_batches);
  }
  EXPECT_GT(result.stages(0).busy_fraction(), 0.5);
  EXPECT_GE(result.stages(0).busy_s(), 0.002 * static_cast<double>(micro_batches));
  ASSERT_EQ(result.hops_size(), 3);
  // Every prompt token and every output token but the last goes through both hops once.
  EXPECT_EQ(result.hops(0).bytes(), (240 + 42) * 8);
  EXPECT_EQ(result.hops(1).bytes(), (240 + 42) * 8);
  EXPECT_EQ(result.hops(2).bytes(), 48 * 4);
  EXPECT_GT(result.hops(0).transfer_s(), 0);
  EXPECT_EQ(result.kv_peak_blocks() > 0, true);
  EXPECT_EQ(engine.timeline().stages.size(), static_cast<size_t>(3 * micro_batches));
  EXPECT_EQ(engine.timeline().transfers.size(), static_cast<size_t>(3 * micro_batches));
  for (const auto& slice : engine.timeline().stages) EXPECT_LE(slice.start_s, slice.end_s);
}

TEST(EngineTest, ManyThreadsMaySubmitAndCancel) {
  Engine engine({.scheduler = Options(2), .tokenizer = nullptr}, MakeLocalStages(FakeStages(2)));
  std::atomic<int> ends = 0;
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&engine, &ends, t] {
      for (int i = 0; i < 50; ++i) {
        const RequestId id =
            engine.Submit(Request({t, i}, 10),
                          [&ends](const GenerationUpdate& update) { ends += update.last(); });
        if (i % 3 == 0) engine.Cancel(id);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  ASSERT_TRUE(engine.WaitUntilIdle().ok());
  EXPECT_EQ(ends, 200);
}

}  // namespace
}  // namespace fabricast
