// What the engine itself costs a step: requests that decode on stages that compute nothing. Prints
// Markdown; see benchmarks/README.md.
//
// The floor comes first, from the same run: two threads that hand over to one another, and the
// scheduler's decisions alone.

#include <algorithm>
#include <iostream>
#include <string>
#include <utility>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "benchmarks/engine/measure.h"
#include "benchmarks/engine/step_loops.h"

namespace fabricast {
namespace {

constexpr int kBarRunning = 64;
constexpr double kBarMicroseconds = 50;
constexpr double kComputeSeconds = 1e-3;  // a decode step of a small model

struct Flags {
  std::string model = "runtime/model/checkpoints/prose_16m";
  int repeats = 5;
  bool quick = false;
};

// Medians over repeats, microseconds.
struct Figures {
  double p50 = 0;
  double p99 = 0;
  double cpu = 0;
};

using Loop = StepTimes (*)(const StepLoad&);

Figures Summarize(const std::vector<StepTimes>& repeats) {
  std::vector<double> p50, p99, cpu;
  for (const StepTimes& times : repeats) {
    p50.push_back(1e6 * Median(times.wall_s));
    p99.push_back(1e6 * Percentile(times.wall_s, 0.99));
    cpu.push_back(1e6 * times.cpu_s);
  }
  return {.p50 = Median(p50), .p99 = Median(p99), .cpu = Median(cpu)};
}

// One setting after the other, and all of that again: a neighbour's burst hits a repeat of each.
std::vector<Figures> MeasureAll(Loop loop, const std::vector<StepLoad>& loads, int repeats) {
  std::vector<std::vector<StepTimes>> times(loads.size());
  for (int repeat = 0; repeat < repeats; ++repeat) {
    for (size_t i = 0; i < loads.size(); ++i) times[i].push_back(loop(loads[i]));
  }
  std::vector<Figures> figures;
  for (const std::vector<StepTimes>& of_load : times) figures.push_back(Summarize(of_load));
  return figures;
}

std::vector<StepLoad> Loads(const std::vector<int>& running, int stages,
                            std::shared_ptr<const Tokenizer> tokenizer, bool quick,
                            double compute_s = 0) {
  std::vector<StepLoad> loads;
  for (const int requests : running) {
    // Some 800,000 tokens, but not fewer than 200 steps nor more than 8,000, or 1,000 of those that
    // take long.
    const int64_t most = compute_s > 0 ? 1000 : 8000;
    const int64_t steps =
        quick ? 30 : std::clamp<int64_t>(int64_t{800'000} * stages / requests, 200, most);
    loads.push_back({stages, requests, steps, tokenizer, compute_s});
  }
  return loads;
}

// Of time over running requests: nanoseconds a token and step, from the first to the last.
double Slope(const std::vector<int>& running, double first_us, double last_us) {
  return 1e3 * (last_us - first_us) / (running.back() - running.front());
}

void PrintEngine(const std::string& title, const std::vector<int>& running,
                 const std::vector<Figures>& figures, int stages) {
  std::cout << "\n## " << title << "\n\n"
            << "| running | tokens a step | wall p50, us | wall p99, us | CPU, us | "
               "CPU, ns a token |\n"
            << "| ---: | ---: | ---: | ---: | ---: | ---: |\n";
  for (size_t i = 0; i < running.size(); ++i) {
    const double tokens = std::max(1.0, static_cast<double>(running[i]) / stages);
    std::cout << absl::StrFormat("| %d | %.1f | %.1f | %.1f | %.1f | %.0f |\n", running[i], tokens,
                                 figures[i].p50, figures[i].p99, figures[i].cpu,
                                 1e3 * figures[i].cpu / tokens);
  }
}

int Run(const Flags& flags) {
  absl::StatusOr<std::shared_ptr<const Tokenizer>> tokenizer = Tokenizer::Load(flags.model);
  if (!tokenizer.ok()) {
    std::cerr << "engine_overhead: " << tokenizer.status().message() << "\n";
    return 1;
  }
  std::vector<int> running = {1, 8, kBarRunning, 256, 1024, 4096};
  if (flags.quick) running = {1, 8, kBarRunning};
  const int repeats = flags.quick ? 1 : flags.repeats;
  std::cout << "# The engine's own time\n\n";
  PrintEnvironment();

  const auto hand_over = [&](bool asleep) {
    std::vector<StepTimes> times(repeats);
    for (StepTimes& one : times) one.wall_s = TimeHandOvers(flags.quick ? 100 : 20'000, asleep);
    return Summarize(times);
  };
  const Figures awake = hand_over(false);
  const Figures asleep = hand_over(true);
  const auto loads = [&](int stages, bool text) {
    return Loads(running, stages, text ? *tokenizer : nullptr, flags.quick);
  };
  const auto decisions = MeasureAll(TimeScheduler, loads(1, false), repeats);
  const auto head = MeasureAll(TimeHead, loads(1, false), repeats);
  const auto head_text = MeasureAll(TimeHead, loads(1, true), repeats);
  const auto one = MeasureAll(TimeEngine, loads(1, false), repeats);
  const auto one_text = MeasureAll(TimeEngine, loads(1, true), repeats);
  const auto busy =
      MeasureAll(TimeEngine, Loads(running, 1, nullptr, flags.quick, kComputeSeconds), repeats);
  const auto busy_text =
      MeasureAll(TimeEngine, Loads(running, 1, *tokenizer, flags.quick, kComputeSeconds), repeats);
  const auto three = MeasureAll(TimeEngine, loads(3, false), repeats);
  const auto three_text = MeasureAll(TimeEngine, loads(3, true), repeats);

  std::cout << absl::StrFormat(
      "\n## Floor\n\n"
      "A step of one stage is handed over twice: to the stage, and back to the head. Between two "
      "threads that look all the time a hand-over takes %.2f us (p50; p99 %.2f us), to one that "
      "sleeps %.1f us (p50; p99 %.1f us). Floor: two of the first and the scheduler's decisions. "
      "\"Head\" adds what else is done for a token, on one thread: the recorder, the request's "
      "tokens, the step's, the listener, and text. \"Engine\" adds threads and mailboxes. "
      "Microseconds a step, p50.\n\n"
      "| running | scheduler | floor | head | head with text | engine | engine with text |\n"
      "| ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n",
      awake.p50, awake.p99, asleep.p50, asleep.p99);
  for (size_t i = 0; i < running.size(); ++i) {
    std::cout << absl::StrFormat("| %d | %.1f | %.1f | %.1f | %.1f | %.1f | %.1f |\n", running[i],
                                 decisions[i].p50, 2 * awake.p50 + decisions[i].p50, head[i].p50,
                                 head_text[i].p50, one[i].p50, one_text[i].p50);
  }
  const auto slope = [&](const std::vector<Figures>& figures) {
    return Slope(running, figures.front().p50, figures.back().p50);
  };
  std::cout << absl::StrFormat(
      "\nGrowth, ns for each further running request: scheduler %.0f, head %.0f, with text %.0f, "
      "engine %.0f, with text %.0f.\n",
      slope(decisions), slope(head), slope(head_text), slope(one), slope(one_text));

  PrintEngine("One stage", running, one, 1);
  PrintEngine("One stage, with text", running, one_text, 1);
  std::cout << "\n## One stage that computes for 1 ms, which is subtracted\n\n"
            << "The head has gone to sleep when its answer is wanted.\n\n"
            << "| running | wall p50, us | with text |\n| ---: | ---: | ---: |\n";
  for (size_t i = 0; i < running.size(); ++i) {
    std::cout << absl::StrFormat("| %d | %.1f | %.1f |\n", running[i], busy[i].p50,
                                 busy_text[i].p50);
  }
  PrintEngine("Three stages", running, three, 3);
  PrintEngine("Three stages, with text", running, three_text, 3);

  const size_t bar = std::find(running.begin(), running.end(), kBarRunning) - running.begin();
  std::cout << "\n## Bar\n\n"
            << "| one stage, " << kBarRunning << " running | measured, us | bar, us | |\n"
            << "| --- | ---: | ---: | --- |\n";
  const auto judge = [](const char* what, double us) {
    std::cout << absl::StrFormat("| %s | %.1f | %.0f | %s |\n", what, us, kBarMicroseconds,
                                 us < kBarMicroseconds ? "met" : "MISSED");
  };
  judge("wall, p50", one[bar].p50);
  judge("CPU", one[bar].cpu);
  judge("wall with text, p50", one_text[bar].p50);
  judge("CPU with text", one_text[bar].cpu);
  judge("wall beyond 1 ms of computing, p50", busy[bar].p50);
  judge("wall beyond 1 ms of computing, with text, p50", busy_text[bar].p50);
  std::cout << "\nLoad average of the machine at the end: " << LoadAverage() << "\n";
  return 0;
}

}  // namespace
}  // namespace fabricast

int main(int argc, char** argv) {
  fabricast::EnterWorkingDirectory();
  fabricast::Flags flags;
  CLI::App app("Measures what the engine itself costs a step.");
  app.add_option("--model", flags.model, "A checkpoint folder, for its tokenizer")
      ->capture_default_str();
  app.add_option("--repeats", flags.repeats, "Runs of each measurement; medians are printed")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  app.add_flag("--quick", flags.quick, "Small sizes, to see that it works; figures mean nothing");
  CLI11_PARSE(app, argc, argv);
  return fabricast::Run(flags);
}
