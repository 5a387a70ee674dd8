// Runs requests on the stages of a pipeline, wherever they are: a thread for the head, and clients
// on theirs.
//
// The second driver of the scheduler, beside the simulator: the same scheduler, stage queues and
// recorder, fed by real completions.
#ifndef FABRICAST_RUNTIME_ENGINE_ENGINE_H_
#define FABRICAST_RUNTIME_ENGINE_ENGINE_H_

#include <memory>

#include "absl/status/status.h"
#include "runtime/engine/generation.h"
#include "runtime/engine/head.h"
#include "runtime/engine/stages.h"
#include "runtime/metrics/result.pb.h"
#include "runtime/metrics/timeline.h"
#include "runtime/scheduler/scheduler.h"
#include "runtime/tokenizer/tokenizer.h"

namespace fabricast {

struct EngineOptions {
  SchedulerOptions scheduler;
  std::shared_ptr<const Tokenizer> tokenizer;  // null: no text
  bool keep_timeline = false;
  bool keep_events = false;     // in Result.event_log
  SchedulerLog* log = nullptr;  // filled until Finish, if not null
};

// Stages may be lost and come back. Requests that have begun to run end with an error then, the
// others wait for the stages; so do all that come before the stages are ready for the first time.
// Once they are gone for good every request ends with an error.
//
// Thread-safe, but for Finish and what follows it. Times are of std::chrono::steady_clock, in
// seconds since the engine was made.
class Engine {
 public:
  // Starts the stages. CHECKs Scheduler::Validate(options.scheduler).
  Engine(const EngineOptions& options, std::unique_ptr<Stages> stages);
  ~Engine();

  // Waits until the stages are ready for the first time, or gone: so that what is measured does not
  // begin with their start. Returns status().
  absl::Status WaitUntilReady() const;

  // Returns at once. `listener` hears of every token and of the end.
  RequestId Submit(GenerationRequest request, GenerationListener listener);

  // The request ends, as kCancelled, when the pipeline has let go of it. Ids that have ended are
  // ignored.
  void Cancel(RequestId id);
  void CancelAll();

  // Waits until every request has ended. Returns status().
  absl::Status WaitUntilIdle();

  // Why the stages are gone for good; OK while they are there or may come back.
  absl::Status status() const;

  // Ends the threads and returns what the recorder saw, with a warning for each cause of losses;
  // the caller adds inputs and plan. Call it once, when idle. Afterwards only timeline() may be
  // called.
  Result Finish();
  const Timeline& timeline() const;

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace fabricast

#endif  // FABRICAST_RUNTIME_ENGINE_ENGINE_H_
