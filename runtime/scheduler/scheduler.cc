// How it is kept fast: every request is in at most two intrusive lists, the running ones by arrival
// and either the waiting or the ready ones, so that an event costs what its micro-batch costs and
// not what all requests cost. Only a preemption walks: past the running requests in flight that
// arrived later than the one that needs a block, once a launch.
//
// Why it cannot deadlock: nothing waits for anything but a micro-batch in flight. Let nothing be in
// flight, and requests be left.
// - If none runs, all blocks are free, the watermark is waived, and the first of the waiting
//   requests is admitted: its arrival was not rejected, so it fits the cache.
// - Else let O be the oldest running request. It is idle, so it is prefilling or ready, and it is
//   tried: prefilling, before all others; ready, after the decodes ahead of it, unless one of these
//   is launched. It finds a free block, or preempts, since all other running requests are idle and
//   arrived later; if there is none, all blocks are its own or free, and it fits the cache.
//
// Why it cannot livelock: the oldest running request O is never preempted (a victim arrived later
// than the one that needs its block), and its turn comes. Prefilling, it takes blocks before the
// decodes do. Ready, it keeps its place in the order of readiness until it is launched, so it is
// tried before all that became ready after it. At worst it waits until a micro-batch in flight
// completes and makes younger requests idle, which it may then preempt. So it computes ever new
// tokens while it is the oldest that runs. Now let G be the oldest request of all that have not
// ended. While it runs, it is O, and so it ends. While it waits, it is the first that waits, so
// none is admitted before it, and the oldest running requests end one after the other, until G is
// admitted: at the latest, when none runs. By induction all requests end.
#include "runtime/scheduler/scheduler.h"

#include <algorithm>
#include <deque>
#include <map>
#include <ostream>
#include <unordered_map>
#include <utility>

#include "absl/strings/str_cat.h"
#include "runtime/check.h"

namespace fabricast {
namespace {

// How many tokens a cache may hold: far beyond any memory, and no sum of two such numbers
// overflows.
constexpr int64_t kMaxCacheTokens = int64_t{1} << 60;

// 1 % of the cache's blocks, at least one, stay free when a request is admitted, so that the
// decodes of the running ones do not at once preempt it.
constexpr int64_t kWatermarkDivisor = 100;

constexpr int64_t CeilDiv(int64_t a, int64_t b) { return a / b + (a % b != 0); }

enum class State {
  kWaiting,     // in `fresh` or `preempted`
  kPrefilling,  // `prefilling`: some of its known tokens are not launched
  kReady,       // in `ready`: all known tokens but the last are computed; not in flight
  kSampling,    // a micro-batch in flight samples its next token
  kDraining,    // cancelled while in flight
};

struct Request;

struct Links {
  Request* previous = nullptr;
  Request* next = nullptr;
};

struct Request {
  RequestId id = -1;
  int64_t arrival = 0;  // 0, 1, 2, ...: the smaller, the older
  int64_t prompt_tokens = 0;
  int64_t max_output_tokens = 0;

  State state = State::kWaiting;
  bool admitted_before = false;
  bool stopped = false;
  int in_flight = 0;  // micro-batches in flight, or being put together, with this request
  MicroBatchId sampling_in = -1;  // kSampling: the one that samples; and kDraining if it was
  int64_t outputs = 0;            // tokens sampled and known
  int64_t prefill_tokens =
      0;  // known tokens at the last admission: what is computed before the next sample
  int64_t launched_tokens = 0;  // in the KV cache once all in flight is completed
  int64_t blocks = 0;

  Links by_arrival;  // in `running`
  Links by_state;    // in `fresh` or `ready`
};

std::ostream& operator<<(std::ostream& out, const Request& request) {
  return out << "request " << request.id << " (arrival " << request.arrival << ", "
             << request.prompt_tokens << " + " << request.outputs << " of "
             << request.max_output_tokens << " tokens, " << request.launched_tokens
             << " launched, state " << static_cast<int>(request.state) << ")";
}

// Intrusive: a request is in at most one list for each of its Links.
template <Links Request::*kLinks>
class RequestList {
 public:
  bool empty() const { return front_ == nullptr; }
  int64_t size() const { return size_; }
  Request* front() const { return front_; }
  Request* back() const { return back_; }
  static Request* Next(const Request& request) { return (request.*kLinks).next; }
  static Request* Previous(const Request& request) { return (request.*kLinks).previous; }

