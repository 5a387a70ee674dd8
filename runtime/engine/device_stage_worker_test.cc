#include "runtime/engine/device_stage_worker.h"

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <map>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace fabricast {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;

constexpr int kSlots = 2;
constexpr int64_t kBytesPerToken = 4;
constexpr std::chrono::steady_clock::time_point kEpoch{std::chrono::hours(1)};

// What was done to executor, transport and observer, in words and in the order in which it was.
class Log {
 public:
  void Add(std::string what) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      all_.push_back(std::move(what));
    }
    changed_.notify_all();
  }
  void WaitFor(const std::string& what) {
    std::unique_lock<std::mutex> lock(mutex_);
    ASSERT_TRUE(changed_.wait_for(lock, std::chrono::seconds(60), [&] {
      return std::find(all_.begin(), all_.end(), what) != all_.end();
    })) << what;
  }
  std::vector<std::string> all() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return all_;
  }
  // Of `what` within all; so many if it is not there.
  size_t Place(const std::string& what) {
    const std::vector<std::string> all = this->all();
    return std::find(all.begin(), all.end(), what) - all.begin();
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<std::string> all_;
};

// A GPU that computes when the test says so.
class FakeDeviceExecutor : public DeviceExecutor {
 public:
  explicit FakeDeviceExecutor(Log& log) : log_(log), memory_(2 * kSlots * 64) {}

  int64_t activation_bytes_per_token() const override { return kBytesPerToken; }
  absl::Status Run(const Step&, absl::Span<const std::byte>, absl::Span<std::byte>,
                   std::vector<SampledToken>&) override {
    return absl::UnimplementedError("");
  }
  void Reset() override {}
  absl::Status UseDevice() const override { return use_device_error_; }
  int slots() const override { return kSlots; }
  Slot slot(int index) const override {
    const auto event = [index](int kind) {
      return reinterpret_cast<GpuEventHandle>(static_cast<uintptr_t>(1 + 2 * index + kind));
    };
    const absl::Span<std::byte> memory = absl::MakeSpan(memory_);
    return {.input = memory.subspan(index * 64, 64),
            .output = memory.subspan((kSlots + index) * 64, 64),
            .arrived = event(0),
            .computed = event(1)};
  }
  absl::Status Enqueue(const Step& step) override {
    log_.Add(absl::StrCat("enqueue ", step.micro_batch.id));
    return enqueue_error_;
  }
  absl::Status Finish(const Step& step, std::vector<SampledToken>& sampled, Times& times) override {
    const MicroBatchId id = step.micro_batch.id;
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [&] { return computed_.contains(id); });
    sampled = {{.token = static_cast<int32_t>(100 + id), .logprob = 0, .top = {}}};
    times = {.arrived = kEpoch + std::chrono::seconds(10 * id),
             .started = kEpoch + std::chrono::seconds(10 * id + 1),
             .computed = kEpoch + std::chrono::seconds(10 * id + 2)};
    log_.Add(absl::StrCat("finish ", id));
    return computed_[id];
  }

  void Compute(MicroBatchId id, absl::Status status = absl::OkStatus()) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      computed_[id] = std::move(status);
    }
    changed_.notify_all();
  }
  void FailToEnqueue(absl::Status status) { enqueue_error_ = std::move(status); }
  void FailToUseDevice(absl::Status status) { use_device_error_ = std::move(status); }

 private:
  Log& log_;
  mutable std::vector<std::byte> memory_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::map<MicroBatchId, absl::Status> computed_;
  absl::Status enqueue_error_;
  absl::Status use_device_error_;
};

// Transfers end when the test says so.
class FakeDeviceTransport : public DeviceTransport {
 public:
  explicit FakeDeviceTransport(Log& log) : log_(log) {}

