#include "simulator/simulate.h"

#include <memory>
#include <set>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "runtime/cost/communication_cost.h"
#include "simulator/pipeline.h"

namespace fabricast {
namespace {

std::string DescribeConstants(const Provenance& provenance, absl::string_view what) {
  std::string text = absl::StrCat(what, ": ", provenance.measured_on());
  if (provenance.residual_p90() > 0) {
    absl::StrAppendFormat(&text, "; fit within %.0f %% (p50), %.0f %% (p90)",
                          100 * provenance.residual_p50(), 100 * provenance.residual_p90());
  }
  if (provenance.time_high_factor() > 0) {
    absl::StrAppendFormat(&text, "; times may be x %.2f to x %.2f", provenance.time_low_factor(),
                          provenance.time_high_factor());
  }
  return text;
}

// What the forecast rests on, once each.
void AddConstants(const Scenario& scenario, Result& result) {
  std::set<std::string> names;
  for (const Stage& stage : scenario.plan.stages) {
    for (int gpu : stage.gpus) {
      const GpuSpec& spec = scenario.topology.gpus()[gpu].spec;
      const KernelCalibration& kernels = scenario.topology.kernels(gpu);
      if (!names.insert(spec.name()).second) continue;
      for (const GemmCurve& curve : kernels.gemms()) {
        if (WeightFormatName(scenario.model.layer_format) !=
            absl::string_view(curve.weight_format()))
          continue;
        result.add_constants(DescribeConstants(
            curve.provenance(),
            absl::StrCat(spec.name(), ", ", curve.weight_format(), " matrix products")));
      }
      if (spec.name() != kernels.gpu()) {
        result.add_constants(absl::StrCat(spec.name(), ": scaled from ", kernels.gpu(),
                                          " by its published peaks; unmeasured"));
      }
    }
  }
  std::set<PathKind> kinds;
  for (size_t s = 0; scenario.plan.stages.size() > 1 && s < scenario.plan.stages.size(); ++s) {
    const size_t to = (s + 1) % scenario.plan.stages.size();
    kinds.insert(
        scenario.topology
            .route(scenario.plan.stages[s].gpus.front(), scenario.plan.stages[to].gpus.front())
            .kind);
  }
  for (const SendCalibration& send : scenario.topology.nccl().sends()) {
    if (!kinds.contains(send.path())) continue;
    result.add_constants(DescribeConstants(
        send.provenance(), absl::StrCat("messages over ", PathKindName(send.path()))));
  }
}

// What the planner should know about the fabric beyond the numbers.
void AddWarnings(const Scenario& scenario, Result& result) {
  for (const std::string& warning : scenario.topology.warnings()) result.add_warnings(warning);
  for (const std::string& warning : scenario.workload.warnings) result.add_warnings(warning);
  const std::vector<Stage>& stages = scenario.plan.stages;
  for (size_t s = 0; s + 1 < stages.size(); ++s) {
    const int from = stages[s].gpus.front();
    const int to = stages[s + 1].gpus.front();
    const Route& route = scenario.topology.route(from, to);
    absl::StatusOr<SendCost> cost = SendCost::For(scenario.topology, route);
    if (cost.ok() && cost->max_bytes_per_s() < route.payload_bytes_per_s) {
      result.add_warnings(absl::StrFormat(
          "hop %d to %d: large messages are limited to %.1f of %.1f GB/s by %s, whatever the line "
          "rate",
          s, s + 1, cost->max_bytes_per_s() / 1e9, route.payload_bytes_per_s / 1e9, cost->limit()));
    }
    if (!route.gpudirect) {
      result.add_warnings(
          absl::StrFormat("hop %d to %d: no GPUDirect RDMA: %s", s, s + 1, route.gpudirect_reason));
    }
  }
  if (result.rejected() > 0) {
    result.add_warnings(absl::StrFormat(
        "%d of %d requests were rejected: they can never fit the KV cache of %d tokens",
        result.rejected(), result.requests(), scenario.plan.kv_tokens()));
  }
}

}  // namespace

absl::StatusOr<Result> SimulateInThisProcess(const Scenario& scenario,
                                             std::atomic<double>& progress) {
  absl::StatusOr<std::unique_ptr<PipelineSimulation>> simulation =
      PipelineSimulation::Make(scenario, progress);
  if (!simulation.ok()) return simulation.status();
  absl::StatusOr<Result> result = (*simulation)->Run();
  if (!result.ok()) return result;
  result->set_kind(SIMULATED);
  result->set_label(scenario.label);
  Inputs& inputs = *result->mutable_inputs();
  inputs.set_topology(scenario.topology.name());
  inputs.set_model(scenario.model.name);
  inputs.set_quantization(std::string(WeightFormatName(scenario.model.layer_format)));
  inputs.set_workload(scenario.workload.name);
  inputs.set_workload_description(scenario.workload.description);
  inputs.set_network_gbps(scenario.topology.network_rate_gbps());
  *result->mutable_plan() = ToProto(scenario.plan, scenario.topology);
  const Plan& plan = scenario.plan;
  if (plan.scheduler.kv_blocks > 0) {
    result->set_kv_peak_fraction(static_cast<double>(result->kv_peak_blocks()) /
                                 static_cast<double>(plan.scheduler.kv_blocks));
  }
  int gpu = 0;
  for (const Stage& stage : plan.stages) {
    for (size_t i = 0; i < stage.gpus.size(); ++i) {
      result->mutable_plan()->mutable_memory(gpu++)->set_kv_peak_bytes(
          result->kv_peak_blocks() * plan.scheduler.kv_block_tokens *
          stage.memory.kv_bytes_per_token);
    }
  }
  AddConstants(scenario, *result);
  AddWarnings(scenario, *result);
  return result;
}

std::vector<absl::StatusOr<Result>> SimulateAll(absl::Span<const Scenario> scenarios,
                                                const ProgressCallback& progress) {
  std::vector<IsolatedTask> tasks;
  for (const Scenario& scenario : scenarios) {
    tasks.push_back([&scenario](std::atomic<double>& done) -> absl::StatusOr<std::string> {
      absl::StatusOr<Result> result = SimulateInThisProcess(scenario, done);
      if (!result.ok()) return result.status();
      return result->SerializeAsString();
    });
  }
  std::vector<absl::StatusOr<Result>> results;
  for (const absl::StatusOr<std::string>& bytes : RunIsolated(tasks, /*jobs=*/0, progress)) {
    if (!bytes.ok()) {
      results.push_back(bytes.status());
      continue;
    }
    Result result;
    if (result.ParseFromString(*bytes)) {
      results.push_back(std::move(result));
    } else {
      results.push_back(absl::InternalError("the simulation's process returned a broken result"));
    }
  }
  return results;
}

absl::StatusOr<Result> Simulate(const Scenario& scenario, const ProgressCallback& progress) {
  return SimulateAll(absl::MakeConstSpan(&scenario, 1), progress).front();
}

}  // namespace fabricast
