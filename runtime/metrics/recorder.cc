#include "runtime/metrics/recorder.h"

#include <algorithm>

#include "runtime/check.h"
#include "runtime/metrics/compute_time.h"

namespace fabricast {
namespace {

int64_t PrefillTokens(const MicroBatch& micro_batch) {
  int64_t tokens = 0;
  for (const BatchEntry& entry : micro_batch.entries) tokens += entry.decode ? 0 : entry.tokens;
  return tokens;
}

double Overlap(double a_start, double a_end, double b_start, double b_end) {
  return std::max(0.0, std::min(a_end, b_end) - std::max(a_start, b_start));
}

}  // namespace

Recorder::Recorder(int stages, bool keep_timeline, bool keep_events)
    : keep_timeline_(keep_timeline), stages_(stages), hops_(stages) {
  if (keep_events) events_.emplace(stages);
}

Recorder::HopState& Recorder::HopInto(int stage) {
  return hops_[stage == 0 ? hops_.size() - 1 : stage - 1];
}

void Recorder::Take(Snapshot& snapshot, double now) const {
  snapshot.at_s = now;
  snapshot.taken = true;
  snapshot.busy_s.resize(stages_.size());
  for (size_t s = 0; s < stages_.size(); ++s) snapshot.busy_s[s] = stages_[s].BusyUntil(now);
}

void Recorder::RequestArrived(RequestId id, int64_t prompt_tokens, double now) {
  ++arrived_;
  if (first_arrival_s_ < 0) {
    first_arrival_s_ = now;
    for (StageState& stage : stages_) stage.since_s = now;
  }
  live_[id] = {.arrival_s = now, .prompt_tokens = prompt_tokens};
  if (events_.has_value()) events_->RequestArrived(id, prompt_tokens, now);
}

void Recorder::Acted(absl::Span<const Action> actions, double now) {
  for (const Action& action : actions) {
    switch (action.kind) {
      case Action::Kind::kLaunch:
        if (events_.has_value()) events_->Launched(action.micro_batch, now);
        break;
      case Action::Kind::kAdmit: {
        Live& live = live_.at(action.request);
        live.queue_wait_s = now - live.arrival_s;
        queue_wait_.Add(live.queue_wait_s);
        Take(last_admit_, now);
        break;
      }
      case Action::Kind::kPreempt:
        ++preemptions_;
        break;
      case Action::Kind::kReject:
        ++rejected_;
        if (events_.has_value()) events_->RequestEnded(action.request, EventLog::REJECTED);
        live_.erase(action.request);
        break;
      case Action::Kind::kFinish: {
        const auto it = live_.find(action.request);
        FABRICAST_CHECK(it != live_.end()) << "request " << action.request << " ended twice";
        const Live& live = it->second;
        const bool cancelled = action.reason == FinishReason::kCancelled;
        if (events_.has_value()) {
          events_->RequestEnded(action.request,
                                cancelled ? EventLog::CANCELLED : EventLog::FINISHED);
        }
        if (cancelled) {
          ++cancelled_;
        } else {
          ++finished_;
          prompt_tokens_ += live.prompt_tokens;
          output_tokens_ += live.output_tokens;
          ttft_.Add(live.first_token_s - live.arrival_s);
          e2e_.Add(live.last_token_s - live.arrival_s);
          if (live.output_tokens > 1) {
            tpot_.Add((live.last_token_s - live.first_token_s) /
                      static_cast<double>(live.output_tokens - 1));
          }
          if (!first_finish_.taken) Take(first_finish_, now);
        }
        live_.erase(it);
        break;
      }
    }
  }
}

void Recorder::CountExposed(int stage, const MicroBatch& micro_batch, double now) {
  if (stages_.size() < 2) return;
  HopState& hop = HopInto(stage);
  const double idle_since = stages_[stage].since_s;
  if (stage > 0) {
    FABRICAST_CHECK(!hop.delivered.empty() && hop.delivered.front().id == micro_batch.id)
        << "stage " << stage << " runs " << micro_batch.id << " before its activations arrived";
    const Transfer& transfer = hop.delivered.front();
    hop.exposed_s += Overlap(idle_since, now, transfer.start_s, transfer.end_s);
    hop.delivered.pop_front();
    return;
  }
  // The first stage waits for tokens to come back only if it now decodes with one of them.
  if (hop.delivered.empty()) return;
  const Transfer transfer = hop.delivered.back();
  hop.delivered.clear();
  for (const BatchEntry& entry : micro_batch.entries) {
    if (!entry.decode || live_.at(entry.request).last_token_s < transfer.end_s) continue;
    hop.exposed_s += Overlap(idle_since, now, transfer.start_s, transfer.end_s);
    return;
  }
}

void Recorder::StageStarted(int stage, const MicroBatch& micro_batch, double now) {
  StageState& state = stages_[stage];
  FABRICAST_CHECK(!state.busy) << "stage " << stage << " starts " << micro_batch.id;
  CountExposed(stage, micro_batch, now);
  if (events_.has_value()) events_->Started(stage, micro_batch.id, now);
  if (stage == 0) {
    for (const BatchEntry& entry : micro_batch.entries) {
      const auto it = live_.find(entry.request);
      if (it == live_.end()) continue;
      Live& live = it->second;
      const int64_t end = entry.first_token + entry.tokens;
      recomputed_tokens_ +=
          std::max<int64_t>(0, std::min(end, live.computed_tokens) - entry.first_token);
      live.computed_tokens = std::max(live.computed_tokens, end);
    }
  }
  if (stage + 1 == static_cast<int>(stages_.size()) && !filled_.taken) Take(filled_, now);
  state.busy = true;
  state.since_s = now;
}

void Recorder::StageComputed(int stage, const MicroBatch& micro_batch, double now,
                             const ComputeTime* time) {
  StageState& state = stages_[stage];
  FABRICAST_CHECK(state.busy) << "stage " << stage << " ends " << micro_batch.id;
  if (events_.has_value()) events_->Computed(stage, micro_batch.id, now);
  const int64_t prefill_tokens = PrefillTokens(micro_batch);
  const int64_t decodes = micro_batch.tokens() - prefill_tokens;
  if (time != nullptr) {
    AddScaled(*time, 1,
              prefill_tokens == 0 ? state.decode
              : decodes == 0      ? state.prefill
                                  : state.mixed);
  }
  if (keep_timeline_) {
    timeline_.stages.push_back({.stage = stage,
                                .micro_batch = micro_batch.id,
                                .start_s = state.since_s,
                                .end_s = std::max(now, state.since_s),
                                .decodes = decodes,
                                .prefill_tokens = prefill_tokens});
  }
  state.busy_s = state.BusyUntil(now);
  ++state.micro_batches;
  state.busy = false;
  state.since_s = now;
}

void Recorder::SendStarted(int from_stage, int to_stage, const MicroBatch& micro_batch,
                           int64_t bytes, double now) {
  HopState& hop = HopFrom(from_stage);
  ++hop.messages;
  hop.bytes += bytes;
  hop.sending.push_back({.id = micro_batch.id, .start_s = now});
  if (events_.has_value()) events_->SendStarted(from_stage, micro_batch.id, now);
  if (keep_timeline_) {
    timeline_.transfers.push_back({.from_stage = from_stage,
                                   .to_stage = to_stage,
                                   .micro_batch = micro_batch.id,
                                   .start_s = now,
                                   .end_s = now,
                                   .bytes = bytes});
  }
}

void Recorder::SendDelivered(int from_stage, int to_stage, const MicroBatch& micro_batch,
                             double now) {
  HopState& hop = HopFrom(from_stage);
  FABRICAST_CHECK(!hop.sending.empty() && hop.sending.front().id == micro_batch.id)
      << "hop " << from_stage << " to " << to_stage << " delivers " << micro_batch.id
      << " out of order";
  if (events_.has_value()) events_->SendDelivered(from_stage, micro_batch.id, now);
  Transfer transfer = hop.sending.front();
  hop.sending.pop_front();
  transfer.end_s = std::max(now, transfer.start_s);
  hop.transfer_s += transfer.end_s - transfer.start_s;
  hop.delivered.push_back(transfer);
  if (!keep_timeline_) return;
  for (auto slice = timeline_.transfers.rbegin(); slice != timeline_.transfers.rend(); ++slice) {
    if (slice->from_stage != from_stage || slice->micro_batch != micro_batch.id) continue;
    slice->end_s = transfer.end_s;
    return;
  }
}

void Recorder::MicroBatchCompleted(const MicroBatch& micro_batch, double now) {
  if (events_.has_value()) events_->Completed(micro_batch.id, now);
  for (const BatchEntry& entry : micro_batch.entries) {
    if (!entry.samples) continue;
    const auto it = live_.find(entry.request);
    if (it == live_.end()) continue;
    Live& live = it->second;
    if (live.output_tokens == 0) {
      live.first_token_s = now;
    } else {
      live.gaps_s.push_back(now - live.last_token_s);
      itl_.Add(live.gaps_s.back());
    }
    ++live.output_tokens;
    live.last_token_s = now;
    last_token_s_ = now;
  }
}

void Recorder::RequestFailed(RequestId id) {
  const auto it = live_.find(id);
  FABRICAST_CHECK(it != live_.end()) << "request " << id << " failed, and is not known";
  const Live& live = it->second;
  if (live.queue_wait_s >= 0) queue_wait_.Remove(live.queue_wait_s);
  for (const double gap_s : live.gaps_s) itl_.Remove(gap_s);
  ++failed_;
  if (events_.has_value()) events_->RequestEnded(id, EventLog::FAILED);
  live_.erase(it);
}

void Recorder::PipelineLost(double now) {
  if (events_.has_value()) events_->PipelineLost();
  for (StageState& state : stages_) {
    if (!state.busy) continue;
    state.busy_s = state.BusyUntil(now);
    state.busy = false;
    state.since_s = std::max(now, state.since_s);
  }
  for (HopState& hop : hops_) {
    hop.sending.clear();
    hop.delivered.clear();
  }
  if (!keep_timeline_) return;
  timeline_.load.push_back(
      {.at_s = now, .waiting = static_cast<int64_t>(live_.size()), .running = 0, .kv_blocks = 0});
}

void Recorder::Load(const Scheduler& scheduler, double now) {
  kv_peak_blocks_ = std::max(kv_peak_blocks_, scheduler.kv_blocks_used());
  if (!keep_timeline_) return;
  const LoadSample sample{.at_s = now,
                          .waiting = scheduler.waiting(),
                          .running = scheduler.running(),
                          .kv_blocks = scheduler.kv_blocks_used()};
  if (!timeline_.load.empty() && timeline_.load.back().waiting == sample.waiting &&
      timeline_.load.back().running == sample.running &&
      timeline_.load.back().kv_blocks == sample.kv_blocks) {
    return;
  }
  timeline_.load.push_back(sample);
}

Result Recorder::Finish() {
  Result result;
  result.set_schema("fabricast.result.v1");
  const double start_s = std::max(0.0, first_arrival_s_);
  const double duration_s = std::max(0.0, last_token_s_ - start_s);
  result.set_duration_s(duration_s);
  result.set_requests(arrived_);
  result.set_finished(finished_);
  result.set_rejected(rejected_);
  result.set_cancelled(cancelled_);
  result.set_failed(failed_);
  result.set_prompt_tokens(prompt_tokens_);
  result.set_output_tokens(output_tokens_);
  *result.mutable_ttft() = ttft_.Summarize();
  *result.mutable_tpot() = tpot_.Summarize();
  *result.mutable_itl() = itl_.Summarize();
  *result.mutable_e2e() = e2e_.Summarize();
  *result.mutable_queue_wait() = queue_wait_.Summarize();
  if (duration_s > 0) {
    result.set_output_tokens_per_s(static_cast<double>(output_tokens_) / duration_s);
    result.set_total_tokens_per_s(static_cast<double>(prompt_tokens_ + output_tokens_) /
                                  duration_s);
    result.set_requests_per_s(static_cast<double>(finished_) / duration_s);
  }
  // Load falls for good when the last request has been admitted; with everything admitted at once,
  // when the first ends.
  const Snapshot& drained = last_admit_.at_s >= first_finish_.at_s ? last_admit_ : first_finish_;
  const double steady_s = drained.at_s - filled_.at_s;
  const bool steady = filled_.taken && drained.taken && steady_s > 0;
  if (steady) {
    result.set_steady_start_s(filled_.at_s - start_s);
    result.set_steady_end_s(drained.at_s - start_s);
  }
  for (size_t s = 0; s < stages_.size(); ++s) {
    const StageState& state = stages_[s];
    StageResult& stage = *result.add_stages();
    stage.set_stage(static_cast<int>(s));
    stage.set_micro_batches(state.micro_batches);
    stage.set_busy_s(state.busy_s);
    if (duration_s > 0) {
      stage.set_busy_fraction(state.busy_s / duration_s);
      stage.set_bubble_fraction(1 - state.busy_s / duration_s);
    }
    if (steady) {
      const double busy = (drained.busy_s[s] - filled_.busy_s[s]) / steady_s;
      stage.set_steady_busy_fraction(busy);
      stage.set_steady_bubble_fraction(1 - busy);
    }
    *stage.mutable_decode() = state.decode;
    *stage.mutable_prefill() = state.prefill;
    *stage.mutable_mixed() = state.mixed;
  }
  for (size_t from = 0; hops_.size() > 1 && from < hops_.size(); ++from) {
    const HopState& state = hops_[from];
    HopResult& hop = *result.add_hops();
    hop.set_from_stage(static_cast<int>(from));
    hop.set_to_stage(static_cast<int>((from + 1) % hops_.size()));
    hop.set_messages(state.messages);
    hop.set_bytes(state.bytes);
    hop.set_transfer_s(state.transfer_s);
    hop.set_exposed_s(state.exposed_s);
  }
  result.set_kv_peak_blocks(kv_peak_blocks_);
  result.set_preemptions(preemptions_);
  result.set_recomputed_tokens(recomputed_tokens_);
  if (events_.has_value()) result.set_event_log(events_->Finish());
  return result;
}

}  // namespace fabricast
