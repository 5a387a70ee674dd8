#include "runtime/engine/stage_worker.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <map>
#include <mutex>
#include <optional>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "runtime/check.h"
#include "runtime/scheduler/stage_queue.h"

namespace fabricast {
namespace {

// Waking a thread takes some 20 us (benchmarks/results/engine.md), 50 after the tens of
// milliseconds that a step of a large model takes, and the head, which must wake too, answers about
// then. So a stage that is alone looks for twice as long before it sleeps (a pause takes 10 to 45
// ns), and a GPU waits for one thread to wake instead of two. With others it mostly waits for one
// of them, who may need the core.
constexpr int kSpins = 4000;

void Pause() {
#if defined(__x86_64__)
  _mm_pause();
#endif
}

class ThreadedStageWorker : public StageWorker {
 public:
  ThreadedStageWorker(int stage, int stages, StageExecutor& executor, StageTransport& transport,
                      StageObserver& observer)
      : stage_(stage),
        stages_(stages),
        executor_(executor),
        bytes_per_token_(executor.activation_bytes_per_token()),
        transport_(transport),
        observer_(observer),
        thread_([this] { Loop(); }) {}
  ~ThreadedStageWorker() override {
    Stop();
    thread_.join();
  }

  void Announce(std::shared_ptr<const Step> step) override;
  void Stop() override;

 private:
  using Buffer = std::vector<std::byte>;
  struct Work {
    std::shared_ptr<const Step> step;
    std::unique_ptr<Buffer> input;
  };

  void Loop();
  // Returns when a micro-batch has arrived beyond the first `seen`, or a while has passed.
  void SpinBriefly(int64_t seen) const;
  void Run(MicroBatchId id);
  void Arrived(MicroBatchId id);
  // `report`, but for stage and time.
  void Report(StageReport report);
  void Fail(const absl::Status& status);
  bool last() const { return stage_ + 1 == stages_; }
  std::unique_ptr<Buffer> TakeBuffer(const Step& step);
  void GiveBack(std::unique_ptr<Buffer> buffer);

  const int stage_;
  const int stages_;
  StageExecutor& executor_;
  const int64_t bytes_per_token_;
  StageTransport& transport_;
  StageObserver& observer_;
  StageQueue queue_;

  std::mutex mutex_;
  std::condition_variable wake_;
  bool stopping_ = false;
  bool failed_ = false;
  std::deque<MicroBatchId> arrived_;
  std::atomic<int64_t> arrivals_ = 0;  // ever pushed to arrived_; read without the lock
  std::map<MicroBatchId, Work> announced_;
  std::vector<std::unique_ptr<Buffer>> spare_;

  std::thread thread_;
};

void ThreadedStageWorker::Announce(std::shared_ptr<const Step> step) {
  const MicroBatchId id = step->micro_batch.id;
  if (stage_ == 0) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      announced_[id] = {std::move(step), std::make_unique<Buffer>()};
    }
    Arrived(id);
    return;
  }
  std::unique_ptr<Buffer> input = TakeBuffer(*step);
  const absl::Span<std::byte> bytes = absl::MakeSpan(*input);
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    announced_[id] = {std::move(step), std::move(input)};
  }
  const absl::Status status =
      transport_.Receive(stage_ - 1, bytes, [this, id](absl::Status received) {
        if (!received.ok()) return Fail(received);
        Report({.kind = StageReport::Kind::kDelivered, .id = id});
        Arrived(id);
      });
  if (!status.ok()) Fail(status);
}

void ThreadedStageWorker::Stop() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    stopping_ = true;
  }
  wake_.notify_one();
}

void ThreadedStageWorker::Arrived(MicroBatchId id) {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    arrived_.push_back(id);
    arrivals_.fetch_add(1, std::memory_order_release);
  }
  wake_.notify_one();
}

void ThreadedStageWorker::Report(StageReport report) {
  report.stage = stage_;
  report.at = std::chrono::steady_clock::now();
  observer_.Reported(std::move(report));
}

void ThreadedStageWorker::Fail(const absl::Status& status) {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    // When the pipeline is being taken down every transfer ends with an error.
    if (failed_ || stopping_) return;
    failed_ = true;
  }
  wake_.notify_one();
  observer_.Failed(
      absl::Status(status.code(), absl::StrCat("stage ", stage_, ": ", status.message())));
}

std::unique_ptr<ThreadedStageWorker::Buffer> ThreadedStageWorker::TakeBuffer(const Step& step) {
  std::unique_ptr<Buffer> buffer;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!spare_.empty()) {
      buffer = std::move(spare_.back());
      spare_.pop_back();
    }
  }
  if (buffer == nullptr) buffer = std::make_unique<Buffer>();
  buffer->resize(step.tokens.size() * bytes_per_token_);
  return buffer;
}

void ThreadedStageWorker::GiveBack(std::unique_ptr<Buffer> buffer) {
  const std::lock_guard<std::mutex> lock(mutex_);
  spare_.push_back(std::move(buffer));
}

void ThreadedStageWorker::SpinBriefly(int64_t seen) const {
  for (int spin = 0; spin < kSpins && arrivals_.load(std::memory_order_acquire) == seen; ++spin) {
    Pause();
  }
}

void ThreadedStageWorker::Loop() {
  for (int64_t seen = 0;; ++seen) {
    MicroBatchId id;
    if (stages_ == 1) SpinBriefly(seen);
    {
      std::unique_lock<std::mutex> lock(mutex_);
      wake_.wait(lock, [this] { return stopping_ || failed_ || !arrived_.empty(); });
      if (stopping_ || failed_) return;
      id = arrived_.front();
      arrived_.pop_front();
    }
    std::optional<MicroBatchId> next = queue_.Arrived(id);
    while (next.has_value()) {
      Run(*next);
      next = queue_.Computed(*next);
    }
  }
}

void ThreadedStageWorker::Run(MicroBatchId id) {
  Work work;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto it = announced_.find(id);
    FABRICAST_CHECK(it != announced_.end()) << "micro-batch " << id << " was not announced";
    work = std::move(it->second);
    announced_.erase(it);
  }
  std::unique_ptr<Buffer> output;
  if (!last()) output = TakeBuffer(*work.step);
  Report({.kind = StageReport::Kind::kStarted, .id = id});
  std::vector<SampledToken> sampled;
  const absl::Status status = executor_.Run(
      *work.step, *work.input, last() ? absl::Span<std::byte>() : absl::MakeSpan(*output), sampled);
  if (stage_ > 0) GiveBack(std::move(work.input));
  if (!status.ok()) return Fail(status);
  Report({.kind = StageReport::Kind::kComputed, .id = id, .sampled = std::move(sampled)});
  if (last()) return;
  const absl::Span<const std::byte> bytes = *output;
  Report({.kind = StageReport::Kind::kSendStarted,
          .id = id,
          .bytes = static_cast<int64_t>(bytes.size())});
  const absl::Status sent = transport_.Send(
      stage_ + 1, bytes, [this, output = std::move(output)](absl::Status left) mutable {
        GiveBack(std::move(output));
        if (!left.ok()) Fail(left);
      });
  if (!sent.ok()) Fail(sent);
}

}  // namespace

std::unique_ptr<StageWorker> MakeStageWorker(int stage, int stages, StageExecutor& executor,
                                             StageTransport& transport, StageObserver& observer) {
  return std::make_unique<ThreadedStageWorker>(stage, stages, executor, transport, observer);
}

}  // namespace fabricast