  absl::Status Send(int, absl::Span<const std::byte>, Done) override {
    return absl::UnimplementedError("");
  }
  absl::Status Receive(int, absl::Span<std::byte>, Done) override {
    return absl::UnimplementedError("");
  }
  absl::Status SendAfter(GpuEventHandle ready, int to, absl::Span<const std::byte> bytes,
                         Done done) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    log_.Add(absl::StrCat("send ", bytes.size(), " to ", to, " after event ",
                          reinterpret_cast<uintptr_t>(ready)));
    sends_.push_back(std::move(done));
    return absl::OkStatus();
  }
  absl::Status ReceiveAfter(GpuEventHandle, int from, absl::Span<std::byte> buffer,
                            GpuEventHandle arrived, Done done) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    log_.Add(absl::StrCat("receive ", buffer.size(), " from ", from, " then event ",
                          reinterpret_cast<uintptr_t>(arrived)));
    receives_.push_back(std::move(done));
    return absl::OkStatus();
  }
  void Close() override {
    while (EndReceive(absl::CancelledError("closed"))) {
    }
    while (EndSend(absl::CancelledError("closed"))) {
    }
  }

  bool EndReceive(absl::Status status) { return End(receives_, std::move(status)); }
  bool EndSend(absl::Status status) { return End(sends_, std::move(status)); }

 private:
  bool End(std::deque<Done>& pending, absl::Status status) {
    Done done;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (pending.empty()) return false;
      done = std::move(pending.front());
      pending.pop_front();
    }
    std::move(done)(std::move(status));
    return true;
  }

  Log& log_;
  std::mutex mutex_;
  std::deque<Done> sends_;
  std::deque<Done> receives_;
};

class Observer : public StageObserver {
 public:
  explicit Observer(Log& log) : log_(log) {}
  void Reported(StageReport report) override {
    static constexpr const char* kNames[] = {"delivered", "started", "computed", "sent"};
    std::string text =
        absl::StrCat(kNames[static_cast<int>(report.kind)], " ", report.id, " at ",
                     std::chrono::duration_cast<std::chrono::seconds>(report.at - kEpoch).count());
    if (report.bytes > 0) absl::StrAppend(&text, ", ", report.bytes, " bytes");
    for (const SampledToken& token : report.sampled) absl::StrAppend(&text, ", ", token.token);
    log_.Add(text);
  }
  void Failed(const absl::Status& status) override {
    log_.Add(absl::StrCat("failed: ", status.message()));
  }

 private:
  Log& log_;
};

std::shared_ptr<const Step> StepOf(MicroBatchId id, int tokens) {
  auto step = std::make_shared<Step>();
  step->micro_batch.id = id;
  step->tokens.resize(tokens);
  return step;
}

class DeviceStageWorkerTest : public testing::Test {
 protected:
  ~DeviceStageWorkerTest() override {
    if (worker_ == nullptr) return;
    worker_->Stop();
    transport_.Close();
    for (MicroBatchId id = 0; id < 10; ++id) executor_.Compute(id);
    worker_ = nullptr;
  }
  void Work(int stage, int stages) {
    worker_ = MakeDeviceStageWorker(stage, stages, executor_, transport_, observer_);
  }

  Log log_;
  FakeDeviceExecutor executor_{log_};
  FakeDeviceTransport transport_{log_};
  Observer observer_{log_};
  std::unique_ptr<StageWorker> worker_;
};

TEST_F(DeviceStageWorkerTest, EnqueuesTransfersAndComputationWithoutWaiting) {
  Work(1, 3);
  worker_->Announce(StepOf(0, 3));
  worker_->Announce(StepOf(1, 1));
  // Nothing has arrived nor been computed. Slot 0 has the events 1 and 2, slot 1 has 3 and 4.
  log_.WaitFor("send 4 to 2 after event 4");
  EXPECT_THAT(log_.all(), ElementsAre("receive 12 from 0 then event 1", "enqueue 0",
                                      "send 12 to 2 after event 2", "receive 4 from 0 then event 3",
                                      "enqueue 1", "send 4 to 2 after event 4"));
}

TEST_F(DeviceStageWorkerTest, ReportsWhatTheGpuDidOnceItIsComputed) {
  Work(1, 3);
  worker_->Announce(StepOf(0, 3));
  log_.WaitFor("send 12 to 2 after event 2");
  transport_.EndReceive(absl::OkStatus());
  executor_.Compute(0);
  log_.WaitFor("sent 0 at 2, 12 bytes");
  const std::vector<std::string> all = log_.all();
  EXPECT_THAT(std::vector<std::string>(all.begin() + 3, all.end()),
              ElementsAre("finish 0", "delivered 0 at 0", "started 0 at 1", "computed 0 at 2, 100",
                          "sent 0 at 2, 12 bytes"));
}