  void PushBack(Request& request) { InsertAfter(back_, request); }

  // For a list sorted by arrival. Costs as many steps as it has younger requests.
  void InsertByArrival(Request& request) {
    Request* previous = back_;
    while (previous != nullptr && previous->arrival > request.arrival) {
      previous = Previous(*previous);
    }
    InsertAfter(previous, request);
  }

  void Remove(Request& request) {
    Links& links = request.*kLinks;
    (links.previous != nullptr ? (links.previous->*kLinks).next : front_) = links.next;
    (links.next != nullptr ? (links.next->*kLinks).previous : back_) = links.previous;
    links = Links();
    --size_;
  }

 private:
  void InsertAfter(Request* previous, Request& request) {
    Request*& next_of_previous = previous != nullptr ? (previous->*kLinks).next : front_;
    Request* const next = next_of_previous;
    request.*kLinks = {previous, next};
    next_of_previous = &request;
    (next != nullptr ? (next->*kLinks).previous : back_) = &request;
    ++size_;
  }

  Request* front_ = nullptr;
  Request* back_ = nullptr;
  int64_t size_ = 0;
};

using ArrivalList = RequestList<&Request::by_arrival>;
using StateList = RequestList<&Request::by_state>;

}  // namespace

int64_t MicroBatch::tokens() const {
  int64_t sum = 0;
  for (const BatchEntry& entry : entries) sum += entry.tokens;
  return sum;
}

struct Scheduler::Impl {
  explicit Impl(const SchedulerOptions& options) : options(options) {}

  struct Work {
    Request* request;
    bool samples;
  };

  const SchedulerOptions options;
  const int64_t watermark_blocks = CeilDiv(options.kv_blocks, kWatermarkDivisor);

  std::unordered_map<RequestId, Request> requests;  // for look-up; never iterated
  int64_t arrivals = 0;
  StateList fresh;                        // waiting, never admitted, by arrival
  std::map<int64_t, Request*> preempted;  // waiting, by arrival; all older than those in `fresh`
  ArrivalList running;                    // kPrefilling, kReady and kSampling
  // The one that is launched in part. There is never a second: a chunk that does not end a prompt
  // has used up the budget or the free blocks, so nobody is admitted after it.
  Request* prefilling = nullptr;
  StateList ready;  // in the order in which they became ready
  int64_t sampling = 0;
  int64_t draining = 0;
  int64_t free_blocks = options.kv_blocks;
  int64_t preemptions = 0;

  std::deque<std::vector<Work>> in_flight;  // in launch order; the first has the id next_completed
  std::vector<std::vector<Work>> spare;     // emptied, kept for their memory
  MicroBatchId next_launched = 0;
  MicroBatchId next_first_stage_done = 0;
  MicroBatchId next_completed = 0;

  // The last try to launch found nothing to do, and nothing has changed since but the end of the
  // waiting requests.
  bool nothing_to_launch = false;

  // While a micro-batch is put together:
  std::vector<BatchEntry> entries;
  std::vector<Work> work;
  Request* victim_cursor = nullptr;  // no running request after it is idle

  // Slots are reused for the memory of their entries; the first `action_count` count.
  std::vector<Action> actions;
  size_t action_count = 0;

  int64_t waiting() const { return fresh.size() + static_cast<int64_t>(preempted.size()); }
  int64_t running_count() const { return running.size() + draining; }
  int64_t decoding() const { return ready.size() + sampling; }
  absl::Span<const Action> Actions() const {
    return absl::MakeConstSpan(actions.data(), action_count);
  }

  void BeginEvent() { action_count = 0; }
  Action& AddAction(Action::Kind kind, RequestId request);

