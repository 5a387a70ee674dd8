// fabricast plan.

#include <iostream>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "tools/fabricast/commands.h"
#include "tools/fabricast/inputs.h"
#include "tools/fabricast/report.h"

namespace fabricast {
namespace {

struct PlanCommandFlags {
  std::string file;
  TopologyFlags topology;
  ModelFlags model;
  PlanFlags plan;
  WorkloadFlags workload;
  Format format = Format::kText;
};

int RunPlan(const PlanCommandFlags& flags) {
  absl::StatusOr<Model> model = flags.model.Load();
  if (!model.ok()) return Fail(model.status());
  std::optional<Workload> workload;
  if (!flags.workload.workload.empty()) {
    absl::StatusOr<Workload> loaded = flags.workload.Load();
    if (!loaded.ok()) return Fail(loaded.status());
    workload = *std::move(loaded);
  }
  absl::StatusOr<PlanOptions> options =
      flags.plan.Options(workload.has_value() ? &*workload : nullptr);
  if (!options.ok()) return Fail(options.status());
  absl::StatusOr<std::vector<LabelledTopology>> topologies =
      LoadTopologies({flags.file}, flags.topology);
  if (!topologies.ok()) return Fail(topologies.status());
  for (const LabelledTopology& labelled : *topologies) {
    if (topologies->size() > 1) std::cout << "\n== " << labelled.label << "\n";
    absl::StatusOr<Plan> plan = MakePlan(labelled.topology, *model, *options);
    if (!plan.ok()) return Fail(plan.status());
    if (flags.format == Format::kJson) {
      PrintJson(ToProto(*plan, labelled.topology));
      continue;
    }
    PrintPlan(labelled.topology, *model, *plan, std::cout);
    PrintBalance(labelled.topology, *model, *options, *plan, std::cout);
  }
  return 0;
}

}  // namespace

void AddPlanCommand(CLI::App& app, int& exit_status) {
  CLI::App* command =
      app.add_subcommand("plan", "Memory fit and layer split; nothing is simulated");
  command->footer(
      "Examples:\n  fabricast plan trinity_200g --model llama-3.1-405b-instruct-awq-int4 --split "
      "43,42,41\n"
      "  fabricast plan h200_x4 --model llama-3.1-405b-instruct-awq-int4 --tensor-parallel 2,1,1 "
      "\\\n"
      "      --split auto --max-in-flight auto --chunk-tokens auto --workload chat-closed-8");
  auto flags = std::make_shared<PlanCommandFlags>();
  command->add_option("topology", flags->file, "A cluster file or a bundled cluster's name")
      ->required();
  flags->model.AddTo(*command);
  flags->topology.AddTo(*command);
  flags->plan.AddTo(*command);
  flags->workload.workload.clear();  // none is a choice here
  flags->workload.AddTo(*command);
  AddFormatFlag(*command, flags->format);
  command->callback([=, &exit_status] { exit_status = RunPlan(*flags); });
}

}  // namespace fabricast
