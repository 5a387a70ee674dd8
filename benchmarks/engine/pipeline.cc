// Tokens a second of a real model on stages that share a processor, and how much of the time no
// stage computes. Prints Markdown; see benchmarks/README.md.
//
// Nothing is timed before every setting has given the same greedy tokens.

#include <algorithm>
#include <iostream>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "benchmarks/engine/measure.h"
#include "runtime/engine/cpu_pipeline.h"
#include "runtime/engine/engine.h"
#include "runtime/engine/local_stages.h"
#include "runtime/engine/workload_run.h"
#include "runtime/model/decoder_config.h"
#include "runtime/plan/plan.h"
#include "runtime/weights/checkpoint.h"

namespace fabricast {
namespace {

struct Flags {
  std::string model = "runtime/model/checkpoints/prose_16m";
  int repeats = 5;
  bool quick = false;
};

struct Loaded {
  Topology topology;
  Model model;
  DecoderConfig config;
  std::shared_ptr<const Checkpoint> checkpoint;
};

absl::StatusOr<Loaded> Load(const std::string& folder) {
  absl::StatusOr<Topology> topology = Topology::Load("local_cpu");
  if (!topology.ok()) return topology.status();
  absl::StatusOr<DecoderConfig> config = LoadDecoderConfig(folder);
  if (!config.ok()) return config.status();
  absl::StatusOr<Model> model = LoadModel(folder, config->awq.has_value() ? "" : "bf16");
  if (!model.ok()) return model.status();
  absl::StatusOr<std::shared_ptr<const Checkpoint>> checkpoint = Checkpoint::Open(folder);
  if (!checkpoint.ok()) return checkpoint.status();
  return Loaded{*std::move(topology), *std::move(model), *std::move(config),
                *std::move(checkpoint)};
}

struct Setting {
  int stages = 1;
  int threads = 1;  // a stage
};

// `concurrency` requests at a time of `requests`, closed loop.
struct Offered {
  int concurrency = 1;
  int requests = 1;
  int64_t input = 0;
  int64_t output = 0;
};

absl::StatusOr<std::unique_ptr<Engine>> MakeEngine(const Loaded& loaded, const Setting& setting,
                                                   PlanOptions options) {
  options.stages = setting.stages;
  absl::StatusOr<Plan> plan = MakePlan(loaded.topology, loaded.model, options);
  if (!plan.ok()) return plan.status();
  absl::StatusOr<std::vector<std::unique_ptr<StageExecutor>>> stages =
      MakeCpuStages(loaded.config, loaded.checkpoint, setting.threads, *plan);
  if (!stages.ok()) return stages.status();
  return std::make_unique<Engine>(EngineOptions{.scheduler = plan->scheduler, .tokenizer = nullptr},
                                  MakeLocalStages(*std::move(stages)));
}

absl::StatusOr<Result> RunOnce(const Loaded& loaded, const Setting& setting,
                               const Offered& offered) {
  PlanOptions options;
  // Twice what the workload needs, so that no run waits for memory.
  options.kv_blocks = 2 + offered.concurrency * (2 + (offered.input + offered.output) / 16) * 2;
  absl::StatusOr<std::unique_ptr<Engine>> engine = MakeEngine(loaded, setting, options);
  if (!engine.ok()) return engine.status();
  absl::StatusOr<Workload> workload = MakeWorkload(
      absl::StrFormat("closed:concurrency=%d,requests=%d,input=%d,output=%d", offered.concurrency,
                      offered.requests, offered.input, offered.output));
  if (!workload.ok()) return workload.status();

  WorkloadRunOptions run;
  run.make_request = [&](size_t index) {
    GenerationRequest request;
    request.prompt =
        RandomPrompt(offered.input, static_cast<int32_t>(loaded.config.vocabulary), {}, index);
    request.max_output_tokens = offered.output;
    return request;
  };
  if (absl::Status status = RunWorkload(**engine, *workload, run); !status.ok()) return status;
  Result result = (*engine)->Finish();
  if (result.finished() != offered.requests) {
    return absl::InternalError(
        absl::StrCat(result.finished(), " of ", offered.requests, " requests finished"));
  }
  return result;
}

// The tokens themselves, of a few prompts of different lengths at a time, in small chunks.
absl::StatusOr<std::vector<std::vector<int32_t>>> Tokens(const Loaded& loaded,
                                                         const Setting& setting, int64_t output) {
  constexpr int kRequests = 5;
  PlanOptions options;
  options.kv_blocks = 200;
  options.max_chunk_tokens = 24;
  absl::StatusOr<std::unique_ptr<Engine>> engine = MakeEngine(loaded, setting, options);
  if (!engine.ok()) return engine.status();
  std::vector<std::vector<int32_t>> tokens(kRequests);
  for (size_t i = 0; i < tokens.size(); ++i) {
    GenerationRequest request;
    request.prompt = RandomPrompt(static_cast<int64_t>(10 + 20 * i),
                                  static_cast<int32_t>(loaded.config.vocabulary), {}, i);
    request.max_output_tokens = output;
    (*engine)->Submit(std::move(request), [&tokens, i](const GenerationUpdate& update) {
      if (update.token.has_value()) tokens[i].push_back(update.token->token);
    });
  }
  if (absl::Status status = (*engine)->WaitUntilIdle(); !status.ok()) return status;
  return tokens;
}

absl::Status Verify(const Loaded& loaded, const std::vector<Setting>& settings, int64_t output) {
  std::vector<std::vector<int32_t>> expected;
  for (const Setting& setting : settings) {
    absl::StatusOr<std::vector<std::vector<int32_t>>> tokens = Tokens(loaded, setting, output);
    if (!tokens.ok()) return tokens.status();
    if (expected.empty()) expected = *tokens;
    if (*tokens != expected) {
      return absl::InternalError(absl::StrCat(setting.stages, " stages of ", setting.threads,
                                              " threads give other tokens than 1 stage of 1"));
    }
  }
  std::cout << "\nVerified: " << expected.size() << " prompts, " << output
            << " greedy tokens each, the same on all settings.\n";
  return absl::OkStatus();
}

// All repeats of a setting under a load.
struct Repeats {
  std::vector<Result> results;

