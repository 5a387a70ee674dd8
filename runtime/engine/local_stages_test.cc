#include "runtime/engine/local_stages.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "runtime/engine/fake_executor.h"

namespace fabricast {
namespace {

using ::testing::ElementsAre;

// Keeps what it hears, in words: "ready 0", "1 computed 0", "lost".
class Listener : public StagesListener {
 public:
  void Ready(int64_t generation) override { Add("ready " + std::to_string(generation)); }
  void Lost(const absl::Status& cause) override { Add("lost: " + std::string(cause.message())); }
  void Gone(const absl::Status& cause) override { Add("gone: " + std::string(cause.message())); }
  void Reported(std::vector<StageReport> reports) override {
    for (const StageReport& report : reports) {
      static constexpr const char* kNames[] = {"delivered", "started", "computed", "sent"};
      EXPECT_GE(report.at, start_);
      EXPECT_LE(report.at, std::chrono::steady_clock::now());
      Add(std::to_string(report.stage) + " " + kNames[static_cast<int>(report.kind)] + " " +
          std::to_string(report.id));
      const std::lock_guard<std::mutex> lock(mutex_);
      reports_.push_back(report);
    }
  }

  void WaitFor(const std::string& what, int times = 1) {
    std::unique_lock<std::mutex> lock(mutex_);
    change_.wait(lock, [&] { return std::count(heard_.begin(), heard_.end(), what) >= times; });
  }
  std::vector<std::string> heard() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return heard_;
  }
  std::vector<StageReport> reports() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return reports_;
  }

 private:
  void Add(std::string what) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      heard_.push_back(std::move(what));
    }
    change_.notify_all();
  }

  const std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
  std::mutex mutex_;
  std::condition_variable change_;
  std::vector<std::string> heard_;
  std::vector<StageReport> reports_;
};

// A prompt of one token of request `id`.
std::shared_ptr<const Step> StepOf(MicroBatchId id, std::vector<RequestId> released = {}) {
  auto step = std::make_shared<Step>();
  step->micro_batch.id = id;
  step->micro_batch.entries = {
      {.request = id, .first_token = 0, .tokens = 1, .decode = false, .samples = true}};
  step->tokens = {static_cast<int32_t>(id)};
  step->sampling.resize(1);
  step->released = std::move(released);
  return step;
}

TEST(LocalStagesTest, EachStageReportsWhatItDoes) {
  const std::unique_ptr<Stages> stages = MakeLocalStages(FakeStages(2));
  EXPECT_EQ(stages->count(), 2);
  Listener listener;
  stages->Start(listener);
  stages->Launch(0, StepOf(0));
  listener.WaitFor("1 computed 0");
  stages->Stop();
  EXPECT_THAT(listener.heard(), ElementsAre("ready 0", "0 started 0", "0 computed 0", "0 sent 0",
                                            "1 delivered 0", "1 started 0", "1 computed 0"));
  const std::vector<StageReport> reports = listener.reports();
  EXPECT_EQ(reports[2].bytes, 8);
  EXPECT_TRUE(reports[1].sampled.empty());
  ASSERT_EQ(reports[5].sampled.size(), 1u);
  EXPECT_EQ(reports[5].sampled[0].token, FakeNextToken({0}));
}

TEST(LocalStagesTest, AFailureIsALossAndTheNextGenerationKnowsOfNothing) {
  for (const int failing : {0, 1, 2}) {
    std::vector<std::unique_ptr<StageExecutor>> executors = FakeStages(3);
    std::atomic<int> steps = 0;
    executors[failing] =
        std::make_unique<FakeExecutor>(failing, 3, [&steps](const Step&) -> absl::Status {
          if (++steps != 2) return absl::OkStatus();
          return absl::InternalError("broken");
        });
    const std::unique_ptr<Stages> stages = MakeLocalStages(std::move(executors));
    Listener listener;
    stages->Start(listener);
    for (MicroBatchId id = 0; id < 3; ++id) stages->Launch(0, StepOf(id));
    listener.WaitFor("ready 1");
    const std::vector<std::string> before = listener.heard();
    EXPECT_EQ(before.end()[-2], "lost: stage " + std::to_string(failing) + ": broken");
    EXPECT_EQ(before.back(), "ready 1");
    // A step of the past, and the first one anew: the executors check that it is 0.
    stages->Launch(0, StepOf(3));
    stages->Launch(1, StepOf(0));
    const auto computed = std::count(before.begin(), before.end(), "2 computed 0");
    listener.WaitFor("2 computed 0", static_cast<int>(computed) + 1);
    stages->Stop();
    const std::vector<std::string> all = listener.heard();
    EXPECT_THAT(
        std::vector<std::string>(all.begin() + before.size(), all.end()),
        ElementsAre("0 started 0", "0 computed 0", "0 sent 0", "1 delivered 0", "1 started 0",
                    "1 computed 0", "1 sent 0", "2 delivered 0", "2 started 0", "2 computed 0"));
  }
}

TEST(LocalStagesTest, StoppedStagesSayNothingMore) {
  for (int round = 0; round < 50; ++round) {
    std::atomic<int> steps = 0;
    const std::unique_ptr<Stages> stages =
        MakeLocalStages(FakeStages(2, [&steps](const Step&) -> absl::Status {
          if (++steps % 4 > 0) return absl::OkStatus();
          return absl::InternalError("broken");
        }));
    Listener listener;
    stages->Start(listener);
    for (MicroBatchId id = 0; id < round % 8; ++id) stages->Launch(0, StepOf(id));
    stages->Stop();
    const size_t heard = listener.heard().size();
    stages->Launch(0, StepOf(round % 8));
    stages->Stop();
    EXPECT_EQ(listener.heard().size(), heard);
  }
}

// As one whose GPU is lost with its first step.
class LostExecutor : public FakeExecutor {
 public:
  LostExecutor() : FakeExecutor(0, 1, [](const Step&) { return absl::InternalError("lost"); }) {}
  absl::Status usable() const override { return absl::InternalError("GPU 0 is lost"); }
};

TEST(LocalStagesTest, AStageOfNoUseAnyMoreIsGone) {
  std::vector<std::unique_ptr<StageExecutor>> executors;
  executors.push_back(std::make_unique<LostExecutor>());
  const std::unique_ptr<Stages> stages = MakeLocalStages(std::move(executors));
  Listener listener;
  stages->Start(listener);
  stages->Launch(0, StepOf(0));
  listener.WaitFor("gone: stage 0: GPU 0 is lost");
  stages->Stop();
  EXPECT_THAT(listener.heard(), ElementsAre("ready 0", "0 started 0", "lost: stage 0: lost",
                                            "gone: stage 0: GPU 0 is lost"));
}

TEST(LocalStagesTest, StagesThatWereNeverStartedCanGo) {
  MakeLocalStages(FakeStages(2))->Stop();
  MakeLocalStages(FakeStages(2));
}

}  // namespace
}  // namespace fabricast
