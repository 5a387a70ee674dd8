// A pipeline in one process: the head and a thread for each stage, joined by loopback.
//
// The second driver of the scheduler, beside the simulator: the same scheduler, stage queues and
// recorder, fed by real completions.
#ifndef FABRICAST_RUNTIME_ENGINE_ENGINE_H_
#define FABRICAST_RUNTIME_ENGINE_ENGINE_H_

#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "runtime/engine/generation.h"
#include "runtime/engine/head.h"
#include "runtime/executor/stage_executor.h"
#include "runtime/metrics/result.pb.h"
#include "runtime/metrics/timeline.h"
#include "runtime/scheduler/scheduler.h"
#include "runtime/tokenizer/tokenizer.h"

namespace fabricast {

struct EngineOptions {
  SchedulerOptions scheduler;
  std::shared_ptr<const Tokenizer> tokenizer;  // null: no text
  bool keep_timeline = false;
  SchedulerLog* log = nullptr;  // filled until Finish, if not null
};

// Thread-safe, but for Finish and what follows it. Times are of std::chrono::steady_clock, in
// seconds since the engine was made.
class Engine {
 public:
  // One executor a stage, in order; at least one. CHECKs Scheduler::Validate(options.scheduler).
  Engine(const EngineOptions& options, std::vector<std::unique_ptr<StageExecutor>> stages);
  ~Engine();

  // Returns at once. `listener` hears of every token and of the end; after the engine has failed,
  // of the failure.
  RequestId Submit(GenerationRequest request, GenerationListener listener);

  // The request ends, as kCancelled, when the pipeline has let go of it. Ids that have ended are
  // ignored.
  void Cancel(RequestId id);
  void CancelAll();

  // Waits until every request has ended. Returns why the engine failed, if it did.
  absl::Status WaitUntilIdle();

  // Ends the threads and returns what the recorder saw; the caller adds inputs and plan. Call it
  // once, when idle. Afterwards only timeline() may be called.
  Result Finish();
  const Timeline& timeline() const;

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace fabricast

#endif  // FABRICAST_RUNTIME_ENGINE_ENGINE_H_
