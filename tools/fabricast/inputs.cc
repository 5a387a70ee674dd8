#include "tools/fabricast/inputs.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <iostream>
#include <map>
#include <memory>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "tools/fabricast/result_file.h"

namespace fabricast {

namespace {

absl::Status NeitherNumberNorAuto(absl::string_view flag, absl::string_view text) {
  return absl::InvalidArgumentError(
      absl::StrCat(flag, " '", text, "': give a whole number or auto"));
}

}  // namespace

void TopologyFlags::AddTo(CLI::App& command) {
  command
      .add_option("--set", set,
                  "Replace a field of the topology: 'node_*.nic0.rate_gbps=400'. Several values, "
                  "'=200,400', "
                  "compare them. May be given more than once")
      ->allow_extra_args(false);
}

absl::StatusOr<std::vector<LabelledTopology>> LoadTopologies(const std::vector<std::string>& files,
                                                             const TopologyFlags& flags) {
  // Every combination of the values, the last flag's changing fastest.
  std::vector<std::vector<Override>> combinations = {{}};
  std::vector<bool> varies;
  for (const std::string& text : flags.set) {
    absl::StatusOr<Override> parsed = ParseOverride(text);
    if (!parsed.ok()) return parsed.status();
    const std::vector<std::string> values = absl::StrSplit(parsed->value, ',');
    varies.push_back(values.size() > 1);
    std::vector<std::vector<Override>> longer;
    for (const std::vector<Override>& combination : combinations) {
      for (const std::string& value : values) {
        longer.push_back(combination);
        longer.back().push_back({parsed->path, value});
      }
    }
    combinations = std::move(longer);
  }
  std::vector<LabelledTopology> topologies;
  for (const std::string& file : files) {
    for (const std::vector<Override>& overrides : combinations) {
      absl::StatusOr<Topology> topology = Topology::Load(file, overrides);
      if (!topology.ok()) return topology.status();
      LabelledTopology labelled{topology->name(), *std::move(topology), {}};
      for (size_t i = 0; i < overrides.size(); ++i) {
        labelled.overrides.push_back(absl::StrCat(overrides[i].path, "=", overrides[i].value));
        if (!varies[i]) continue;
        const size_t field = overrides[i].path.rfind('.');
        absl::StrAppend(&labelled.label, " ", overrides[i].path.substr(field + 1), "=",
                        overrides[i].value);
      }
      // Reports and intervals tell topologies by their labels.
      const std::string label = labelled.label;
      int times = 1;
      while (std::any_of(topologies.begin(), topologies.end(), [&](const LabelledTopology& other) {
        return other.label == labelled.label;
      })) {
        labelled.label = absl::StrCat(label, " (", ++times, ")");
      }
      topologies.push_back(std::move(labelled));
    }
  }
  return topologies;
}

void ModelFlags::AddTo(CLI::App& command, bool required) {
  command
      .add_option("--model", model,
                  "A bundled model (see `fabricast models`), a config.json or a checkpoint folder")
      ->required(required);
  command.add_option(
      "--quantization", quantization,
      "Weights of the layers: bf16, fp8 or int4 (AWQ or GPTQ, group 128); default: as the "
      "configuration says");
}

void PlanFlags::AddTo(CLI::App& command) {
  command
      .add_option(
          "--split", split,
          "Layers a stage: even, balanced (by decode time), balanced-prefill, auto (by what "
          "the workload brings), or 43,42,41")
      ->capture_default_str();
  command.add_option("--stage-times", stage_times,
                     "A run's saved result, whose stages' busy times --split auto goes by");
  command.add_option("--stages", options.stages, "Pipeline stages; default: as many as GPUs allow");
  command
      .add_option("--tp,--tensor-parallel", tensor_parallel,
                  "GPUs that share each layer, within a host; 2,1: of each stage")
      ->capture_default_str();
  command
      .add_option(
          "--max-in-flight", in_flight,
          "Micro-batches in the pipeline, or auto: by the rule of runtime/plan/pipelining.h; "
          "default: one a stage")
      ->option_text("N|auto");
  command.add_option("--max-batch-tokens", options.max_batch_tokens, "Tokens of a micro-batch")
      ->capture_default_str();
  command
      .add_option("--chunk-tokens", chunk_tokens,
                  "Prefill tokens of a micro-batch, or auto: by the rule of "
                  "runtime/plan/pipelining.h")
      ->option_text("N|auto [512]");
  command.add_option("--max-running", options.max_running, "Requests admitted at a time")
      ->capture_default_str();
  command.add_option("--kv-block-tokens", options.kv_block_tokens, "Tokens of a KV-cache block")
      ->capture_default_str();
  command.add_option("--kv-blocks", options.kv_blocks,
                     "KV-cache blocks, as a real run reports them; default: what fits");
  command
      .add_option("--reserve-gb", options.reserve_gb,
                  "Memory kept free on each GPU for CUDA, NCCL and workspaces")
      ->capture_default_str();
}

absl::StatusOr<PlanOptions> PlanFlags::Options(const Workload* workload) const {
  PlanOptions result = options;
  if (absl::Status status = ParseSplit(split, result); !status.ok()) return status;
  if (absl::Status status = ParseTensorParallel(tensor_parallel, result); !status.ok()) {
    return status;
  }
  result.auto_in_flight = in_flight == "auto";
  result.auto_chunk = chunk_tokens == "auto";
  if (!in_flight.empty() && !result.auto_in_flight &&
      !absl::SimpleAtoi(in_flight, &result.max_in_flight)) {
    return NeitherNumberNorAuto("--max-in-flight", in_flight);
  }
  if (!result.auto_chunk && !absl::SimpleAtoi(chunk_tokens, &result.max_chunk_tokens)) {
    return NeitherNumberNorAuto("--chunk-tokens", chunk_tokens);
  }
  if (workload != nullptr) result.load = LoadOf(*workload);
  if (!stage_times.empty()) {
    if (result.split != Split::kAuto) {
      return absl::InvalidArgumentError(
          absl::StrCat("--stage-times ", stage_times, ": only --split auto goes by it"));
    }
    absl::StatusOr<Result> measured = ReadResult(stage_times);
    if (!measured.ok()) return measured.status();
    result.measured = std::make_shared<const Result>(*std::move(measured));
  }
  return result;
}

ExpectedLoad LoadOf(const Workload& workload) {
  ExpectedLoad load;
  double prompt = 0;
  double output = 0;
  for (const Request& request : workload.requests) {
    prompt += static_cast<double>(request.prompt_tokens);
    output += static_cast<double>(request.output_tokens);
  }
  const double requests = static_cast<double>(workload.requests.size());
  load.prompt = static_cast<int64_t>(std::round(prompt / requests));
  load.output = static_cast<int64_t>(std::round(output / requests));
  load.context = load.prompt + load.output / 2;
  if (workload.concurrency > 0) {
    load.requests =
        std::min<int64_t>(workload.concurrency, static_cast<int64_t>(workload.requests.size()));
  }
  return load;
}

CLI::Option* WorkloadFlags::AddTo(CLI::App& command) {
  CLI::Option* const option =
      command
          .add_option("--workload", workload,
                      "A bundled workload (see `fabricast workloads`), closed:..., poisson:..., "
                      "gamma:..., an Azure "
                      "CSV or a JSONL file")
          ->capture_default_str();
  command.add_option("--seed", options.seed, "Of random arrivals and lengths")
      ->capture_default_str();
  command.add_option("--rate-scale", options.rate_scale, "Arrivals come that many times faster")
      ->capture_default_str();
  command.add_option("--window", window,
                     "Only arrivals in START:END, seconds of the unscaled trace");
  command.add_option("--max-requests", options.max_requests, "Only the first so many");
  return option;
}

absl::StatusOr<Workload> WorkloadFlags::Load() const {
  WorkloadOptions loaded = options;
  if (!window.empty()) {
    const std::vector<std::string> ends = absl::StrSplit(window, ':');
    if (ends.size() != 2 || !absl::SimpleAtod(ends[0], &loaded.window_start_s) ||
        !absl::SimpleAtod(ends[1], &loaded.window_end_s) ||
        !(loaded.window_start_s < loaded.window_end_s)) {
      return absl::InvalidArgumentError(
          absl::StrCat("--window '", window, "': write START:END in seconds, such as 0:600"));
    }
  }
  return MakeWorkload(workload, loaded);
}

void AddFormatFlag(CLI::App& command, Format& format) {
  command.add_option("--format", format, "text or json")
      ->transform(CLI::CheckedTransformer(
          std::map<std::string, Format>{{"text", Format::kText}, {"json", Format::kJson}},
          CLI::ignore_case))
      ->option_text("text|json");
}

void PrintJson(const google::protobuf::Message& message) {
  const absl::StatusOr<std::string> json = ToJson(message);
  if (json.ok()) {
    std::cout << *json;
  } else {
    std::cerr << "fabricast: " << json.status().message() << "\n";
  }
}

int Fail(const absl::Status& status) {
  std::cout.flush();
  std::cerr << "fabricast: " << status.message() << "\n";
  return 1;
}

}  // namespace fabricast
