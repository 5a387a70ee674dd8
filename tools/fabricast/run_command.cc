// fabricast run: computes real tokens, with the scheduler and the metrics of a forecast.

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <iostream>
#include <memory>
#include <optional>
#include <sstream>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/strip.h"
#include "nlohmann/json.hpp"
#include "runtime/engine/cpu_pipeline.h"
#include "runtime/engine/engine.h"
#include "runtime/engine/gpu_pipeline.h"
#include "runtime/engine/local_stages.h"
#include "runtime/engine/workload_run.h"
#include "runtime/metrics/comparison.h"
#include "runtime/metrics/timeline.h"
#include "runtime/tokenizer/chat.h"
#include "runtime/tokenizer/tokenizer.h"
#include "tools/fabricast/commands.h"
#include "tools/fabricast/inputs.h"
#include "tools/fabricast/interrupt.h"
#include "tools/fabricast/local_gpus.h"
#include "tools/fabricast/processes.h"
#include "tools/fabricast/progress.h"
#include "tools/fabricast/report.h"
#include "tools/fabricast/result_file.h"
#include "tools/fabricast/run_inputs.h"

namespace fabricast {
namespace {

struct RunFlags {
  HardwareFlags hardware;
  PlanFlags plan;
  ProcessFlags process;
  bool processes = false;
  WorkloadFlags workload;
  bool workload_given = false;
  std::string prompt;
  std::string prompt_file;
  bool prompt_given = false;
  bool chat = false;
  std::string system;
  bool thinking = true;
  int64_t max_output_tokens = 128;
  SamplingParams sampling;
  std::vector<std::string> stop;
  bool ignore_eos = false;
  std::string out;
  std::string trace_file;
  Format format = Format::kText;
};

// Inputs, and the stages that compute.
struct Loaded : RunInputs {
  Deployment deployment;
  int threads = 1;   // a stage
  bool tcp = false;  // between processes, also of GPUs
  std::vector<EnvironmentSetting> cuda;
  std::unique_ptr<Stages> stages;
  // Of stages that are processes; null otherwise. The engine's, once it has `stages`.
  const ProcessStages* processes = nullptr;
  std::vector<std::string> where;                             // they ran, a line each
  std::vector<std::shared_ptr<GpuStageFigures>> gpu_figures;  // of stages on GPUs of this process
  std::vector<std::string> warnings;

