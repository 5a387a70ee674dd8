// Forecasts beside measurements that others have published: a serving run, a profile of a model's
// layers, NCCL's collectives. Prints Markdown; see benchmarks/README.md.

#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <iostream>
#include <map>
#include <optional>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "benchmarks/validation/layer_profile.h"
#include "benchmarks/validation/replay.h"
#include "benchmarks/validation/serving_log.h"
#include "benchmarks/validation/step_price.h"
#include "runtime/cost/communication_cost.h"
#include "simulator/collective.h"
#include "simulator/simulate.h"

namespace fabricast {
namespace {

constexpr char kTopology[] = "rtx_pro_6000_x8";
constexpr char kModel[] = "llama-3.1-8b-instruct";  // of the same shape as the base model served
constexpr char kLog[] = "vllm_logs/rtx_pro_6000_llama_3.1_8b_requests.jsonl";
constexpr char kLogMeta[] = "vllm_logs/rtx_pro_6000_llama_3.1_8b_meta.json";
constexpr char kProfile[] = "rtx_pro_6000/vllm_0.19_llama_3.1_8b_bf16_tp1";
constexpr char kCollectives[] = "rtx_pro_6000/nccl_collectives_one_node.csv";

absl::StatusOr<std::string> ReadFile(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  if (!in) return absl::NotFoundError(absl::StrCat(path, ": cannot be read"));
  std::ostringstream text;
  text << in.rdbuf();
  return text.str();
}

std::string Percent(double fraction) { return absl::StrFormat("%+.1f %%", 100 * fraction); }

// Relative errors, predicted / measured - 1.
class Errors {
 public:
  void Add(double predicted, double measured) { values_.push_back(predicted / measured - 1); }
  size_t count() const { return values_.size(); }
  double Median() const { return Quantile(values_, 0.5); }
  double AbsoluteQuantile(double q) const {
    std::vector<double> absolute;
    for (double value : values_) absolute.push_back(std::abs(value));
    return Quantile(absolute, q);
  }
  // "-4.1 % | 5.0 % | 12.2 %": median, and of their size median and 90th percentile.
  std::string Cells() const {
    if (values_.empty()) return "- | - | -";
    return absl::StrFormat("%s | %.1f %% | %.1f %%", Percent(Median()), 100 * AbsoluteQuantile(0.5),
                           100 * AbsoluteQuantile(0.9));
  }

