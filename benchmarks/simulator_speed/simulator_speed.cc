// How fast the simulator is, how that grows, and where the time goes. Prints Markdown; see
// benchmarks/README.md.
//
// Every run is a child process with one thread. Nothing is timed that was not checked: all requests
// finish, repeats give the same result byte for byte, and the loops that stand for parts of a run
// have exactly its number of timers and flows.

#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <iostream>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "benchmarks/simulator_speed/loops.h"
#include "benchmarks/simulator_speed/measure.h"
#include "simulator/simulate.h"

namespace fabricast {
namespace {

constexpr char kModel[] = "llama-3.1-405b-instruct-awq-int4";
constexpr char kTopology[] = "trinity_200g";
// As many requests in as long a time as Azure's hour of conversations, with lognormal lengths of
// its medians and spreads.
constexpr char kMadeUpHour[] =
    "poisson:rate=5.53,requests=19366,input=lognormal(760;0.985;14050),"
    "output=lognormal(151;0.859;1000)";
constexpr double kBarSpeed = 3000;  // simulated seconds a second of CPU
constexpr double kBarMegabytes = 300;

struct Flags {
  std::string trace = "../shared/data/traces/AzureLLMInferenceTrace_conv.csv";
  int repeats = 5;
  bool quick = false;
};

struct ScenarioSpec {
  std::string topology = kTopology;
  std::vector<Override> overrides;
  PlanOptions plan;
  std::string workload;
};

absl::StatusOr<Scenario> Make(const ScenarioSpec& spec) {
  absl::StatusOr<Topology> topology = Topology::Load(spec.topology, spec.overrides);
  if (!topology.ok()) return topology.status();
  absl::StatusOr<Model> model = LoadModel(kModel);
  if (!model.ok()) return model.status();
  absl::StatusOr<Plan> plan = MakePlan(*topology, *model, spec.plan);
  if (!plan.ok()) return plan.status();
  absl::StatusOr<Workload> workload = MakeWorkload(spec.workload);
  if (!workload.ok()) return workload.status();
  return Scenario{.label = spec.topology,
                  .topology = *topology,
                  .model = *std::move(model),
                  .plan = *std::move(plan),
                  .workload = *std::move(workload),
                  .trace_file = ""};
}

// The whole of a simulation, as `fabricast simulate` runs it. The result itself goes to `keep`, a
// file, if it is named.
Work Simulation(const ScenarioSpec& spec, const std::string& keep = "") {
  return [spec, keep](Stopwatch& watch, Measurement& measurement) -> absl::Status {
    absl::StatusOr<Scenario> scenario = Make(spec);
    if (!scenario.ok()) return scenario.status();
    std::atomic<double> progress = 0;
    watch.Start();
    absl::StatusOr<Result> result = SimulateInThisProcess(*scenario, progress);
    watch.Stop();
    if (!result.ok()) return result.status();
    if (result->finished() != static_cast<int64_t>(scenario->workload.requests.size())) {
      return absl::InternalError(absl::StrCat(result->finished(), " of ",
                                              scenario->workload.requests.size(),
                                              " requests finished: this is not the work to time"));
    }
    measurement.events = result->events();
    measurement.requests = result->requests();
    measurement.finished = result->finished();
    measurement.micro_batches = result->stages(0).micro_batches();
    measurement.arrivals_s = scenario->workload.requests.back().arrival_s;
    measurement.simulated_s = result->duration_s();
    const std::string bytes = result->SerializeAsString();
    measurement.fingerprint = Fingerprint(bytes);
    if (!keep.empty()) std::ofstream(keep, std::ios::binary) << bytes;
    return absl::OkStatus();
  };
}

double NanosecondsAnEvent(const Measurement& measurement) {
  return measurement.cpu_s / static_cast<double>(measurement.events) * 1e9;
}

double Megabytes(const Measurement& measurement) {
  return static_cast<double>(measurement.peak_rss_bytes) / 1e6;
}

// "median (lowest to highest)" of a figure of all repeats.
template <typename Figure>
std::string Range(const std::vector<Measurement>& all, const char* format, Figure figure) {
  std::vector<double> values;
  for (const Measurement& one : all) values.push_back(figure(one));
  std::sort(values.begin(), values.end());
  const auto text = [&](double value) {
    return absl::StrFormat(*absl::ParsedFormat<'f'>::New(format), value);
  };
  return absl::StrCat(text(values[values.size() / 2]), " (", text(values.front()), " to ",
                      text(values.back()), ")");
}

std::string LineWith(const std::string& file, const std::string& key) {
  std::ifstream in(file);
  for (std::string line; std::getline(in, line);) {
    if (line.rfind(key, 0) != 0) continue;
    const size_t colon = line.find(": ");
    return colon == std::string::npos ? line : line.substr(colon + 2);
  }
  return "unknown";
}

std::string OutputOf(const char* command) {
  std::string text;
  if (FILE* pipe = popen(command, "r")) {
    for (int c = fgetc(pipe); c != EOF && c != '\n'; c = fgetc(pipe)) {
      text += static_cast<char>(c);
    }
    pclose(pipe);
  }
  return text.empty() ? "unknown" : text;
}

std::string LoadAverage() {
  double load[3] = {0, 0, 0};
  return getloadavg(load, 3) == 3 ? absl::StrFormat("%.1f", load[0]) : "unknown";
}

void PrintEnvironment() {
  char date[16];
  const time_t now = time(nullptr);
  tm parts;
  strftime(date, sizeof(date), "%Y-%m-%d", gmtime_r(&now, &parts));
#ifdef __clang__
  constexpr char kCompiler[] = __VERSION__;
#else
  constexpr char kCompiler[] = "GCC " __VERSION__;
#endif
#ifdef NDEBUG
  constexpr char kBuild[] = "optimised";
#else
  constexpr char kBuild[] = "NOT optimised: use -c opt";
#endif
  std::cout << "- CPU: " << LineWith("/proc/cpuinfo", "model name") << ", "
            << sysconf(_SC_NPROCESSORS_ONLN) << " cores, of which a run uses one\n"
            << "- Compiler: " << kCompiler << ", " << kBuild << "\n"
            << "- Date: " << date << "\n"
            << "- Commit: " << OutputOf("git describe --always --dirty 2>/dev/null") << "\n"
            << "- Load average of the machine at the start: " << LoadAverage() << "\n";
}

const char* Verdict(bool met) { return met ? "met" : "MISSED"; }

absl::Status PrintHour(const Flags& flags, const ScenarioSpec& spec, bool made_up,
                       const std::string& keep, std::vector<Measurement>& hour) {
  absl::StatusOr<std::vector<Measurement>> all =
      MeasureRepeatedly(Simulation(spec, keep), flags.repeats);
  if (!all.ok()) return all.status();
  hour = *all;
  const Measurement& one = hour.front();
  const double trace_s = one.arrivals_s;
  const auto cpu = [](const Measurement& m) { return m.input_cpu_s + m.cpu_s; };
  const auto by_all = [&](const Measurement& m) { return m.simulated_s / cpu(m); };
  const auto by_trace = [&](const Measurement& m) { return trace_s / cpu(m); };
  const Measurement median = Median(hour);
  std::cout << absl::StrFormat(
      "\n## %s\n\n"
      "%s on %s%s. %d requests, all of which finish; %d micro-batches, %d events. The pipeline "
      "takes %.0f s for what arrives in %.0f s. Median (range) "
      "of %d runs with equal results; CPU seconds include reading and planning.\n\n",
      made_up ? "A made-up hour" : "An hour of conversations", kModel, kTopology,
      made_up ? absl::StrCat(", ", spec.workload) : "", one.requests, one.micro_batches, one.events,
      one.simulated_s, trace_s, flags.repeats);
  std::cout << "| figure | measured | bar | |\n| --- | --- | --- | --- |\n"
            << "| simulated s a CPU s, whole run | " << Range(hour, "%.0f", by_all) << " | "
            << kBarSpeed << " | " << Verdict(by_all(median) >= kBarSpeed) << " |\n"
            << "| simulated s a CPU s, the trace's " << absl::StrFormat("%.0f", trace_s)
            << " s alone | " << Range(hour, "%.0f", by_trace) << " | " << kBarSpeed << " | "
            << Verdict(by_trace(median) >= kBarSpeed) << " |\n"
            << "| peak memory, MB | " << Range(hour, "%.1f", Megabytes) << " | " << kBarMegabytes
            << " | " << Verdict(Megabytes(median) < kBarMegabytes) << " |\n"
            << "| CPU s | " << Range(hour, "%.2f", cpu) << " | | |\n"
            << "| of which reading and planning | "
            << Range(hour, "%.3f", [](const Measurement& m) { return m.input_cpu_s; }) << " | | |\n"
            << "| wall s of the simulation | "
            << Range(hour, "%.2f", [](const Measurement& m) { return m.wall_s; }) << " | | |\n"
            << "| events a CPU s | "
            << Range(hour, "%.0f",
                     [](const Measurement& m) { return static_cast<double>(m.events) / m.cpu_s; })
            << " | | |\n";
  return absl::OkStatus();
}

// One row a size, then how events, time and memory grow with it.
absl::Status PrintGrowth(const std::string& what, const std::vector<double>& sizes,
                         const std::vector<ScenarioSpec>& specs, int repeats) {
  std::cout << "| " << what
            << " | micro-batches | events | wall s | CPU s | events a CPU s | peak MB |\n"
               "| ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n";
  std::vector<double> events;
  std::vector<double> cpu;
  std::vector<double> rss;
  for (size_t i = 0; i < specs.size(); ++i) {
    absl::StatusOr<std::vector<Measurement>> all = MeasureRepeatedly(Simulation(specs[i]), repeats);
    if (!all.ok()) return all.status();
    const Measurement m = Median(*all);
    events.push_back(static_cast<double>(m.events));
    cpu.push_back(m.cpu_s);
    rss.push_back(Megabytes(m));
    std::cout << absl::StrFormat("| %.0f | %d | %d | %.3f | %.3f | %.0f | %.1f |\n", sizes[i],
                                 m.micro_batches, m.events, m.wall_s, m.cpu_s,
                                 events.back() / m.cpu_s, rss.back())
              << std::flush;
  }
  const auto from = [](std::vector<double> values, size_t first) {
    values.erase(values.begin(), values.begin() + static_cast<ptrdiff_t>(first));
    return values;
  };
  // The smallest sizes last a millisecond or so, which is start-up.
  const size_t first = sizes.size() > 4 ? 2 : 0;
  std::cout << absl::StrFormat(
      "\nMedians of %d runs. From %.0f %s on, y ~ %s^e with e = %.2f for events, %.2f for CPU, "
      "%.2f for CPU an event, %.2f for memory.\n",
      repeats, sizes[first], what, what, GrowthExponent(from(sizes, first), from(events, first)),
      GrowthExponent(from(sizes, first), from(cpu, first)),
      GrowthExponent(from(sizes, first), from(cpu, first)) -
          GrowthExponent(from(sizes, first), from(events, first)),
      GrowthExponent(from(sizes, first), from(rss, first)));
  return absl::OkStatus();
}

absl::Status PrintGrowthByStages(const Flags& flags) {
  const std::string workload = absl::StrFormat(
      "closed:concurrency=64,requests=%d,input=512,output=128", flags.quick ? 64 : 512);
  std::cout
      << "\n## Growth with stages\n\n"
      << kModel << " on leaf_spine_16 (H200s with memory enough for any split), one GPU a "
      << "stage, " << workload << ". More stages share the same 64 requests out over more and "
      << "smaller micro-batches, each of which visits every stage: work grows with the square "
         "of the stages.\n\n";
  std::vector<double> sizes;
  std::vector<ScenarioSpec> specs;
  for (int stages = 1; stages <= (flags.quick ? 8 : 64); stages *= 2) {
    ScenarioSpec spec;
    spec.topology = "leaf_spine_16";
    spec.overrides = {{"node*.gpu*.memory_gb", "2000"}};
    spec.plan.stages = stages;
    spec.workload = workload;
    sizes.push_back(stages);
    specs.push_back(spec);
  }
  return PrintGrowth("stages", sizes, specs, flags.repeats);
}

absl::Status PrintGrowthByRequests(const Flags& flags) {
  std::cout << "\n## Growth with requests\n\n"
            << kModel << " on " << kTopology
            << ", three stages, closed loop, 32 at a time, 512 in, 128 out.\n\n";
  std::vector<double> sizes;
  std::vector<ScenarioSpec> specs;
  for (int requests = 10; requests <= (flags.quick ? 100 : 100'000); requests *= 10) {
    ScenarioSpec spec;
    spec.workload =
        absl::StrFormat("closed:concurrency=32,requests=%d,input=512,output=128", requests);
    sizes.push_back(requests);
    specs.push_back(spec);
  }
  return PrintGrowth("requests", sizes, specs, flags.repeats);
}

absl::Status PrintShares(const Flags& flags, const ScenarioSpec& spec, const std::string& keep,
                         const std::vector<Measurement>& hour) {
  Result result;
  std::ifstream in(keep, std::ios::binary);
  if (!result.ParseFromIstream(&in)) return absl::InternalError("the run left no result");
  absl::StatusOr<Scenario> scenario = Make(spec);
  if (!scenario.ok()) return scenario.status();
  const EventMix mix = EventMix::Of(*scenario, result);
  const Measurement whole = Median(hour);

  const Work on_heap = [&](Stopwatch& watch, Measurement& measurement) {
    PlayOnHeap(mix, watch, measurement);
    return absl::OkStatus();
  };
  EventMix timers = mix;  // flows of no bytes are timers
  for (EventMix::Hop& hop : timers.hops) hop.bytes = 0;
  const Work timers_on_simgrid = [&](Stopwatch& watch, Measurement& measurement) {
    PlayOnSimGrid(*scenario, timers, watch, measurement);
    return absl::OkStatus();
  };
  const Work on_simgrid = [&](Stopwatch& watch, Measurement& measurement) {
    PlayOnSimGrid(*scenario, mix, watch, measurement);
    return absl::OkStatus();
  };
  const auto decisions = [&](Part part) -> Work {
    return [&scenario, part](Stopwatch& watch, Measurement& measurement) {
      PlayDecisions(*scenario, part, watch, measurement);
      return absl::OkStatus();
    };
  };
  std::vector<Measurement> parts;
  for (const Work& work : {on_heap, timers_on_simgrid, on_simgrid, decisions(Part::kScheduler),
                           decisions(Part::kStageCosts), decisions(Part::kRecorder)}) {
    absl::StatusOr<std::vector<Measurement>> all = MeasureRepeatedly(work, flags.repeats);
    if (!all.ok()) return all.status();
    parts.push_back(Median(*all));
  }
  const auto& [heap, simgrid_timers, simgrid, scheduler, costs, recorder] =
      std::tie(parts[0], parts[1], parts[2], parts[3], parts[4], parts[5]);
  for (const Measurement* loop : {&heap, &simgrid_timers, &simgrid}) {
    if (loop->events == whole.events) continue;
    return absl::InternalError(absl::StrCat("a loop of ", loop->events,
                                            " events does not stand for a run of ", whole.events));
  }
  if (recorder.finished != whole.finished) {
    return absl::InternalError(absl::StrCat(recorder.finished, " requests finished without time"));
  }
  const int64_t flows = whole.micro_batches * static_cast<int64_t>(mix.hops.size());
  // With every request there at the start, micro-batches are a few more or fewer.
  const double scale =
      static_cast<double>(whole.micro_batches) / static_cast<double>(recorder.micro_batches);
  const double scheduler_s = scheduler.cpu_s * scale;
  const double costs_s = (costs.cpu_s - scheduler.cpu_s) * scale;
  const double recorder_s = (recorder.cpu_s - costs.cpu_s) * scale;
  const double rest_s = whole.cpu_s - simgrid.cpu_s - scheduler_s - costs_s - recorder_s;

  std::cout << absl::StrFormat(
      "\n## Where the time goes\n\n"
      "The floor first. Whatever an event does, it has to enter a queue ordered by time, leave it "
      "and be called: on a binary heap of closures, %.0f ns here. The same %d timers and flows on "
      "FlowNetwork (SimGrid), with nobody deciding, pricing or recording anything, take %.0f ns "
      "each; the whole simulator takes %.0f ns, %.1f times the floor. Of SimGrid's part the %d "
      "flows have most: %.0f ns each, against %.0f ns a timer. Decisions were timed alone, without "
      "simulated time (%d micro-batches, scaled to the run's %d, of %.0f entries each).\n\n",
      NanosecondsAnEvent(heap), whole.events, NanosecondsAnEvent(simgrid),
      NanosecondsAnEvent(whole), whole.cpu_s / heap.cpu_s, flows,
      (simgrid.cpu_s - simgrid_timers.cpu_s) / static_cast<double>(flows) * 1e9 +
          NanosecondsAnEvent(simgrid_timers),
      NanosecondsAnEvent(simgrid_timers), recorder.micro_batches, whole.micro_batches,
      static_cast<double>(recorder.entries) / static_cast<double>(recorder.micro_batches));
  std::cout << "| part | CPU s | ns an event | share |\n| --- | ---: | ---: | ---: |\n";
  const auto row = [&](const std::string& name, double cpu_s) {
    std::cout << absl::StrFormat("| %s | %.3f | %.0f | %.0f %% |\n", name, cpu_s,
                                 cpu_s / static_cast<double>(whole.events) * 1e9,
                                 100 * cpu_s / whole.cpu_s);
  };
  row("floor: heap and calls", heap.cpu_s);
  row("SimGrid with timers alone, beyond the floor", simgrid_timers.cpu_s - heap.cpu_s);
  row("SimGrid's flows, beyond timers", simgrid.cpu_s - simgrid_timers.cpu_s);
  row("scheduler", scheduler_s);
  row("stage costs", costs_s);
  row("recorder", recorder_s);
  row("rest of ours, by difference: closures, micro-batches in flight, hops", rest_s);
  row("whole", whole.cpu_s);
  return absl::OkStatus();
}

absl::Status Run(const Flags& flags) {
  ScenarioSpec hour_spec;
  const bool made_up = flags.quick || access(flags.trace.c_str(), R_OK) != 0;
  hour_spec.workload = made_up ? kMadeUpHour : flags.trace;
  if (flags.quick) {
    hour_spec.workload = "poisson:rate=5,requests=50,input=512,output=32";
  }
  std::cout << "# Speed of the simulator\n\n";
  PrintEnvironment();
  if (made_up && !flags.quick) {
    std::cout << "- No trace at " << flags.trace << ": requests are drawn instead\n";
  }
  const char* folder = getenv("TMPDIR");
  const std::string keep =
      absl::StrCat(folder == nullptr ? "/tmp" : folder, "/simulator_speed.", getpid(), ".result");
  std::vector<Measurement> hour;
  absl::Status status = PrintHour(flags, hour_spec, made_up, keep, hour);
  if (status.ok()) status = PrintGrowthByStages(flags);
  if (status.ok()) status = PrintGrowthByRequests(flags);
  // The last, because it reads the inputs in this process, which children inherit.
  if (status.ok()) status = PrintShares(flags, hour_spec, keep, hour);
  unlink(keep.c_str());
  if (!status.ok()) return status;
  std::cout << "\nLoad average of the machine at the end: " << LoadAverage() << "\n";
  return absl::OkStatus();
}

}  // namespace
}  // namespace fabricast

int main(int argc, char** argv) {
  // `bazel run` starts programs elsewhere.
  if (const char* directory = getenv("BUILD_WORKING_DIRECTORY")) {
    if (chdir(directory) != 0) perror(directory);
  }
  fabricast::Flags flags;
  CLI::App app("Measures the simulator's speed, its growth and where its time goes.");
  app.add_option("--trace", flags.trace,
                 "A trace in Azure's format; where it is missing, requests are made up")
      ->capture_default_str();
  app.add_option("--repeats", flags.repeats, "Runs of each measurement")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  app.add_flag("--quick", flags.quick, "Small sizes, to see that it works; figures mean nothing");
  CLI11_PARSE(app, argc, argv);
  if (absl::Status status = fabricast::Run(flags); !status.ok()) {
    std::cerr << "simulator_speed: " << status.message() << "\n";
    return 1;
  }
  return 0;
}