  absl::Status WhyNever(int64_t prompt_tokens, int64_t max_output_tokens) const;
  void LeaveLists(Request& request);
  void Finish(Request& request, FinishReason reason);
  void FreeBlocks(Request& request);

  void LaunchAll();
  bool LaunchOne();
  int64_t TakeBlocksOfOldest(int64_t budget);
  void TakeDecodes(int64_t share);
  int64_t TakePrefill(int64_t oldest_chunk, int64_t budget);
  void TakeAdmissions(int64_t budget);
  int64_t ChunkThatFits(const Request& request, int64_t budget) const;
  bool MayAdmit(const Request& request, int64_t chunk) const;
  void TakeBlocks(Request& request, int64_t tokens);
  void TakeChunk(Request& request, int64_t chunk);
  void TakeEntry(Request& request, int64_t tokens, bool decode, bool samples);
  bool FindBlock(const Request& requester);
  void Preempt(Request& request);
  Request* WaitingHead() const {
    return preempted.empty() ? fresh.front() : preempted.begin()->second;
  }
};

Action& Scheduler::Impl::AddAction(Action::Kind kind, RequestId request) {
  if (action_count == actions.size()) actions.emplace_back();
  Action& action = actions[action_count++];
  action.kind = kind;
  action.request = request;
  action.reason = FinishReason::kLength;
  if (!action.error.ok()) action.error = absl::OkStatus();
  action.micro_batch.id = -1;
  action.micro_batch.entries.clear();
  return action;
}

absl::Status Scheduler::Impl::WhyNever(int64_t prompt_tokens, int64_t max_output_tokens) const {
  if (prompt_tokens < 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("the prompt has ", prompt_tokens, " tokens; at least 1 is needed"));
  }
  if (max_output_tokens < 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("max_output_tokens is ", max_output_tokens, "; at least 1 is needed"));
  }
  // The last output token is sampled and never computed, so it takes no place.
  const int64_t cache_tokens = options.kv_blocks * options.kv_block_tokens;
  if (prompt_tokens > cache_tokens || max_output_tokens - 1 > cache_tokens - prompt_tokens) {
    return absl::ResourceExhaustedError(
        absl::StrCat("a prompt of ", prompt_tokens, " tokens with up to ", max_output_tokens,
                     " of output, the last of which is not cached, does not fit the KV cache of ",
                     options.kv_blocks, " blocks x ", options.kv_block_tokens, " = ", cache_tokens,
                     " tokens: shorten one of them or give the cache more blocks"));
  }
  return absl::OkStatus();
}

void Scheduler::Impl::FreeBlocks(Request& request) {
  free_blocks += request.blocks;
  request.blocks = 0;
}

// Takes the request out of all lists and counts; the caller gives it a new state.
void Scheduler::Impl::LeaveLists(Request& request) {
  switch (request.state) {
    case State::kWaiting:
      if (request.admitted_before) {
        preempted.erase(request.arrival);
      } else {
        fresh.Remove(request);
      }
      return;
    case State::kPrefilling:
      prefilling = nullptr;
      break;
    case State::kReady:
      ready.Remove(request);
      break;
    case State::kSampling:
      --sampling;
      break;
    case State::kDraining:
      --draining;
      return;
  }
  running.Remove(request);
}

void Scheduler::Impl::Finish(Request& request, FinishReason reason) {
  FABRICAST_CHECK(request.in_flight == 0)
      << "request " << request.id << " ends in " << request.in_flight << " micro-batches in flight";
  LeaveLists(request);
  FreeBlocks(request);
  AddAction(Action::Kind::kFinish, request.id).reason = reason;
  requests.erase(request.id);
}

void Scheduler::Impl::LaunchAll() {
  if (nothing_to_launch) return;
  while (static_cast<int64_t>(in_flight.size()) < options.max_in_flight &&
         next_launched - next_first_stage_done < options.first_stage_queue) {
    if (!LaunchOne()) {
      nothing_to_launch = true;
      return;
    }
  }
}

