#include "simulator/pipeline.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "runtime/check.h"
#include "runtime/metrics/compute_time.h"

namespace fabricast {
namespace {

constexpr int64_t kSampledTokenBytes = 4;

}  // namespace

absl::StatusOr<std::unique_ptr<PipelineSimulation>> PipelineSimulation::Make(
    const Scenario& scenario, std::atomic<double>& progress) {
  if (scenario.measured != nullptr &&
      scenario.measured->stages() != static_cast<int>(scenario.plan.stages.size())) {
    return absl::InvalidArgumentError(absl::StrCat(
        scenario.label, ": the measured times are those of ", scenario.measured->stages(),
        " stages, but the plan has ", scenario.plan.stages.size(), ": measure this plan"));
  }
  std::vector<Hop> hops;
  for (const PipelineHop& hop : HopsOf(scenario.plan)) {
    absl::StatusOr<SendCost> cost =
        SendCost::For(scenario.topology, scenario.topology.route(hop.from_gpu, hop.to_gpu));
    if (!cost.ok()) return cost.status();
    hops.push_back({hop, *std::move(cost)});
  }
  return std::unique_ptr<PipelineSimulation>(
      new PipelineSimulation(scenario, progress, std::move(hops)));
}

PipelineSimulation::PipelineSimulation(const Scenario& scenario, std::atomic<double>& progress,
                                       std::vector<Hop> hops)
    : scenario_(scenario),
      progress_(progress),
      hops_(std::move(hops)),
      network_(scenario.topology,
               [this] {
                 std::vector<FlowNetwork::Path> paths;
                 for (const Hop& hop : hops_) {
                   paths.push_back({hop.from_gpu, hop.to_gpu, hop.cost.max_bytes_per_s()});
                 }
                 return paths;
               }()),
      scheduler_(scenario.plan.scheduler),
      queues_(scenario.plan.stages.size()),
      running_(scenario.plan.stages.size()),
      recorder_(static_cast<int>(scenario.plan.stages.size()), !scenario.trace_file.empty(),
                scenario.keep_events) {
  for (size_t s = 0; s < scenario.plan.stages.size(); ++s) {
    costs_.push_back(
        MakeStageCost(scenario.topology, scenario.model, scenario.plan, static_cast<int>(s)));
  }
}

absl::StatusOr<Result> PipelineSimulation::Run() {
  const Workload& workload = scenario_.workload;
  if (workload.concurrency > 0) {
    const size_t first = std::min<size_t>(workload.concurrency, workload.requests.size());
    network_.After(0, [this, first] {
      while (next_request_ < first) Arrive(static_cast<RequestId>(next_request_++));
    });
  } else {
    ScheduleNextArrival();
  }
  network_.Run();
  FABRICAST_CHECK(scheduler_.idle()) << "the run ended with " << scheduler_.running()
                                     << " running and " << scheduler_.waiting() << " waiting";
  Result result = recorder_.Finish();
  AddHopsAndLinks(result);
  result.set_events(network_.events());
  if (!scenario_.trace_file.empty()) {
    TrackNames names;
    for (const Stage& stage : scenario_.plan.stages) {
      names.stages.push_back(
          absl::StrCat("stage ", names.stages.size(), ": ", StageName(stage, scenario_.topology)));
    }
    absl::flat_hash_map<int, int> track;  // segment -> index into names.links
    for (const Hop& hop : hops_) {
      TrackNames::Hop out{.from_stage = hop.from_stage, .to_stage = hop.to_stage, .links = {}};
      for (int segment : scenario_.topology.route(hop.from_gpu, hop.to_gpu).segments) {
        const auto [it, added] = track.try_emplace(segment, static_cast<int>(names.links.size()));
        if (added) names.links.push_back(scenario_.topology.segments()[segment].name);
        out.links.push_back(it->second);
      }
      names.hops.push_back(out);
    }
    absl::Status status = WriteTrace(recorder_.timeline(), names, scenario_.trace_file);
    if (!status.ok()) return status;
  }
  return result;
}

void PipelineSimulation::ScheduleNextArrival() {
  const std::vector<Request>& requests = scenario_.workload.requests;
  if (next_request_ == requests.size()) return;
  const double wait = requests[next_request_].arrival_s - now();
  network_.After(std::max(0.0, wait), [this] {
    const RequestId id = static_cast<RequestId>(next_request_++);
    ScheduleNextArrival();
    Arrive(id);
  });
}

void PipelineSimulation::Arrive(RequestId id) {
  const Request& request = scenario_.workload.requests[id];
  recorder_.RequestArrived(id, request.prompt_tokens, now());
  // The real engine learns from the sampler when a request ends; here its length is known.
  Handle(scheduler_.RequestArrived(id, request.prompt_tokens, request.output_tokens));
}

void PipelineSimulation::Handle(absl::Span<const Action> span) {
  // The scheduler's span lives until its next event, which what follows may bring.
  const std::vector<Action> actions(span.begin(), span.end());
  recorder_.Acted(actions, now());
  recorder_.Load(scheduler_, now());
  int ended = 0;
  for (const Action& action : actions) {
    if (action.kind == Action::Kind::kLaunch) {
      const MicroBatchId id = action.micro_batch.id;
      in_flight_[id] = {.micro_batch = action.micro_batch,
                        .shape = BatchShape::Of(action.micro_batch)};
      if (scenario_.control.launch_s > 0) {
        network_.After(scenario_.control.launch_s, [this, id] { Reached(0, id); });
      } else {
        Reached(0, id);
      }
    } else if (action.kind == Action::Kind::kFinish || action.kind == Action::Kind::kReject) {
      ++ended;
    }
  }
  if (ended == 0) return;
  const std::vector<Request>& requests = scenario_.workload.requests;
  progress_ = static_cast<double>(recorder_.finished()) / static_cast<double>(requests.size());
  if (scenario_.workload.concurrency == 0) return;
  for (int i = 0; i < ended && next_request_ < requests.size(); ++i) {
    Arrive(static_cast<RequestId>(next_request_++));
  }
}

void PipelineSimulation::Reached(int stage, MicroBatchId id) {
  if (std::optional<MicroBatchId> next = queues_[stage].Arrived(id)) StartCompute(stage, *next);
}

void PipelineSimulation::StartCompute(int stage, MicroBatchId id) {
  const InFlight& batch = in_flight_.at(id);
  recorder_.StageStarted(stage, batch.micro_batch, now());
  double seconds = 0;
  if (scenario_.measured != nullptr) {
    const int64_t prefill_tokens = batch.shape.tokens - batch.shape.decodes;
    seconds = scenario_.kernel_time_factor *
              scenario_.measured->Seconds(stage, batch.shape.decodes, prefill_tokens);
  } else {
    running_[stage].Clear();
    AddScaled(costs_[stage].Explain(batch.shape), scenario_.kernel_time_factor, running_[stage]);
    seconds = TotalSeconds(running_[stage]);
  }
  network_.After(seconds, [this, stage, id] { Computed(stage, id); });
}

void PipelineSimulation::Computed(int stage, MicroBatchId id) {
  recorder_.StageComputed(stage, in_flight_.at(id).micro_batch, now(),
                          scenario_.measured == nullptr ? &running_[stage] : nullptr);
  if (std::optional<MicroBatchId> next = queues_[stage].Computed(id)) StartCompute(stage, *next);
  if (hops_.empty()) {
    Handle(scheduler_.FirstStageDone(id));
    Completed(id);
    return;
  }
  Send(stage, id);
  if (stage > 0) return;
  if (scenario_.control.return_s > 0) {
    network_.After(scenario_.control.return_s,
                   [this, id] { Handle(scheduler_.FirstStageDone(id)); });
  } else {
    Handle(scheduler_.FirstStageDone(id));
  }
}

void PipelineSimulation::Send(int hop, MicroBatchId id) {
  if (hops_[hop].busy) {
    hops_[hop].waiting.push_back(id);
  } else {
    StartSend(hop, id);
  }
}

int64_t PipelineSimulation::HopBytes(const Hop& hop, const InFlight& batch) const {
  return hop.to_stage == 0 ? batch.shape.sampled * kSampledTokenBytes
                           : batch.shape.tokens * scenario_.plan.boundary_bytes_per_token;
}

void PipelineSimulation::StartSend(int index, MicroBatchId id) {
  Hop& hop = hops_[index];
  const InFlight& batch = in_flight_.at(id);
  const int64_t bytes = HopBytes(hop, batch);
  hop.busy = true;
  recorder_.SendStarted(hop.from_stage, hop.to_stage, batch.micro_batch, bytes, now());
  const bool to_head = hop.to_stage == 0;
  const double latency_s =
      to_head && scenario_.control.return_s > 0
          ? scenario_.control.return_s
          : hop.cost.LatencySeconds(static_cast<double>(bytes)) * scenario_.message_latency_factor;
  network_.After(latency_s, [this, index, id, bytes] {
    network_.StartFlow(hops_[index].from_gpu, hops_[index].to_gpu, static_cast<double>(bytes),
                       [this, index, id] { Delivered(index, id); });
  });
}

void PipelineSimulation::Delivered(int index, MicroBatchId id) {
  Hop& hop = hops_[index];
  recorder_.SendDelivered(hop.from_stage, hop.to_stage, in_flight_.at(id).micro_batch, now());
  hop.busy = false;
  if (!hop.waiting.empty()) {
    const MicroBatchId next = hop.waiting.front();
    hop.waiting.pop_front();
    StartSend(index, next);
  }
  if (hop.to_stage == 0) {
    Completed(id);
  } else {
    Reached(hop.to_stage, id);
  }
}

void PipelineSimulation::Completed(MicroBatchId id) {
  const auto it = in_flight_.find(id);
  recorder_.MicroBatchCompleted(it->second.micro_batch, now());
  in_flight_.erase(it);
  Handle(scheduler_.MicroBatchCompleted(id));
}

void PipelineSimulation::AddHopsAndLinks(Result& result) const {
  const Topology& topology = scenario_.topology;
  std::vector<double> payload(topology.segments().size(), 0);
  std::vector<bool> used(topology.segments().size(), false);
  for (size_t i = 0; i < hops_.size(); ++i) {
    const Hop& hop = hops_[i];
    const Route& route = topology.route(hop.from_gpu, hop.to_gpu);
    HopResult& out = *result.mutable_hops(static_cast<int>(i));
    out.set_route(std::string(PathKindName(route.kind)));
    out.set_gpudirect(route.gpudirect);
    double rate = route.payload_bytes_per_s;
    std::string bottleneck = topology.segments()[route.bottleneck].name;
    if (hop.cost.max_bytes_per_s() < rate) {
      rate = hop.cost.max_bytes_per_s();
      bottleneck = hop.cost.limit();
    }
    out.set_bottleneck(bottleneck);
    out.set_bottleneck_bytes_per_s(rate);
    out.set_wire_s(static_cast<double>(out.bytes()) / rate);
    for (int segment : route.segments) {
      used[segment] = true;
      payload[segment] += static_cast<double>(out.bytes());
    }
  }
  for (size_t i = 0; i < payload.size(); ++i) {
    if (!used[i]) continue;
    const Segment& segment = topology.segments()[i];
    LinkResult& link = *result.add_links();
    link.set_name(segment.name);
    link.set_line_gbps(segment.line_bytes_per_s * 8 / 1e9);
    const double wire = payload[i] * segment.line_bytes_per_s / segment.payload_bytes_per_s;
    link.set_bytes(static_cast<int64_t>(wire));
    if (result.duration_s() > 0) {
      link.set_utilisation(wire / (segment.line_bytes_per_s * result.duration_s()));
    }
  }
}

}  // namespace fabricast
