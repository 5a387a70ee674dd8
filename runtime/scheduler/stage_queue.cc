#include "runtime/scheduler/stage_queue.h"

#include "runtime/check.h"

namespace fabricast {

std::optional<MicroBatchId> StageQueue::Arrived(MicroBatchId id) {
  FABRICAST_CHECK(id == last_arrived_ + 1)
      << "micro-batch " << id << " arrives at a stage after " << last_arrived_;
  last_arrived_ = id;
  if (running_.has_value()) {
    queue_.push_back(id);
    return std::nullopt;
  }
  running_ = id;
  return id;
}

std::optional<MicroBatchId> StageQueue::Computed(MicroBatchId id) {
  FABRICAST_CHECK(id == running_.value_or(-1))
      << "micro-batch " << id << " is computed by a stage that runs " << running_.value_or(-1)
      << " (-1: none)";
  running_.reset();
  if (!queue_.empty()) {
    running_ = queue_.front();
    queue_.pop_front();
  }
  return running_;
}

}  // namespace fabricast
