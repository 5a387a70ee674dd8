#include "simulator/simulate.h"

#include <memory>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "runtime/cost/communication_cost.h"
#include "simulator/constants.h"
#include "simulator/pipeline.h"

namespace fabricast {
namespace {

// What the planner should know about the fabric beyond the numbers.
void AddWarnings(const Scenario& scenario, Result& result) {
  for (const std::string& warning : scenario.topology.warnings()) result.add_warnings(warning);
  for (const std::string& warning : scenario.workload.warnings) result.add_warnings(warning);
  for (const PipelineHop& hop : HopsOf(scenario.plan)) {
    // Tokens on their way back are few bytes.
    if (hop.to_stage == 0) continue;
    const Route& route = scenario.topology.route(hop.from_gpu, hop.to_gpu);
    absl::StatusOr<SendCost> cost = SendCost::For(scenario.topology, route);
    if (cost.ok() && cost->max_bytes_per_s() < route.payload_bytes_per_s) {
      result.add_warnings(absl::StrFormat(
          "hop %d to %d: large messages are limited to %.1f of %.1f GB/s by %s, whatever the line "
          "rate",
          hop.from_stage, hop.to_stage, cost->max_bytes_per_s() / 1e9,
          route.payload_bytes_per_s / 1e9, cost->limit()));
    }
    if (!route.gpudirect) {
      result.add_warnings(absl::StrFormat("hop %d to %d: no GPUDirect RDMA: %s", hop.from_stage,
                                          hop.to_stage, route.gpudirect_reason));
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
  AddPlan(scenario.plan, scenario.topology, *result);
  for (const ConstantsInUse& constants : ConstantsOf(scenario)) {
    result->add_constants(constants.Describe());
  }
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