  void KeepDescription();
};

void Loaded::KeepDescription() {
  if (processes != nullptr) where = processes->Description();
  for (size_t stage = 0; stage < gpu_figures.size(); ++stage) {
    where.push_back(absl::StrCat("stage ", stage, ": ", gpu_figures[stage]->Get().Text()));
  }
}

// Stages that compute at the same time share the cores; with one request there is one such stage.
int ThreadsAStage(const RunFlags& flags, int stages) {
  if (flags.hardware.threads > 0) return flags.hardware.threads;
  const int cores = std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
  return std::max(1, cores / (flags.prompt_given ? 1 : stages));
}

// Of all stages, on GPUs of this machine.
absl::StatusOr<std::vector<std::unique_ptr<StageExecutor>>> MakeGpuStages(Loaded& loaded) {
  absl::StatusOr<std::vector<FoundGpu>> found = FindGpus();
  if (!found.ok()) return found.status();
  if (loaded.plan.tensor_parallel()) {
    const std::vector<int>& gpus = loaded.plan.stages[0].gpus;
    UseNcclEnvironment(loaded.topology, gpus, loaded.topology.gpus()[gpus[0]].host, loaded.cuda);
  }
  const SchedulerOptions& scheduler = loaded.plan.scheduler;
  std::vector<std::unique_ptr<StageExecutor>> stages;
  for (const Stage& stage : loaded.plan.stages) {
    for (const std::string& difference : Differences(loaded.topology, stage.gpus, *found)) {
      LogLine(absl::StrCat("warning: ", difference));
      loaded.warnings.push_back(difference);
    }
    loaded.gpu_figures.push_back(std::make_shared<GpuStageFigures>());
    absl::StatusOr<std::unique_ptr<StageExecutor>> executor =
        MakeGpuStage(loaded.config, loaded.weights,
                     {.first_layer = stage.first_layer,
                      .num_layers = stage.num_layers,
                      .embedding = stage.embedding,
                      .lm_head = stage.lm_head},
                     {.devices = DevicesOf(loaded.topology, stage.gpus),
                      .name = absl::StrCat("stage ", stages.size()),
                      .first_layer = stage.first_layer,
                      .kv_block_tokens = scheduler.kv_block_tokens,
                      .kv_blocks = scheduler.kv_blocks,
                      .max_batch_tokens = scheduler.max_batch_tokens,
                      .max_running = scheduler.max_running,
                      .threads = loaded.threads,
                      .log = LogLine,
                      .figures = loaded.gpu_figures.back()});
    if (!executor.ok()) return executor.status();
    stages.push_back(*std::move(executor));
  }
  return stages;
}

absl::Status MakeStages(const RunFlags& flags, Loaded& loaded) {
  if (loaded.deployment.role == Deployment::Role::kHead) {
    const int here = std::max<int>(1, static_cast<int>(loaded.deployment.children.size()));
    loaded.threads = ThreadsAStage(flags, here);
    loaded.tcp = flags.process.tcp;
    absl::StatusOr<std::unique_ptr<ProcessStages>> stages =
        MakeProcessStages(loaded, flags.hardware, flags.process, loaded.threads, loaded.deployment);
    if (!stages.ok()) return stages.status();
    loaded.processes = stages->get();
    loaded.stages = *std::move(stages);
    return absl::OkStatus();
  }
  loaded.threads = ThreadsAStage(flags, static_cast<int>(loaded.plan.stages.size()));
  absl::StatusOr<std::vector<std::unique_ptr<StageExecutor>>> executors =
      loaded.on_gpus
          ? MakeGpuStages(loaded)
          : MakeCpuStages(loaded.config, loaded.weights.checkpoint, loaded.threads, loaded.plan);
  if (!executors.ok()) return executors.status();
  loaded.stages = MakeLocalStages(*std::move(executors));
  return absl::OkStatus();
}

// "AMD EPYC, 2 threads a stage".
std::string Environment(int threads) {
  std::string processor = "unknown processor";
  std::ifstream in("/proc/cpuinfo");
  for (std::string line; std::getline(in, line);) {
    const size_t colon = line.find(": ");
    if (colon == std::string::npos || !absl::StartsWith(line, "model name")) continue;
    processor = line.substr(colon + 2);
    break;
  }
  return absl::StrFormat("%s, %d hardware threads, %d a stage", processor,
                         std::thread::hardware_concurrency(), threads);
}

// How activations get from one stage to the next.
std::string RouteOf(const Loaded& loaded, const HopResult& hop) {
  if (loaded.deployment.role != Deployment::Role::kHead) return "memory of one process";
  const auto host = [&](int stage) {
    return loaded.topology.gpus()[loaded.plan.stages[stage].gpus[0]].host;
  };
  // The last hop brings tokens to the head, which is on the first stage's host.
  const bool same = host(hop.from_stage()) == host(hop.to_stage());
  const bool control = hop.to_stage() == 0;
  const char* const wire = loaded.on_gpus && !loaded.tcp ? "NCCL" : "TCP";
  return absl::StrCat(control ? "gRPC" : wire, same ? " within a host" : " between hosts");
}

Result Describe(Result result, const Loaded& loaded, const Workload& workload, uint64_t seed) {
  result.set_kind(MEASURED);
  result.set_label(loaded.label);
  Inputs& inputs = *result.mutable_inputs();
  inputs.set_topology(loaded.topology.name());
  inputs.set_model(loaded.model.name);
  inputs.set_quantization(std::string(WeightFormatName(loaded.model.layer_format)));
  inputs.set_workload(workload.name);
  inputs.set_workload_description(workload.description);
  inputs.set_seed(seed);
  for (const std::string& text : loaded.overrides) inputs.add_overrides(text);
  AddPlan(loaded.plan, loaded.topology, result);
  for (HopResult& hop : *result.mutable_hops()) hop.set_route(RouteOf(loaded, hop));
  result.add_environment(Environment(loaded.threads));
  for (const std::string& line : loaded.where) result.add_environment(line);
  for (const std::string& warning : loaded.warnings) result.add_warnings(warning);
  for (const std::string& warning : workload.warnings) result.add_warnings(warning);
  return result;
}

absl::Status WriteTimeline(const Timeline& timeline, const Loaded& loaded,
                           const std::string& file) {
  TrackNames names;
  for (const Stage& stage : loaded.plan.stages) {
    names.stages.push_back(
        absl::StrCat("stage ", names.stages.size(), ": ", StageName(stage, loaded.topology)));
  }
  for (const PipelineHop& hop : HopsOf(loaded.plan)) {
    names.hops.push_back({.from_stage = hop.from_stage,
                          .to_stage = hop.to_stage,
                          .links = {static_cast<int>(names.links.size())}});
    names.links.push_back(absl::StrCat("hop ", hop.from_stage, " to ", hop.to_stage));
  }
  return WriteTrace(timeline, names, file);
}

// Writes what was asked for, the result first. Nothing is lost: a result that cannot be written to
// its file goes to standard output.
absl::Status Save(const RunFlags& flags, const Loaded& loaded, const Result& result,
                  const Timeline& timeline, std::optional<ResultFile>& file) {
  if (file.has_value()) {
    const absl::Status status = file->Write(result);
    if (!status.ok()) {
      const absl::StatusOr<std::string> json = ToJson(result);
      if (json.ok()) std::cout << *json;
      return absl::Status(status.code(),
                          absl::StrCat(status.message(), "; the result is on standard output"));
    }
  }
  if (flags.trace_file.empty()) return absl::OkStatus();
  return WriteTimeline(timeline, loaded, flags.trace_file);
}

EngineOptions OptionsOf(const RunFlags& flags, const Loaded& loaded) {
  return {.scheduler = loaded.plan.scheduler,
          .tokenizer = loaded.tokenizer,
          .keep_timeline = !flags.trace_file.empty(),
          .keep_events = !flags.out.empty()};
}

absl::StatusOr<std::string> ReadPrompt(const RunFlags& flags) {
  if (flags.prompt_file.empty()) return flags.prompt;
  std::ostringstream text;
  if (flags.prompt_file == "-") {
    text << std::cin.rdbuf();
    return text.str();
  }
  std::ifstream in(flags.prompt_file, std::ios::binary);
  if (!in) return absl::NotFoundError(absl::StrCat(flags.prompt_file, ": cannot be read"));
  text << in.rdbuf();
  return text.str();
}

absl::StatusOr<std::vector<int32_t>> EncodePrompt(const RunFlags& flags, const Loaded& loaded) {
  absl::StatusOr<std::string> prompt = ReadPrompt(flags);
  if (!prompt.ok()) return prompt.status();
  absl::StatusOr<std::vector<int32_t>> tokens;
  if (flags.chat) {
    absl::StatusOr<std::optional<ChatFormat>> format =
        FindChatFormat(flags.hardware.model, *loaded.tokenizer);
    if (!format.ok()) return format.status();
    if (!format->has_value()) {
      return absl::FailedPreconditionError(absl::StrCat(
          flags.hardware.model, ": has no chat template, it is a base model: drop --chat"));
    }
    std::vector<ChatMessage> messages;
    if (!flags.system.empty()) messages.push_back({"system", flags.system});
    messages.push_back({"user", *prompt});
    ChatOptions options;
    options.enable_thinking = flags.thinking;
    tokens = EncodeChat(**format, messages, *loaded.tokenizer, options);
  } else {
    tokens = loaded.tokenizer->Encode(*prompt, /*add_special_tokens=*/true);
  }
  if (!tokens.ok()) {
    return absl::Status(tokens.status().code(),
                        absl::StrCat("prompt: ", tokens.status().message()));
  }
  if (tokens->empty()) {
    return absl::InvalidArgumentError(
        "prompt: it is empty, and this model adds no token of its own: write something");
  }
  const int64_t length = static_cast<int64_t>(tokens->size());
  if (length >= loaded.config.max_context) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "prompt: %d tokens, and the model's context of %d holds prompt and output: shorten it",
        length, loaded.config.max_context));
  }
  return tokens;
}

