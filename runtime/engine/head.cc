#include "runtime/engine/head.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "runtime/check.h"

namespace fabricast {

Head::Head(const SchedulerOptions& options, std::shared_ptr<const Tokenizer> tokenizer,
           Recorder& recorder, SchedulerLog* log)
    : options_(options), tokenizer_(std::move(tokenizer)), recorder_(recorder), log_(log) {
  const absl::Status valid = Scheduler::Validate(options);
  FABRICAST_CHECK(valid.ok()) << valid.ToString();
}

Head::Steps Head::Ready(double now) {
  FABRICAST_CHECK(!scheduler_.has_value()) << "stages are ready that were not lost";
  scheduler_.emplace(options_);
  Steps steps;
  for (const RequestId id : InOrderOfArrival()) {
    Steps more = Offer(id, now);
    steps.insert(steps.end(), more.begin(), more.end());
  }
  return steps;
}

Head::Steps Head::Submit(RequestId id, GenerationRequest request, GenerationListener listener,
                         double arrived, double now) {
  auto live = std::make_unique<Live>(Live{.request = std::move(request),
                                          .listener = std::move(listener),
                                          .tokens = {},
                                          .detokenizer = nullptr,
                                          .stop = StopStrings({})});
  live->tokens = std::move(live->request.prompt);
  live->stop = StopStrings(std::move(live->request.stop));
  if (tokenizer_ != nullptr) {
    live->detokenizer = std::make_unique<Detokenizer>(*tokenizer_, /*skip_special_tokens=*/true);
  }
  live->order = arrivals_++;
  recorder_.RequestArrived(id, static_cast<int64_t>(live->tokens.size()), arrived);
  const bool is_new = requests_.emplace(id, std::move(live)).second;
  FABRICAST_CHECK(is_new) << "request " << id << " came twice";
  if (!scheduler_.has_value()) return {};
  return Offer(id, now);
}

Head::Steps Head::Offer(RequestId id, double now) {
  const Live& live = *requests_.at(id);
  const int64_t prompt_tokens = static_cast<int64_t>(live.tokens.size());
  const int64_t max_output_tokens = live.request.max_output_tokens;
  return Handle({.kind = SchedulerEvent::Kind::kRequestArrived,
                 .id = id,
                 .prompt_tokens = prompt_tokens,
                 .max_output_tokens = max_output_tokens},
                scheduler_->RequestArrived(id, prompt_tokens, max_output_tokens), now);
}

Head::Steps Head::Cancel(RequestId id, double now) {
  const auto it = requests_.find(id);
  if (it == requests_.end()) return {};
  if (!scheduler_.has_value()) {
    EndAsCancelled(id, now);
    return {};
  }
  it->second->cancelled = true;
  return Handle({.kind = SchedulerEvent::Kind::kRequestCancelled, .id = id},
                scheduler_->RequestCancelled(id), now);
}

std::vector<RequestId> Head::requests() const {
  std::vector<RequestId> ids;
  for (const auto& [id, live] : requests_) ids.push_back(id);
  std::sort(ids.begin(), ids.end());
  return ids;
}

Head::Steps Head::FirstStageDone(MicroBatchId id, double now) {
  return Handle({.kind = SchedulerEvent::Kind::kFirstStageDone, .id = id},
                scheduler_->FirstStageDone(id), now);
}

Head::Steps Head::Completed(MicroBatchId id, absl::Span<const SampledToken> sampled, double now) {
  const auto it = in_flight_.find(id);
  FABRICAST_CHECK(it != in_flight_.end()) << "micro-batch " << id << " is not in flight";
  const std::shared_ptr<const Step> step = std::move(it->second);
  in_flight_.erase(it);
  recorder_.MicroBatchCompleted(step->micro_batch, now);
  SchedulerEvent event{.kind = SchedulerEvent::Kind::kMicroBatchCompleted, .id = id};
  size_t next = 0;
  for (const BatchEntry& entry : step->micro_batch.entries) {
    if (!entry.samples) continue;
    FABRICAST_CHECK(next < sampled.size())
        << "micro-batch " << id << " brought " << sampled.size() << " tokens";
    const SampledToken& token = sampled[next++];
    const auto live = requests_.find(entry.request);
    if (live == requests_.end() || live->second->cancelled) continue;
    if (Take(*live->second, entry.request, token)) event.stopped.push_back(entry.request);
  }
  FABRICAST_CHECK(next == sampled.size())
      << "micro-batch " << id << " brought " << sampled.size() << " tokens, " << next << " wanted";
  // A listener that was called may have cancelled: the scheduler learns of that by its own event.
  const absl::Span<const Action> actions = scheduler_->MicroBatchCompleted(id, event.stopped);
  return Handle(std::move(event), actions, now);
}

bool Head::Take(Live& live, RequestId id, const SampledToken& sampled) {
  live.tokens.push_back(sampled.token);
  const std::vector<int32_t>& ends = live.request.stop_tokens;
  const bool end_token = std::find(ends.begin(), ends.end(), sampled.token) != ends.end();
  const bool last = --live.request.max_output_tokens == 0;
  GenerationUpdate update;
  update.request = id;
  update.token = sampled;
  if (live.detokenizer != nullptr) {
    if (!end_token) update.text = live.stop.Append(live.detokenizer->Append(sampled.token));
    if (end_token || last) {
      update.text += live.stop.Append(live.detokenizer->Finish());
      update.text += live.stop.Finish();
    }
  }
  const bool stopped = end_token || live.stop.matched();
  if (live.stop.matched()) update.stop = live.stop.match();
  if (stopped) {
    update.finished = FinishReason::kStop;
  } else if (last) {
    update.finished = FinishReason::kLength;
  }
  live.told_end = update.finished.has_value();
  live.listener(update);
  return stopped;
}

void Head::End(const Action& action) {
  const auto it = requests_.find(action.request);
  FABRICAST_CHECK(it != requests_.end()) << "request " << action.request << " ended twice";
  const std::unique_ptr<Live> live = std::move(it->second);
  requests_.erase(it);
  if (live->told_end) return;
  GenerationUpdate update;
  update.request = action.request;
  if (action.kind == Action::Kind::kReject) {
    update.error = action.error;
  } else {
    update.finished = action.reason;
    if (live->detokenizer != nullptr) {
      update.text = live->stop.Append(live->detokenizer->Finish());
      update.text += live->stop.Finish();
    }
  }
  live->listener(update);
}

Head::Steps Head::Handle(SchedulerEvent event, absl::Span<const Action> actions, double now) {
  recorder_.Acted(actions, now);
  recorder_.Load(*scheduler_, now);
  if (log_ != nullptr) {
    log_->entries.push_back({std::move(event), {actions.begin(), actions.end()}});
  }
  Steps steps;
  for (const Action& action : actions) {
    switch (action.kind) {
      case Action::Kind::kLaunch:
        steps.push_back(MakeStep(action.micro_batch));
        break;
      case Action::Kind::kAdmit:
        requests_.at(action.request)->admitted = true;
        break;
      case Action::Kind::kPreempt:
        released_.push_back(action.request);
        break;
      case Action::Kind::kFinish:
        released_.push_back(action.request);
        End(action);
        break;
      case Action::Kind::kReject:
        End(action);
        break;
    }
  }
  return steps;
}

std::shared_ptr<const Step> Head::MakeStep(const MicroBatch& micro_batch) {
  auto step = std::make_shared<Step>();
  step->micro_batch = micro_batch;
  step->tokens.reserve(micro_batch.tokens());
  step->sampling.reserve(micro_batch.entries.size());
  for (const BatchEntry& entry : micro_batch.entries) {
    const Live& live = *requests_.at(entry.request);
    const int64_t end = entry.first_token + entry.tokens;
    FABRICAST_CHECK(end <= static_cast<int64_t>(live.tokens.size()))
        << "request " << entry.request << ": token " << end - 1 << " is not known yet";
    step->tokens.insert(step->tokens.end(), live.tokens.begin() + entry.first_token,
                        live.tokens.begin() + end);
    step->sampling.push_back(live.request.sampling);
  }
  step->released = std::exchange(released_, {});
  in_flight_[micro_batch.id] = step;
  return step;
}

void Head::EndAsCancelled(RequestId id, double now) {
  Action action;
  action.kind = Action::Kind::kFinish;
  action.request = id;
  action.reason = FinishReason::kCancelled;
  recorder_.Acted({&action, 1}, now);
  End(action);
}

void Head::EndWith(const absl::Status& error, RequestId id) {
  const auto it = requests_.find(id);
  const std::unique_ptr<Live> live = std::move(it->second);
  requests_.erase(it);
  recorder_.RequestFailed(id);
  GenerationUpdate update;
  update.request = id;
  update.error = error;
  live->listener(update);
}

std::vector<RequestId> Head::InOrderOfArrival() const {
  std::vector<std::pair<int64_t, RequestId>> order;
  for (const auto& [id, live] : requests_) order.push_back({live->order, id});
  std::sort(order.begin(), order.end());
  std::vector<RequestId> ids;
  for (const auto& [place, id] : order) ids.push_back(id);
  return ids;
}

int64_t Head::LetGo(bool all, const absl::Status& error, double now) {
  FABRICAST_CHECK(!error.ok()) << "the stages are lost without an error";
  if (scheduler_.has_value() && log_ != nullptr) {
    log_->entries.push_back({{.kind = SchedulerEvent::Kind::kPipelineLost}, {}});
  }
  scheduler_.reset();
  in_flight_.clear();
  released_.clear();
  int64_t failed = 0;
  for (const RequestId id : InOrderOfArrival()) {
    const Live& live = *requests_.at(id);
    if (!live.admitted && !all) continue;
    if (live.cancelled) {
      EndAsCancelled(id, now);
    } else {
      EndWith(error, id);
      ++failed;
    }
  }
  recorder_.PipelineLost(now);
  return failed;
}

int64_t Head::Lost(const absl::Status& cause, double now) {
  return LetGo(
      /*all=*/false,
      absl::Status(cause.code(), absl::StrCat("lost with the pipeline: ", cause.message())), now);
}

int64_t Head::Gone(const absl::Status& cause, double now) {
  return LetGo(/*all=*/true, cause, now);
}

const Step& Head::step(MicroBatchId id) const {
  const auto it = in_flight_.find(id);
  FABRICAST_CHECK(it != in_flight_.end()) << "micro-batch " << id << " is not in flight";
  return *it->second;
}

}  // namespace fabricast
