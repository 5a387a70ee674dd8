// What it costs that stages are processes: requests that decode on stages that compute nothing,
// with a gRPC stream to each and TCP between them; and a whole trace through them. Prints Markdown;
// see benchmarks/README.md.
//
// This program is also the stages' (`--as-stage`).

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <fstream>
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
#include "runtime/check.h"
#include "runtime/control/remote_stages.h"
#include "runtime/control/stage_children.h"
#include "runtime/control/stage_process.h"
#include "runtime/engine/engine.h"
#include "runtime/engine/workload_run.h"
#include "runtime/workload/workload.h"

namespace fabricast {
namespace {

// prose_16m's: 384 float32 values.
constexpr int64_t kActivationBytes = 1536;
constexpr int kBarRunning = 64;
constexpr double kBarP50 = 150;  // microseconds a step and stage
constexpr double kBarP99 = 1000;

struct Flags {
  int repeats = 5;
  bool quick = false;
  std::string workload;  // empty: none
  int stages = 3;        // of the workload's run
  int concurrency = 256;
  // A stage's.
  int as_stage = -1;
  std::string head;
  std::string token_file;
};

int32_t TokenOf(RequestId request, int64_t position) {
  return static_cast<int32_t>((request * 31 + position * 7) % 4000);
}

class NullExecutor : public StageExecutor {
 public:
  int64_t activation_bytes_per_token() const override { return kActivationBytes; }
  absl::Status Run(const Step& step, absl::Span<const std::byte>, absl::Span<std::byte> output,
                   std::vector<SampledToken>& sampled) override {
    if (!output.empty()) return absl::OkStatus();
    for (const BatchEntry& entry : step.micro_batch.entries) {
      if (!entry.samples) continue;
      sampled.emplace_back().token = TokenOf(entry.request, entry.first_token + entry.tokens);
    }
    return absl::OkStatus();
  }
  void Reset() override {}  // keeps nothing of a request
};

int RunAsStage(const Flags& flags) {
  absl::StatusOr<SharedSecret> secret = SharedSecret::FromFile(flags.token_file);
  FABRICAST_CHECK(secret.ok()) << secret.status();
  StageProcessOptions options;
  options.stage = flags.as_stage;
  options.head = flags.head;
  options.secret = *std::move(secret);
  options.load = [](const control::Load&) -> absl::StatusOr<std::unique_ptr<StageExecutor>> {
    return std::make_unique<NullExecutor>();
  };
  const absl::Status status = RunStageProcess(options);
  if (!status.ok()) std::cerr << status.message() << "\n";
  return status.ok() ? 0 : 1;
}

// An engine over `stages` processes.
class Pipeline {
 public:
  Pipeline(int stages, const SchedulerOptions& scheduler, bool keep_timeline) {
    RemoteStagesOptions options;
    for (int s = 0; s < stages; ++s) {
      options.loads.emplace_back().set_stages(stages);
    }
    absl::StatusOr<std::unique_ptr<RemoteStages>> remote = RemoteStages::Listen(options);
    FABRICAST_CHECK(remote.ok()) << remote.status();
    StageChildrenOptions all;
    for (int s = 0; s < stages; ++s) all.stages.push_back(s);
    all.secret = options.secret;
    all.arguments = [head = (*remote)->address()](int stage) -> std::vector<std::string> {
      return {"--as-stage", absl::StrCat(stage), "--head",
              head,         "--token-file",      StageChildrenOptions::kTokenFile};
    };
    all.on_end = [remote = remote->get()](int stage, absl::string_view how, bool fatal) {
      remote->ProcessEnded(stage, how, fatal);
    };
    absl::StatusOr<std::unique_ptr<StageChildren>> children = StageChildren::Start(std::move(all));
    FABRICAST_CHECK(children.ok()) << children.status();
    children_ = *std::move(children);
    EngineOptions engine;
    engine.scheduler = scheduler;
    engine.keep_timeline = keep_timeline;
    engine_ = std::make_unique<Engine>(engine, *std::move(remote));
    const absl::Status ready = engine_->WaitUntilReady();
    FABRICAST_CHECK(ready.ok()) << ready;
  }
  ~Pipeline() {
    engine_ = nullptr;
    children_->LetGo(absl::Seconds(5));
  }

  Engine& engine() { return *engine_; }
  pid_t pid(int stage) const { return children_->pid(stage); }