  template <typename Figure>
  double Of(Figure figure) const {
    std::vector<double> values;
    for (const Result& result : results) values.push_back(figure(result));
    return Median(values);
  }
  template <typename Figure>
  double Most(Figure figure) const {
    double most = 0;
    for (const Result& result : results) most = std::max(most, figure(result));
    return most;
  }
};

absl::StatusOr<std::vector<Repeats>> MeasureAll(const Loaded& loaded,
                                                const std::vector<Setting>& settings,
                                                const Offered& offered, int repeats) {
  std::vector<Repeats> all(settings.size());
  // All settings in turn: a neighbour's burst hits a repeat of each.
  for (int repeat = 0; repeat < repeats; ++repeat) {
    for (size_t i = 0; i < settings.size(); ++i) {
      absl::StatusOr<Result> result = RunOnce(loaded, settings[i], offered);
      if (!result.ok()) return result.status();
      all[i].results.push_back(*std::move(result));
    }
  }
  return all;
}

// Of the run, not in any stage: with one request at a time stages do not overlap.
double OutsideExecutor(const Result& result) {
  double busy = 0;
  for (const StageResult& stage : result.stages()) busy += stage.busy_fraction();
  return 1 - busy;
}

// "31 / 40 / 38".
std::string Bubbles(const Repeats& repeats, int stages) {
  std::string text;
  for (int s = 0; s < stages; ++s) {
    const double bubble =
        repeats.Of([s](const Result& result) { return result.stages(s).bubble_fraction(); });
    absl::StrAppend(&text, s == 0 ? "" : " / ", absl::StrFormat("%.0f", 100 * bubble));
  }
  return text;
}

absl::Status PrintDecode(const Loaded& loaded, const std::vector<Setting>& settings,
                         const std::vector<int>& concurrencies, int repeats, bool quick) {
  std::cout
      << "\n## Decode\n\n"
      << "16 tokens in, " << (quick ? 8 : 128)
      << " out. Bubbles: share of the run in which a stage computes nothing, by stage. Outside "
         "the executor: share in which none computes, which only one request at a time "
         "shows. Medians; \"most\" is the run that neighbours disturbed least.\n\n"
      << "| stages | threads a stage | at a time | tokens/s | most | TPOT, ms | bubbles, % | "
         "outside the executor, % | us a step |\n"
      << "| ---: | ---: | ---: | ---: | ---: | ---: | --- | ---: | ---: |\n";
  for (const int concurrency : concurrencies) {
    const Offered offered = {.concurrency = concurrency,
                             .requests = (quick ? 1 : 2) * concurrency,
                             .input = 16,
                             .output = quick ? 8 : 128};
    absl::StatusOr<std::vector<Repeats>> all = MeasureAll(loaded, settings, offered, repeats);
    if (!all.ok()) return all.status();
    for (size_t i = 0; i < settings.size(); ++i) {
      const Repeats& of = (*all)[i];
      const auto outside_us = [](const Result& result) {
        return 1e6 * OutsideExecutor(result) * result.duration_s() /
               static_cast<double>(result.stages(0).micro_batches());
      };
      const auto rate = [](const Result& result) { return result.output_tokens_per_s(); };
      std::cout << absl::StrFormat(
          "| %d | %d | %d | %.0f | %.0f | %.3f | %s | %s | %s |\n", settings[i].stages,
          settings[i].threads, concurrency, of.Of(rate), of.Most(rate),
          of.Of([](const Result& r) { return 1e3 * r.tpot().mean(); }),
          Bubbles(of, settings[i].stages),
          concurrency > 1 ? "" : absl::StrFormat("%.1f", 100 * of.Of(OutsideExecutor)),
          concurrency > 1 ? "" : absl::StrFormat("%.0f", of.Of(outside_us)));
    }
  }
  return absl::OkStatus();
}

absl::Status PrintPrefill(const Loaded& loaded, const std::vector<Setting>& settings, int repeats,
                          bool quick) {
  const int64_t input = quick ? 40 : 512;
  std::cout << "\n## Prefill\n\n"
            << input << " tokens in, 1 out, one request at a time.\n\n"
            << "| stages | threads a stage | prompt tokens/s | most | TTFT, ms | outside the "
               "executor, % |\n| ---: | ---: | ---: | ---: | ---: | ---: |\n";
  const Offered offered = {
      .concurrency = 1, .requests = quick ? 2 : 8, .input = input, .output = 1};
  absl::StatusOr<std::vector<Repeats>> all = MeasureAll(loaded, settings, offered, repeats);
  if (!all.ok()) return all.status();
  for (size_t i = 0; i < settings.size(); ++i) {
    const Repeats& of = (*all)[i];
    const double ttft_s = of.Of([](const Result& r) { return r.ttft().p50(); });
    const double most =
        of.Most([input](const Result& r) { return static_cast<double>(input) / r.ttft().p50(); });
    std::cout << absl::StrFormat("| %d | %d | %.0f | %.0f | %.1f | %.1f |\n", settings[i].stages,
                                 settings[i].threads, static_cast<double>(input) / ttft_s, most,
                                 1e3 * ttft_s, 100 * of.Of(OutsideExecutor));
  }
  return absl::OkStatus();
}

absl::Status Run(const Flags& flags) {
  absl::StatusOr<Loaded> loaded = Load(flags.model);
  if (!loaded.ok()) return loaded.status();
  const int repeats = flags.quick ? 1 : flags.repeats;
  std::cout << "# A pipeline on one processor\n\n";
  PrintEnvironment();
  std::cout << "- Model: " << loaded->model.name << "; medians of " << repeats << " runs\n";
  std::vector<Setting> settings;
  for (const int stages : {1, 2, 3}) {
    for (const int threads : {1, 2}) settings.push_back({stages, threads});
  }
  absl::Status status = Verify(*loaded, settings, flags.quick ? 4 : 32);
  const std::vector<int> concurrencies =
      flags.quick ? std::vector<int>{1, 3} : std::vector<int>{1, 4, 16};
  if (status.ok()) status = PrintDecode(*loaded, settings, concurrencies, repeats, flags.quick);
  if (status.ok()) status = PrintPrefill(*loaded, settings, repeats, flags.quick);
  if (!status.ok()) return status;
  std::cout << "\nLoad average of the machine at the end: " << LoadAverage() << "\n";
  return absl::OkStatus();
}

}  // namespace
}  // namespace fabricast

int main(int argc, char** argv) {
  fabricast::EnterWorkingDirectory();
  fabricast::Flags flags;
  CLI::App app("Measures a real model on stages that share a processor.");
  app.add_option("--model", flags.model, "A checkpoint folder")->capture_default_str();
  app.add_option("--repeats", flags.repeats, "Runs of each measurement; medians are printed")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  app.add_flag("--quick", flags.quick, "Small sizes, to see that it works; figures mean nothing");
  CLI11_PARSE(app, argc, argv);
  if (absl::Status status = fabricast::Run(flags); !status.ok()) {
    std::cerr << "pipeline: " << status.message() << "\n";
    return 1;
  }
  return 0;
}
