// A run on one GPU with any price of a step: the real scheduler and the real recorder, without
// SimGrid. For asking how much of an error one term explains.
#ifndef FABRICAST_BENCHMARKS_VALIDATION_REPLAY_H_
#define FABRICAST_BENCHMARKS_VALIDATION_REPLAY_H_

#include <functional>

#include "runtime/metrics/result.pb.h"
#include "runtime/scheduler/scheduler.h"
#include "runtime/workload/workload.h"

namespace fabricast {

struct ReplayOptions {
  SchedulerOptions scheduler;
  std::function<double(const MicroBatch&)> step_s;
  // As vLLM's asynchronous scheduling has it: a step is put together when the one before it starts,
  // so a request that comes later than that waits for one step more.
  bool schedule_ahead = false;
};

// `workload` is an open loop. CHECKs that every request finishes.
Result Replay(const Workload& workload, const ReplayOptions& options);

}  // namespace fabricast

#endif  // FABRICAST_BENCHMARKS_VALIDATION_REPLAY_H_