 private:
  std::unique_ptr<StageChildren> children_;
  std::unique_ptr<Engine> engine_;
};

struct Steps {
  double p50 = 0;  // microseconds
  double p99 = 0;
};

// Of `running` requests that all decode, from one step's start on the first stage to the next
// one's, `in_flight` of them at a time.
Steps TimeSteps(int stages, int in_flight, int running, int64_t steps) {
  const int64_t tokens = 40 + steps / in_flight;
  SchedulerOptions scheduler;
  scheduler.max_in_flight = in_flight;
  scheduler.max_batch_tokens = 2 * running + 1;
  scheduler.max_chunk_tokens = running;
  scheduler.max_running = running;
  scheduler.kv_blocks = running * (tokens / 16 + 3) * 102 / 100 + 2;
  Pipeline pipeline(stages, scheduler, /*keep_timeline=*/true);
  std::atomic<int64_t> heard = 0, ended = 0;
  for (int i = 0; i < running; ++i) {
    GenerationRequest request;
    request.prompt = {TokenOf(i, 0)};
    request.max_output_tokens = tokens;
    pipeline.engine().Submit(std::move(request), [&](const GenerationUpdate& update) {
      heard += update.token.has_value() ? 1 : 0;
      ended += update.finished == FinishReason::kLength ? 1 : 0;
    });
  }
  const absl::Status status = pipeline.engine().WaitUntilIdle();
  FABRICAST_CHECK(status.ok()) << status;
  FABRICAST_CHECK(ended == running && heard == running * tokens) << ended << " " << heard;
  pipeline.engine().Finish();
  std::vector<double> starts;
  for (const StageSlice& slice : pipeline.engine().timeline().stages) {
    if (slice.stage == 0 && slice.prefill_tokens == 0) starts.push_back(slice.start_s);
  }
  std::vector<double> gaps;
  for (size_t i = 20; i + 1 < starts.size(); ++i) gaps.push_back(1e6 * (starts[i + 1] - starts[i]));
  return {.p50 = Median(gaps), .p99 = Percentile(gaps, 0.99)};
}

Steps MedianOf(const std::vector<Steps>& runs) {
  std::vector<double> p50, p99;
  for (const Steps& run : runs) {
    p50.push_back(run.p50);
    p99.push_back(run.p99);
  }
  return {.p50 = Median(p50), .p99 = Median(p99)};
}

void MeasureSteps(const Flags& flags) {
  const std::vector<int> loads =
      flags.quick ? std::vector<int>{kBarRunning} : std::vector<int>{1, 8, kBarRunning, 256};
  struct Row {
    int stages, in_flight, running;
    std::vector<Steps> runs = {};
  };
  std::vector<Row> rows;
  for (const int stages : {1, 2, 3}) {
    for (const int running : loads) {
      rows.push_back({stages, 1, running});
      if (stages > 1 && running >= stages) rows.push_back({stages, stages, running});
    }
  }
  // One setting after the other, and all of that again: a neighbour's burst hits a run of each.
  for (int repeat = 0; repeat < (flags.quick ? 1 : flags.repeats); ++repeat) {
    for (Row& row : rows) {
      row.runs.push_back(
          TimeSteps(row.stages, row.in_flight, row.running, flags.quick ? 60 : 3000));
    }
  }
  std::cout
      << "\n## A step\n\n"
      << "From its start on the first stage to the next one's, divided by the stages where one "
         "step is in flight: it passes them all, and head, control and wires between them. "
         "With as many in flight as stages it is what a stage is kept from the next step. "
      << kActivationBytes << " bytes of activations a token. Medians of runs, microseconds.\n\n"
      << "| stages | in flight | running | p50 | p99 |\n| ---: | ---: | ---: | ---: | ---: |\n";
  std::string bar;
  for (const Row& row : rows) {
    Steps steps = MedianOf(row.runs);
    if (row.in_flight == 1) {
      steps.p50 /= row.stages;
      steps.p99 /= row.stages;
    }
    std::cout << absl::StrFormat("| %d | %d | %d | %.0f | %.0f |\n", row.stages, row.in_flight,
                                 row.running, steps.p50, steps.p99);
    if (row.running != kBarRunning) continue;
    absl::StrAppendFormat(&bar, "| %d, %d in flight | %.0f | %.0f | %s | %.0f | %.0f | %s |\n",
                          row.stages, row.in_flight, steps.p50, kBarP50,
                          steps.p50 < kBarP50 ? "met" : "MISSED", steps.p99, kBarP99,
                          steps.p99 < kBarP99 ? "met" : "MISSED");
  }
  std::cout << "\n### Bar\n\n"
            << "| stages, " << kBarRunning
            << " running | p50, us | bar | | p99, us | bar | |\n"
               "| --- | ---: | ---: | --- | ---: | ---: | --- |\n"
            << bar;
}

double ResidentMegabytes(pid_t pid) {
  std::ifstream in(absl::StrCat("/proc/", pid, "/statm"));
  int64_t size = 0, resident = 0;
  in >> size >> resident;
  return 1e-6 * static_cast<double>(resident * sysconf(_SC_PAGESIZE));
}

absl::Status RunTrace(const Flags& flags) {
  absl::StatusOr<Workload> workload = MakeWorkload(flags.workload);
  if (!workload.ok()) return workload.status();
  // As fast as the stages take them, instead of in the hour that it took.
  workload->concurrency = flags.concurrency;
  SchedulerOptions scheduler;
  scheduler.max_in_flight = flags.stages;
  scheduler.max_running = flags.concurrency;
  scheduler.kv_blocks = 1'000'000;
  Pipeline pipeline(flags.stages, scheduler, /*keep_timeline=*/false);
  struct Sample {
    double done, wall_s;
    std::vector<double> megabytes;
  };
  std::vector<Sample> samples;
  const double start = WallSeconds();
  WorkloadRunOptions options;
  options.make_request = [&](size_t index) {
    GenerationRequest request;
    request.prompt = RandomPrompt(workload->requests[index].prompt_tokens, 4000, {}, index);
    request.max_output_tokens = workload->requests[index].output_tokens;
    return request;
  };
  options.progress = [&](double done) {
    if (!samples.empty() && done < samples.back().done + 0.1) return;
    Sample sample{
        .done = done, .wall_s = WallSeconds() - start, .megabytes = {ResidentMegabytes(getpid())}};
    for (int s = 0; s < flags.stages; ++s) {
      sample.megabytes.push_back(ResidentMegabytes(pipeline.pid(s)));
    }
    samples.push_back(std::move(sample));
  };
  const absl::Status status = RunWorkload(pipeline.engine(), *workload, options);
  if (!status.ok()) return status;
  const double wall_s = WallSeconds() - start;
  const Result result = pipeline.engine().Finish();
  std::cout
      << "\n## A trace\n\n"
      << absl::StrFormat(
             "%s: %d requests, %d prompt and %d output tokens, %d at a time through %d "
             "processes, as fast as they take it: %.1f s (%.0f output tokens/s). Finished %d, "
             "failed %d, rejected %d, lost %d.\n\n",
             workload->name, workload->requests.size(), result.prompt_tokens(),
             result.output_tokens(), flags.concurrency, flags.stages, wall_s,
             static_cast<double>(result.output_tokens()) / wall_s, result.finished(),
             result.failed(), result.rejected(),
             static_cast<int64_t>(workload->requests.size()) - result.finished() - result.failed() -
                 result.rejected())
      << "| done | after, s | head, MB |";
  for (int s = 0; s < flags.stages; ++s) std::cout << " stage " << s << ", MB |";
  std::cout << "\n| ---: | ---: |";
  for (int s = 0; s <= flags.stages; ++s) std::cout << " ---: |";
  std::cout << "\n";
  for (const Sample& sample : samples) {
    std::cout << absl::StrFormat("| %.0f %% | %.1f |", 100 * sample.done, sample.wall_s);
    for (const double megabytes : sample.megabytes) {
      std::cout << absl::StrFormat(" %.1f |", megabytes);
    }
    std::cout << "\n";
  }
  if (result.finished() != static_cast<int64_t>(workload->requests.size())) {
    return absl::InternalError("requests were lost");
  }
  return absl::OkStatus();
}

int Run(const Flags& flags) {
  std::cout << "# Stages as processes\n\n";
  PrintEnvironment();
  MeasureSteps(flags);
  if (!flags.workload.empty()) {
    if (const absl::Status status = RunTrace(flags); !status.ok()) {
      std::cerr << "process_overhead: " << status.message() << "\n";
      return 1;
    }
  }
  std::cout << "\nLoad average of the machine at the end: " << LoadAverage() << "\n";
  return 0;
}

}  // namespace
}  // namespace fabricast

int main(int argc, char** argv) {
  fabricast::Flags flags;
  CLI::App app("Measures what it costs that stages are processes.");
  app.add_option("--repeats", flags.repeats, "Runs of each measurement; medians are printed")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  app.add_flag("--quick", flags.quick, "Small sizes, to see that it works; figures mean nothing");
  app.add_option("--workload", flags.workload, "A workload or trace to run as fast as it goes");
  app.add_option("--stages", flags.stages, "Of the workload's run")->capture_default_str();
  app.add_option("--concurrency", flags.concurrency, "Requests of the workload at a time")
      ->capture_default_str();
  app.add_option("--as-stage", flags.as_stage, "Internal")->group("");
  app.add_option("--head", flags.head, "Internal")->group("");
  app.add_option("--token-file", flags.token_file, "Internal")->group("");
  CLI11_PARSE(app, argc, argv);
  if (flags.as_stage >= 0) return fabricast::RunAsStage(flags);
  fabricast::EnterWorkingDirectory();
  return fabricast::Run(flags);
}
