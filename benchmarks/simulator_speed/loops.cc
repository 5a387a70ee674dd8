#include "benchmarks/simulator_speed/loops.h"

#include <algorithm>
#include <deque>
#include <utility>

#include "runtime/check.h"
#include "runtime/cost/communication_cost.h"
#include "runtime/cost/stage_cost.h"
#include "runtime/metrics/recorder.h"
#include "runtime/scheduler/scheduler.h"
#include "simulator/flow_network.h"

namespace fabricast {
namespace {

template <typename Network>
class MixPlayer {
 public:
  MixPlayer(const EventMix& mix, Network& network) : mix_(mix), network_(network) {}

  void Play() {
    NextArrival();
    for (int i = 0; i < mix_.in_flight; ++i) {
      // In turn, as a full pipeline has them. The first timer stands for the first stage.
      Compute(0, static_cast<double>(i + 1) / mix_.in_flight);
    }
    network_.Run();
  }

 private:
  void NextArrival() {
    if (arrived_ == mix_.arrivals) return;
    ++arrived_;
    network_.After(mix_.arrival_gap_s, [this] { NextArrival(); });
  }

  void Compute(size_t stage, double share = 1) {
    if (stage == 0 && launched_++ >= mix_.micro_batches) return;
    network_.After(mix_.hops[stage].compute_s * share, [this, stage] { Send(stage); });
  }

  void Send(size_t stage) {
    const EventMix::Hop& hop = mix_.hops[stage];
    network_.After(hop.latency_s, [this, stage, &hop] {
      network_.StartFlow(hop.from_gpu, hop.to_gpu, hop.bytes,
                         [this, stage] { Compute((stage + 1) % mix_.hops.size()); });
    });
  }

  const EventMix& mix_;
  Network& network_;
  int64_t arrived_ = 0;
  int64_t launched_ = 0;
};

template <typename Network>
void PlayMix(const EventMix& mix, Network& network, Stopwatch& watch, Measurement& measurement) {
  watch.Start();
  MixPlayer<Network>(mix, network).Play();
  watch.Stop();
  measurement.events = network.events();
  measurement.micro_batches = mix.micro_batches;
  measurement.simulated_s = network.now();
  measurement.fingerprint = static_cast<uint64_t>(network.now() * 1e9);
}

// The head of a pipeline whose stages and hops take no time.
class Decisions {
 public:
  Decisions(const Scenario& scenario, Part part)
      : scenario_(scenario),
        part_(part),
        stages_(static_cast<int>(scenario.plan.stages.size())),
        scheduler_(scenario.plan.scheduler),
        recorder_(stages_, /*keep_timeline=*/false) {
    for (int s = 0; s < stages_; ++s) {
      costs_.push_back(MakeStageCost(scenario.topology, scenario.model, scenario.plan, s));
    }
  }

  void Play() {
    const std::vector<Request>& requests = scenario_.workload.requests;
    for (size_t i = 0; i < requests.size(); ++i) {
      const RequestId id = static_cast<RequestId>(i);
      if (part_ == Part::kRecorder) recorder_.RequestArrived(id, requests[i].prompt_tokens, now_);
      Handle(scheduler_.RequestArrived(id, requests[i].prompt_tokens, requests[i].output_tokens));
    }
    while (!first_stage_.empty() || !later_stages_.empty()) {
      if (!first_stage_.empty()) {
        later_stages_.push_back(std::move(first_stage_.front()));
        first_stage_.pop_front();
        const MicroBatch& done = later_stages_.back();
        Visit(0, done);
        Handle(scheduler_.FirstStageDone(done.id));
      } else {
        const MicroBatch done = std::move(later_stages_.front());
        later_stages_.pop_front();
        for (int s = 1; s < stages_; ++s) Visit(s, done);
        if (part_ == Part::kRecorder) recorder_.MicroBatchCompleted(done, now_);
        Handle(scheduler_.MicroBatchCompleted(done.id));
      }
    }
    FABRICAST_CHECK(scheduler_.idle()) << scheduler_.running() << " requests left";
  }

  void Report(Measurement& measurement) {
    measurement.requests = static_cast<int64_t>(scenario_.workload.requests.size());
    measurement.finished = finished_;
    measurement.micro_batches = micro_batches_;
    measurement.entries = entries_;
    measurement.fingerprint =
        static_cast<uint64_t>(entries_) * 31 + static_cast<uint64_t>(micro_batches_);
    if (part_ == Part::kRecorder) {
      const Result result = recorder_.Finish();
      FABRICAST_CHECK(result.finished() == finished_) << result.finished() << " of " << finished_;
    }
  }

