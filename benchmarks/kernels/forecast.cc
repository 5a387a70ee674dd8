// Sets the forecast's prices beside what was measured on an H200: whole layers under load, over
// tokens and contexts, and a stage that served requests. The tables are Markdown.
#include <google/protobuf/util/json_util.h>
#include <stdlib.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <fstream>
#include <iostream>
#include <iterator>
#include <map>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "kernels/timing/kernel_results.pb.h"
#include "runtime/cost/stage_cost.h"
#include "runtime/metrics/compute_time.h"
#include "runtime/metrics/result.pb.h"
#include "runtime/model/model.h"
#include "runtime/plan/plan.h"
#include "runtime/workload/workload.h"
#include "simulator/simulate.h"
#include "topology/topology.h"

namespace fabricast {
namespace {

constexpr char kTopology[] = "h200_x4";
constexpr char kKernels[] = "h200_kernels.json";
constexpr const char* kStageRuns[] = {"h200_405b_stage/requests_1.json",
                                      "h200_405b_stage/requests_16.json",
                                      "h200_405b_stage/requests_64.json"};
// As the results name models, and as this project does.
constexpr std::pair<const char*, const char*> kModels[] = {
    {"llama-3.1-405b", "llama-3.1-405b-instruct-awq-int4"},
    {"llama-3.1-70b", "llama-3.1-70b-instruct"},
    {"llama-3.1-8b", "llama-3.1-8b-instruct"}};

template <typename Message>
absl::StatusOr<Message> Read(const std::string& file) {
  std::ifstream in(file, std::ios::binary);
  if (!in) return absl::NotFoundError(absl::StrCat(file, ": cannot be read"));
  const std::string text((std::istreambuf_iterator<char>(in)), std::istreambuf_iterator<char>());
  Message message;
  const auto parsed = google::protobuf::util::JsonStringToMessage(text, &message);
  if (!parsed.ok()) {
    return absl::InvalidArgumentError(absl::StrCat(file, ": ", parsed.ToString()));
  }
  return message;
}

// Of a layer, without what a step costs beside its layers.
double LayerSeconds(const StageCost& cost, const KernelCalibration& kernels,
                    const KernelTiming& layer) {
  const BatchShape batch =
      layer.operation() == "decode"
          ? BatchShape::Decode(layer.requests(), layer.context())
          : BatchShape::Prefill(layer.tokens(), layer.context() - layer.tokens(), false);
  return TotalSeconds(cost.Explain(batch)) - kernels.step_overhead_us() * 1e-6;
}

std::string Percent(double share) { return absl::StrFormat("%+.1f %%", 100 * share); }

absl::Status PrintLayers(const Topology& topology, const KernelResults& results) {
  const GpuSpec& gpu = topology.gpus().front().spec;
  const KernelCalibration& kernels = topology.kernels(0);
  std::cout << absl::StrFormat(
      "%s, driver %s, %s: a layer under load, INT4. Error of the forecast over the contexts (of "
      "the "
      "decodes, or before the chunk): from, to.\n\n| | tokens | contexts | measured us | from | to "
      "|\n| --- | ---: | --- | ---: | ---: | ---: |\n",
      results.environment().gpu(), results.environment().driver(), results.environment().date());
  for (const auto& [name, model_name] : kModels) {
    const absl::StatusOr<Model> model = LoadModel(model_name, "int4");
    if (!model.ok()) return model.status();
    if (absl::Status status = CheckCalibration(*model, kernels); !status.ok()) return status;
    const StageCost cost(*model, gpu, kernels, {.num_layers = 1});
    struct Line {
      std::vector<double> errors, us, contexts;
    };
    std::map<std::pair<std::string, int64_t>, Line> lines;
    for (const KernelTiming& timing : results.timings()) {
      if (timing.kernel() != "layer" || timing.model() != name) continue;
      Line& line = lines[{timing.operation(), timing.tokens()}];
      line.errors.push_back(LayerSeconds(cost, kernels, timing) * 1e6 / timing.sustained_us() - 1);
      line.us.push_back(timing.sustained_us());
      line.contexts.push_back(static_cast<double>(
          timing.context() - (timing.operation() == "prefill" ? timing.tokens() : 0)));
    }
    const auto range = [](const std::vector<double>& values) {
      const auto [low, high] = std::minmax_element(values.begin(), values.end());
      return absl::StrFormat("%.0f to %.0f", *low, *high);
    };
    for (const auto& [key, line] : lines) {
      const auto [low, high] = std::minmax_element(line.errors.begin(), line.errors.end());
      std::cout << absl::StrFormat(
          "| %s %s | %d | %s | %s | %s | %s |\n", std::string(name).substr(10), key.first,
          key.second, range(line.contexts), range(line.us), Percent(*low), Percent(*high));
    }
  }
  return absl::OkStatus();
}

// The run's stage, alone on its GPU.
absl::StatusOr<Result> ForecastOf(const Result& run, const Topology& topology) {
  absl::StatusOr<Model> model = LoadModel(kModels[0].second);
  if (!model.ok()) return model.status();
  model->layers.resize(run.plan().stages(0).num_layers());
  PlanOptions options;
  options.stages = 1;
  options.max_in_flight = run.plan().max_in_flight();
  options.max_batch_tokens = run.plan().max_batch_tokens();
  options.max_chunk_tokens = run.plan().max_chunk_tokens();
  options.max_running = run.plan().max_running();
  options.kv_block_tokens = run.plan().kv_block_tokens();
  options.kv_blocks = run.plan().kv_blocks();
  absl::StatusOr<Plan> plan = MakePlan(topology, *model, options);
  if (!plan.ok()) return plan.status();
  absl::StatusOr<Workload> workload =
      MakeWorkload(run.inputs().workload(), {.seed = run.inputs().seed()});
  if (!workload.ok()) return workload.status();
  return Simulate({.label = run.label(),
                   .topology = topology,
                   .model = *std::move(model),
                   .plan = *std::move(plan),
                   .workload = *std::move(workload),
                   .trace_file = ""});
}

absl::Status PrintStageRuns(const std::string& folder, const Topology& topology) {
  std::cout << "\n| a stage of the 405B | | measured ms | forecast ms | error |\n"
               "| --- | --- | ---: | ---: | ---: |\n";
  for (const char* const file : kStageRuns) {
    const absl::StatusOr<Result> run = Read<Result>(absl::StrCat(folder, "/", file));
    if (!run.ok()) return run.status();
    const absl::StatusOr<Result> forecast = ForecastOf(*run, topology);
    if (!forecast.ok()) return forecast.status();
    const std::tuple<const char*, double, double> figures[] = {
        {"TPOT mean", run->tpot().mean(), forecast->tpot().mean()},
        {"ITL p50", run->itl().p50(), forecast->itl().p50()},
        {"TTFT mean", run->ttft().mean(), forecast->ttft().mean()},
        {"all requests", run->duration_s(), forecast->duration_s()}};
    bool first = true;
    for (const auto& [name, measured, simulated] : figures) {
      std::cout << absl::StrFormat(
          "| %s | %s | %.2f | %.2f | %s |\n", first ? run->inputs().workload_description() : "",
          name, measured * 1e3, simulated * 1e3, Percent(simulated / measured - 1));
      first = false;
    }
  }
  return absl::OkStatus();
}

absl::Status Run(const std::string& folder) {
  const absl::StatusOr<Topology> topology = Topology::Load(kTopology);
  if (!topology.ok()) return topology.status();
  const absl::StatusOr<KernelResults> results =
      Read<KernelResults>(absl::StrCat(folder, "/", kKernels));
  if (!results.ok()) return results.status();
  if (absl::Status status = PrintLayers(*topology, *results); !status.ok()) return status;
  return PrintStageRuns(folder, *topology);
}

}  // namespace
}  // namespace fabricast

int main(int argc, char** argv) {
  // `bazel run` starts programs elsewhere.
  if (const char* directory = getenv("BUILD_WORKING_DIRECTORY")) {
    if (chdir(directory) != 0) perror(directory);
  }
  CLI::App app("Compares forecasts with what this project's kernels and a stage took on an H200.");
  std::string folder = "benchmarks/results";
  app.add_option("--results", folder, "Folder of the measurements")->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  const absl::Status status = fabricast::Run(folder);
  if (!status.ok()) std::cerr << "forecast: " << status.message() << "\n";
  return status.ok() ? 0 : 1;
}