nlohmann::json TokenJson(const Tokenizer& tokenizer, const SampledToken& token, bool logprobs) {
  const auto text = [&tokenizer](int32_t id) {
    return tokenizer.Decode({id}, /*skip_special_tokens=*/false);
  };
  nlohmann::json json = {{"id", token.token}, {"text", text(token.token)}};
  if (!logprobs) return json;
  json["logprob"] = token.logprob;
  json["top"] = nlohmann::json::array();
  for (const TokenLogprob& other : token.top) {
    json["top"].push_back(
        {{"id", other.token}, {"text", text(other.token)}, {"logprob", other.logprob}});
  }
  return json;
}

void PrintLogprobs(const Tokenizer& tokenizer, const std::vector<SampledToken>& tokens) {
  for (const SampledToken& token : tokens) {
    std::cout << TokenJson(tokenizer, token, /*logprobs=*/true).dump() << "\n";
  }
}

absl::string_view Reason(FinishReason reason) {
  switch (reason) {
    case FinishReason::kLength:
      return "length";
    case FinishReason::kStop:
      return "stop";
    case FinishReason::kCancelled:
      return "interrupted";
  }
  return "";
}

// The text as it comes on standard output, a line of figures on standard error.
absl::Status RunPrompt(const RunFlags& flags, Loaded& loaded, std::optional<ResultFile>& file) {
  absl::StatusOr<std::vector<int32_t>> prompt = EncodePrompt(flags, loaded);
  if (!prompt.ok()) return prompt.status();
  const int64_t prompt_tokens = static_cast<int64_t>(prompt->size());
  const int64_t room = loaded.config.max_context - prompt_tokens;
  Workload workload;
  workload.name = "prompt";
  workload.concurrency = 1;
  workload.requests = {{.arrival_s = 0,
                        .prompt_tokens = prompt_tokens,
                        .output_tokens = std::min(flags.max_output_tokens, room)}};
  workload.description = absl::StrFormat("one prompt, %d in, at most %d out", prompt_tokens,
                                         workload.requests[0].output_tokens);
  GenerationRequest request;
  request.prompt = *std::move(prompt);
  request.max_output_tokens = workload.requests[0].output_tokens;
  request.sampling = flags.sampling;
  request.stop = flags.stop;
  if (!flags.ignore_eos) request.stop_tokens = loaded.config.end_of_sequence;

  Engine engine(OptionsOf(flags, loaded), std::move(loaded.stages));
  if (absl::Status ready = engine.WaitUntilReady(); !ready.ok()) return ready;
  const bool stream = flags.format == Format::kText;
  std::string text;
  std::vector<SampledToken> tokens;
  GenerationUpdate last;
  Engine* const running = &engine;
  const std::atomic<bool>& interrupted = Interrupted();
  engine.Submit(std::move(request), [&](const GenerationUpdate& update) {
    text += update.text;
    if (stream) std::cout << update.text << std::flush;
    if (update.token.has_value()) tokens.push_back(*update.token);
    if (update.last()) {
      last = update;
    } else if (interrupted) {
      running->Cancel(update.request);
    }
  });
  absl::Status status = engine.WaitUntilIdle();
  loaded.KeepDescription();
  if (stream && !tokens.empty()) std::cout << std::endl;
  if (!status.ok()) return status;
  if (!last.error.ok()) return last.error;
  Result result = Describe(engine.Finish(), loaded, workload, flags.sampling.seed);
  const FinishReason reason = *last.finished;
  if (reason == FinishReason::kCancelled) result.set_partial("interrupted");
  if (stream) {
    if (flags.sampling.logprobs >= 0) PrintLogprobs(*loaded.tokenizer, tokens);
    std::cerr << absl::StrFormat("fabricast: %d tokens in, %d out (%s)", prompt_tokens,
                                 tokens.size(), Reason(reason));
    if (result.finished() > 0) {
      std::cerr << absl::StrFormat("; TTFT %.1f ms", 1e3 * result.ttft().mean());
    }
    if (result.tpot().count() > 0) {
      std::cerr << absl::StrFormat(", TPOT %.2f ms, %.1f tokens/s", 1e3 * result.tpot().mean(),
                                   1 / result.tpot().mean());
    }
    std::cerr << "\n";
  } else {
    nlohmann::json json = {
        {"text", text}, {"finish_reason", Reason(reason)}, {"tokens", nlohmann::json::array()}};
    if (!last.stop.empty()) json["stop"] = last.stop;
    for (const SampledToken& token : tokens) {
      json["tokens"].push_back(TokenJson(*loaded.tokenizer, token, flags.sampling.logprobs >= 0));
    }
    const absl::StatusOr<std::string> result_json = ToJson(result);
    if (!result_json.ok()) return result_json.status();
    json["result"] = nlohmann::json::parse(*result_json);
    std::cout << json.dump(1) << "\n";
  }
  if (absl::Status saved = Save(flags, loaded, result, engine.timeline(), file); !saved.ok()) {
    return saved;
  }
  return reason == FinishReason::kCancelled ? absl::CancelledError("interrupted")
                                            : absl::OkStatus();
}

