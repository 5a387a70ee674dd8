// fabricast collective.

#include <iostream>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "runtime/cost/communication_cost.h"
#include "simulator/collective.h"
#include "tools/fabricast/commands.h"
#include "tools/fabricast/inputs.h"

namespace fabricast {
namespace {

struct CollectiveFlags {
  std::string file;
  TopologyFlags topology;
  std::string op = "all_reduce";
  std::string min_bytes = "8K";
  std::string max_bytes = "4G";
  double factor = 4;
  int gpus = 0;
  std::string algorithm;
  std::string protocol;
};

// nccl-tests' sizes: a number with K, M or G for powers of 1024.
absl::StatusOr<double> ParseSize(absl::string_view flag, std::string text) {
  double scale = 1;
  if (!text.empty()) {
    const size_t unit = std::string("KMG").find(static_cast<char>(toupper(text.back())));
    if (unit != std::string::npos) {
      scale = static_cast<double>(int64_t{1} << (10 * (unit + 1)));
      text.pop_back();
    }
  }
  double number = 0;
  if (!absl::SimpleAtod(text, &number) || !(number * scale >= 1) || number * scale > 1e15) {
    return absl::InvalidArgumentError(
        absl::StrCat(flag, ": '", text, "' is not a size: write 8, 8K, 8M or 8G"));
  }
  return number * scale;
}

absl::StatusOr<CollectiveRun> MakeRun(const CollectiveFlags& flags, const Topology& topology) {
  CollectiveRun run;
  absl::StatusOr<CollectiveOp> op = ParseCollectiveOp(flags.op);
  if (!op.ok()) return op.status();
  run.op = *op;
  run.algorithm = flags.algorithm;
  run.protocol = flags.protocol;
  const int all = static_cast<int>(topology.gpus().size());
  const int count = flags.gpus != 0 ? flags.gpus : all;
  if (count < 2 || count > all) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "--gpus %d: %s has %d GPUs, and a collective needs two", count, topology.name(), all));
  }
  run.gpus.resize(count);
  std::iota(run.gpus.begin(), run.gpus.end(), 0);
  absl::StatusOr<double> low = ParseSize("--min-bytes", flags.min_bytes);
  if (!low.ok()) return low.status();
  absl::StatusOr<double> high = ParseSize("--max-bytes", flags.max_bytes);
  if (!high.ok()) return high.status();
  // Finer steps than a percent are a slip that would run for hours.
  if (!(flags.factor >= 1.01)) {
    return absl::InvalidArgumentError(
        absl::StrCat("--factor ", flags.factor, ": sizes must grow; use 1.01 at least"));
  }
  for (double bytes = *low; bytes <= *high; bytes *= flags.factor) run.sizes.push_back(bytes);
  if (run.sizes.empty()) {
    return absl::InvalidArgumentError("--min-bytes is above --max-bytes: no size to run");
  }
  return run;
}

int RunCollective(const CollectiveFlags& flags) {
  absl::StatusOr<std::vector<LabelledTopology>> topologies =
      LoadTopologies({flags.file}, flags.topology);
  if (!topologies.ok()) return Fail(topologies.status());
  for (const LabelledTopology& labelled : *topologies) {
    absl::StatusOr<CollectiveRun> run = MakeRun(flags, labelled.topology);
    if (!run.ok()) return Fail(run.status());
    absl::StatusOr<std::vector<CollectiveRow>> rows = SimulateCollective(labelled.topology, *run);
    if (!rows.ok()) return Fail(rows.status());
    std::cout << absl::StrFormat("# %s on %s, %d GPUs, simulated; GB/s = 10^9 bytes a second\n",
                                 flags.op, labelled.label, run->gpus.size());
    std::cout << absl::StrFormat("# %12s  %12s  %10s  %10s  %10s  %9s\n", "size(B)", "time(us)",
                                 "algbw", "busbw", "algorithm", "protocol");
    for (const CollectiveRow& row : *rows) {
      std::cout << absl::StrFormat("%14.0f  %12.1f  %10.2f  %10.2f  %10s  %9s\n", row.bytes,
                                   row.seconds * 1e6, row.algorithm_bytes_per_s / 1e9,
                                   row.bus_bytes_per_s / 1e9, row.algorithm, row.protocol);
    }
  }
  return 0;
}

}  // namespace

void AddCollectiveCommand(CLI::App& app, int& exit_status) {
  CLI::App* command = app.add_subcommand(
      "collective", "Simulated collectives and send/recv, in the columns of nccl-tests");
  command->footer(
      "Example:\n  fabricast collective trinity_200g --op all_reduce --min-bytes 1M --max-bytes "
      "1G");
  auto flags = std::make_shared<CollectiveFlags>();
  command->add_option("topology", flags->file, "A cluster file or a bundled cluster's name")
      ->required();
  command->add_option("--op", flags->op, "all_reduce, all_gather, reduce_scatter or sendrecv")
      ->capture_default_str();
  command->add_option("-b,--min-bytes", flags->min_bytes, "Smallest size")->capture_default_str();
  command->add_option("-e,--max-bytes", flags->max_bytes, "Largest size")->capture_default_str();
  command->add_option("-f,--factor", flags->factor, "From one size to the next")
      ->capture_default_str();
  command->add_option("--gpus", flags->gpus, "Only the first so many ranks; default: all");
  command->add_option("--algorithm", flags->algorithm, "ring or tree; default: the faster");
  command->add_option("--protocol", flags->protocol, "LL, LL128 or Simple; default: the fastest");
  flags->topology.AddTo(*command);
  command->callback([=, &exit_status] { exit_status = RunCollective(*flags); });
}

}  // namespace fabricast
