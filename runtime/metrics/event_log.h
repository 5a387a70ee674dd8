// The events of a run: which micro-batch held what, and when it was where. Recorded by any driver,
// kept in Result.event_log (event_log.proto), read back for comparing two runs event by event.
#ifndef FABRICAST_RUNTIME_METRICS_EVENT_LOG_H_
#define FABRICAST_RUNTIME_METRICS_EVENT_LOG_H_

#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "runtime/metrics/event_log.pb.h"
#include "runtime/scheduler/scheduler.h"

namespace fabricast {

// Writes the log of one run. Times are seconds on the driver's clock. Of one micro-batch the driver
// tells everything in the order of its way through the pipeline; at one stage, micro-batches come
// in launch order (CHECKed). Not thread-safe.
class EventRecorder {
 public:
  explicit EventRecorder(int stages);

  void RequestArrived(RequestId id, int64_t prompt_tokens, double now);
  void RequestEnded(RequestId id, EventLog::Outcome outcome);
  void Launched(const MicroBatch& micro_batch, double now);
  void Started(int stage, MicroBatchId id, double now);
  void Computed(int stage, MicroBatchId id, double now);
  void SendStarted(int stage, MicroBatchId id, double now);
  // At the next stage. Of the last stage: nothing, the micro-batch is Completed then.
  void SendDelivered(int stage, MicroBatchId id, double now);
  void Completed(MicroBatchId id, double now);
  // What is in flight never comes, and the next micro-batch is 0 again.
  void PipelineLost();

  // The log, for Result.event_log. Ends the recording.
  std::string Finish();

 private:
  EventLog::Generation& generation() { return *log_.mutable_generations()->rbegin(); }
  void BeginGeneration();
  // The time from the event before of micro-batch `id` to this one, which is the next in `column`.
  void Add(MicroBatchId id, double now, google::protobuf::RepeatedField<int64_t>& column);

  const int stages_;
  EventLog log_;
  int64_t origin_ns_ = 0;  // the first arrival
  int64_t last_arrival_ns_ = 0;
  RequestId last_arrived_ = 0;
  absl::flat_hash_map<RequestId, int> row_;  // of requests
  // Of this generation.
  int64_t last_launch_ns_ = 0;
  RequestId last_entry_request_ = 0;
  absl::flat_hash_map<RequestId, int64_t> entry_end_;
  absl::flat_hash_map<MicroBatchId, int64_t> last_ns_;  // event, of those in flight
};

// Did not happen.
inline constexpr int64_t kNever = std::numeric_limits<int64_t>::min();

// A log, read. Times are nanoseconds since the first arrival.
struct RunEvents {
  struct Request {
    RequestId id;
    int64_t arrival_ns;
    int64_t prompt_tokens;
    EventLog::Outcome outcome;
  };
  // As BatchEntry, small: there may be millions.
  struct Entry {
    int32_t request;  // index into `requests`
    int32_t first_token;
    int32_t tokens;
    bool decode;
    bool samples;
  };
  // A micro-batch.
  struct Step {
    int32_t generation;
    int32_t id;  // from 0 in each generation
    int64_t launched_ns;
    int64_t first_entry;  // index into `entries`
    int32_t decodes;      // entries, first the decodes
    int32_t prefills;
    int64_t prefill_tokens;
  };
  // Of a step at a stage; kNever from some member on if it did not get so far.
  struct StageTimes {
    int64_t ready_ns = kNever;  // there; at the first stage: launched
    int64_t started_ns = kNever;
    int64_t computed_ns = kNever;
    int64_t sent_ns = kNever;       // begins to leave
    int64_t delivered_ns = kNever;  // at the next stage; of the last: its tokens are known
  };

  int stages = 0;
  int generations = 0;
  std::vector<Request> requests;
  std::vector<Step> steps;  // in order of launch, all generations
  std::vector<Entry> entries;
  std::vector<StageTimes> times;  // [steps x stages]

  absl::Span<const Entry> EntriesOf(int step) const {
    const Step& of = steps[step];
    return absl::MakeConstSpan(entries).subspan(of.first_entry, of.decodes + of.prefills);
  }
  const StageTimes& At(int step, int stage) const {
    return times[static_cast<size_t>(step) * stages + stage];
  }
  // When its tokens were known at the head, or kNever.
  int64_t CompletedNs(int step) const { return At(step, stages - 1).delivered_ns; }
};

// kInvalidArgument saying what is wrong if `log` is not the log of a run of `stages` stages.
absl::StatusOr<RunEvents> ReadEvents(absl::string_view log, int stages);

}  // namespace fabricast

#endif  // FABRICAST_RUNTIME_METRICS_EVENT_LOG_H_
