// A Scheduler whose every action is checked against a second, slow and simple account of its
// promises, for property tests and fuzzing.
//
// The account knows the policy of scheduler.h but no code of scheduler.cc: positions are counted
// token by token, blocks are summed over all requests after every event, and what must have ended,
// and why, is worked out from the events.
#ifndef FABRICAST_RUNTIME_SCHEDULER_CHECKED_SCHEDULER_H_
#define FABRICAST_RUNTIME_SCHEDULER_CHECKED_SCHEDULER_H_

#include <cstdint>
#include <map>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include "absl/types/span.h"
#include "runtime/scheduler/scheduler.h"

namespace fabricast {

// "launch 3: 7[16,1]d 9[0,12]s", one action a line: d a decode, s a chunk that samples.
std::string ToString(const Action& action);

class CheckedScheduler {
 public:
  explicit CheckedScheduler(const SchedulerOptions& options);

  // As in Scheduler; but the actions are the caller's.
  std::vector<Action> RequestArrived(RequestId id, int64_t prompt_tokens,
                                     int64_t max_output_tokens);
  std::vector<Action> FirstStageDone(MicroBatchId id);
  std::vector<Action> MicroBatchCompleted(MicroBatchId id,
                                          const std::vector<RequestId>& stopped = {});
  std::vector<Action> RequestCancelled(RequestId id);

  // The first broken promise, with its numbers; empty as long as all are kept.
  const std::string& error() const { return error_; }

  const Scheduler& scheduler() const { return scheduler_; }
  bool idle() const { return scheduler_.idle(); }

  // How often things happened, so that tests can tell that they tested something.
  struct Counts {
    int64_t rejected = 0;
    int64_t finished_length = 0;
    int64_t finished_stop = 0;
    int64_t cancelled_waiting = 0;
    int64_t cancelled_idle = 0;
    int64_t cancelled_in_flight = 0;
    int64_t cancelled_preempted = 0;
    int64_t preempted = 0;
    int64_t preempted_prefilling = 0;
    int64_t preempted_for_prefill = 0;
    int64_t readmitted = 0;
    int64_t launches = 0;
    int64_t entries = 0;
    int64_t chunks_before_previous_completed = 0;
    int64_t shared_prefills = 0;  // micro-batches with chunks of several requests
    int64_t mixed = 0;            // micro-batches with decodes and chunks
    int64_t decodes_short_of_blocks = 0;
    Counts& operator+=(const Counts& other);
  };
  const Counts& counts() const { return counts_; }

 private:
  struct Request {
    int64_t order = 0;  // of arrival
    int64_t prompt = 0;
    int64_t max_output = 0;
    int64_t emitted = 0;        // output tokens known
    int64_t launched = 0;       // tokens computed or in flight since the last (re)admission
    int64_t prefill_until = 0;  // known tokens at the last (re)admission
    int64_t blocks = 0;
    int64_t ready_since = -1;  // order of readiness for decode
    int in_flight = 0;         // micro-batches
    bool admitted = false;
    bool running = false;
    bool cancelled = false;
    MicroBatchId samples_in = -1;

    // As it was before the launch that is being checked.
    struct {
      bool running = false;  // and not cancelled
      bool idle = false;
      bool decoding = false;
      bool ready = false;
      bool prefilling = false;
      int64_t launched = 0;
    } before;

    int64_t known() const { return prompt + emitted; }
    bool idle() const { return running && in_flight == 0; }
    // Its last prefill chunk is launched.
    bool decoding() const { return running && !cancelled && launched >= prefill_until; }
    bool ready() const { return decoding() && in_flight == 0; }
    bool prefilling() const { return running && !cancelled && launched < prefill_until; }
  };
  struct Launched {
    std::vector<BatchEntry> entries;
    bool first_stage_done = false;
  };

  template <typename... Values>
  void Fail(const Values&... values) {
    if (!error_.empty()) return;
    std::ostringstream out;
    out << "after " << events_ << " events: ";
    (out << ... << values);
    error_ = out.str();
  }

  // Of the actions of one event: what must end does, then launches are checked one by one.
  std::vector<Action> CheckActions(absl::Span<const Action> actions,
                                   const std::map<RequestId, FinishReason>& must_end);
  void CheckLaunch(const MicroBatch& micro_batch, const std::vector<RequestId>& preempted,
                   const std::vector<RequestId>& admitted);
  void CheckPreemptions(const std::vector<RequestId>& preempted);
  void CheckEntry(const MicroBatch& micro_batch, const BatchEntry& entry);
  void CheckOldestPrefills(const MicroBatch& micro_batch, int64_t free_before);
  void CheckVictims(const MicroBatch& micro_batch, const std::vector<RequestId>& preempted);
  void CheckDecodes(const MicroBatch& micro_batch, const std::vector<RequestId>& preempted);
  bool CheckAdmission(RequestId id, Request& request, int64_t tokens);
  void CheckTurnOfOldest();
  void CheckState();
  void CheckNothingLeftUndone();
  int64_t UsedBlocks() const;
  int64_t RunningCount() const;
  int64_t Watermark() const { return (options_.kv_blocks + 99) / 100; }
  int64_t BlocksOf(int64_t tokens) const;

  const SchedulerOptions options_;
  Scheduler scheduler_;
  std::map<RequestId, Request> requests_;  // those that have not ended
  std::set<RequestId> ended_;
  std::map<MicroBatchId, Launched> in_flight_;
  MicroBatchId next_launch_ = 0;
  int64_t arrivals_ = 0;
  int64_t ready_clock_ = 0;
  int64_t preemptions_ = 0;
  int64_t events_ = 0;
  int64_t last_first_admission_ = -1;  // by order of arrival
  RequestId oldest_running_ = -1;
  int64_t launches_without_oldest_ = 0;
  Counts counts_;
  std::string error_;
};

}  // namespace fabricast

#endif  // FABRICAST_RUNTIME_SCHEDULER_CHECKED_SCHEDULER_H_