bool Scheduler::Impl::LaunchOne() {
  entries.clear();
  victim_cursor = running.back();
  const int64_t preemptions_before = preemptions;

  const int64_t share = std::min(CeilDiv(decoding(), options.max_in_flight), ready.size());

  const int64_t oldest_chunk =
      TakeBlocksOfOldest(std::min(options.max_chunk_tokens, options.max_batch_tokens - share));
  TakeDecodes(share);
  const int64_t left = options.max_batch_tokens - static_cast<int64_t>(entries.size());
  const int64_t budget = TakePrefill(oldest_chunk, std::min(options.max_chunk_tokens, left));
  // A victim's blocks are for those that lack them, not for admitting it again at once.
  if (preemptions == preemptions_before) TakeAdmissions(budget);

  if (entries.empty()) return false;
  in_flight.push_back(std::move(work));
  work.clear();
  if (!spare.empty()) {
    std::swap(work, spare.back());
    spare.pop_back();
  }
  Action& action = AddAction(Action::Kind::kLaunch, -1);
  action.micro_batch.id = next_launched++;
  std::swap(action.micro_batch.entries, entries);
  return true;
}

// If the oldest running request is prefilling: the tokens of its chunk, whose blocks are now its
// own. It goes first in what matters, blocks; in the micro-batch decodes come first.
int64_t Scheduler::Impl::TakeBlocksOfOldest(int64_t budget) {
  if (prefilling == nullptr || prefilling != running.front()) return 0;
  Request& oldest = *prefilling;
  int64_t chunk = ChunkThatFits(oldest, budget);
  if (chunk == 0 && FindBlock(oldest)) chunk = ChunkThatFits(oldest, budget);
  TakeBlocks(oldest, oldest.launched_tokens + chunk);
  return chunk;
}

void Scheduler::Impl::TakeDecodes(int64_t share) {
  int64_t taken = 0;
  Request* request = ready.front();
  while (request != nullptr && taken < share) {
    Request& decoding = *request;
    const bool fits =
        decoding.launched_tokens < decoding.blocks * options.kv_block_tokens || FindBlock(decoding);
    request = StateList::Next(decoding);  // not before FindBlock, which may preempt the next one
    if (!fits) continue;  // keeps its place; everyone who could give it a block is in flight
    TakeBlocks(decoding, decoding.launched_tokens + 1);
    ready.Remove(decoding);
    decoding.state = State::kSampling;
    ++sampling;
    TakeEntry(decoding, 1, /*decode=*/true, /*samples=*/true);
    ++taken;
  }
}

// Returns what is left of the budget for admissions.
int64_t Scheduler::Impl::TakePrefill(int64_t oldest_chunk, int64_t budget) {
  if (prefilling == nullptr) return budget;
  const int64_t chunk = oldest_chunk > 0 ? oldest_chunk : ChunkThatFits(*prefilling, budget);
  if (chunk == 0) return 0;  // no block is free, so nobody can be admitted either
  TakeChunk(*prefilling, chunk);
  return budget - chunk;
}

void Scheduler::Impl::TakeAdmissions(int64_t budget) {
  while (budget > 0 && waiting() > 0 && running_count() < options.max_running) {
    Request& head = *WaitingHead();
    const int64_t known_tokens = head.prompt_tokens + head.outputs;
    const int64_t chunk = std::min(budget, known_tokens);
    if (!MayAdmit(head, chunk)) return;
    LeaveLists(head);
    head.state = State::kPrefilling;
    head.prefill_tokens = known_tokens;
    running.InsertByArrival(head);
    FABRICAST_CHECK(prefilling == nullptr) << *prefilling << " is overtaken by " << head;
    prefilling = &head;
    if (!head.admitted_before) {
      head.admitted_before = true;
      AddAction(Action::Kind::kAdmit, head.id);
    }
    budget -= chunk;
    TakeChunk(head, chunk);
  }
}

