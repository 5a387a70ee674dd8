// One stage at work: a thread that runs steps through an executor in launch order, as their
// activations arrive, and sends the results on.
#ifndef FABRICAST_RUNTIME_ENGINE_STAGE_WORKER_H_
#define FABRICAST_RUNTIME_ENGINE_STAGE_WORKER_H_

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "runtime/engine/stages.h"
#include "runtime/executor/stage_executor.h"
#include "runtime/scheduler/stage_queue.h"
#include "runtime/transport/stage_transport.h"

namespace fabricast {

// Hears what a stage does, as it does it. Called on any thread; must not block.
class StageObserver {
 public:
  virtual ~StageObserver() = default;
  virtual void Reported(StageReport report) = 0;
  // The stage, which `status` names, will do no more. Once at most for a stage.
  virtual void Failed(const absl::Status& status) = 0;
};

class StageWorker {
 public:
  // `executor` is new or was Reset, and this one's alone until Stop; `transport` is `stage`'s end
  // among `stages`. Both and `observer` must outlive this. Starts the thread.
  StageWorker(int stage, int stages, StageExecutor& executor, StageTransport& transport,
              StageObserver& observer);
  ~StageWorker() { Stop(); }
  StageWorker(const StageWorker&) = delete;
  StageWorker& operator=(const StageWorker&) = delete;

  // A step, in launch order, to run when its activations are here; they may be on their way before
  // the stage has got to it. Thread-safe.
  void Announce(std::shared_ptr<const Step> step);

  // Ends the thread after the step that it computes. The transport must be closed, and its last
  // `done` have run, before this is destroyed. Idempotent.
  void Stop();

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

}  // namespace fabricast

#endif  // FABRICAST_RUNTIME_ENGINE_STAGE_WORKER_H_
