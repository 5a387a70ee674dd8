#include "runtime/executor/cuda/tensor_parallel_ranks.h"

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <future>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace fabricast {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr int kRanks = 3;

// Where ranks wait for all others, as in a collective operation.
class Meeting {
 public:
  bool Wait() {
    std::unique_lock<std::mutex> lock(mutex_);
    const int64_t round = arrivals_++ / kRanks;
    changed_.notify_all();
    changed_.wait(lock, [&] { return arrivals_ >= (round + 1) * kRanks || aborted_; });
    return !aborted_;
  }
  void Abort() {
    const std::lock_guard<std::mutex> lock(mutex_);
    aborted_ = true;
    changed_.notify_all();
  }
  bool aborted() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return aborted_;
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  int64_t arrivals_ = 0;
  bool aborted_ = false;
};

// What a rank does: set by a test while no call is under way, and seen by it then.
struct Script {
  std::vector<int64_t> enqueued;  // micro-batches
  std::vector<int64_t> finished;
  int resets = 0;
  absl::Status enqueue_status;  // instead of meeting the others
  absl::Status finish_status;
  int32_t token = 5;
  std::future<void> computed;  // if valid, Finish waits for it
};

class FakeRank : public DeviceExecutor {
 public:
  FakeRank(int rank, Script& script, Meeting& enqueue, Meeting& finish)
      : rank_(rank), script_(script), enqueue_(enqueue), finish_(finish) {}

  int64_t activation_bytes_per_token() const override { return 2; }
  absl::Status UseDevice() const override { return absl::OkStatus(); }
  int slots() const override { return 10 + rank_; }
  Slot slot(int index) const override {
    Slot slot;
    slot.arrived = reinterpret_cast<GpuEventHandle>(intptr_t{100 * (rank_ + 1) + index});
    return slot;
  }
  absl::Status Enqueue(const Step& step) override {
    if (!script_.enqueue_status.ok()) return script_.enqueue_status;
    if (!enqueue_.Wait()) return absl::CancelledError("aborted");
    script_.enqueued.push_back(step.micro_batch.id);
    return absl::OkStatus();
  }
  absl::Status Finish(const Step& step, std::vector<SampledToken>& sampled, Times& times) override {
    if (!script_.finish_status.ok()) return script_.finish_status;
    if (script_.computed.valid()) script_.computed.wait();
    if (!finish_.Wait()) return absl::CancelledError("aborted");
    script_.finished.push_back(step.micro_batch.id);
    times.computed = std::chrono::steady_clock::time_point(std::chrono::seconds(rank_ + 1));
    sampled.resize(1);
    sampled[0].token = script_.token;
    return absl::OkStatus();
  }
  absl::Status Run(const Step& step, absl::Span<const std::byte> input,
                   absl::Span<std::byte> output, std::vector<SampledToken>& sampled) override {
    if (!input.empty() && !output.empty()) {
      output[0] = static_cast<std::byte>(std::to_integer<int>(input[0]) + rank_);
    }
    Times times;
    const absl::Status status = Enqueue(step);
    return status.ok() ? Finish(step, sampled, times) : status;
  }
  void Reset() override { ++script_.resets; }

 private:
  const int rank_;
  Script& script_;
  Meeting& enqueue_;
  Meeting& finish_;
};

class TensorParallelRanksTest : public testing::Test {
 protected:
  TensorParallelRanksOptions Options() {
    return {.ranks = kRanks,
            .make = [this](int rank) -> absl::StatusOr<std::unique_ptr<DeviceExecutor>> {
              return std::make_unique<FakeRank>(rank, scripts_[rank], enqueue_, finish_);
            },
            .abort =
                [this] {
                  enqueue_.Abort();
                  finish_.Abort();
                },
            .grace = absl::Milliseconds(50)};
  }
  std::unique_ptr<DeviceExecutor> Make() {
    auto made = MakeTensorParallelRanks(Options());
    EXPECT_TRUE(made.ok()) << made.status();
    return *std::move(made);
  }
  static Step StepOf(int64_t id) {
    Step step;
    step.micro_batch.id = id;
    return step;
  }

  std::vector<Script> scripts_ = std::vector<Script>(kRanks);
  Meeting enqueue_;
  Meeting finish_;
  std::vector<SampledToken> sampled_;
  DeviceExecutor::Times times_;
};

TEST_F(TensorParallelRanksTest, AllRanksTakeAllStepsAndTheFirstOneAnswers) {
  const std::unique_ptr<DeviceExecutor> stage = Make();
  EXPECT_EQ(stage->slots(), 10);
  EXPECT_EQ(stage->slot(2).arrived, reinterpret_cast<GpuEventHandle>(102));
  for (const int64_t id : {7, 8}) ASSERT_TRUE(stage->Enqueue(StepOf(id)).ok());
  ASSERT_TRUE(stage->Finish(StepOf(7), sampled_, times_).ok());
  EXPECT_EQ(times_.computed.time_since_epoch(), std::chrono::seconds(1));
  ASSERT_EQ(sampled_.size(), 1);
  EXPECT_EQ(sampled_[0].token, 5);
  stage->Reset();
  for (const Script& script : scripts_) {
    EXPECT_THAT(script.enqueued, ElementsAre(7, 8));
    EXPECT_THAT(script.finished, ElementsAre(7));
    EXPECT_EQ(script.resets, 1);
  }
}

TEST_F(TensorParallelRanksTest, StepsAreEnqueuedWhileOthersAreWaitedFor) {
  const std::unique_ptr<DeviceExecutor> stage = Make();
  ASSERT_TRUE(stage->Enqueue(StepOf(1)).ok());
  std::promise<void> computed;
  scripts_[2].computed = computed.get_future();
  std::future<absl::Status> finished =
      std::async(std::launch::async, [&] { return stage->Finish(StepOf(1), sampled_, times_); });
  EXPECT_TRUE(stage->Enqueue(StepOf(2)).ok());
  EXPECT_EQ(finished.wait_for(std::chrono::milliseconds(0)), std::future_status::timeout);
  computed.set_value();
  EXPECT_TRUE(finished.get().ok());
}

TEST_F(TensorParallelRanksTest, RunGivesTheFirstRanksOutput) {
  const std::unique_ptr<DeviceExecutor> stage = Make();
  const std::byte input[] = {std::byte{40}};
  std::byte output[] = {std::byte{0}};
  ASSERT_TRUE(stage->Run(StepOf(1), input, absl::MakeSpan(output), sampled_).ok());
  EXPECT_EQ(output[0], std::byte{40});
  for (const Script& script : scripts_) EXPECT_THAT(script.finished, ElementsAre(1));
}

TEST_F(TensorParallelRanksTest, WhatAllFailInIsTheStepsErrorAndResetMendsIt) {
  const std::unique_ptr<DeviceExecutor> stage = Make();
  for (Script& script : scripts_) script.enqueue_status = absl::ResourceExhaustedError("KV blocks");
  EXPECT_EQ(stage->Enqueue(StepOf(1)), absl::ResourceExhaustedError("KV blocks"));
  EXPECT_FALSE(enqueue_.aborted());
  for (Script& script : scripts_) script.enqueue_status = absl::OkStatus();
  stage->Reset();
  EXPECT_TRUE(stage->Enqueue(StepOf(1)).ok());
  EXPECT_TRUE(stage->Finish(StepOf(1), sampled_, times_).ok());
}

TEST_F(TensorParallelRanksTest, OneThatFailsAloneEndsTheWaitOfOthersAndIsNamed) {
  const std::unique_ptr<DeviceExecutor> stage = Make();
  ASSERT_TRUE(stage->Enqueue(StepOf(1)).ok());
  scripts_[1].finish_status = absl::InternalError("Xid 79");
  const absl::Status status = stage->Finish(StepOf(1), sampled_, times_);
  EXPECT_EQ(status, absl::InternalError("GPU 2 of the 3 of this stage: Xid 79"));
  EXPECT_TRUE(finish_.aborted());
  // For good.
  stage->Reset();
  EXPECT_EQ(stage->Enqueue(StepOf(2)), status);
  EXPECT_EQ(stage->Finish(StepOf(2), sampled_, times_), status);
  EXPECT_EQ(stage->Run(StepOf(2), {}, {}, sampled_), status);
}

TEST_F(TensorParallelRanksTest, RanksThatDisagreeAreOfNoUse) {
  const std::unique_ptr<DeviceExecutor> stage = Make();
  ASSERT_TRUE(stage->Enqueue(StepOf(1)).ok());
  scripts_[2].token = 6;
  const absl::Status status = stage->Finish(StepOf(1), sampled_, times_);
  EXPECT_EQ(status.code(), absl::StatusCode::kInternal);
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("GPU 3 of 3 has sampled another token than the first"));
  EXPECT_TRUE(sampled_.empty());
  EXPECT_FALSE(stage->Enqueue(StepOf(2)).ok());
}

TEST_F(TensorParallelRanksTest, OneThatCannotBeMadeEndsTheWaitOfOthers) {
  TensorParallelRanksOptions options = Options();
  options.make = [this](int rank) -> absl::StatusOr<std::unique_ptr<DeviceExecutor>> {
    if (rank == 1) return absl::ResourceExhaustedError("1.0 GB short");
    if (!enqueue_.Wait()) return absl::AbortedError("aborted");
    return std::make_unique<FakeRank>(rank, scripts_[rank], enqueue_, finish_);
  };
  EXPECT_EQ(MakeTensorParallelRanks(options).status(),
            absl::ResourceExhaustedError("GPU 2 of the 3 of this stage: 1.0 GB short"));
}

}  // namespace
}  // namespace fabricast
