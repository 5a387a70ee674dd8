// Reads bytes as options and events, feeds them to a CheckedScheduler, lets the pipeline run dry,
// and dies if a promise was broken. Any bytes are a valid input: protocol violations cannot be
// written.

#include <cstddef>
#include <cstdint>
#include <deque>
#include <vector>

#include "runtime/check.h"
#include "runtime/scheduler/checked_scheduler.h"
#include "runtime/scheduler/scheduler.h"

namespace fabricast {
namespace {

// Keeps an input's time in milliseconds: CheckedScheduler looks at every request after every event.
constexpr int kMaxEvents = 300;
constexpr int kMaxRequests = 32;

class Bytes {
 public:
  Bytes(const uint8_t* data, size_t size) : next_(data), end_(data + size) {}
  bool empty() const { return next_ == end_; }
  // 0 past the end.
  int Next() { return empty() ? 0 : *next_++; }

 private:
  const uint8_t* next_;
  const uint8_t* end_;
};

SchedulerOptions ReadOptions(Bytes& bytes) {
  SchedulerOptions options;
  options.max_in_flight = 1 + bytes.Next() % 8;
  options.first_stage_queue = 1 + bytes.Next() % 3;
  options.max_running = 1 + bytes.Next() % 16;
  const int largest_share = (options.max_running - 1) / options.max_in_flight + 1;
  options.max_batch_tokens = largest_share + 1 + bytes.Next() % 32;
  options.max_chunk_tokens = 1 + bytes.Next() % 40;
  options.kv_block_tokens = 1 + bytes.Next() % 8;
  options.kv_blocks = 1 + bytes.Next();
  return options;
}

class Driver {
 public:
  explicit Driver(const SchedulerOptions& options) : scheduler_(options) {}

  void ReadEvent(Bytes& bytes) {
    switch (bytes.Next() % 8) {
      case 0:
      case 1: {
        const int prompt_tokens = bytes.Next() % 80;
        const int max_output_tokens = bytes.Next() % 32;
        if (arrived_ == kMaxRequests) break;
        Perform(scheduler_.RequestArrived(arrived_++, prompt_tokens, max_output_tokens));
        break;
      }
      case 2:
        Perform(scheduler_.RequestCancelled(bytes.Next() % kMaxRequests));
        break;
      case 3:
        Complete(bytes.Next());
        break;
      case 4:
      case 5:
        Complete(0);
        break;
      default:
        FinishFirstStage();
        break;
    }
  }

  // Completes all that is in flight until nothing is.
  void RunDry() {
    for (int64_t left = 1'000'000; FinishFirstStage() || Complete(0); --left) {
      FABRICAST_CHECK(left > 0) << scheduler_.counts().launches << " micro-batches are no end";
    }
    FABRICAST_CHECK(scheduler_.idle()) << scheduler_.scheduler().waiting() << " requests wait";
  }

 private:
  bool FinishFirstStage() {
    if (first_stage_done_ == launched_) return false;
    Perform(scheduler_.FirstStageDone(first_stage_done_++));
    return true;
  }

  // Bit i of `stops`: the i-th request that samples, of the first eight, stops.
  bool Complete(int stops) {
    if (completed_ == first_stage_done_) return false;
    std::vector<RequestId> stopped;
    for (const RequestId id : samples_.front()) {
      if (stops & 1) stopped.push_back(id);
      stops >>= 1;
    }
    samples_.pop_front();
    Perform(scheduler_.MicroBatchCompleted(completed_++, stopped));
    return true;
  }

  void Perform(const std::vector<Action>& actions) {
    FABRICAST_CHECK(scheduler_.error().empty()) << scheduler_.error();
    for (const Action& action : actions) {
      if (action.kind != Action::Kind::kLaunch) continue;
      ++launched_;
      samples_.emplace_back();
      for (const BatchEntry& entry : action.micro_batch.entries) {
        if (entry.samples) samples_.back().push_back(entry.request);
      }
    }
  }

  CheckedScheduler scheduler_;
  RequestId arrived_ = 0;
  MicroBatchId launched_ = 0;
  MicroBatchId first_stage_done_ = 0;
  MicroBatchId completed_ = 0;
  std::deque<std::vector<RequestId>> samples_;  // of micro-batches in flight
};

}  // namespace
}  // namespace fabricast

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  fabricast::Bytes bytes(data, size);
  fabricast::Driver driver(fabricast::ReadOptions(bytes));
  for (int event = 0; event < fabricast::kMaxEvents && !bytes.empty(); ++event) {
    driver.ReadEvent(bytes);
  }
  driver.RunDry();
  return 0;
}
