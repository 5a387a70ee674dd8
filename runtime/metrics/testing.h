// Runs made by hand, for the tests of what reads events.
#ifndef FABRICAST_RUNTIME_METRICS_TESTING_H_
#define FABRICAST_RUNTIME_METRICS_TESTING_H_

#include <google/protobuf/io/gzip_stream.h>
#include <google/protobuf/io/zero_copy_stream_impl_lite.h>

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "runtime/metrics/event_log.h"
#include "runtime/scheduler/scheduler.h"

namespace fabricast {

inline constexpr int64_t kMs = 1'000'000;  // nanoseconds

inline BatchEntry Decode(RequestId request, int64_t position) {
  return {
      .request = request, .first_token = position, .tokens = 1, .decode = true, .samples = true};
}

inline BatchEntry Prefill(RequestId request, int64_t first_token, int64_t tokens, bool samples) {
  return {.request = request,
          .first_token = first_token,
          .tokens = tokens,
          .decode = false,
          .samples = samples};
}

// What a micro-batch did at a stage, in milliseconds. The last stage's `delivered` is when its
// tokens are known.
struct StageMs {
  double started;
  double computed;
  double sent;
  double delivered;
};

// Records a run; micro-batches in launch order, each with all that happens to it.
class HandMadeRun {
 public:
  explicit HandMadeRun(int stages) : stages_(stages), recorder_(stages) {}

  HandMadeRun& Arrive(RequestId id, int64_t prompt_tokens, double ms) {
    recorder_.RequestArrived(id, prompt_tokens, ms / 1e3);
    return *this;
  }

  // Fewer stages than there are: it got no further.
  HandMadeRun& Run(std::vector<BatchEntry> entries, double launched,
                   const std::vector<StageMs>& stages) {
    const MicroBatchId id = next_++;
    recorder_.Launched({.id = id, .entries = std::move(entries)}, launched / 1e3);
    for (int s = 0; s < static_cast<int>(stages.size()); ++s) {
      recorder_.Started(s, id, stages[s].started / 1e3);
      recorder_.Computed(s, id, stages[s].computed / 1e3);
      if (stages_ > 1) recorder_.SendStarted(s, id, stages[s].sent / 1e3);
      if (s + 1 < stages_) {
        recorder_.SendDelivered(s, id, stages[s].delivered / 1e3);
      } else {
        recorder_.Completed(id, stages[s].delivered / 1e3);
      }
    }
    return *this;
  }

  HandMadeRun& End(RequestId id, EventLog::Outcome outcome = EventLog::FINISHED) {
    recorder_.RequestEnded(id, outcome);
    return *this;
  }

  HandMadeRun& Lose() {
    recorder_.PipelineLost();
    next_ = 0;
    return *this;
  }

  std::string Log() { return recorder_.Finish(); }
  RunEvents Events() { return ReadEvents(Log(), stages_).value(); }

 private:
  const int stages_;
  EventRecorder recorder_;
  MicroBatchId next_ = 0;
};

inline std::string Pack(const EventLog& log) {
  std::string packed;
  google::protobuf::io::StringOutputStream bytes(&packed);
  google::protobuf::io::GzipOutputStream gzip(&bytes);
  log.SerializeToZeroCopyStream(&gzip);
  gzip.Close();
  return packed;
}

}  // namespace fabricast

#endif  // FABRICAST_RUNTIME_METRICS_TESTING_H_
