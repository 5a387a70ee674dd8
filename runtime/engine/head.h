// The head of the pipeline: feeds requests and completions to the scheduler, keeps their tokens,
// and turns launches into steps for the stages.
//
// While there are no stages (before the first Ready, and from Lost to the next) it holds requests.
// Each Ready is a fresh start: another scheduler, micro-batches from 0 again. A request that was
// never in a micro-batch does not notice a loss; one that was ends with an error, since what the
// stages kept of it is gone.
//
// Like the scheduler it has neither clock nor thread: whoever drives it gives the time of each
// event, in seconds, never going back.
#ifndef FABRICAST_RUNTIME_ENGINE_HEAD_H_
#define FABRICAST_RUNTIME_ENGINE_HEAD_H_

#include <cstdint>
#include <memory>
#include <optional>
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
// options, and from each kPipelineLost on to another fresh one, give the same actions.
struct SchedulerEvent {
  enum class Kind {
    kRequestArrived,
    kFirstStageDone,
    kMicroBatchCompleted,
    kRequestCancelled,
    kPipelineLost,
  };
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
  // stop strings are not looked for. CHECKs Scheduler::Validate(options).
  Head(const SchedulerOptions& options, std::shared_ptr<const Tokenizer> tokenizer,
       Recorder& recorder, SchedulerLog* log = nullptr);

  // Each returns the steps to launch, in order; listeners have been called, and must not call the
  // head. `id`s are the caller's, never used twice. `arrived`: no later than `now`.
  using Steps = std::vector<std::shared_ptr<const Step>>;
  Steps Ready(double now);
  Steps Submit(RequestId id, GenerationRequest request, GenerationListener listener, double arrived,
               double now);
  Steps Cancel(RequestId id, double now);   // nothing, if it has ended
  std::vector<RequestId> requests() const;  // that have not ended, by id
  Steps FirstStageDone(MicroBatchId id, double now);
  // `sampled`: one token for each entry of the micro-batch that samples, in their order.
  Steps Completed(MicroBatchId id, absl::Span<const SampledToken> sampled, double now);

  // The stages have lost what is in flight. Every request that has been in a micro-batch ends: with
  // an error of `cause`'s code and text, or as cancelled if it was. The others are held, in order
  // of arrival. Returns how many ended with the error.
  int64_t Lost(const absl::Status& cause, double now);

  // The same, and there will be no stages again: all requests end, with `cause` itself. No event
  // may follow.
  int64_t Gone(const absl::Status& cause, double now);

  bool idle() const { return requests_.empty(); }
  // Between launch and Completed; CHECKs that `id` is.
  const Step& step(MicroBatchId id) const;

 private:
  struct Live {
    GenerationRequest request;
    GenerationListener listener;
    std::vector<int32_t> tokens;  // prompt and output
    std::unique_ptr<Detokenizer> detokenizer;
    StopStrings stop;
    int64_t order = 0;      // of arrival
    bool admitted = false;  // has been in a micro-batch
    bool cancelled = false;
    // Its last token has come and was told; the scheduler's kFinish follows in the same event.
    bool told_end = false;
  };

  // Gives a request that was never in a micro-batch to the scheduler.
  Steps Offer(RequestId id, double now);
  Steps Handle(SchedulerEvent event, absl::Span<const Action> actions, double now);
  std::shared_ptr<const Step> MakeStep(const MicroBatch& micro_batch);
  // Whether the token is the request's last.
  bool Take(Live& live, RequestId id, const SampledToken& sampled);
  void End(const Action& action);
  // Of a request that the scheduler does not know (any more).
  void EndAsCancelled(RequestId id, double now);
  void EndWith(const absl::Status& error, RequestId id);
  std::vector<RequestId> InOrderOfArrival() const;
  // Ends those requests that have been in a micro-batch, or all.
  int64_t LetGo(bool all, const absl::Status& error, double now);

  const SchedulerOptions options_;
  std::optional<Scheduler> scheduler_;  // while there are stages
  const std::shared_ptr<const Tokenizer> tokenizer_;
  Recorder& recorder_;
  SchedulerLog* const log_;
  absl::flat_hash_map<RequestId, std::unique_ptr<Live>> requests_;
  absl::flat_hash_map<MicroBatchId, std::shared_ptr<const Step>> in_flight_;
  std::vector<RequestId> released_;  // since the last step
  int64_t arrivals_ = 0;
};

}  // namespace fabricast

#endif  // FABRICAST_RUNTIME_ENGINE_HEAD_H_
