#include "runtime/engine/workload_run.h"

#include <atomic>
#include <chrono>
#include <thread>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "runtime/engine/fake_executor.h"
#include "runtime/engine/local_stages.h"
#include "runtime/engine/scripted_stages.h"

namespace fabricast {
namespace {

using ::testing::Each;

constexpr SchedulerOptions kScheduler = {.max_in_flight = 2,
                                         .max_batch_tokens = 64,
                                         .max_chunk_tokens = 32,
                                         .max_running = 16,
                                         .kv_blocks = 1000};

WorkloadRunOptions For(const Workload& workload) {
  return {.make_request =
              [&workload](size_t index) {
                GenerationRequest request;
                request.prompt.assign(workload.requests[index].prompt_tokens, 1);
                request.max_output_tokens = workload.requests[index].output_tokens;
                return request;
              },
          .progress = nullptr};
}

TEST(WorkloadRunTest, AClosedLoopKeepsSoManyRequestsAtATime) {
  Workload workload;
  workload.concurrency = 3;
  workload.requests.assign(30, {.arrival_s = 0, .prompt_tokens = 10, .output_tokens = 5});
  size_t most = 0;
  Engine engine({.scheduler = kScheduler, .tokenizer = nullptr},
                MakeLocalStages(FakeStages(2, [&](const Step& s) {
                  most = std::max(most, s.micro_batch.entries.size());
                  return absl::OkStatus();
                })));
  ASSERT_TRUE(RunWorkload(engine, workload, For(workload)).ok());
  const Result result = engine.Finish();
  EXPECT_EQ(result.finished(), 30);
  EXPECT_EQ(result.output_tokens(), 150);
  EXPECT_LE(most, 3u);
}

TEST(WorkloadRunTest, AnOpenLoopSubmitsWhenRequestsAreDue) {
  Workload workload;
  for (int i = 0; i < 10; ++i) {
    workload.requests.push_back({.arrival_s = 0.03 * i, .prompt_tokens = 4, .output_tokens = 2});
  }
  Engine engine({.scheduler = kScheduler, .tokenizer = nullptr}, MakeLocalStages(FakeStages(1)));
  ASSERT_TRUE(RunWorkload(engine, workload, For(workload)).ok());
  const Result result = engine.Finish();
  EXPECT_EQ(result.finished(), 10);
  // From the first arrival to the last token, nine gaps of 30 ms.
  EXPECT_GE(result.duration_s(), 0.27 - 0.001);
}

TEST(WorkloadRunTest, AnInterruptCancelsWhatRunsAndKeepsWhatHasFinished) {
  for (const int concurrency : {0, 2}) {
    Workload workload;
    workload.concurrency = concurrency;
    workload.requests = {{.arrival_s = 0, .prompt_tokens = 4, .output_tokens = 2},
                         {.arrival_s = 0, .prompt_tokens = 4, .output_tokens = 9000},
                         {.arrival_s = 0, .prompt_tokens = 4, .output_tokens = 9000},
                         {.arrival_s = 3600, .prompt_tokens = 4, .output_tokens = 9000}};
    std::atomic<bool> interrupted = false;
    std::atomic<int> steps = 0;
    Engine engine({.scheduler = kScheduler, .tokenizer = nullptr},
                  MakeLocalStages(FakeStages(1, [&](const Step&) {
                    if (++steps == 50) interrupted = true;
                    std::this_thread::sleep_for(std::chrono::microseconds(200));
                    return absl::OkStatus();
                  })));
    WorkloadRunOptions options = For(workload);
    options.interrupted = &interrupted;
    EXPECT_EQ(RunWorkload(engine, workload, options).code(), absl::StatusCode::kCancelled);
    const Result result = engine.Finish();
    EXPECT_EQ(result.finished(), 1);
    EXPECT_EQ(result.cancelled(), 2);
    EXPECT_EQ(result.requests(), 3);
  }
}

TEST(WorkloadRunTest, StagesThatAreGoneEndTheRunAtOnce) {
  for (const int concurrency : {0, 2}) {
    Workload workload;
    workload.concurrency = concurrency;
    workload.requests.assign(4, {.arrival_s = 0, .prompt_tokens = 4, .output_tokens = 1000});
    workload.requests.push_back({.arrival_s = 3600, .prompt_tokens = 4, .output_tokens = 1});
    auto owned = std::make_unique<ScriptedStages>(2);
    ScriptedStages& stages = *owned;
    Engine engine({.scheduler = kScheduler, .tokenizer = nullptr}, std::move(owned));
    stages.BecomeReady();
    std::thread script([&stages] {
      for (int i = 0; i < 20; ++i) stages.RunStep();
      stages.Leave(absl::UnavailableError("stage 1: broken"));
    });
    WorkloadRunOptions options = For(workload);
    std::atomic<int> made = 0;
    options.make_request = [&made, make = options.make_request](size_t index) {
      ++made;
      return make(index);
    };
    const absl::Status status = RunWorkload(engine, workload, options);
    script.join();
    EXPECT_EQ(status, absl::UnavailableError("stage 1: broken"));
    const Result result = engine.Finish();
    // Nothing came after those that were there.
    EXPECT_LE(made, concurrency == 0 ? 4 : 2);
    EXPECT_GE(result.requests(), 1);
    EXPECT_EQ(result.failed(), result.requests());
  }
}

TEST(WorkloadRunTest, StagesThatAreGoneEndARunThatWaitsForAnArrival) {
  Workload workload;
  workload.requests = {{.arrival_s = 0, .prompt_tokens = 4, .output_tokens = 1},
                       {.arrival_s = 3600, .prompt_tokens = 4, .output_tokens = 1}};
  auto owned = std::make_unique<ScriptedStages>(1);
  ScriptedStages& stages = *owned;
  Engine engine({.scheduler = kScheduler, .tokenizer = nullptr}, std::move(owned));
  stages.BecomeReady();
  std::thread script([&stages] {
    stages.RunStep();
    stages.Leave(absl::UnavailableError("stage 0: left"));
  });
  EXPECT_EQ(RunWorkload(engine, workload, For(workload)).message(), "stage 0: left");
  script.join();
  EXPECT_EQ(engine.Finish().finished(), 1);
}

TEST(WorkloadRunTest, ARunGoesOnAfterALossWithoutTheRequestsThatRan) {
  for (const int concurrency : {0, 2}) {
    Workload workload;
    workload.concurrency = concurrency;
    workload.requests.assign(12, {.arrival_s = 0, .prompt_tokens = 4, .output_tokens = 5});
    SchedulerOptions options = kScheduler;
    options.max_running = 2;
    int steps = 0;
    Engine engine({.scheduler = options, .tokenizer = nullptr},
                  MakeLocalStages(FakeStages(1, [&](const Step&) -> absl::Status {
                    if (++steps != 12) return absl::OkStatus();
                    return absl::InternalError("broken");
                  })));
    EXPECT_TRUE(RunWorkload(engine, workload, For(workload)).ok());
    const Result result = engine.Finish();
    EXPECT_EQ(result.requests(), 12);
    EXPECT_GE(result.failed(), 1);
    EXPECT_LE(result.failed(), 2);
    EXPECT_EQ(result.finished(), 12 - result.failed());
  }
}

TEST(WorkloadRunTest, ARequestThatNeverFitsIsRejectedAndTheRunGoesOn) {
  Workload workload;
  workload.concurrency = 1;
  workload.requests = {{.arrival_s = 0, .prompt_tokens = 4, .output_tokens = 1'000'000},
                       {.arrival_s = 0, .prompt_tokens = 4, .output_tokens = 3}};
  Engine engine({.scheduler = kScheduler, .tokenizer = nullptr}, MakeLocalStages(FakeStages(1)));
  ASSERT_TRUE(RunWorkload(engine, workload, For(workload)).ok());
  const Result result = engine.Finish();
  EXPECT_EQ(result.rejected(), 1);
  EXPECT_EQ(result.finished(), 1);
}

TEST(WorkloadRunTest, RandomPromptsKeepClearOfSpecialTokens) {
  const std::vector<int32_t> prompt = RandomPrompt(500, 5, {1, 3}, 42);
  EXPECT_EQ(prompt.size(), 500u);
  EXPECT_THAT(prompt, Each(::testing::AnyOf(0, 2, 4)));
  EXPECT_EQ(prompt, RandomPrompt(500, 5, {1, 3}, 42));
  EXPECT_NE(prompt, RandomPrompt(500, 5, {1, 3}, 43));
}

}  // namespace
}  // namespace fabricast
