// fabricast simulate and fabricast compare.

#include <algorithm>
#include <iostream>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "runtime/metrics/comparison.h"
#include "simulator/break_even.h"
#include "simulator/confidence.h"
#include "simulator/simulate.h"
#include "tools/fabricast/commands.h"
#include "tools/fabricast/compare_results.h"
#include "tools/fabricast/guards.h"
#include "tools/fabricast/inputs.h"
#include "tools/fabricast/progress.h"
#include "tools/fabricast/report.h"
#include "tools/fabricast/result_file.h"

namespace fabricast {
namespace {

struct ForecastFlags {
  TopologyFlags topology;
  ModelFlags model;
  PlanFlags plan;
  WorkloadFlags workload;
  std::vector<std::string> fail_if;
  std::string trace_file;
  Format format = Format::kText;

  void AddTo(CLI::App& command, bool model_required) {
    model.AddTo(command, model_required);
    workload.AddTo(command);
    topology.AddTo(command);
    plan.AddTo(command);
    command
        .add_option("--fail-if", fail_if,
                    "Exit with status 3 if METRIC OP VALUE holds, such as 'ttft.p99 > 6s'; a "
                    "signed value is "
                    "against the first topology: 'tpot.p50 > +1%'. May be given more than once")
        ->allow_extra_args(false);
    command.add_option("--trace", trace_file,
                       "Write a timeline for ui.perfetto.dev: a track a stage and a link");
    AddFormatFlag(command, format);
  }
};

// "run.json", "trinity_200g" -> "run.trinity_200g.json"
std::string TraceFileFor(const std::string& file, std::string label) {
  for (char& c : label) c = c == ' ' || c == '=' || c == '/' ? '_' : c;
  const size_t slash = file.rfind('/');
  const size_t dot = file.rfind('.');
  const bool has_ending = dot != std::string::npos && (slash == std::string::npos || dot > slash);
  if (!has_ending) return absl::StrCat(file, ".", label);
  return absl::StrCat(file.substr(0, dot), ".", label, file.substr(dot));
}

absl::StatusOr<std::vector<Scenario>> MakeScenarios(const std::vector<std::string>& files,
                                                    const ForecastFlags& flags,
                                                    std::vector<LabelledTopology>& topologies) {
  absl::StatusOr<Model> model = flags.model.Load();
  if (!model.ok()) return model.status();
  absl::StatusOr<Workload> workload = flags.workload.Load();
  if (!workload.ok()) return workload.status();
  absl::StatusOr<PlanOptions> plan_options = flags.plan.Options(&*workload);
  if (!plan_options.ok()) return plan_options.status();
  absl::StatusOr<std::vector<LabelledTopology>> loaded = LoadTopologies(files, flags.topology);
  if (!loaded.ok()) return loaded.status();
  topologies = *std::move(loaded);
  std::vector<Scenario> scenarios;
  for (const LabelledTopology& labelled : topologies) {
    absl::StatusOr<Plan> plan = MakePlan(labelled.topology, *model, *plan_options);
    if (!plan.ok()) return plan.status();
    Scenario scenario{.label = labelled.label,
                      .topology = labelled.topology,
                      .model = *model,
                      .plan = *std::move(plan),
                      .workload = *workload,
                      .trace_file = ""};
    if (!flags.trace_file.empty()) {
      scenario.trace_file = topologies.size() == 1 ? flags.trace_file
                                                   : TraceFileFor(flags.trace_file, labelled.label);
    }
    scenarios.push_back(std::move(scenario));
  }
  return scenarios;
}

absl::StatusOr<std::vector<Result>> RunScenarios(const std::vector<Scenario>& scenarios,
                                                 const std::vector<LabelledTopology>& topologies,
                                                 const ForecastFlags& flags) {
  ProgressLine progress("simulating");
  std::vector<Result> results;
  for (absl::StatusOr<Result>& result : SimulateAll(scenarios, progress.callback())) {
    if (!result.ok()) return result.status();
    Inputs& inputs = *result->mutable_inputs();
    inputs.set_seed(flags.workload.options.seed);
    for (const std::string& text : topologies[results.size()].overrides) inputs.add_overrides(text);
    results.push_back(*std::move(result));
  }
  return results;
}

// What the plans' rules chose.
void PrintChoices(const std::vector<Result>& results) {
  for (const Result& result : results) {
    for (const std::string& choice : result.plan().choices()) {
      std::cout << "Chosen" << (results.size() > 1 ? absl::StrCat(" for ", result.label()) : "")
                << ": " << choice << "\n";
    }
  }
}

int RunSimulate(const std::string& file, const std::string& out, const ForecastFlags& flags) {
  absl::StatusOr<std::vector<Condition>> conditions =
      ParseConditions(flags.fail_if, /*baseline=*/false);
  if (!conditions.ok()) return Fail(conditions.status());
  std::vector<LabelledTopology> topologies;
  absl::StatusOr<std::vector<Scenario>> scenarios = MakeScenarios({file}, flags, topologies);
  if (!scenarios.ok()) return Fail(scenarios.status());
  if (scenarios->size() > 1) {
    return Fail(absl::InvalidArgumentError(
        "--set gives several topologies: `fabricast compare` sets them side by side"));
  }
  std::optional<ResultFile> saved;
  if (!out.empty()) {
    absl::StatusOr<ResultFile> opened = ResultFile::Open(out);
    if (!opened.ok()) return Fail(opened.status());
    saved.emplace(*std::move(opened));
    scenarios->front().keep_events = true;
  }
  absl::StatusOr<std::vector<Result>> results = RunScenarios(*scenarios, topologies, flags);
  if (!results.ok()) return Fail(results.status());
  if (saved.has_value()) {
    if (absl::Status status = saved->Write(results->front()); !status.ok()) return Fail(status);
    results->front().clear_event_log();
  }
  if (flags.format == Format::kJson) {
    PrintJson(results->front());
  } else {
    PrintResults(*results, std::cout);
    std::cout << "\n";
    PrintChoices(*results);
    for (const std::string& cause : Causes(results->front(), results->front())) {
      std::cout << cause << "\n";
    }
  }
  absl::StatusOr<int> status = CheckConditions(*conditions, *results);
  return status.ok() ? *status : Fail(status.status());
}

int RunCompare(const std::vector<std::string>& files, const std::string& events_file,
               bool intervals, bool break_even, const ForecastFlags& flags) {
  const auto saved = std::count_if(files.begin(), files.end(), [](const std::string& file) {
    return absl::EndsWith(file, ".json");
  });
  if (saved > 0 && saved < static_cast<int64_t>(files.size())) {
    return Fail(
        absl::InvalidArgumentError("topologies and saved results (.json) do not mix: give either"));
  }
  if (saved == 1) {
    return Fail(absl::InvalidArgumentError("nothing to compare with: name a second result"));
  }
  if (saved > 0) {
    return CompareResults({.files = files,
                           .fail_if = flags.fail_if,
                           .events_file = events_file,
                           .trace_file = flags.trace_file,
                           .format = flags.format});
  }
  if (!events_file.empty()) {
    return Fail(absl::InvalidArgumentError(
        "--events lines up saved results: `fabricast simulate --out` each topology first"));
  }
  if (flags.model.model.empty()) {
    return Fail(absl::InvalidArgumentError("--model is required to forecast topologies"));
  }
  absl::StatusOr<std::vector<Condition>> conditions =
      ParseConditions(flags.fail_if, /*baseline=*/true);
  if (!conditions.ok()) return Fail(conditions.status());
  std::vector<LabelledTopology> topologies;
  absl::StatusOr<std::vector<Scenario>> scenarios = MakeScenarios(files, flags, topologies);
  if (!scenarios.ok()) return Fail(scenarios.status());
  if (scenarios->size() < 2) {
    return Fail(absl::InvalidArgumentError(
        "nothing to compare with: name a second topology, or several values of a field: --set "
        "'node_*.nic0.rate_gbps=200,400'"));
  }
  absl::StatusOr<std::vector<Result>> results = RunScenarios(*scenarios, topologies, flags);
  if (!results.ok()) return Fail(results.status());
  Comparison comparison = Compare(*results);
  if (intervals) {
    ProgressLine progress("varying the constants");
    absl::Status status = AddIntervals(*scenarios, progress.callback(), comparison);
    if (!status.ok()) return Fail(status);
  }
  if (break_even) {
    ProgressLine progress("searching the break-even");
    absl::StatusOr<std::vector<BreakEvenPoint>> points =
        FindBreakEven(scenarios->front(), BreakEvenOptions(), progress.callback());
    if (!points.ok()) return Fail(points.status());
    for (const BreakEvenPoint& point : *points) *comparison.add_break_even() = point;
  }
  if (flags.format == Format::kJson) {
    PrintJson(comparison);
  } else {
    PrintResults(*results, std::cout);
    PrintChoices(*results);
    PrintConclusions(comparison, std::cout);
  }
  absl::StatusOr<int> status = CheckConditions(*conditions, *results);
  return status.ok() ? *status : Fail(status.status());
}

}  // namespace

void AddSimulateCommand(CLI::App& app, int& exit_status) {
  CLI::App* command = app.add_subcommand("simulate", "Forecast one topology");
  command->footer(
      "Example:\n  fabricast simulate trinity_200g --model llama-3.1-405b-instruct-awq-int4 \\\n"
      "      --workload poisson:rate=0.05,requests=50,input=512,output=128 --trace=run.json");
  auto file = std::make_shared<std::string>();
  auto flags = std::make_shared<ForecastFlags>();
  command->add_option("topology", *file, "A cluster file or a bundled cluster's name")->required();
  flags->AddTo(*command, /*model_required=*/true);
  auto out = std::make_shared<std::string>();
  command->add_option(
      "--out", *out,
      "Write the result with its events to this file, as JSON for `fabricast compare`");
  command->callback([=, &exit_status] { exit_status = RunSimulate(*file, *out, *flags); });
}

void AddCompareCommand(CLI::App& app, int& exit_status) {
  CLI::App* command = app.add_subcommand("compare",
                                         "Forecast several topologies side by side, say what "
                                         "differs and why, and where it would change; or compare "
                                         "saved results");
  command->footer(
      "Examples:\n"
      "  fabricast compare trinity_200g trinity_400g --model llama-3.1-405b-instruct-awq-int4\n"
      "  fabricast compare trinity_400g --set 'communication.p2p_net_chunk_bytes=131072,524288' "
      "\\\n"
      "      --model llama-3.1-405b-instruct-awq-int4 --workload long-context-1\n"
      "  fabricast compare trinity_200g trinity_400g --model llama-3.1-405b-instruct-awq-int4 \\\n"
      "      --fail-if 'tpot.p50 > +1%' --fail-if 'ttft.p99 > 6s'\n"
      "  fabricast compare simulated.json measured.json");
  auto files = std::make_shared<std::vector<std::string>>();
  auto flags = std::make_shared<ForecastFlags>();
  auto events_file = std::make_shared<std::string>();
  auto intervals = std::make_shared<bool>(true);
  auto break_even = std::make_shared<bool>(true);
  command
      ->add_option("topologies", *files,
                   "Cluster files or bundled clusters, or results saved as .json; the first is the "
                   "baseline")
      ->required();
  flags->AddTo(*command, /*model_required=*/false);
  command->add_option("--events", *events_file,
                      "Of two saved results: write all events, lined up, to this file as CSV");
  command->add_flag(
      "--break-even,!--no-break-even", *break_even,
      "Search the network rate below which the fabric costs 1 % and 5 %; on by default");
  command->add_flag(
      "--intervals,!--no-intervals", *intervals,
      "Repeat with the constants at the ends of what is known about them; on by default");
  command->callback([=, &exit_status] {
    exit_status = RunCompare(*files, *events_file, *intervals, *break_even, *flags);
  });
}

}  // namespace fabricast
