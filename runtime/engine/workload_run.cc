#include "runtime/engine/workload_run.h"

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <random>

#include "runtime/check.h"

namespace fabricast {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::chrono::milliseconds kLook(20);

class Run {
 public:
  Run(Engine& engine, const Workload& workload, const WorkloadRunOptions& options)
      : engine_(engine), workload_(workload), options_(options) {}

  absl::Status Go() {
    const Clock::time_point start = Clock::now();
    const size_t all = workload_.requests.size();
    std::unique_lock<std::mutex> lock(mutex_);
    if (workload_.concurrency > 0) {
      while (next_ < std::min<size_t>(workload_.concurrency, all)) SubmitNext();
    }
    while (!Interrupted() && ended_ < all && engine_.status().ok()) {
      Clock::time_point until = Clock::now() + kLook;
      if (workload_.concurrency == 0 && next_ < all) {
        const Clock::time_point due =
            start + std::chrono::duration_cast<Clock::duration>(
                        std::chrono::duration<double>(workload_.requests[next_].arrival_s));
        if (due <= Clock::now()) {
          SubmitNext();
          continue;
        }
        until = std::min(until, due);
      }
      wake_.wait_until(lock, until);
      Tell(lock);
    }
    const bool interrupted = ended_ < all && engine_.status().ok();
    draining_ = true;
    if (interrupted) engine_.CancelAll();
    lock.unlock();
    absl::Status status = engine_.WaitUntilIdle();
    if (status.ok() && interrupted) return absl::CancelledError("interrupted");
    return status;
  }

 private:
  bool Interrupted() const { return options_.interrupted != nullptr && *options_.interrupted; }

  // With the lock held.
  void SubmitNext() {
    engine_.Submit(options_.make_request(next_++), [this](const GenerationUpdate& update) {
      if (!update.last()) return;
      const std::lock_guard<std::mutex> lock(mutex_);
      ++ended_;
      // A request that can never run, or was lost, does not end the others.
      if (!update.error.ok() && !engine_.status().ok()) draining_ = true;
      const bool closed_loop = workload_.concurrency > 0;
      if (closed_loop && !draining_ && next_ < workload_.requests.size()) SubmitNext();
      if (ended_ == next_) wake_.notify_one();
    });
  }

  void Tell(std::unique_lock<std::mutex>& lock) {
    if (options_.progress == nullptr) return;
    const double done =
        static_cast<double>(ended_) / static_cast<double>(workload_.requests.size());
    lock.unlock();
    options_.progress(done);
    lock.lock();
  }

  Engine& engine_;
  const Workload& workload_;
  const WorkloadRunOptions& options_;
  std::mutex mutex_;
  std::condition_variable wake_;
  size_t next_ = 0;
  size_t ended_ = 0;
  bool draining_ = false;  // nothing more is submitted
};

}  // namespace

absl::Status RunWorkload(Engine& engine, const Workload& workload,
                         const WorkloadRunOptions& options) {
  FABRICAST_CHECK(options.make_request != nullptr);
  return Run(engine, workload, options).Go();
}

std::vector<int32_t> RandomPrompt(int64_t count, int32_t vocabulary,
                                  const std::vector<int32_t>& excluded, uint64_t seed) {
  FABRICAST_CHECK(static_cast<size_t>(vocabulary) > excluded.size()) << vocabulary;
  std::mt19937_64 random(seed);
  std::vector<int32_t> prompt;
  while (static_cast<int64_t>(prompt.size()) < count) {
    const int32_t id = static_cast<int32_t>(random() % static_cast<uint64_t>(vocabulary));
    if (!std::binary_search(excluded.begin(), excluded.end(), id)) prompt.push_back(id);
  }
  return prompt;
}

}  // namespace fabricast
