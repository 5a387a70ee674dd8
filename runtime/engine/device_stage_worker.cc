#include "runtime/engine/device_stage_worker.h"

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "runtime/check.h"

namespace fabricast {
namespace {

class DeviceStageWorker : public StageWorker {
 public:
  DeviceStageWorker(int stage, int stages, DeviceExecutor& executor, DeviceTransport& transport,
                    StageObserver& observer)
      : stage_(stage),
        stages_(stages),
        executor_(executor),
        transport_(transport),
        observer_(observer),
        uses_(executor.slots()),
        enqueuer_([this] { EnqueueAll(); }),
        finisher_([this] { FinishAll(); }) {}
  ~DeviceStageWorker() override {
    Stop();
    enqueuer_.join();
    finisher_.join();
  }

  void Announce(std::shared_ptr<const Step> step) override {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      announced_.push_back(std::move(step));
    }
    wake_.notify_all();
  }

  void Stop() override {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      stopping_ = true;
    }
    wake_.notify_all();
  }

 private:
  // Of a slot. It is free when it has none.
  struct Use {
    bool receiving = false;
    bool computing = false;
    bool sending = false;
    bool free() const { return !receiving && !computing && !sending; }
  };

  void EnqueueAll() {
    if (const absl::Status status = executor_.UseDevice(); !status.ok()) return Fail(status);
    for (int64_t count = 0;; ++count) {
      const int slot = static_cast<int>(count % executor_.slots());
      std::shared_ptr<const Step> step;
      {
        std::unique_lock<std::mutex> lock(mutex_);
        wake_.wait(lock, [&] {
          return stopping_ || failed_ || (!announced_.empty() && uses_[slot].free());
        });
        if (stopping_ || failed_) return;
        step = std::move(announced_.front());
        announced_.pop_front();
        uses_[slot] = {.receiving = stage_ > 0, .computing = true, .sending = !last()};
      }
      if (const absl::Status status = Enqueue(step, slot); !status.ok()) return Fail(status);
    }
  }

  absl::Status Enqueue(const std::shared_ptr<const Step>& step, int index) {
    const DeviceExecutor::Slot slot = executor_.slot(index);
    const size_t bytes = BytesOf(*step);
    if (stage_ > 0) {
      FABRICAST_CHECK(bytes <= slot.input.size()) << bytes << " " << slot.input.size();
      const absl::Status posted = transport_.ReceiveAfter(
          nullptr, stage_ - 1, slot.input.first(bytes), slot.arrived,
          [this, index](absl::Status received) { Ended(&Use::receiving, index, received); });
      if (!posted.ok()) return posted;
    }
    if (absl::Status enqueued = executor_.Enqueue(*step); !enqueued.ok()) return enqueued;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      running_.push_back(step);
    }
    wake_.notify_all();
    if (last()) return absl::OkStatus();
    FABRICAST_CHECK(bytes <= slot.output.size()) << bytes << " " << slot.output.size();
    return transport_.SendAfter(
        slot.computed, stage_ + 1, slot.output.first(bytes),
        [this, index](absl::Status left) { Ended(&Use::sending, index, left); });
  }

  void FinishAll() {
    for (int64_t count = 0;; ++count) {
      const int slot = static_cast<int>(count % executor_.slots());
      std::shared_ptr<const Step> step;
      {
        std::unique_lock<std::mutex> lock(mutex_);
        wake_.wait(lock, [this] { return stopping_ || failed_ || !running_.empty(); });
        if (stopping_ || failed_) return;
        step = std::move(running_.front());
        running_.pop_front();
      }
      std::vector<SampledToken> sampled;
      DeviceExecutor::Times times;
      const absl::Status status = executor_.Finish(*step, sampled, times);
      {
        // Where a link has ended the GPU computed with bytes that mean nothing.
        std::unique_lock<std::mutex> lock(mutex_);
        wake_.wait(lock, [&] { return stopping_ || failed_ || !uses_[slot].receiving; });
        if (stopping_ || failed_) return;
      }
      if (!status.ok()) return Fail(status);
      Report(*step, times, std::move(sampled));
      Ended(&Use::computing, slot, absl::OkStatus());
    }
  }

  void Report(const Step& step, const DeviceExecutor::Times& times,
              std::vector<SampledToken> sampled) {
    using Kind = StageReport::Kind;
    const auto report = [&](StageReport what, std::chrono::steady_clock::time_point at) {
      what.stage = stage_;
      what.id = step.micro_batch.id;
      what.at = at;
      observer_.Reported(std::move(what));
    };
    if (stage_ > 0) report({.kind = Kind::kDelivered}, times.arrived);
    report({.kind = Kind::kStarted}, times.started);
    report({.kind = Kind::kComputed, .sampled = std::move(sampled)}, times.computed);
    if (last()) return;
    report({.kind = Kind::kSendStarted, .bytes = static_cast<int64_t>(BytesOf(step))},
           times.computed);
  }

  void Ended(bool Use::*what, int slot, const absl::Status& status) {
    if (!status.ok()) return Fail(status);
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      uses_[slot].*what = false;
    }
    wake_.notify_all();
  }

  void Fail(const absl::Status& status) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      // When the pipeline is being taken down every transfer ends with an error.
      if (failed_ || stopping_) return;
      failed_ = true;
    }
    wake_.notify_all();
    observer_.Failed(
        absl::Status(status.code(), absl::StrCat("stage ", stage_, ": ", status.message())));
  }

  bool last() const { return stage_ + 1 == stages_; }
  size_t BytesOf(const Step& step) const {
    return step.tokens.size() * executor_.activation_bytes_per_token();
  }

  const int stage_;
  const int stages_;
  DeviceExecutor& executor_;
  DeviceTransport& transport_;
  StageObserver& observer_;

  std::mutex mutex_;
  std::condition_variable wake_;
  bool stopping_ = false;
  bool failed_ = false;
  std::deque<std::shared_ptr<const Step>> announced_;
  std::deque<std::shared_ptr<const Step>> running_;  // enqueued, and not being finished
  std::vector<Use> uses_;                            // by slot

  std::thread enqueuer_;
  std::thread finisher_;
};

}  // namespace

std::unique_ptr<StageWorker> MakeDeviceStageWorker(int stage, int stages, DeviceExecutor& executor,
                                                   DeviceTransport& transport,
                                                   StageObserver& observer) {
  return std::make_unique<DeviceStageWorker>(stage, stages, executor, transport, observer);
}

}  // namespace fabricast
