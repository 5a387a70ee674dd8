// Turns what a driver saw into a Result. The simulator and the real engines call the same recorder,
// so that a metric has one definition (docs/metrics.md).
//
// Times are seconds on the driver's own clock. What happens at the head never goes back, but that
// an arrival may be reported late, with its own time; nor does what happens at one stage. Stages on
// other hosts tell their times by the head's clock only as well as they know it: a message that
// seems to arrive before it left took no time, and no interval is negative. Not thread-safe.
#ifndef FABRICAST_RUNTIME_METRICS_RECORDER_H_
#define FABRICAST_RUNTIME_METRICS_RECORDER_H_

#include <algorithm>
#include <cstdint>
#include <deque>
#include <optional>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/types/span.h"
#include "runtime/metrics/distribution.h"
#include "runtime/metrics/event_log.h"
#include "runtime/metrics/result.pb.h"
#include "runtime/metrics/timeline.h"
#include "runtime/scheduler/scheduler.h"

namespace fabricast {

class Recorder {
 public:
  // Hops are s -> s+1 and, with two stages and more, last -> 0 (tokens back to the head). Keeps a
  // timeline, and the events for Result.event_log, if asked.
  Recorder(int stages, bool keep_timeline, bool keep_events = false);

  void RequestArrived(RequestId id, int64_t prompt_tokens, double now);
  // The scheduler's answer to the event that the driver has just recorded.
  void Acted(absl::Span<const Action> actions, double now);

  void StageStarted(int stage, const MicroBatch& micro_batch, double now);
  // `time` tells the busy time by cause, where that is known.
  void StageComputed(int stage, const MicroBatch& micro_batch, double now,
                     const ComputeTime* time = nullptr);
  void SendStarted(int from_stage, int to_stage, const MicroBatch& micro_batch, int64_t bytes,
                   double now);
  void SendDelivered(int from_stage, int to_stage, const MicroBatch& micro_batch, double now);
  // The tokens of `micro_batch` are known at the head. Before the scheduler's actions on it.
  void MicroBatchCompleted(const MicroBatch& micro_batch, double now);

  // A request ended because the pipeline was lost, or never came.
  void RequestFailed(RequestId id);
  // The stages have forgotten everything: those that compute have done so until now, what is on its
  // way never arrives, and the next micro-batch is 0 again. After the failure of its requests.
  void PipelineLost(double now);

  // After each event, for the peak of the KV cache (and the timeline).
  void Load(const Scheduler& scheduler, double now);

  int64_t finished() const { return finished_; }

  // Fills everything that follows from the events: requests, distributions, stages, hops (transfer,
  // bytes, exposed), KV peak, steady state. The driver adds inputs, plan, routes, links and
  // constants. Ends the recording.
  Result Finish();

  const Timeline& timeline() const { return timeline_; }

 private:
  struct Live {
    double arrival_s = 0;
    int64_t prompt_tokens = 0;
    int64_t output_tokens = 0;
    double queue_wait_s = -1;  // not admitted yet
    double first_token_s = 0;
    double last_token_s = 0;
    int64_t computed_tokens = 0;      // positions that some micro-batch has begun to compute
    std::vector<double> gaps_s = {};  // between its tokens, as in itl_
  };
  struct StageState {
    bool busy = false;
    double since_s = 0;  // busy or idle since
    double busy_s = 0;   // of finished micro-batches
    int64_t micro_batches = 0;
    ComputeTime decode;
    ComputeTime prefill;
    ComputeTime mixed;
    double BusyUntil(double now) const {
      return busy_s + (busy ? std::max(0.0, now - since_s) : 0);
    }
  };
  struct Transfer {
    MicroBatchId id = -1;
    double start_s = 0;
    double end_s = 0;
  };
  struct HopState {
    int64_t messages = 0;
    int64_t bytes = 0;
    double transfer_s = 0;
    double exposed_s = 0;
    std::deque<Transfer> sending;
    std::deque<Transfer> delivered;  // not yet started by the receiving stage
  };
  struct Snapshot {
    double at_s = 0;
    std::vector<double> busy_s;
    bool taken = false;
  };

  HopState& HopInto(int stage);
  HopState& HopFrom(int stage) { return hops_[stage]; }
  void Take(Snapshot& snapshot, double now) const;
  void CountExposed(int stage, const MicroBatch& micro_batch, double now);

  const bool keep_timeline_;
  std::vector<StageState> stages_;
  std::vector<HopState> hops_;  // by sending stage
  absl::flat_hash_map<RequestId, Live> live_;
  Samples ttft_, tpot_, itl_, e2e_, queue_wait_;
  int64_t arrived_ = 0;
  int64_t finished_ = 0;
  int64_t rejected_ = 0;
  int64_t cancelled_ = 0;
  int64_t failed_ = 0;
  int64_t preemptions_ = 0;
  int64_t recomputed_tokens_ = 0;
  int64_t prompt_tokens_ = 0;
  int64_t output_tokens_ = 0;
  double first_arrival_s_ = -1;
  double last_token_s_ = 0;
  int64_t kv_peak_blocks_ = 0;
  Snapshot filled_;      // the last stage started for the first time
  Snapshot last_admit_;  // no request was admitted later
  Snapshot first_finish_;
  Timeline timeline_;
  std::optional<EventRecorder> events_;  // if they are kept
};

}  // namespace fabricast

#endif  // FABRICAST_RUNTIME_METRICS_RECORDER_H_