absl::Status CheckLengths(const Workload& workload, int64_t max_context) {
  int64_t too_long = 0;
  size_t first = 0;
  for (size_t i = 0; i < workload.requests.size(); ++i) {
    const Request& request = workload.requests[i];
    if (request.prompt_tokens + request.output_tokens <= max_context) continue;
    if (too_long++ == 0) first = i;
  }
  if (too_long == 0) return absl::OkStatus();
  const Request& request = workload.requests[first];
  return absl::InvalidArgumentError(absl::StrFormat(
      "workload: %d of %d requests are longer than the model's context of %d tokens, such as "
      "number %d with %d in and %d out: choose shorter lengths",
      too_long, workload.requests.size(), max_context, first + 1, request.prompt_tokens,
      request.output_tokens));
}

absl::Status RunOnWorkload(const RunFlags& flags, const Workload& workload, Loaded& loaded,
                           std::optional<ResultFile>& file) {
  if (absl::Status status = CheckLengths(workload, loaded.config.max_context); !status.ok()) {
    return status;
  }
  // Only lengths are known, so the text is random and its end is where the workload says.
  std::vector<int32_t> excluded;
  const int32_t vocabulary = static_cast<int32_t>(loaded.config.vocabulary);
  for (int32_t id = 0; loaded.tokenizer != nullptr && id < vocabulary; ++id) {
    if (id >= loaded.tokenizer->size() || loaded.tokenizer->IsSpecial(id)) excluded.push_back(id);
  }
  ProgressLine line("running");
  WorkloadRunOptions options;
  options.interrupted = &Interrupted();
  options.progress = line.callback();
  options.make_request = [&](size_t index) {
    const uint64_t seed = flags.workload.options.seed * 1'000'003 + index;
    GenerationRequest request;
    request.prompt =
        RandomPrompt(workload.requests[index].prompt_tokens, vocabulary, excluded, seed);
    request.max_output_tokens = workload.requests[index].output_tokens;
    request.sampling = flags.sampling;
    request.sampling.seed = seed;
    return request;
  };
  Engine engine(OptionsOf(flags, loaded), std::move(loaded.stages));
  if (absl::Status ready = engine.WaitUntilReady(); !ready.ok()) return ready;
  const absl::Status status = RunWorkload(engine, workload, options);
  loaded.KeepDescription();
  if (!status.ok() && !absl::IsCancelled(status)) return status;
  Result result = Describe(engine.Finish(), loaded, workload, flags.workload.options.seed);
  if (!status.ok()) {
    result.set_partial("interrupted");
    result.add_warnings(
        absl::StrFormat("partial: interrupted with %d of %d requests finished and %d cancelled",
                        result.finished(), workload.requests.size(), result.cancelled()));
  }
  if (result.rejected() > 0) {
    result.add_warnings(absl::StrFormat(
        "%d of %d requests were rejected: they can never fit the KV cache of %d tokens",
        result.rejected(), result.requests(), loaded.plan.kv_tokens()));
  }
  if (flags.format == Format::kJson) {
    PrintJson(result);
  } else {
    PrintResults({result}, std::cout);
    std::cout << std::flush;
  }
  if (absl::Status saved = Save(flags, loaded, result, engine.timeline(), file); !saved.ok()) {
    return saved;
  }
  if (status.ok() && result.failed() > 0) {
    return absl::UnavailableError(
        absl::StrFormat("%d of %d requests failed; the result's warnings say why", result.failed(),
                        workload.requests.size()));
  }
  return status;
}

