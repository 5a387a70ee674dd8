// One stage at work: runs steps in launch order, as their activations arrive, and sends the results
// on.
#ifndef FABRICAST_RUNTIME_ENGINE_STAGE_WORKER_H_
#define FABRICAST_RUNTIME_ENGINE_STAGE_WORKER_H_

#include <memory>

#include "absl/status/status.h"
#include "runtime/engine/stages.h"
#include "runtime/executor/stage_executor.h"
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
  // Stops, and waits for the step that is computed. The transport must be closed, and its last
  // `done` have run, before.
  virtual ~StageWorker() = default;

  // A step, in launch order, to run when its activations are here; they may be on their way before
  // the stage has got to it. Thread-safe.
  virtual void Announce(std::shared_ptr<const Step> step) = 0;

  // Begins no step, and tells the observer of no failure, any more; returns at once. Idempotent.
  virtual void Stop() = 0;
};

// `executor` is new or was Reset, and this one's alone; `transport` is `stage`'s end among
// `stages`. Both and `observer` must outlive the worker, which has a thread.
std::unique_ptr<StageWorker> MakeStageWorker(int stage, int stages, StageExecutor& executor,
                                             StageTransport& transport, StageObserver& observer);

}  // namespace fabricast

#endif  // FABRICAST_RUNTIME_ENGINE_STAGE_WORKER_H_
