// Gives the events of a run to fresh schedulers and expects the same actions.
#ifndef FABRICAST_RUNTIME_ENGINE_SCHEDULER_REPLAY_H_
#define FABRICAST_RUNTIME_ENGINE_SCHEDULER_REPLAY_H_

#include <cstdint>
#include <vector>

#include "runtime/engine/head.h"
#include "runtime/scheduler/scheduler.h"

namespace fabricast {

// What happened in the run, so that tests can tell that they tested something.
struct ReplayCounts {
  int64_t launches = 0;
  int64_t preemptions = 0;
  int64_t rejections = 0;
  int64_t stops = 0;
  std::vector<RequestId> lost = {};  // admitted and not ended when the pipeline was lost
};

// All that a log of a run with these options holds, until every request had ended.
ReplayCounts ExpectSameActionsAgain(const SchedulerOptions& options, const SchedulerLog& log);

}  // namespace fabricast

#endif  // FABRICAST_RUNTIME_ENGINE_SCHEDULER_REPLAY_H_
