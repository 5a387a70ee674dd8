#include "runtime/scheduler/checked_scheduler.h"

#include <algorithm>
#include <utility>

namespace fabricast {

std::string ToString(const Action& action) {
  std::ostringstream out;
  switch (action.kind) {
    case Action::Kind::kLaunch:
      out << "launch " << action.micro_batch.id << ":";
      for (const BatchEntry& entry : action.micro_batch.entries) {
        out << " " << entry.request << "[" << entry.first_token << "," << entry.tokens << "]"
            << (entry.decode    ? "d"
                : entry.samples ? "s"
                                : "");
      }
      break;
    case Action::Kind::kAdmit:
      out << "admit " << action.request;
      break;
    case Action::Kind::kPreempt:
      out << "preempt " << action.request;
      break;
    case Action::Kind::kFinish:
      out << "finish " << action.request << " "
          << (action.reason == FinishReason::kLength ? "length"
              : action.reason == FinishReason::kStop ? "stop"
                                                     : "cancelled");
      break;
    case Action::Kind::kReject:
      out << "reject " << action.request << " " << action.error.ToString();
      break;
  }
  return out.str();
}

CheckedScheduler::Counts& CheckedScheduler::Counts::operator+=(const Counts& other) {
  rejected += other.rejected;
  finished_length += other.finished_length;
  finished_stop += other.finished_stop;
  cancelled_waiting += other.cancelled_waiting;
  cancelled_idle += other.cancelled_idle;
  cancelled_in_flight += other.cancelled_in_flight;
  cancelled_preempted += other.cancelled_preempted;
  preempted += other.preempted;
  preempted_prefilling += other.preempted_prefilling;
  preempted_for_prefill += other.preempted_for_prefill;
  readmitted += other.readmitted;
  launches += other.launches;
  entries += other.entries;
  chunks_before_previous_completed += other.chunks_before_previous_completed;
  shared_prefills += other.shared_prefills;
  mixed += other.mixed;
  decodes_short_of_blocks += other.decodes_short_of_blocks;
  return *this;
}

CheckedScheduler::CheckedScheduler(const SchedulerOptions& options)
    : options_(options), scheduler_(options) {}

int64_t CheckedScheduler::BlocksOf(int64_t tokens) const {
  return (tokens + options_.kv_block_tokens - 1) / options_.kv_block_tokens;
}

int64_t CheckedScheduler::UsedBlocks() const {
  int64_t used = 0;
  for (const auto& [id, request] : requests_) used += BlocksOf(request.launched);
  return used;
}

int64_t CheckedScheduler::RunningCount() const {
  return std::count_if(requests_.begin(), requests_.end(),
                       [](const auto& entry) { return entry.second.running; });
}

std::vector<Action> CheckedScheduler::RequestArrived(RequestId id, int64_t prompt_tokens,
                                                     int64_t max_output_tokens) {
  ++events_;
  const absl::Span<const Action> actions =
      scheduler_.RequestArrived(id, prompt_tokens, max_output_tokens);
  // All tokens but the last output are cached. In double, which does not overflow; the numbers that
  // are near the limit are small and exact.
  const double places = static_cast<double>(prompt_tokens) + max_output_tokens - 1;
  const double cache = static_cast<double>(options_.kv_blocks) * options_.kv_block_tokens;
  if (prompt_tokens < 1 || max_output_tokens < 1 || places > cache) {
    if (actions.size() != 1 || actions[0].kind != Action::Kind::kReject ||
        actions[0].request != id || actions[0].error.ok()) {
      Fail("request ", id, " with ", prompt_tokens, " + ", max_output_tokens, " is not rejected");
    }
    ++counts_.rejected;
    CheckState();
    return {actions.begin(), actions.end()};
  }
  Request& request = requests_[id];
  request.order = arrivals_++;
  request.prompt = prompt_tokens;
  request.max_output = max_output_tokens;
  return CheckActions(actions, {});
}

std::vector<Action> CheckedScheduler::FirstStageDone(MicroBatchId id) {
  ++events_;
  in_flight_.at(id).first_stage_done = true;
  return CheckActions(scheduler_.FirstStageDone(id), {});
}

std::vector<Action> CheckedScheduler::MicroBatchCompleted(MicroBatchId id,
                                                          const std::vector<RequestId>& stopped) {
  ++events_;
  std::map<RequestId, FinishReason> must_end;
  for (const BatchEntry& entry : in_flight_.at(id).entries) {
    Request& request = requests_.at(entry.request);
    --request.in_flight;
    if (request.cancelled) {
      if (request.in_flight == 0) must_end[entry.request] = FinishReason::kCancelled;
      continue;
    }
    if (!entry.samples) continue;
    ++request.emitted;
    request.samples_in = -1;
    request.ready_since = ready_clock_++;
    if (std::count(stopped.begin(), stopped.end(), entry.request) > 0) {
      must_end[entry.request] = FinishReason::kStop;
    } else if (request.emitted == request.max_output) {
      must_end[entry.request] = FinishReason::kLength;
    }
  }
  in_flight_.erase(id);
  return CheckActions(scheduler_.MicroBatchCompleted(id, stopped), must_end);
}

std::vector<Action> CheckedScheduler::RequestCancelled(RequestId id) {
  ++events_;
  std::map<RequestId, FinishReason> must_end;
  if (const auto it = requests_.find(id); it != requests_.end() && !it->second.cancelled) {
    Request& request = it->second;
    if (request.in_flight > 0) {
      request.cancelled = true;
      ++counts_.cancelled_in_flight;
    } else {
      ++(request.running    ? counts_.cancelled_idle
         : request.admitted ? counts_.cancelled_preempted
                            : counts_.cancelled_waiting);
      must_end[id] = FinishReason::kCancelled;
    }
  }
  return CheckActions(scheduler_.RequestCancelled(id), must_end);
}

std::vector<Action> CheckedScheduler::CheckActions(
    absl::Span<const Action> actions, const std::map<RequestId, FinishReason>& must_end) {
  std::map<RequestId, FinishReason> ends;
  std::vector<RequestId> preempted, admitted;
  bool launching = false;
  for (const Action& action : actions) {
    if (!error_.empty()) break;
    switch (action.kind) {
      case Action::Kind::kFinish:
        if (launching) Fail("request ", action.request, " ends after a launch of the same event");
        if (!requests_.contains(action.request)) {
          Fail("request ", action.request, " ends but ",
               ended_.contains(action.request) ? "has ended before" : "is not known");
          break;
        }
        ends[action.request] = action.reason;
        requests_.erase(action.request);
        ended_.insert(action.request);
        counts_.finished_length += action.reason == FinishReason::kLength;
        counts_.finished_stop += action.reason == FinishReason::kStop;
        break;
      case Action::Kind::kPreempt:
        launching = true;
        preempted.push_back(action.request);
        break;
      case Action::Kind::kAdmit:
        launching = true;
        admitted.push_back(action.request);
        break;
      case Action::Kind::kLaunch:
        launching = true;
        CheckLaunch(action.micro_batch, preempted, admitted);
        preempted.clear();
        admitted.clear();
        break;
      case Action::Kind::kReject:
        Fail("request ", action.request, " is rejected: ", action.error.ToString());
        break;
    }
  }
  if (!preempted.empty()) Fail("request ", preempted[0], " is preempted for no launch");
  if (!admitted.empty()) Fail("request ", admitted[0], " is admitted to no launch");
  if (ends != must_end) {
    Fail(ends.size(), " requests end, not the ", must_end.size(),
         " that must, or for other reasons",
         ends.empty() ? "" : "; first " + std::to_string(ends.begin()->first),
         must_end.empty() ? "" : "; first that must " + std::to_string(must_end.begin()->first));
  }
  CheckState();
  CheckNothingLeftUndone();
  return {actions.begin(), actions.end()};
}

void CheckedScheduler::CheckLaunch(const MicroBatch& micro_batch,
                                   const std::vector<RequestId>& preempted,
                                   const std::vector<RequestId>& admitted) {
  const MicroBatchId id = micro_batch.id;
  if (id != next_launch_) Fail("micro-batch ", id, " is launched, not ", next_launch_);
  ++next_launch_;
  if (micro_batch.entries.empty()) Fail("micro-batch ", id, " is empty");

  CheckPreemptions(preempted);
  for (auto& [unused, request] : requests_) {
    request.before = {.running = request.running && !request.cancelled,
                      .idle = request.idle(),
                      .decoding = request.decoding(),
                      .ready = request.ready(),
                      .prefilling = request.prefilling(),
                      .launched = request.launched};
  }
  const int64_t free_before = options_.kv_blocks - UsedBlocks();
  for (const RequestId victim : preempted) {
    if (!error_.empty()) return;
    Request& request = requests_.at(victim);
    if (request.prefilling()) ++counts_.preempted_prefilling;
    request.running = false;
    request.launched = 0;
    ++preemptions_;
    ++counts_.preempted;
  }

  int64_t tokens = 0, prefill_tokens = 0, prefills = 0, decodes = 0;
  std::set<RequestId> seen;
  std::vector<RequestId> first_admissions;
  std::pair<int, int64_t> last_prefill = {-1, -1};
  for (const BatchEntry& entry : micro_batch.entries) {
    if (!error_.empty()) return;
    if (!seen.insert(entry.request).second) {
      Fail("request ", entry.request, " is twice in micro-batch ", id);
    }
    tokens += entry.tokens;
    if (entry.decode) {
      ++decodes;
      if (prefills > 0) Fail("micro-batch ", id, ": a decode follows a prefill chunk");
    } else {
      ++prefills;
      prefill_tokens += entry.tokens;
    }
    const auto it = requests_.find(entry.request);
    if (it == requests_.end()) {
      Fail("request ", entry.request, " is in micro-batch ", id, " but not known");
      return;
    }
    if (!entry.decode) {
      // The running ones, then those admitted again, then new ones; the oldest first in each.
      const Request& request = it->second;
      const std::pair<int, int64_t> rank = {request.running    ? 0
                                            : request.admitted ? 1
                                                               : 2,
                                            request.order};
      if (rank <= last_prefill) Fail("request ", entry.request, " overtakes in prefill");
      last_prefill = rank;
    }
    if (!it->second.running) {
      if (!preempted.empty()) Fail("request ", entry.request, " enters a launch that preempts");
      if (CheckAdmission(entry.request, it->second, entry.tokens)) {
        first_admissions.push_back(entry.request);
      }
    }
    CheckEntry(micro_batch, entry);
  }
  if (admitted != first_admissions) {
    Fail("micro-batch ", id, " has ", first_admissions.size(), " new requests, not the ",
         admitted.size(), " that are announced");
  }
  if (tokens != micro_batch.tokens()) Fail(tokens, " tokens, not ", micro_batch.tokens());
  if (tokens > options_.max_batch_tokens) {
    Fail("micro-batch ", id, " has ", tokens, " tokens > ", options_.max_batch_tokens);
  }
  if (prefill_tokens > options_.max_chunk_tokens) {
    Fail("micro-batch ", id, " has ", prefill_tokens, " prefill tokens > ",
         options_.max_chunk_tokens);
  }
  if (!error_.empty()) return;
  CheckOldestPrefills(micro_batch, free_before);
  CheckVictims(micro_batch, preempted);
  CheckDecodes(micro_batch, preempted);

  in_flight_[id].entries = micro_batch.entries;
  if (static_cast<int64_t>(in_flight_.size()) > options_.max_in_flight) {
    Fail(in_flight_.size(), " micro-batches are in flight");
  }
  const int64_t at_first_stage =
      std::count_if(in_flight_.begin(), in_flight_.end(),
                    [](const auto& entry) { return !entry.second.first_stage_done; });
  if (at_first_stage > options_.first_stage_queue) {
    Fail(at_first_stage, " micro-batches are at the first stage");
  }
  if (UsedBlocks() > options_.kv_blocks) {
    Fail(UsedBlocks(), " blocks are used of ", options_.kv_blocks);
  }
  CheckTurnOfOldest();
  ++counts_.launches;
  counts_.entries += static_cast<int64_t>(micro_batch.entries.size());
  counts_.shared_prefills += prefills > 1;
  counts_.mixed += prefills > 0 && decodes > 0;
}

void CheckedScheduler::CheckPreemptions(const std::vector<RequestId>& preempted) {
  for (const RequestId id : preempted) {
    const auto it = requests_.find(id);
    if (it == requests_.end() || !it->second.idle() || it->second.cancelled) {
      Fail("request ", id, " is preempted but not running, or in flight");
    }
  }
}

// One request's next tokens, exactly. Moves the account on.
void CheckedScheduler::CheckEntry(const MicroBatch& micro_batch, const BatchEntry& entry) {
  Request& request = requests_.at(entry.request);
  if (request.cancelled) Fail("request ", entry.request, " is launched after its cancellation");
  if (request.samples_in >= 0) {
    Fail("request ", entry.request, " is launched before its last token is known");
  }
  if (entry.tokens < 1) Fail("request ", entry.request, " has ", entry.tokens, " tokens");
  if (entry.first_token != request.launched) {
    Fail("request ", entry.request, " computes from ", entry.first_token, ", not from ",
         request.launched);
  }
  const bool decode = request.launched >= request.prefill_until;
  if (entry.decode != decode) {
    Fail("request ", entry.request, " at ", request.launched, " of ", request.prefill_until,
         " tokens of prefill: decode = ", entry.decode);
  }
  if (decode && (entry.tokens != 1 || request.in_flight > 0)) {
    Fail("request ", entry.request, " decodes ", entry.tokens, " tokens, in flight ",
         request.in_flight);
  }
  if (request.in_flight > 0) ++counts_.chunks_before_previous_completed;
  request.launched += entry.tokens;
  if (request.launched > request.known()) {
    Fail("request ", entry.request, " computes ", request.launched, " tokens but only ",
         request.known(), " are known");
  }
  if (entry.samples != (request.launched == request.known())) {
    Fail("request ", entry.request, " at ", request.launched, " of ", request.known(),
         " known tokens: samples = ", entry.samples);
  }
  if (entry.samples) request.samples_in = micro_batch.id;
  ++request.in_flight;
}

// Returns whether it is the request's first.
bool CheckedScheduler::CheckAdmission(RequestId id, Request& request, int64_t tokens) {
  for (const auto& [other_id, other] : requests_) {
    if (!other.running && other.order < request.order) {
      Fail("request ", id, " is admitted before the older request ", other_id);
    }
  }
  const bool first = !request.admitted;
  if (first) {
    if (request.order <= last_first_admission_) Fail("request ", id, " is admitted too late");
    last_first_admission_ = request.order;
  } else {
    ++counts_.readmitted;
  }
  const int64_t others = RunningCount();
  if (others >= options_.max_running) Fail("request ", id, " is admitted beside ", others);
  const int64_t free = options_.kv_blocks - UsedBlocks();
  const int64_t need = BlocksOf(first ? tokens : request.known()) + (others > 0 ? Watermark() : 0);
  if (free < need) Fail("request ", id, " is admitted with ", free, " free blocks of ", need);
  request.admitted = true;
  request.running = true;
  request.prefill_until = request.known();
  return first;
}

// If the oldest running request is launched in part, it is in every micro-batch as long as there is
// a block that it can have, whatever the decodes want.
void CheckedScheduler::CheckOldestPrefills(const MicroBatch& micro_batch, int64_t free_before) {
  std::pair<RequestId, const Request*> oldest = {-1, nullptr};
  int64_t idle = 0;
  for (const auto& [id, request] : requests_) {
    if (!request.before.running) continue;
    idle += request.before.idle;
    if (oldest.second == nullptr || request.order < oldest.second->order) {
      oldest = {id, &request};
    }
  }
  if (oldest.second == nullptr || !oldest.second->before.prefilling) return;
  for (const BatchEntry& entry : micro_batch.entries) {
    if (entry.request == oldest.first) return;
  }
  if (free_before > 0 || idle > oldest.second->before.idle) {
    Fail("micro-batch ", micro_batch.id, " leaves out the oldest request, ", oldest.first,
         ", with ", free_before, " free blocks and ", idle, " idle requests");
  }
}

// Each victim was the youngest that could be one, and someone older needed its blocks.
void CheckedScheduler::CheckVictims(const MicroBatch& micro_batch,
                                    const std::vector<RequestId>& preempted) {
  if (preempted.empty()) return;
  std::set<RequestId> taken(preempted.begin(), preempted.end());
  int64_t oldest_in_need = arrivals_;
  bool for_prefill = true;
  for (const BatchEntry& entry : micro_batch.entries) {
    taken.insert(entry.request);
    const Request& request = requests_.at(entry.request);
    if (BlocksOf(request.before.launched + entry.tokens) > BlocksOf(request.before.launched)) {
      oldest_in_need = std::min(oldest_in_need, request.order);
      for_prefill = for_prefill && !entry.decode;
    }
  }
  int64_t oldest_victim = arrivals_;
  for (const RequestId id : preempted) {
    oldest_victim = std::min(oldest_victim, requests_.at(id).order);
  }
  if (oldest_in_need >= oldest_victim) {
    Fail("a victim of micro-batch ", micro_batch.id, " is older than all that needed blocks");
  }
  counts_.preempted_for_prefill += for_prefill;
  for (const auto& [id, request] : requests_) {
    if (request.before.idle && !taken.contains(id) && request.order > oldest_victim) {
      Fail("request ", id, " is spared though a victim is older");
    }
  }
}

void CheckedScheduler::CheckDecodes(const MicroBatch& micro_batch,
                                    const std::vector<RequestId>& preempted) {
  int64_t decoding = 0, ready = 0;
  for (const auto& [id, request] : requests_) {
    decoding += request.before.decoding;
    ready += request.before.ready;
  }
  const int64_t share =
      std::min((decoding + options_.max_in_flight - 1) / options_.max_in_flight, ready);
  int64_t decodes = 0;
  int64_t last_ready = -1;
  for (const BatchEntry& entry : micro_batch.entries) {
    if (!entry.decode) break;
    ++decodes;
    const Request& request = requests_.at(entry.request);
    if (request.ready_since <= last_ready) Fail("request ", entry.request, " is out of turn");
    last_ready = request.ready_since;
  }
  if (decodes > share) {
    Fail("micro-batch ", micro_batch.id, " has ", decodes, " decodes, more than ", share);
  }
  // Passed over is only who needs a block that is not to be had, or was preempted.
  for (const auto& [id, request] : requests_) {
    if (!request.ready() || (decodes == share && request.ready_since > last_ready)) continue;
    ++counts_.decodes_short_of_blocks;
    if (request.launched % options_.kv_block_tokens != 0) {
      Fail("request ", id, " is passed over by the decodes of micro-batch ", micro_batch.id);
    }
    if (preempted.empty() && UsedBlocks() < options_.kv_blocks) {
      Fail("request ", id, " is passed over though there are free blocks");
    }
  }
}

// Every launch either has the oldest running request in it, or there is a reason that goes away:
// others are ahead of it in the round robin, or all that it could preempt are in flight.
void CheckedScheduler::CheckTurnOfOldest() {
  std::pair<RequestId, const Request*> oldest = {-1, nullptr};
  for (const auto& [id, request] : requests_) {
    if (request.running && !request.cancelled &&
        (oldest.second == nullptr || request.order < oldest.second->order)) {
      oldest = {id, &request};
    }
  }
  if (oldest.second == nullptr || oldest.second->in_flight > 0 || oldest.first != oldest_running_) {
    oldest_running_ = oldest.first;
    launches_without_oldest_ = 0;
    return;
  }
  ++launches_without_oldest_;
  const int64_t bound = options_.max_running + options_.max_in_flight;
  if (launches_without_oldest_ > bound) {
    Fail("the oldest running request, ", oldest.first, ", was not in ", launches_without_oldest_,
         " launches > ", bound);
  }
}

// What the scheduler says of itself, against the account.
void CheckedScheduler::CheckState() {
  scheduler_.CheckInvariants();
  const int64_t running = RunningCount();
  const int64_t waiting = static_cast<int64_t>(requests_.size()) - running;
  const struct {
    const char* name;
    int64_t value;
    int64_t expected;
  } checks[] = {
      {"running", scheduler_.running(), running},
      {"waiting", scheduler_.waiting(), waiting},
      {"in_flight", scheduler_.in_flight(), static_cast<int64_t>(in_flight_.size())},
      {"kv_blocks_used", scheduler_.kv_blocks_used(), UsedBlocks()},
      {"preemptions", scheduler_.preemptions(), preemptions_},
      {"idle", scheduler_.idle(), requests_.empty()},
  };
  for (const auto& [name, value, expected] : checks) {
    if (value != expected) Fail(name, "() is ", value, ", not ", expected);
  }
}

// If there is room for a micro-batch, there is nothing to put into it.
void CheckedScheduler::CheckNothingLeftUndone() {
  if (in_flight_.empty() && !requests_.empty()) {
    Fail("nothing is in flight, and ", requests_.size(), " requests are left");
  }
  const int64_t at_first_stage =
      std::count_if(in_flight_.begin(), in_flight_.end(),
                    [](const auto& entry) { return !entry.second.first_stage_done; });
  if (static_cast<int64_t>(in_flight_.size()) == options_.max_in_flight ||
      at_first_stage == options_.first_stage_queue) {
    return;
  }
  const int64_t free = options_.kv_blocks - UsedBlocks();
  const int64_t running = RunningCount();
  bool stalled = false;
  std::pair<RequestId, const Request*> head = {-1, nullptr};
  for (const auto& [id, request] : requests_) {
    const bool needs_block = request.launched % options_.kv_block_tokens == 0;
    if ((request.ready() || request.prefilling())) {
      stalled = true;
      if (!needs_block && request.ready()) Fail("request ", id, " is ready and left out");
      if (free > 0) Fail("request ", id, " is left out in spite of ", free, " free blocks");
    }
    if (!request.running && (head.second == nullptr || request.order < head.second->order)) {
      head = {id, &request};
    }
  }
  if (head.second == nullptr || stalled || running >= options_.max_running) return;
  const int64_t tokens = head.second->known();
  const int64_t chunk = std::min(
      {tokens, options_.max_chunk_tokens, options_.max_batch_tokens});  // nothing else is launched
  const int64_t need =
      BlocksOf(head.second->admitted ? tokens : chunk) + (running > 0 ? Watermark() : 0);
  if (free >= need) {
    Fail("request ", head.first, " waits for ", need, " blocks of ", free, " free ones");
  }
}

}  // namespace fabricast