// The exit status of a run that ended so.
int Ended(const absl::Status& status) {
  if (status.ok()) return 0;
  Fail(status);
  return absl::IsCancelled(status) ? kExitInterrupted : 1;
}

ProcessFlags WithHead(ProcessFlags flags, const std::string& head) {
  flags.head = head;
  return flags;
}

int RunRun(const RunFlags& flags) {
  if (flags.prompt_given == flags.workload_given) {
    return Fail(absl::InvalidArgumentError(
        "give either --prompt (or --prompt-file) or --workload: one prompt's text, or a measured "
        "run"));
  }
  if (absl::Status status = Validate(flags.sampling); !status.ok()) return Fail(status);
  if (flags.max_output_tokens < 1) {
    return Fail(absl::InvalidArgumentError("--max-output-tokens: give at least 1"));
  }
  Interrupted();
  const std::vector<EnvironmentSetting> cuda =
      SetEnvironment(CudaEnvironment(flags.plan.tensor_parallel != "1"));
  std::optional<Workload> workload;
  if (flags.workload_given) {
    absl::StatusOr<Workload> read = flags.workload.Load();
    if (!read.ok()) return Fail(read.status());
    workload = *std::move(read);
  }
  absl::StatusOr<RunInputs> inputs =
      LoadRunInputs(flags.hardware, flags.plan, workload.has_value() ? &*workload : nullptr,
                    /*needs_tokenizer=*/flags.prompt_given);
  if (!inputs.ok()) return Fail(inputs.status());
  Loaded loaded{{*std::move(inputs)}, {}, 1, false, {}, nullptr, nullptr, {}, {}, {}};
  absl::StatusOr<Deployment> deployment =
      Deploy(loaded.topology, loaded.plan, flags.process, flags.processes, ThisEnvironment());
  if (!deployment.ok()) return Fail(deployment.status());
  loaded.deployment = *std::move(deployment);
  loaded.cuda = cuda;
  if (loaded.deployment.role == Deployment::Role::kStage) {
    return Ended(RunStage({.hardware = flags.hardware,
                           .processes = WithHead(flags.process, loaded.deployment.head),
                           .stage = loaded.deployment.stage,
                           .ip = loaded.deployment.ip}));
  }
  std::optional<ResultFile> file;
  if (!flags.out.empty()) {
    absl::StatusOr<ResultFile> opened = ResultFile::Open(flags.out);
    if (!opened.ok()) return Fail(opened.status());
    file.emplace(*std::move(opened));
  }
  for (const std::string& choice : loaded.plan.choices) LogLine(choice);
  if (absl::Status status = MakeStages(flags, loaded); !status.ok()) return Fail(status);
  return Ended(workload.has_value() ? RunOnWorkload(flags, *workload, loaded, file)
                                    : RunPrompt(flags, loaded, file));
}

}  // namespace

