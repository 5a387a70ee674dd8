#include "runtime/engine/scheduler_replay.h"

#include <optional>
#include <set>

#include "absl/types/span.h"
#include "gtest/gtest.h"
#include "runtime/scheduler/checked_scheduler.h"

namespace fabricast {

ReplayCounts ExpectSameActionsAgain(const SchedulerOptions& options, const SchedulerLog& log) {
  ReplayCounts counts;
  std::optional<Scheduler> fresh(std::in_place, options);
  std::set<RequestId> admitted;
  for (const SchedulerLog::Entry& entry : log.entries) {
    absl::Span<const Action> actions;
    const SchedulerEvent& event = entry.event;
    switch (event.kind) {
      case SchedulerEvent::Kind::kRequestArrived:
        actions = fresh->RequestArrived(event.id, event.prompt_tokens, event.max_output_tokens);
        break;
      case SchedulerEvent::Kind::kFirstStageDone:
        actions = fresh->FirstStageDone(event.id);
        break;
      case SchedulerEvent::Kind::kMicroBatchCompleted:
        actions = fresh->MicroBatchCompleted(event.id, event.stopped);
        counts.stops += static_cast<int64_t>(event.stopped.size());
        break;
      case SchedulerEvent::Kind::kRequestCancelled:
        actions = fresh->RequestCancelled(event.id);
        break;
      case SchedulerEvent::Kind::kPipelineLost:
        fresh.emplace(options);
        counts.lost.insert(counts.lost.end(), admitted.begin(), admitted.end());
        admitted.clear();
        break;
    }
    EXPECT_EQ(actions.size(), entry.actions.size());
    if (actions.size() != entry.actions.size()) return counts;
    for (size_t i = 0; i < actions.size(); ++i) {
      EXPECT_EQ(ToString(actions[i]), ToString(entry.actions[i]));
      counts.launches += actions[i].kind == Action::Kind::kLaunch;
      counts.preemptions += actions[i].kind == Action::Kind::kPreempt;
      counts.rejections += actions[i].kind == Action::Kind::kReject;
      if (actions[i].kind == Action::Kind::kAdmit) admitted.insert(actions[i].request);
      if (actions[i].kind == Action::Kind::kFinish) admitted.erase(actions[i].request);
    }
  }
  EXPECT_TRUE(fresh->idle());
  return counts;
}

}  // namespace fabricast