// Tokens of the next chunk, as limited by budget, prompt, and blocks that are its own or free.
int64_t Scheduler::Impl::ChunkThatFits(const Request& request, int64_t budget) const {
  const int64_t room =
      (request.blocks + free_blocks) * options.kv_block_tokens - request.launched_tokens;
  return std::min({budget, request.prefill_tokens - request.launched_tokens, room});
}

bool Scheduler::Impl::MayAdmit(const Request& request, int64_t chunk) const {
  const int64_t tokens = request.admitted_before ? request.prompt_tokens + request.outputs : chunk;
  const int64_t watermark = running_count() == 0 ? 0 : watermark_blocks;
  return CeilDiv(tokens, options.kv_block_tokens) + watermark <= free_blocks;
}

// So that it has the blocks for its first `tokens` tokens.
void Scheduler::Impl::TakeBlocks(Request& request, int64_t tokens) {
  const int64_t blocks = CeilDiv(tokens, options.kv_block_tokens) - request.blocks;
  request.blocks += blocks;
  free_blocks -= blocks;
  FABRICAST_CHECK(free_blocks >= 0)
      << free_blocks << " blocks are left after " << blocks << " for request " << request.id;
}

void Scheduler::Impl::TakeChunk(Request& request, int64_t chunk) {
  TakeBlocks(request, request.launched_tokens + chunk);
  const bool last = request.launched_tokens + chunk == request.prefill_tokens;
  if (last) {
    prefilling = nullptr;
    request.state = State::kSampling;
    ++sampling;
  }
  TakeEntry(request, chunk, /*decode=*/false, /*samples=*/last);
}

void Scheduler::Impl::TakeEntry(Request& request, int64_t tokens, bool decode, bool samples) {
  entries.push_back({.request = request.id,
                     .first_token = request.launched_tokens,
                     .tokens = tokens,
                     .decode = decode,
                     .samples = samples});
  work.push_back({&request, samples});
  request.launched_tokens += tokens;
  ++request.in_flight;
  if (samples) request.sampling_in = next_launched;
}

// True if a block is free or could be made free by a preemption.
bool Scheduler::Impl::FindBlock(const Request& requester) {
  if (free_blocks > 0) return true;
  while (victim_cursor != nullptr && victim_cursor->arrival > requester.arrival) {
    Request& candidate = *victim_cursor;
    victim_cursor = ArrivalList::Previous(candidate);
    if (candidate.in_flight > 0) continue;
    Preempt(candidate);
    return true;
  }
  return false;
}

void Scheduler::Impl::Preempt(Request& request) {
  FABRICAST_CHECK(request.in_flight == 0 && request.blocks > 0)
      << "request " << request.id << " is preempted with " << request.blocks << " blocks, in "
      << request.in_flight << " micro-batches in flight";
  LeaveLists(request);
  FreeBlocks(request);
  request.launched_tokens = 0;
  request.state = State::kWaiting;
  preempted.emplace(request.arrival, &request);
  ++preemptions;
  AddAction(Action::Kind::kPreempt, request.id);
}

absl::Status Scheduler::Validate(const SchedulerOptions& options) {
  const std::pair<const char*, int64_t> positive[] = {
      {"max_in_flight", options.max_in_flight},
      {"first_stage_queue", options.first_stage_queue},
      {"max_batch_tokens", options.max_batch_tokens},
      {"max_chunk_tokens", options.max_chunk_tokens},
      {"max_running", options.max_running},
      {"kv_block_tokens", options.kv_block_tokens},
      {"kv_blocks", options.kv_blocks},
  };
  for (const auto& [name, value] : positive) {
    if (value < 1) {
      return absl::InvalidArgumentError(absl::StrCat(name, " is ", value, "; must be at least 1"));
    }
  }
  const int64_t largest_share = CeilDiv(options.max_running, options.max_in_flight);
  if (options.max_batch_tokens <= largest_share) {
    return absl::InvalidArgumentError(absl::StrCat(
        "max_batch_tokens is ", options.max_batch_tokens, "; must be more than ", largest_share,
        ", the decodes of a micro-batch when max_running = ", options.max_running,
        " requests decode in max_in_flight = ", options.max_in_flight,
        " micro-batches, or prefill would starve"));
  }
  if (options.kv_blocks > kMaxCacheTokens / options.kv_block_tokens) {
    return absl::InvalidArgumentError(absl::StrCat(
        "kv_blocks is ", options.kv_blocks, "; with kv_block_tokens = ", options.kv_block_tokens,
        " the cache would hold more than ", kMaxCacheTokens, " tokens"));
  }
  return absl::OkStatus();
}

