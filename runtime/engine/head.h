// The head of the pipeline: feeds requests and completions to the scheduler, keeps their tokens,
// and turns launches into steps for the stages.
//
// Like the scheduler it has neither clock nor thread: whoever drives it gives the time of each
// event, in seconds, never going back.
#ifndef FABRICAST_RUNTIME_ENGINE_HEAD_H_
#define FABRICAST_RUNTIME_ENGINE_HEAD_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/types/span.h"
#include "runtime/engine/generation.h"
#include "runtime/engine/stop_strings.h"
#include "runtime/executor/stage_executor.h"
#include "runtime/metrics/recorder.h"
#include "runtime/scheduler/scheduler.h"
#include "runtime/tokenizer/tokenizer.h"

namespace fabricast {

// An event as the scheduler saw it. A run's events, given to a fresh Scheduler with the same
// options, give the same actions.
struct SchedulerEvent {
  enum class Kind { kRequestArrived, kFirstStageDone, kMicroBatchCompleted, kRequestCancelled };
  Kind kind;
  int64_t id = 0;  // of the request or the micro-batch
  int64_t prompt_tokens = 0;
  int64_t max_output_tokens = 0;
  std::vector<RequestId> stopped = {};
};

struct SchedulerLog {
  struct Entry {
    SchedulerEvent event;
    std::vector<Action> actions;
  };
  std::vector<Entry> entries;
};

class Head {
 public:
  // `recorder` and `log` (may be null) must outlive this. Without a tokenizer there is no text, and
  // stop strings are not looked for.
  Head(const SchedulerOptions& options, std::shared_ptr<const Tokenizer> tokenizer,
       Recorder& recorder, SchedulerLog* log = nullptr);

  // Each returns the steps to launch, in order; listeners have been called, and must not call the
  // head. `id`s are the caller's, never used twice. `arrived`: no later than `now`.
  using Steps = std::vector<std::shared_ptr<const Step>>;
  Steps Submit(RequestId id, GenerationRequest request, GenerationListener listener, double arrived,
               double now);
  Steps Cancel(RequestId id, double now);   // nothing, if it has ended
  std::vector<RequestId> requests() const;  // that have not ended, by id
  Steps FirstStageDone(MicroBatchId id, double now);
  // `sampled`: one token for each entry of the micro-batch that samples, in their order.
  Steps Completed(MicroBatchId id, absl::Span<const SampledToken> sampled, double now);

  // Ends all requests with `error`; no event may follow.
  void Fail(const absl::Status& error);

  bool idle() const { return requests_.empty(); }
  const Scheduler& scheduler() const { return scheduler_; }
  // Between launch and Completed; CHECKs that `id` is.
  const Step& step(MicroBatchId id) const;

 private:
  struct Live {
    GenerationRequest request;
    GenerationListener listener;
    std::vector<int32_t> tokens;  // prompt and output
    std::unique_ptr<Detokenizer> detokenizer;
    StopStrings stop;
    bool cancelled = false;
    // Its last token has come and was told; the scheduler's kFinish follows in the same event.
    bool told_end = false;
  };

  Steps Handle(SchedulerEvent event, absl::Span<const Action> actions, double now);
  std::shared_ptr<const Step> MakeStep(const MicroBatch& micro_batch);
  // Whether the token is the request's last.
  bool Take(Live& live, RequestId id, const SampledToken& sampled);
  void End(const Action& action);

  Scheduler scheduler_;
  const std::shared_ptr<const Tokenizer> tokenizer_;
  Recorder& recorder_;
  SchedulerLog* const log_;
  absl::flat_hash_map<RequestId, std::unique_ptr<Live>> requests_;
  absl::flat_hash_map<MicroBatchId, std::shared_ptr<const Step>> in_flight_;
  std::vector<RequestId> released_;  // since the last step
};

}  // namespace fabricast

#endif  // FABRICAST_RUNTIME_ENGINE_HEAD_H_
