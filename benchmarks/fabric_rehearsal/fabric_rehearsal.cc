// Runs of one plan on cables of several rates, beside their forecasts: with each run's own stage
// times, and with those of one of them. Prints Markdown; see benchmarks/README.md.
#include <iostream>
#include <string>
#include <utility>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "benchmarks/engine/measure.h"
#include "benchmarks/fabric_rehearsal/rehearsed_run.h"

namespace fabricast {
namespace {

// Smaller messages measure wake-ups and not the cable.
constexpr int64_t kMinMessageBytes = 64 << 10;

struct Flags {
  std::vector<std::string> runs;  // without ".json"
  std::string times_from;
  std::string model = "runtime/model/checkpoints/prose_16m";
};

struct NamedRun {
  std::string name;
  RehearsedRun run;
  Scenario scenario;
};

// "12.3 / 12.5 | +1.6".
std::string Beside(double measured, double simulated) {
  return absl::StrFormat("%.4g / %.4g | %+.1f", measured, simulated,
                         measured == 0 ? 0 : 100 * (simulated / measured - 1));
}

// Of the hop between hosts, Mbit/s of payload; 0 if there was no large message.
double CableMbit(const NamedRun& of, const Timeline& timeline) {
  for (size_t i = 0; i + 1 < of.scenario.plan.stages.size(); ++i) {
    const Route& route = of.scenario.topology.route(of.scenario.plan.stages[i].gpus.front(),
                                                    of.scenario.plan.stages[i + 1].gpus.front());
    if (route.kind != PATH_KIND_NETWORK_TCP) continue;
    const int from = static_cast<int>(i);
    return HopBytesPerSecond(timeline, from, from + 1, kMinMessageBytes).value_or(0) * 8e-6;
  }
  return 0;
}

absl::Status PrintForecasts(const std::vector<NamedRun>& runs, const NamedRun* times_from) {
  std::cout << "\n| run | Gbps | cable, Mbit/s of payload | error, % | TPOT, ms | error, % | TTFT, "
               "ms | error, % | tokens/s | error, % |\n"
               "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n";
  for (const NamedRun& of : runs) {
    const Timeline& times = (times_from == nullptr ? of : *times_from).run.timeline;
    absl::StatusOr<RehearsedRun> forecast = Forecast(of.scenario, times);
    if (!forecast.ok()) return forecast.status();
    const Result& measured = of.run.result;
    const Result& simulated = forecast->result;
    std::cout << absl::StrFormat(
        "| %s | %g | %s | %s | %s | %s |\n", of.name, of.scenario.topology.network_rate_gbps(),
        Beside(CableMbit(of, of.run.timeline), CableMbit(of, forecast->timeline)),
        Beside(1e3 * measured.tpot().mean(), 1e3 * simulated.tpot().mean()),
        Beside(1e3 * measured.ttft().mean(), 1e3 * simulated.ttft().mean()),
        Beside(measured.output_tokens_per_s(), simulated.output_tokens_per_s()));
  }
  return absl::OkStatus();
}

absl::Status Run(const Flags& flags) {
  std::vector<NamedRun> runs;
  for (const std::string& name : flags.runs) {
    absl::StatusOr<RehearsedRun> run =
        ReadRun(absl::StrCat(name, ".json"), absl::StrCat(name, ".trace.json"));
    if (!run.ok()) return run.status();
    absl::StatusOr<Scenario> scenario = ScenarioOf(run->result, flags.model);
    if (!scenario.ok()) return scenario.status();
    runs.push_back({.name = name.substr(name.rfind('/') + 1),
                    .run = *std::move(run),
                    .scenario = *std::move(scenario)});
  }
  std::cout << "# A fabric rehearsed\n\nMeasured / simulated. Workload: "
            << runs.front().scenario.workload.description
            << ".\n\n## With the stage times of each run itself\n";
  absl::Status status = PrintForecasts(runs, nullptr);
  if (!status.ok() || flags.times_from.empty()) return status;
  for (const NamedRun& run : runs) {
    if (run.name != flags.times_from) continue;
    std::cout << "\n## Foretold from the stage times of " << run.name << "\n";
    return PrintForecasts(runs, &run);
  }
  return absl::InvalidArgumentError(
      absl::StrCat("--times-from ", flags.times_from, ": no run of this name is given"));
}

}  // namespace
}  // namespace fabricast

int main(int argc, char** argv) {
  fabricast::EnterWorkingDirectory();
  fabricast::Flags flags;
  CLI::App app("Sets runs on cables of several rates beside their forecasts.");
  app.add_option("runs", flags.runs,
                 "NAME for NAME.json and NAME.trace.json, of fabricast run --out and --trace")
      ->required();
  app.add_option("--times-from", flags.times_from,
                 "Forecast all runs with the stage times of this one, too");
  app.add_option("--model", flags.model, "A checkpoint folder")->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  if (absl::Status status = fabricast::Run(flags); !status.ok()) {
    std::cerr << "fabric_rehearsal: " << status.message() << "\n";
    return 1;
  }
  return 0;
}