void AddRunCommand(CLI::App& app, int& exit_status) {
  CLI::App* command = app.add_subcommand(
      "run", "Compute real tokens of a checkpoint, on this machine's GPUs or processor");
  command->footer(
      "Examples:\n"
      "  fabricast run --model runtime/model/checkpoints/prose_16m --prompt 'Captain Ahab stood'\n"
      "  fabricast run --model ~/Llama-3.2-1B-Instruct --chat --prompt 'Why is the sky blue?'\n"
      "  fabricast run --model ~/Llama-3.2-1B-Instruct --topology local_gpu --prompt 'Once'\n"
      "  fabricast run --model ~/Llama-3.2-1B-Instruct --out measured.json \\\n"
      "      --workload closed:concurrency=4,requests=16,input=128,output=32");
  auto flags = std::make_shared<RunFlags>();
  flags->hardware.AddTo(*command);
  CLI::Option* prompt = command->add_option("--prompt", flags->prompt, "Text to continue");
  CLI::Option* prompt_file =
      command->add_option("--prompt-file", flags->prompt_file, "The same from a file; -: input")
          ->excludes(prompt);
  command->add_flag("--chat", flags->chat,
                    "The prompt is a user's message, in the model's chat template");
  command->add_option("--system", flags->system, "The system message of --chat");
  command->add_flag("--thinking,!--no-thinking", flags->thinking,
                    "Whether Qwen3 thinks before it answers; on by default");
  command->add_option("--max-output-tokens", flags->max_output_tokens, "Of a prompt")
      ->capture_default_str();
  command
      ->add_option("--temperature", flags->sampling.temperature, "0: always the most likely token")
      ->capture_default_str();
  command
      ->add_option("--top-p", flags->sampling.top_p,
                   "Only the most likely tokens that sum up to this")
      ->capture_default_str();
  command->add_option("--top-k", flags->sampling.top_k, "Only so many tokens; 0: all")
      ->capture_default_str();
  command
      ->add_option("--repetition-penalty", flags->sampling.repetition_penalty,
                   "Above 1: tokens that were there are less likely")
      ->capture_default_str();
  command->add_option("--logprobs", flags->sampling.logprobs,
                      "Log-probabilities of each token and of so many alternatives");
  command
      ->add_option("--stop", flags->stop,
                   "The text ends before this string. May be given more than once")
      ->allow_extra_args(false);
  command->add_flag("--ignore-eos", flags->ignore_eos,
                    "Go on where the model ends; always so in a workload");
  CLI::Option* workload = flags->workload.AddTo(*command);
  flags->plan.AddTo(*command);
  command->add_flag("--processes", flags->processes,
                    "Each stage is a process on this machine, started here; several hosts with "
                    "addresses, mpirun, srun, torchrun or an indexed job mean processes too");
  command->add_flag("--one-process", flags->process.one_process,
                    "Stages on GPUs are threads, whose activations cross its memory; default: a "
                    "process each, joined by NCCL");
  flags->process.AddTo(*command);
  command->add_option("--out", flags->out, "Write the result to this file, as JSON");
  command->add_option("--trace", flags->trace_file,
                      "Write a timeline for ui.perfetto.dev: a track a stage and a hop");
  AddFormatFlag(*command, flags->format);
  command->callback([=, &exit_status] {
    flags->prompt_given = prompt->count() + prompt_file->count() > 0;
    flags->workload_given = workload->count() > 0;
    flags->sampling.seed = flags->workload.options.seed;
    exit_status = RunRun(*flags);
  });
}

}  // namespace fabricast