 private:
  void Visit(int stage, const MicroBatch& micro_batch) {
    if (part_ == Part::kScheduler) return;
    if (stage == 0) shape_ = BatchShape::Of(micro_batch);
    const ComputeTime time = costs_[stage].Explain(shape_);
    now_ += TotalSeconds(time) * 1e-3;
    if (part_ != Part::kRecorder) return;
    const int next = (stage + 1) % stages_;
    recorder_.StageStarted(stage, micro_batch, now_);
    recorder_.StageComputed(stage, micro_batch, now_, &time);
    recorder_.SendStarted(stage, next, micro_batch, shape_.tokens, now_);
    recorder_.SendDelivered(stage, next, micro_batch, now_);
  }

  void Handle(absl::Span<const Action> span) {
    const std::vector<Action> actions(span.begin(), span.end());
    if (part_ == Part::kRecorder) {
      recorder_.Acted(actions, now_);
      recorder_.Load(scheduler_, now_);
    }
    for (const Action& action : actions) {
      if (action.kind == Action::Kind::kFinish) ++finished_;
      if (action.kind != Action::Kind::kLaunch) continue;
      ++micro_batches_;
      entries_ += static_cast<int64_t>(action.micro_batch.entries.size());
      first_stage_.push_back(action.micro_batch);
    }
  }

  const Scenario& scenario_;
  const Part part_;
  const int stages_;
  Scheduler scheduler_;
  Recorder recorder_;
  std::vector<StageCost> costs_;
  BatchShape shape_;
  std::deque<MicroBatch> first_stage_;
  std::deque<MicroBatch> later_stages_;
  double now_ = 0;
  int64_t finished_ = 0;
  int64_t micro_batches_ = 0;
  int64_t entries_ = 0;
};

}  // namespace

void HeapNetwork::After(double seconds, std::function<void()> call) {
  queue_.push({.at_s = now_ + seconds, .order = events_++, .call = std::move(call)});
}

void HeapNetwork::StartFlow(int, int, double bytes, std::function<void()> arrived) {
  After(bytes / bytes_per_s_, std::move(arrived));
}

void HeapNetwork::Run() {
  while (!queue_.empty()) {
    now_ = queue_.top().at_s;
    // The top is constant only to keep the heap's order, which the callback has no part in.
    const std::function<void()> call = std::move(const_cast<Event&>(queue_.top()).call);
    queue_.pop();
    call();
  }
}

EventMix EventMix::Of(const Scenario& scenario, const Result& result) {
  const std::vector<Stage>& stages = scenario.plan.stages;
  FABRICAST_CHECK(stages.size() >= 2) << stages.size() << " stages have no hops";
  EventMix mix;
  // Closed loops have one timer that starts them all.
  mix.arrivals = scenario.workload.concurrency > 0 ? 1 : result.requests();
  mix.arrival_gap_s = scenario.workload.requests.back().arrival_s /
                      static_cast<double>(scenario.workload.requests.size());
  mix.micro_batches = result.stages(0).micro_batches();
  mix.in_flight = scenario.plan.scheduler.max_in_flight;
  const double batches = static_cast<double>(mix.micro_batches);
  for (size_t s = 0; s < stages.size(); ++s) {
    Hop hop;
    hop.from_gpu = stages[s].gpus.front();
    hop.to_gpu = stages[(s + 1) % stages.size()].gpus.front();
    const absl::StatusOr<SendCost> cost =
        SendCost::For(scenario.topology, scenario.topology.route(hop.from_gpu, hop.to_gpu));
    FABRICAST_CHECK(cost.ok()) << cost.status().ToString();
    hop.max_bytes_per_s = cost->max_bytes_per_s();
    hop.compute_s = result.stages(static_cast<int>(s)).busy_s() / batches;
    hop.bytes = static_cast<double>(result.hops(static_cast<int>(s)).bytes()) / batches;
    hop.latency_s = cost->LatencySeconds(hop.bytes);
    mix.hops.push_back(hop);
  }
  return mix;
}

void PlayOnSimGrid(const Scenario& scenario, const EventMix& mix, Stopwatch& watch,
                   Measurement& measurement) {
  std::vector<FlowNetwork::Path> paths;
  for (const EventMix::Hop& hop : mix.hops) {
    paths.push_back({hop.from_gpu, hop.to_gpu, hop.max_bytes_per_s});
  }
  FlowNetwork network(scenario.topology, paths);
  PlayMix(mix, network, watch, measurement);
}

void PlayOnHeap(const EventMix& mix, Stopwatch& watch, Measurement& measurement) {
  HeapNetwork network(/*bytes_per_s=*/25e9);
  PlayMix(mix, network, watch, measurement);
}

void PlayDecisions(const Scenario& scenario, Part part, Stopwatch& watch,
                   Measurement& measurement) {
  Decisions decisions(scenario, part);
  watch.Start();
  decisions.Play();
  decisions.Report(measurement);
  watch.Stop();
}

}  // namespace fabricast