Scheduler::Scheduler(const SchedulerOptions& options) : impl_(std::make_unique<Impl>(options)) {
  const absl::Status status = Validate(options);
  FABRICAST_CHECK(status.ok()) << status.ToString();
}

Scheduler::~Scheduler() = default;

absl::Span<const Action> Scheduler::RequestArrived(RequestId id, int64_t prompt_tokens,
                                                   int64_t max_output_tokens) {
  Impl& s = *impl_;
  s.BeginEvent();
  if (absl::Status why = s.WhyNever(prompt_tokens, max_output_tokens); !why.ok()) {
    FABRICAST_CHECK(s.requests.count(id) == 0) << "request " << id << " arrives while it is known";
    s.AddAction(Action::Kind::kReject, id).error = std::move(why);
    return s.Actions();
  }
  const auto [it, inserted] = s.requests.try_emplace(id);
  FABRICAST_CHECK(inserted) << "request " << id << " arrives while it is known";
  Request& request = it->second;
  request.id = id;
  request.arrival = s.arrivals++;
  request.prompt_tokens = prompt_tokens;
  request.max_output_tokens = max_output_tokens;
  if (s.waiting() == 0) s.nothing_to_launch = false;
  s.fresh.PushBack(request);
  s.LaunchAll();
  return s.Actions();
}

absl::Span<const Action> Scheduler::FirstStageDone(MicroBatchId id) {
  Impl& s = *impl_;
  s.BeginEvent();
  FABRICAST_CHECK(id == s.next_first_stage_done && id < s.next_launched)
      << "the first stage is done with micro-batch " << id << "; " << s.next_launched
      << " are launched, and the next to be done is " << s.next_first_stage_done;
  ++s.next_first_stage_done;
  s.LaunchAll();
  return s.Actions();
}

absl::Span<const Action> Scheduler::MicroBatchCompleted(MicroBatchId id,
                                                        absl::Span<const RequestId> stopped) {
  Impl& s = *impl_;
  s.BeginEvent();
  FABRICAST_CHECK(id == s.next_completed && id < s.next_first_stage_done)
      << "micro-batch " << id << " is completed; " << s.next_first_stage_done
      << " are through the first stage, and the next to be completed is " << s.next_completed;
  for (const RequestId request_id : stopped) {
    const auto it = s.requests.find(request_id);
    FABRICAST_CHECK(it != s.requests.end())
        << "request " << request_id << " stopped in micro-batch " << id << " but is not known";
    Request& request = it->second;
    FABRICAST_CHECK(request.sampling_in == id)
        << "request " << request_id << " stopped in micro-batch " << id << " but samples in "
        << request.sampling_in << " (-1: none in flight)";
    FABRICAST_CHECK(!request.stopped)
        << "request " << request_id << " is named twice by micro-batch " << id;
    request.stopped = true;
  }

  std::vector<Impl::Work> completed = std::move(s.in_flight.front());
  s.in_flight.pop_front();
  ++s.next_completed;
  for (const auto& [pointer, samples] : completed) {
    Request& request = *pointer;
    --request.in_flight;
    if (request.state == State::kDraining) {
      if (request.in_flight == 0) s.Finish(request, FinishReason::kCancelled);
      continue;
    }
    if (!samples) continue;
    ++request.outputs;
    request.sampling_in = -1;
    if (request.stopped) {
      s.Finish(request, FinishReason::kStop);
    } else if (request.outputs == request.max_output_tokens) {
      s.Finish(request, FinishReason::kLength);
    } else {
      --s.sampling;
      request.state = State::kReady;
      s.ready.PushBack(request);
    }
  }
  completed.clear();
  s.spare.push_back(std::move(completed));

  s.nothing_to_launch = false;
  s.LaunchAll();
  return s.Actions();
}

