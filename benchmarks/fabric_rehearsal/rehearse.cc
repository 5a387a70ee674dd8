// Runs the small model on two virtual hosts, over cables of several rates, and keeps what
// fabric_rehearsal compares: NAME.json and NAME.trace.json for each rate and repeat. The processes
// are `fabricast run` on host_a, which starts its own two stages, and `fabricast stage` on host_b.

#include <sys/stat.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "benchmarks/engine/measure.h"
#include "runtime/transport/shared_secret.h"
#include "tools/virtual_network/virtual_network.h"

namespace fabricast {
namespace {

constexpr absl::Duration kPatience = absl::Minutes(10);

struct Flags {
  std::string program = "bazel-bin/tools/fabricast/fabricast";
  std::string model = "runtime/model/checkpoints/prose_16m";
  std::string workload = "closed:concurrency=4,requests=32,input=256,output=32";
  std::vector<double> rates_mbit = {25, 50, 100, 200, 400};
  int repeats = 3;
  std::string out;
};

// One run, over cables of `rate_mbit`, as NAME.json and NAME.trace.json.
absl::Status Rehearse(const Flags& flags, double rate_mbit, const std::string& name) {
  absl::StatusOr<std::unique_ptr<VirtualNetwork>> network = VirtualNetwork::Make(
      {{.name = "host_a", .rate_mbit = rate_mbit}, {.name = "host_b", .rate_mbit = rate_mbit}});
  if (!network.ok()) return network.status();
  const std::string token = flags.out + "/token";
  {
    std::ofstream file(token);
    chmod(token.c_str(), 0600);
    file << SharedSecret::Random().bytes();
  }
  const std::string rate = absl::StrFormat("*.nic0.rate_gbps=%g", 1e-3 * rate_mbit);
  const auto command = [&](const std::string& what, const std::vector<std::string>& more) {
    std::vector<std::string> all = {flags.program,  what,
                                    "--topology",   "rehearsal_2x",
                                    "--set",        rate,
                                    "--model",      flags.model,
                                    "--threads",    "1",
                                    "--token-file", token,
                                    "--head",       (*network)->ip("host_a")};
    all.insert(all.end(), more.begin(), more.end());
    return all;
  };
  ProcessOptions options;
  options.output_file = name + ".log";
  options.error_file = name + ".log";
  absl::StatusOr<std::unique_ptr<HostProcess>> stage =
      (*network)->Start("host_b", command("stage", {"--stage", "2"}), options);
  if (!stage.ok()) return stage.status();
  absl::StatusOr<std::unique_ptr<HostProcess>> head =
      (*network)->Start("host_a",
                        command("run", {"--workload", flags.workload, "--out", name + ".json",
                                        "--trace", name + ".trace.json"}),
                        options);
  if (!head.ok()) return head.status();
  for (HostProcess* const process : {head->get(), stage->get()}) {
    const absl::StatusOr<int> status = process->Wait(kPatience);
    if (!status.ok()) return status.status();
    if (*status != 0) {
      return absl::InternalError(absl::StrCat("exit status ", *status, "; see ", name, ".log"));
    }
  }
  return absl::OkStatus();
}

absl::Status Run(const Flags& flags) {
  std::error_code error;
  std::filesystem::create_directories(flags.out, error);
  if (error) return absl::UnavailableError(absl::StrCat(flags.out, ": ", error.message()));
  // All rates, and all of that again: a neighbour's burst hits a run of each.
  for (int repeat = 0; repeat < flags.repeats; ++repeat) {
    for (const double rate : flags.rates_mbit) {
      const std::string name = absl::StrFormat("%s/%g_mbit_%d", flags.out, rate, repeat + 1);
      if (absl::Status status = Rehearse(flags, rate, name); !status.ok()) return status;
      std::cout << name << std::endl;
    }
  }
  return absl::OkStatus();
}

}  // namespace
}  // namespace fabricast

int main(int argc, char** argv) {
  fabricast::EnterWorkingDirectory();
  fabricast::Flags flags;
  CLI::App app("Runs a pipeline on virtual hosts.");
  app.add_option("--program", flags.program, "fabricast")->capture_default_str();
  app.add_option("--model", flags.model, "A checkpoint folder")->capture_default_str();
  app.add_option("--workload", flags.workload, "As fabricast run takes it")->capture_default_str();
  app.add_option("--rates", flags.rates_mbit, "Of the cables, Mbit/s")->capture_default_str();
  app.add_option("--repeats", flags.repeats, "Runs of each rate")
      ->check(CLI::Range(1, 100))
      ->capture_default_str();
  app.add_option("--out", flags.out, "A folder for what is measured")->required();
  CLI11_PARSE(app, argc, argv);
  if (absl::Status status = fabricast::Run(flags); !status.ok()) {
    std::cerr << "rehearse: " << status.message() << "\n";
    return 1;
  }
  return 0;
}