 private:
  static double Quantile(std::vector<double> values, double q) {
    std::sort(values.begin(), values.end());
    const double position = q * static_cast<double>(values.size() - 1);
    const auto below = static_cast<size_t>(position);
    const size_t above = std::min(below + 1, values.size() - 1);
    return values[below] +
           (position - static_cast<double>(below)) * (values[above] - values[below]);
  }
  std::vector<double> values_;
};

// Everything that the sections share.
struct Setting {
  std::string data;
  Topology topology;
  Model model;
  std::optional<LayerProfile> profile;
};

absl::StatusOr<LayerProfile> LoadProfile(const std::string& folder) {
  std::vector<std::string> texts;
  for (const char* name : {"dense.csv", "per_sequence.csv", "attention.csv"}) {
    absl::StatusOr<std::string> text = ReadFile(absl::StrCat(folder, "/", name));
    if (!text.ok()) return text.status();
    texts.push_back(*std::move(text));
  }
  return LayerProfile::Parse(texts[0], texts[1], texts[2]);
}

void PrintRunTable(const Result& measured, const Result& simulated) {
  std::cout << "| | measured | simulated | error |\n| --- | ---: | ---: | ---: |\n";
  const auto row = [](const std::string& name, double a, double b, const char* format) {
    const auto text = [&](double value) {
      return absl::StrFormat(*absl::ParsedFormat<'f'>::New(format), value);
    };
    std::cout << "| " << name << " | " << text(a) << " | " << text(b) << " | " << Percent(b / a - 1)
              << " |\n";
  };
  const auto distribution = [&](const std::string& name, const Distribution& a,
                                const Distribution& b, double scale, const char* format) {
    row(name + " mean", a.mean() * scale, b.mean() * scale, format);
    row(name + " p50", a.p50() * scale, b.p50() * scale, format);
    row(name + " p90", a.p90() * scale, b.p90() * scale, format);
    row(name + " p99", a.p99() * scale, b.p99() * scale, format);
  };
  distribution("TTFT, s:", measured.ttft(), simulated.ttft(), 1, "%.3f");
  distribution("TPOT, ms:", measured.tpot(), simulated.tpot(), 1e3, "%.2f");
  distribution("E2E, s:", measured.e2e(), simulated.e2e(), 1, "%.2f");
  row("queue wait, s: mean", measured.queue_wait().mean(), simulated.queue_wait().mean(), "%.3f");
  row("output tokens a second", measured.output_tokens_per_s(), simulated.output_tokens_per_s(),
      "%.0f");
  row("makespan, s", measured.duration_s(), simulated.duration_s(), "%.2f");
}

void PrintDecodeWindows(const std::vector<DecodeWindow>& windows, const StepPrice& price) {
  if (windows.empty()) return;
  std::cout << "\nSteps that only decode, between the last tokens of two requests:\n\n"
               "| requests | tokens of context, all together | steps | measured ms | forecast ms | "
               "error |\n| ---: | ---: | ---: | ---: | ---: | ---: |\n";
  for (const DecodeWindow& window : windows) {
    const StepShape step{
        .chunks = {}, .decodes = std::llround(window.requests), .decode_context = window.context};
    const double forecast_s = price.Seconds(step);
    std::cout << absl::StrFormat("| %.0f | %.0f | %d | %.2f | %.2f | %s |\n", window.requests,
                                 window.context, window.steps, window.step_s * 1e3,
                                 forecast_s * 1e3, Percent(forecast_s / window.step_s - 1));
  }
}

void PrintPromptSteps(const std::vector<PromptStep>& steps, const StepPrice& price,
                      const std::optional<LayerProfile>& profile) {
  if (steps.empty()) return;
  std::cout
      << "\nSteps that take in whole prompts beside decodes, between two requests' tokens. "
         "\"One kernel\": the forecast with decodes and chunk in one attention kernel, as the "
         "layer profile has it.\n\n"
         "| decodes | steps | median measured ms | forecast, median error | one kernel, "
         "median error |\n| --- | ---: | ---: | ---: | ---: |\n";
  constexpr int kBounds[] = {1, 65, 121, 1'000'000};
  for (size_t i = 0; i + 1 < std::size(kBounds); ++i) {
    Errors forecast, one_kernel;
    std::vector<double> measured_ms;
    for (const PromptStep& step : steps) {
      if (step.decodes < kBounds[i] || step.decodes >= kBounds[i + 1]) continue;
      const StepShape shape = StepShape::Of(step);
      measured_ms.push_back(step.step_s * 1e3);
      forecast.Add(price.Seconds(shape), step.step_s);
      if (profile.has_value()) {
        one_kernel.Add(price.SecondsWithMixedKernel(shape, *profile), step.step_s);
      }
    }
    if (measured_ms.empty()) continue;
    std::sort(measured_ms.begin(), measured_ms.end());
    std::cout << "| " << kBounds[i]
              << (i + 2 < std::size(kBounds) ? absl::StrCat(" to ", kBounds[i + 1] - 1)
                                             : " and more")
              << absl::StrFormat(" | %d | %.1f | %s | %s |\n", measured_ms.size(),
                                 measured_ms[measured_ms.size() / 2], Percent(forecast.Median()),
                                 profile.has_value() ? Percent(one_kernel.Median()) : "-");
  }
}

absl::Status PrintReplays(const Workload& workload, const SchedulerOptions& scheduler,
                          const Result& measured, const Result& simulated, const StepPrice& price,
                          const DecodeRest& rest, const std::optional<LayerProfile>& profile) {
  std::cout << "\nThe same replay with terms of a step's price replaced by what was measured. The "
               "layer profile knows nothing of this run; the rest of decode-only steps comes from "
               "its own windows above, so those lines say what the gap consists of, not what a "
               "forecast could have known. Errors:\n\n"
               "| price of a step | makespan | TTFT mean | TTFT p50 | TTFT p99 | TPOT mean | TPOT "
               "p99 | E2E mean |\n| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n";
  const auto forecast = [&](const MicroBatch& batch) {
    return price.Seconds(StepShape::Of(batch));
  };
  const auto one_kernel = [&](const MicroBatch& batch) {
    return price.SecondsWithMixedKernel(StepShape::Of(batch), *profile);
  };
  const auto with_rest = [&](auto base) {
    return [&rest, base](const MicroBatch& batch) {
      const StepShape step = StepShape::Of(batch);
      return base(batch) +
             (step.chunks.empty() ? rest.Seconds(static_cast<double>(step.decodes)) : 0);
    };
  };
  struct Variant {
    const char* name;
    std::function<double(const MicroBatch&)> step_s;
    bool schedule_ahead = false;
  };
  std::vector<Variant> variants = {
      {"as forecast", forecast},
      {"as forecast, scheduled a step ahead", forecast, true},
      {"rest of decode-only steps", with_rest(forecast)},
  };
  if (profile.has_value()) {
    variants.push_back({"one attention kernel in mixed steps", one_kernel});
    variants.push_back({"both", with_rest(one_kernel)});
    variants.push_back({"both, scheduled a step ahead", with_rest(one_kernel), true});
  }
  for (const Variant& variant : variants) {
    const Result replayed = Replay(workload, {.scheduler = scheduler,
                                              .step_s = variant.step_s,
                                              .schedule_ahead = variant.schedule_ahead});
    if (&variant == &variants.front() &&
        std::abs(replayed.duration_s() / simulated.duration_s() - 1) > 1e-9) {
      return absl::InternalError(absl::StrCat("the replay ends after ", replayed.duration_s(),
                                              " s, the simulation after ", simulated.duration_s()));
    }
    const auto error = [](double value, double truth) { return Percent(value / truth - 1); };
    std::cout << "| " << variant.name << " | "
              << error(replayed.duration_s(), measured.duration_s()) << " | "
              << error(replayed.ttft().mean(), measured.ttft().mean()) << " | "
              << error(replayed.ttft().p50(), measured.ttft().p50()) << " | "
              << error(replayed.ttft().p99(), measured.ttft().p99()) << " | "
              << error(replayed.tpot().mean(), measured.tpot().mean()) << " | "
              << error(replayed.tpot().p99(), measured.tpot().p99()) << " | "
              << error(replayed.e2e().mean(), measured.e2e().mean()) << " |\n";
  }
  return absl::OkStatus();
}

absl::Status PrintServingRun(const Setting& setting, const ServingLog& log) {
  PlanOptions options;
  options.stages = 1;
  options.max_in_flight = 1;
  options.max_batch_tokens = log.max_batch_tokens;
  options.max_chunk_tokens = log.max_batch_tokens;
  options.max_running = log.max_running;
  absl::StatusOr<Plan> plan = MakePlan(setting.topology, setting.model, options);
  if (!plan.ok()) return plan.status();
  const Workload workload = ReplayOf(log);
  absl::StatusOr<Result> simulated = Simulate({.label = kTopology,
                                               .topology = setting.topology,
                                               .model = setting.model,
                                               .plan = *plan,
                                               .workload = workload,
                                               .trace_file = ""});
  if (!simulated.ok()) return simulated.status();
  if (simulated->finished() != static_cast<int64_t>(log.requests.size())) {
    return absl::InternalError(absl::StrCat(simulated->finished(), " requests finished"));
  }
  const Result measured = Measured(log);
  std::cout << absl::StrFormat(
      "\n## A serving run\n\n"
      "%s, %s, one RTX PRO 6000 Server Edition: %d requests in %.1f s, %d tokens in, %d out; at "
      "most %d running, steps of at most %d tokens. The forecast replays arrivals and lengths with "
      "the same limits; its KV cache, %d blocks, is never filled beyond %.0f %%.\n\n",
      log.engine, log.model, log.requests.size(), log.requests.back().arrival_s,
      measured.prompt_tokens(), measured.output_tokens(), log.max_running, log.max_batch_tokens,
      plan->scheduler.kv_blocks, 100 * simulated->kv_peak_fraction());
  PrintRunTable(measured, *simulated);
  double from_queue_s = 0;
  for (const ServedRequest& request : log.requests) {
    from_queue_s +=
        (request.first_token_s - request.queued_s) / static_cast<double>(log.requests.size());
  }
  std::cout << absl::StrFormat(
      "\nTimes count from the request's arrival. From the moment that the engine's core took it "
      "in, "
      "between two steps, the measured mean TTFT is %.3f s.\n",
      from_queue_s);

  std::cout << "\n### Where the error comes from\n";
  const StepPrice price(setting.topology, setting.model, *plan);
  const std::vector<DecodeWindow> windows = DecodeWindows(log);
  PrintDecodeWindows(windows, price);
  PrintPromptSteps(PromptSteps(log), price, setting.profile);
  return PrintReplays(workload, plan->scheduler, measured, *simulated, price,
                      DecodeRest(windows, price), setting.profile);
}

absl::Status PrintLayerProfile(const Setting& setting) {
  std::cout << "\n## Steps out of profiled layers\n\n";
  if (!setting.profile.has_value()) {
    std::cout << "Skipped: no profile in " << setting.data << "/" << kProfile << "\n";
    return absl::OkStatus();
  }
  PlanOptions options;
  options.stages = 1;
  absl::StatusOr<Plan> plan = MakePlan(setting.topology, setting.model, options);
  if (!plan.ok()) return plan.status();
  const StepPrice price(setting.topology, setting.model, *plan);
  const int layers = setting.model.num_layers();

  struct Class {
    std::string name;
    std::function<bool(const AttentionShape&)> holds;
    Errors step;
    Errors attention;
  };
  // Contexts up to what the serving run has, or beyond.
  const auto mixed = [](int64_t low, int64_t high, bool longer) {
    return [=](const AttentionShape& shape) {
      return shape.chunk > 0 && low <= shape.decodes && shape.decodes <= high &&
             (shape.decode_context > 2048 || shape.chunk_past > 2048) == longer;
    };
  };
  std::vector<Class> classes = {
      {"decodes, contexts below 256",
       [](const AttentionShape& s) { return s.chunk == 0 && s.decode_context < 256; },
       {},
       {}},
      {"decodes, contexts of 256 and more",
       [](const AttentionShape& s) { return s.chunk == 0 && s.decode_context >= 256; },
       {},
       {}},
      {"first chunk of a prompt",
       [](const AttentionShape& s) { return s.decodes == 0 && s.chunk_past == 0; },
       {},
       {}},
      {"later chunk",
       [](const AttentionShape& s) { return s.decodes == 0 && s.chunk_past > 0; },
       {},
       {}},
      {"chunk and 1 to 8 decodes, up to 2,048 tokens before each", mixed(1, 8, false), {}, {}},
      {"chunk and 16 to 32 decodes, up to 2,048", mixed(16, 32, false), {}, {}},
      {"chunk and 64 to 128 decodes, up to 2,048", mixed(64, 128, false), {}, {}},
      {"chunk and 1 to 32 decodes, longer", mixed(1, 32, true), {}, {}},
      {"chunk and 64 to 128 decodes, longer", mixed(64, 128, true), {}, {}},
  };
  size_t used = 0;
  for (const AttentionRow& row : setting.profile->attention()) {
    StepShape step{
        .chunks = {},
        .decodes = row.shape.decodes,
        .decode_context = static_cast<double>(row.shape.decodes * row.shape.decode_context)};
    if (row.shape.chunk > 0) {
      step.chunks.push_back({.tokens = row.shape.chunk, .past = row.shape.chunk_past});
    }
    const int64_t sequences = row.shape.decodes + static_cast<int64_t>(step.chunks.size());
    const double other_s =
        setting.profile->OtherSeconds(layers, row.shape.chunk + row.shape.decodes, sequences);
    if (other_s < 0) continue;
    ++used;
    for (Class& each : classes) {
      if (!each.holds(row.shape)) continue;
      each.step.Add(price.Seconds(step) - price.step_overhead_s(), other_s + layers * row.seconds);
      each.attention.Add(price.AttentionSeconds(step), layers * row.seconds);
    }
  }
  std::cout << absl::StrFormat(
      "%d of the profile's %d combinations of chunk, context and decodes (those of at most 2,048 "
      "tokens), each put together to a step of all %d layers, embedding, lm_head and sampling, "
      "without the forecast's %.0f us a step, which kernels do not show. Error of the forecast: "
      "median, then median and 90th percentile of its size.\n\n"
      "| | steps | step | size p50 | size p90 | attention alone | size p50 | size p90 |\n"
      "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n",
      used, setting.profile->attention().size(), layers, price.step_overhead_s() * 1e6);
  for (const Class& each : classes) {
    std::cout << "| " << each.name << " | " << each.step.count() << " | " << each.step.Cells()
              << " | " << each.attention.Cells() << " |\n";
  }
  return absl::OkStatus();
}

absl::Status PrintCollectives(const Setting& setting) {
  std::cout << "\n## Collectives within a host\n\n";
  const std::string path = absl::StrCat(setting.data, "/", kCollectives);
  absl::StatusOr<std::string> text = ReadFile(path);
  if (!text.ok()) {
    std::cout << "Skipped: no measurements in " << path << "\n";
    return absl::OkStatus();
  }
  absl::StatusOr<CsvTable> table = CsvTable::Parse(*text);
  if (!table.ok()) return table.status();
  std::map<std::string, size_t> column;
  for (const char* name : {"op_name", "nccl_dtype", "num_gpus", "message_size", "latency_ms"}) {
    const absl::StatusOr<size_t> found = table->Column(name);
    if (!found.ok()) return found.status();
    column[name] = *found;
  }
  struct Point {
    double bytes;
    double seconds;
  };
  std::map<std::pair<std::string, int>, std::vector<Point>> measured;
  for (size_t row = 0; row < table->rows(); ++row) {
    const std::string& op = table->Text(row, column["op_name"]);
    // The calibration knows no all-to-all as a collective: its pairs are sends.
    if (table->Text(row, column["nccl_dtype"]) != "half" || op == "alltoall") continue;
    const absl::StatusOr<double> gpus = table->Number(row, column["num_gpus"]);
    const absl::StatusOr<double> elements = table->Number(row, column["message_size"]);
    const absl::StatusOr<double> ms = table->Number(row, column["latency_ms"]);
    for (const absl::Status& status : {gpus.status(), elements.status(), ms.status()}) {
      if (!status.ok()) return status;
    }
    measured[{op, static_cast<int>(*gpus)}].push_back({2 * *elements, *ms * 1e-3});
  }
  constexpr double kBounds[] = {0, 65'536, 1'048'576, 16'777'216, 1e18};
  const char* names[] = {"up to 32 KiB", "64 to 512 KiB", "1 to 8 MiB", "16 MiB and more"};
  std::map<std::pair<int, size_t>, Errors> errors;  // by GPUs and size class
  std::vector<int> counts;
  for (const auto& [key, points] : measured) {
    const absl::StatusOr<CollectiveOp> op = ParseCollectiveOp(key.first);
    if (!op.ok()) return op.status();
    CollectiveRun run{.op = *op, .gpus = {}, .sizes = {}, .algorithm = "", .protocol = ""};
    for (int gpu = 0; gpu < key.second; ++gpu) run.gpus.push_back(gpu);
    for (const Point& point : points) run.sizes.push_back(point.bytes);
    absl::StatusOr<std::vector<CollectiveRow>> rows = SimulateCollective(setting.topology, run);
    if (!rows.ok()) return rows.status();
    for (size_t i = 0; i < points.size(); ++i) {
      size_t size_class = 0;
      while (points[i].bytes >= kBounds[size_class + 1]) ++size_class;
      errors[{key.second, size_class}].Add((*rows)[i].seconds, points[i].seconds);
    }
    if (std::find(counts.begin(), counts.end(), key.second) == counts.end()) {
      counts.push_back(key.second);
    }
  }
  std::sort(counts.begin(), counts.end());
  std::cout << "NCCL 2.29.2, BF16, all-reduce, all-gather and reduce-scatter over PCIe, against "
               "`fabricast collective "
            << kTopology
            << "`. Error: median; then median and 90th percentile of its size.\n\n| size |";
  for (int gpus : counts) std::cout << " " << gpus << " GPUs | p50 | p90 |";
  std::cout << "\n| --- |";
  for (size_t i = 0; i < counts.size(); ++i) std::cout << " ---: | ---: | ---: |";
  std::cout << "\n";
  for (size_t size_class = 0; size_class < std::size(names); ++size_class) {
    std::cout << "| " << names[size_class] << " |";
    for (int gpus : counts) std::cout << " " << errors[{gpus, size_class}].Cells() << " |";
    std::cout << "\n";
  }
  return absl::OkStatus();
}

absl::Status Run(const std::string& data) {
  absl::StatusOr<std::string> meta = ReadFile(absl::StrCat(data, "/", kLogMeta));
  if (!meta.ok()) return meta.status();
  absl::StatusOr<std::string> lines = ReadFile(absl::StrCat(data, "/", kLog));
  if (!lines.ok()) return lines.status();
  absl::StatusOr<ServingLog> log = ParseServingLog(*meta, *lines);
  if (!log.ok()) {
    return absl::InvalidArgumentError(absl::StrCat(data, "/", kLog, ": ", log.status().message()));
  }
  absl::StatusOr<Topology> topology = Topology::Load(kTopology);
  if (!topology.ok()) return topology.status();
  absl::StatusOr<Model> model = LoadModel(kModel);
  if (!model.ok()) return model.status();
  Setting setting{
      .data = data, .topology = *topology, .model = *std::move(model), .profile = std::nullopt};
  absl::StatusOr<LayerProfile> profile = LoadProfile(absl::StrCat(data, "/", kProfile));
  if (profile.ok()) {
    setting.profile = *std::move(profile);
  } else if (profile.status().code() != absl::StatusCode::kNotFound) {
    return profile.status();
  }
  char date[16];
  const time_t now = time(nullptr);
  tm parts;
  strftime(date, sizeof(date), "%Y-%m-%d", gmtime_r(&now, &parts));
  std::cout << "# Forecasts against published measurements\n\nDate: " << date << "\n";
  absl::Status status = PrintServingRun(setting, *log);
  if (status.ok()) status = PrintLayerProfile(setting);
  if (status.ok()) status = PrintCollectives(setting);
  return status;
}

}  // namespace
}  // namespace fabricast

int main(int argc, char** argv) {
  // `bazel run` starts programs elsewhere.
  if (const char* directory = getenv("BUILD_WORKING_DIRECTORY")) {
    if (chdir(directory) != 0) perror(directory);
  }
  std::string data = "../shared/data";
  CLI::App app(
      "Compares forecasts with published measurements.\n"
      "Exit status: 0 done, 1 a file is broken, 2 there are no measurements to compare with.");
  app.add_option("--data", data, "Folder of the measurements")->capture_default_str();
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 1;
  }
  const absl::Status status = fabricast::Run(data);
  if (status.ok()) return 0;
  std::cout.flush();
  if (status.code() == absl::StatusCode::kNotFound) {
    std::cerr << "validation: skipped, nothing was compared: " << status.message()
              << ". The measurements are not part of the project; --data names their folder.\n";
    return 2;
  }
  std::cerr << "validation: " << status.message() << "\n";
  return 1;
}