absl::Span<const Action> Scheduler::RequestCancelled(RequestId id) {
  Impl& s = *impl_;
  s.BeginEvent();
  const auto it = s.requests.find(id);
  if (it == s.requests.end() || it->second.state == State::kDraining) return s.Actions();
  Request& request = it->second;
  if (request.in_flight > 0) {
    s.LeaveLists(request);
    request.state = State::kDraining;
    ++s.draining;
  } else {
    s.Finish(request, FinishReason::kCancelled);
  }
  s.nothing_to_launch = false;
  s.LaunchAll();
  return s.Actions();
}

int64_t Scheduler::waiting() const { return impl_->waiting(); }
int64_t Scheduler::running() const { return impl_->running_count(); }
int Scheduler::in_flight() const { return static_cast<int>(impl_->in_flight.size()); }
int64_t Scheduler::kv_blocks_used() const { return impl_->options.kv_blocks - impl_->free_blocks; }
int64_t Scheduler::preemptions() const { return impl_->preemptions; }
bool Scheduler::idle() const { return impl_->requests.empty(); }

// An invariant, with both values; `what` may be several things with << between them.
#define CHECK_HOLDS(a, op, b, what) \
  FABRICAST_CHECK((a)op(b)) << "(" << (a) << " vs. " << (b) << "): " << what

