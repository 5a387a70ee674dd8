// What one pipeline stage does with micro-batches: runs them one at a time, in launch order, as
// their activations arrive.
//
// The other half of the pure state machine. The Scheduler sits at the head; every stage has a
// StageQueue, in its own process where stages are processes, so that no hop waits for a round trip
// to the head.
//
// Not thread-safe; one owner.
#ifndef FABRICAST_RUNTIME_SCHEDULER_STAGE_QUEUE_H_
#define FABRICAST_RUNTIME_SCHEDULER_STAGE_QUEUE_H_

#include <cstdint>
#include <deque>
#include <optional>

#include "runtime/scheduler/scheduler.h"

namespace fabricast {

class StageQueue {
 public:
  // The inputs of `id` are here (for the first stage: it was launched). CHECKs that ids arrive in
  // launch order, none missing: 0, 1, 2, ...
  // Returns the micro-batch to run now, if the stage was idle.
  std::optional<MicroBatchId> Arrived(MicroBatchId id);

  // The running micro-batch is done (its outputs may now be sent on). CHECKs that `id` is the one
  // that runs.
  // Returns the next one to run, if its inputs are here.
  std::optional<MicroBatchId> Computed(MicroBatchId id);

  bool busy() const { return running_.has_value(); }
  int queued() const { return static_cast<int>(queue_.size()); }

 private:
  std::optional<MicroBatchId> running_;
  std::deque<MicroBatchId> queue_;
  MicroBatchId last_arrived_ = -1;
};

}  // namespace fabricast

#endif  // FABRICAST_RUNTIME_SCHEDULER_STAGE_QUEUE_H_