TEST_F(DeviceStageWorkerTest, TheFirstStageReceivesAndTheLastSendsNothing) {
  Work(0, 1);
  worker_->Announce(StepOf(0, 1));
  executor_.Compute(0);
  log_.WaitFor("computed 0 at 2, 100");
  EXPECT_THAT(log_.all(),
              ElementsAre("enqueue 0", "finish 0", "started 0 at 1", "computed 0 at 2, 100"));
}

TEST_F(DeviceStageWorkerTest, ASlotIsUsedAgainWhenItsStepIsFinishedAndSent) {
  Work(0, 2);
  for (MicroBatchId id = 0; id < 3; ++id) worker_->Announce(StepOf(id, 1));
  executor_.Compute(0);
  log_.WaitFor("sent 0 at 2, 4 bytes");
  // Slot 0's output has not left.
  executor_.Compute(1);
  log_.WaitFor("sent 1 at 12, 4 bytes");
  EXPECT_THAT(log_.all(), Not(testing::Contains("enqueue 2")));
  transport_.EndSend(absl::OkStatus());
  log_.WaitFor("enqueue 2");
}

TEST_F(DeviceStageWorkerTest, WhatWasComputedFromALinkThatEndedIsNotReported) {
  Work(1, 2);
  worker_->Announce(StepOf(0, 1));
  log_.WaitFor("enqueue 0");
  // The GPU goes on when its communicator is aborted; the transport tells a moment later.
  executor_.Compute(0);
  log_.WaitFor("finish 0");
  transport_.EndReceive(absl::UnavailableError("stage 0 is gone"));
  log_.WaitFor("failed: stage 1: stage 0 is gone");
  EXPECT_EQ(log_.Place("computed 0 at 2, 100"), log_.all().size());
}

TEST_F(DeviceStageWorkerTest, FailsOnceAndBeginsNothingMore) {
  Work(0, 2);
  worker_->Announce(StepOf(0, 1));
  log_.WaitFor("send 4 to 1 after event 2");
  executor_.Compute(0, absl::InternalError("request 7: not finite"));
  log_.WaitFor("failed: stage 0: request 7: not finite");
  transport_.EndSend(absl::UnavailableError("stage 1 is gone"));
  worker_->Announce(StepOf(1, 1));
  worker_->Stop();
  transport_.Close();
  worker_ = nullptr;
  const std::vector<std::string> all = log_.all();
  EXPECT_EQ(std::count_if(all.begin(), all.end(),
                          [](const std::string& what) { return what.starts_with("failed"); }),
            1);
  EXPECT_EQ(log_.Place("enqueue 1"), all.size());
}

TEST_F(DeviceStageWorkerTest, AStepThatCannotBeEnqueuedFailsTheStage) {
  Work(0, 1);
  executor_.FailToEnqueue(absl::ResourceExhaustedError("out of KV blocks"));
  worker_->Announce(StepOf(0, 1));
  log_.WaitFor("failed: stage 0: out of KV blocks");
}

TEST_F(DeviceStageWorkerTest, AGpuThatIsGoneFailsTheStage) {
  executor_.FailToUseDevice(absl::UnavailableError("GPU 1 fell off the bus"));
  Work(1, 3);
  worker_->Announce(StepOf(0, 1));
  log_.WaitFor("failed: stage 1: GPU 1 fell off the bus");
  EXPECT_THAT(log_.all(), ElementsAre("failed: stage 1: GPU 1 fell off the bus"));
}

TEST_F(DeviceStageWorkerTest, StoppingIsNoFailure) {
  Work(1, 3);
  worker_->Announce(StepOf(0, 1));
  log_.WaitFor("send 4 to 2 after event 2");
  worker_->Stop();
  transport_.Close();
  executor_.Compute(0);
  worker_ = nullptr;
  for (const std::string& what : log_.all()) EXPECT_THAT(what, Not(HasSubstr("failed")));
}

}  // namespace
}  // namespace fabricast