void Scheduler::CheckInvariants() const {
  const Impl& s = *impl_;
  const int64_t block = s.options.kv_block_tokens;
  const int64_t in_flight_count = static_cast<int64_t>(s.in_flight.size());
  CHECK_HOLDS(s.next_launched - s.next_completed, ==, in_flight_count, "in flight");
  CHECK_HOLDS(in_flight_count, <=, s.options.max_in_flight, "in flight");
  CHECK_HOLDS(s.next_completed, <=, s.next_first_stage_done, "first stage before completion");
  CHECK_HOLDS(s.next_first_stage_done, <=, s.next_launched, "launch before first stage");
  CHECK_HOLDS(s.next_launched - s.next_first_stage_done, <=, s.options.first_stage_queue,
              "launched but not through the first stage");
  CHECK_HOLDS(s.running_count(), <=, s.options.max_running, "running");
  if (in_flight_count == 0) {
    CHECK_HOLDS(s.requests.size(), ==, 0, "nothing in flight, so nothing left to do");
  }

  // What is in flight, by arrival.
  struct InFlight {
    const Request* request;
    int micro_batches = 0;
    MicroBatchId samples_in = -1;
  };
  std::map<int64_t, InFlight> in_flight_by_arrival;
  MicroBatchId id = s.next_completed;
  for (const std::vector<Impl::Work>& micro_batch : s.in_flight) {
    CHECK_HOLDS(micro_batch.size(), >, 0, "entries of micro-batch " << id);
    for (const Impl::Work& work : micro_batch) {
      InFlight& found = in_flight_by_arrival[work.request->arrival];
      found.request = work.request;
      ++found.micro_batches;
      CHECK_HOLDS(found.samples_in, ==, -1, *work.request << " follows its own sample");
      if (work.samples) found.samples_in = id;
    }
    ++id;
  }

  int64_t blocks = 0;
  int64_t draining = 0;
  for (const auto& [arrival, found] : in_flight_by_arrival) {
    const Request& request = *found.request;
    CHECK_HOLDS(request.in_flight, ==, found.micro_batches, request);
    CHECK_HOLDS(request.sampling_in, ==, found.samples_in, request);
    CHECK_HOLDS(request.stopped, ==, false, request);
    if (request.state != State::kDraining) continue;
    ++draining;
    blocks += request.blocks;
  }
  CHECK_HOLDS(draining, ==, s.draining, "cancelled in flight");

  int64_t ready = 0, sampling = 0;
  int64_t youngest_admitted = -1;
  for (const Request* r = s.running.front(); r != nullptr; r = ArrivalList::Next(*r)) {
    CHECK_HOLDS(r->arrival, >, youngest_admitted, *r);
    youngest_admitted = r->arrival;
    CHECK_HOLDS(r->admitted_before, ==, true, *r);
    CHECK_HOLDS(r->in_flight > 0, ==, in_flight_by_arrival.count(r->arrival) > 0, *r);
    CHECK_HOLDS(r->blocks, ==, CeilDiv(r->launched_tokens, block), *r);
    CHECK_HOLDS(r->launched_tokens, >, 0, *r);
    CHECK_HOLDS(r->outputs, <, r->max_output_tokens, *r);
    blocks += r->blocks;
    const int64_t known_tokens = r->prompt_tokens + r->outputs;
    switch (r->state) {
      case State::kPrefilling:
        CHECK_HOLDS(r, ==, s.prefilling, *r << " is a second partial prefill");
        CHECK_HOLDS(r->prefill_tokens, ==, known_tokens, *r);
        CHECK_HOLDS(r->launched_tokens, <, known_tokens, *r);
        CHECK_HOLDS(r->sampling_in, ==, -1, *r);
        break;
      case State::kReady:
        ++ready;
        CHECK_HOLDS(r->outputs, >, 0, *r);
        CHECK_HOLDS(r->launched_tokens, ==, known_tokens - 1, *r);
        CHECK_HOLDS(r->in_flight, ==, 0, *r);
        break;
      case State::kSampling:
        ++sampling;
        CHECK_HOLDS(r->launched_tokens, ==, known_tokens, *r);
        CHECK_HOLDS(r->sampling_in, >=, s.next_completed, *r);
        break;
      case State::kWaiting:
      case State::kDraining:
        CHECK_HOLDS(static_cast<int>(r->state), ==, -1, *r << " is not running");
    }
  }
  CHECK_HOLDS(sampling, ==, s.sampling, "sampling");
  CHECK_HOLDS(blocks + s.free_blocks, ==, s.options.kv_blocks, "blocks used + free");
  CHECK_HOLDS(s.free_blocks, >=, 0, "free blocks");

  const auto check_list = [](const StateList& list, State state, int64_t size, bool by_arrival) {
    CHECK_HOLDS(list.size(), ==, size, "requests in a list");
    int64_t count = 0;
    for (const Request* r = list.front(); r != nullptr; r = StateList::Next(*r)) {
      ++count;
      CHECK_HOLDS(static_cast<int>(r->state), ==, static_cast<int>(state), *r);
      const Request* previous = StateList::Previous(*r);
      if (by_arrival && previous != nullptr) {
        CHECK_HOLDS(previous->arrival, <, r->arrival, "arrivals in a list");
      }
    }
    CHECK_HOLDS(count, ==, size, "requests in a list");
  };
  check_list(s.ready, State::kReady, ready, /*by_arrival=*/false);
  check_list(s.fresh, State::kWaiting, s.fresh.size(), /*by_arrival=*/true);
  CHECK_HOLDS(s.running.size(), ==, (s.prefilling != nullptr) + ready + sampling, "running");
  CHECK_HOLDS(static_cast<int64_t>(s.requests.size()), ==, s.running_count() + s.waiting(),
              "requests");

  for (const auto& [arrival, request] : s.preempted) {
    youngest_admitted = std::max(youngest_admitted, arrival);
    CHECK_HOLDS(request->arrival, ==, arrival, *request);
    CHECK_HOLDS(request->admitted_before, ==, true, *request);
    CHECK_HOLDS(request->blocks + request->launched_tokens + request->in_flight, ==, 0,
                *request << " waits");
  }
  for (const Request* r = s.fresh.front(); r != nullptr; r = StateList::Next(*r)) {
    CHECK_HOLDS(r->arrival, >, youngest_admitted, "admission in order of arrival");
    CHECK_HOLDS(r->blocks + r->launched_tokens + r->in_flight, ==, 0, *r << " waits");
  }
}

#undef CHECK_HOLDS

}  // namespace fabricast
