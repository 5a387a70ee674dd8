#include "benchmarks/validation/replay.h"

#include <algorithm>
#include <optional>
#include <vector>

#include "runtime/check.h"
#include "runtime/metrics/recorder.h"

namespace fabricast {
namespace {

class OneGpu {
 public:
  OneGpu(const Workload& workload, const ReplayOptions& options)
      : workload_(workload),
        options_(options),
        scheduler_(options.scheduler),
        recorder_(/*stages=*/1, /*keep_timeline=*/false) {
    FABRICAST_CHECK(workload.concurrency == 0) << "a closed loop of " << workload.concurrency;
  }

  Result Run() {
    const std::vector<Request>& requests = workload_.requests;
    while (arrived_ < requests.size() || running_.has_value()) {
      const bool arrives = arrived_ < requests.size() &&
                           (!running_.has_value() || requests[arrived_].arrival_s < step_end_s_);
      if (arrives) {
        now_ = std::max(now_, requests[arrived_].arrival_s);
        recorder_.RequestArrived(static_cast<RequestId>(arrived_), requests[arrived_].prompt_tokens,
                                 now_);
        ++arrived_;
        if (!running_.has_value() || !options_.schedule_ahead) TellScheduler();
      } else {
        EndStep();
      }
    }
    FABRICAST_CHECK(scheduler_.idle()) << scheduler_.running() << " requests left";
    return recorder_.Finish();
  }

 private:
  void TellScheduler() {
    while (told_ < arrived_) {
      const Request& request = workload_.requests[told_];
      const RequestId id = static_cast<RequestId>(told_++);
      Handle(scheduler_.RequestArrived(id, request.prompt_tokens, request.output_tokens));
    }
  }

  void EndStep() {
    now_ = step_end_s_;
    const MicroBatch done = *std::move(running_);
    running_.reset();
    recorder_.StageComputed(0, done, now_);
    Handle(scheduler_.FirstStageDone(done.id));
    recorder_.MicroBatchCompleted(done, now_);
    Handle(scheduler_.MicroBatchCompleted(done.id));
    // After the next step was put together: they wait for the one after it.
    TellScheduler();
  }

  void Handle(absl::Span<const Action> span) {
    const std::vector<Action> actions(span.begin(), span.end());
    recorder_.Acted(actions, now_);
    recorder_.Load(scheduler_, now_);
    for (const Action& action : actions) {
      if (action.kind != Action::Kind::kLaunch) continue;
      FABRICAST_CHECK(!running_.has_value()) << "two steps at a time";
      running_ = action.micro_batch;
      recorder_.StageStarted(0, *running_, now_);
      step_end_s_ = now_ + options_.step_s(*running_);
    }
  }

  const Workload& workload_;
  const ReplayOptions& options_;
  Scheduler scheduler_;
  Recorder recorder_;
  std::optional<MicroBatch> running_;
  double now_ = 0;
  double step_end_s_ = 0;
  size_t arrived_ = 0;
  size_t told_ = 0;  // of the arrived, those that the scheduler knows
};

}  // namespace

Result Replay(const Workload& workload, const ReplayOptions& options) {
  return OneGpu(workload, options).Run();
}

}  // namespace fabricast
