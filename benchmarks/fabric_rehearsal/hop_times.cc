// Messages of the TCP transport between processes, over cables of several rates and within a host,
// beside what the cost model says. Prints Markdown, and the lines of
// topology/calibration/tcp.txtpb; see benchmarks/README.md.
#include <cmath>
#include <iostream>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "benchmarks/engine/measure.h"
#include "benchmarks/fabric_rehearsal/message_times.h"
#include "runtime/cost/communication_cost.h"
#include "topology/topology.h"

namespace fabricast {
namespace {

// Of the small model: a token's activations are 1,536 bytes.
const std::vector<int64_t>& Sizes() {
  static const auto* const sizes = new std::vector<int64_t>{4, 1536, 12288, 65536, 196608, 786432};
  return *sizes;
}

struct Flags {
  std::vector<double> rates_mbit = {25, 50, 100, 200, 400};
  int repeats = 101;
  bool quick = false;
};

absl::StatusOr<SendCost> CostOf(double rate_mbit, int from_rank, int to_rank) {
  std::vector<Override> overrides;
  if (rate_mbit > 0) {
    overrides.push_back(
        {.path = "*.nic0.rate_gbps", .value = absl::StrFormat("%.9g", rate_mbit / 1000)});
  }
  absl::StatusOr<Topology> topology = Topology::Load("rehearsal_2x", overrides);
  if (!topology.ok()) return topology.status();
  return SendCost::For(*topology, topology->route(from_rank, to_rank));
}

absl::Status PrintMessages(VirtualNetwork& network, const std::string& way, const std::string& to,
                           const SendCost& cost, int repeats) {
  absl::StatusOr<std::vector<MessageTimes>> times =
      TimeMessages(network, "host_a", to, Sizes(), repeats);
  if (!times.ok()) return times.status();
  for (const MessageTimes& of : *times) {
    const double model_s = cost.LoneSeconds(static_cast<double>(of.bytes));
    std::cout << absl::StrFormat("| %s | %d | %.3f | %.3f | %.3f | %.3f | %+.1f |\n", way, of.bytes,
                                 1e3 * of.undisturbed_s, 1e3 * of.median_s, 1e3 * of.p99_s,
                                 1e3 * model_s, 100 * (model_s / of.median_s - 1));
  }
  return absl::OkStatus();
}

absl::Status PrintTables(VirtualNetwork& network, const Flags& flags) {
  std::cout << "\nMedians of " << flags.repeats
            << " messages, one at a time. Undisturbed: a tenth is shorter. Model: "
               "SendCost::LoneSeconds on rehearsal_2x; its error against the median.\n\n"
               "| way | bytes | undisturbed, ms | median, ms | p99, ms | model, ms | error, % |\n"
               "| --- | ---: | ---: | ---: | ---: | ---: | ---: |\n";
  absl::StatusOr<SendCost> within = CostOf(0, 0, 1);
  if (!within.ok()) return within.status();
  absl::Status status = PrintMessages(network, "within a host", "host_a", *within, flags.repeats);
  for (const double rate_mbit : flags.rates_mbit) {
    absl::StatusOr<SendCost> cost = CostOf(rate_mbit, 1, 2);
    if (!cost.ok()) return cost.status();
    for (const char* host : {"host_a", "host_b"}) {
      if (status.ok()) status = network.SetRate(host, rate_mbit);
    }
    if (!status.ok()) return status;
    status = PrintMessages(network, absl::StrFormat("%g Mbit/s", rate_mbit), "host_b", *cost,
                           flags.repeats);
  }
  return status;
}

// One line of the calibration for each kind of way: what the smallest message takes, and the rate
// between two large ones.
absl::Status PrintConstants(VirtualNetwork& network, const Flags& flags) {
  absl::StatusOr<std::vector<MessageTimes>> within =
      TimeMessages(network, "host_a", "host_a", Sizes(), flags.repeats);
  if (!within.ok()) return within.status();
  for (const char* host : {"host_a", "host_b"}) {
    absl::Status status = network.SetRate(host, 0);
    if (!status.ok()) return status;
  }
  absl::StatusOr<std::vector<MessageTimes>> between =
      TimeMessages(network, "host_a", "host_b", {4, 1536}, flags.repeats);
  if (!between.ok()) return between.status();
  const MessageTimes& small = within->front();
  const MessageTimes& large = within->back();
  std::cout << absl::StrFormat(
      "\nFor topology/calibration/tcp.txtpb:\n\n"
      "    PATH_KIND_HOST_MEMORY: points { bytes: 1 latency_us: %.0f } max_gb_s: %.2f\n"
      "    PATH_KIND_NETWORK_TCP: points { bytes: 1 latency_us: %.0f }, at 1,536 bytes %.0f\n",
      1e6 * small.median_s,
      static_cast<double>(large.bytes - small.bytes) / (large.median_s - small.median_s) / 1e9,
      1e6 * between->front().median_s, 1e6 * between->back().median_s);
  return absl::OkStatus();
}

absl::Status Run(Flags flags) {
  if (flags.quick) {
    flags.repeats = 3;
    flags.rates_mbit = {400};
  }
  absl::StatusOr<std::unique_ptr<VirtualNetwork>> network =
      VirtualNetwork::Make({{.name = "host_a"}, {.name = "host_b"}});
  if (!network.ok()) return network.status();
  std::cout << "# Messages between processes\n\n";
  PrintEnvironment();
  absl::Status status = PrintTables(**network, flags);
  if (status.ok()) status = PrintConstants(**network, flags);
  if (!status.ok()) return status;
  std::cout << "\nLoad average of the machine at the end: " << LoadAverage() << "\n";
  return absl::OkStatus();
}

}  // namespace
}  // namespace fabricast

int main(int argc, char** argv) {
  fabricast::EnterWorkingDirectory();
  fabricast::Flags flags;
  CLI::App app("Times messages between processes on a virtual network.");
  app.add_option("--rates", flags.rates_mbit, "Of the cables, Mbit/s")
      ->delimiter(',')
      ->check(CLI::Range(0.01, 100000.0))
      ->capture_default_str();
  app.add_option("--repeats", flags.repeats, "Messages of each size")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  app.add_flag("--quick", flags.quick, "Few messages, to see that it works; figures mean nothing");
  CLI11_PARSE(app, argc, argv);
  if (absl::Status status = fabricast::Run(flags); !status.ok()) {
    std::cerr << "hop_times: " << status.message() << "\n";
    return absl::IsPermissionDenied(status) || absl::IsUnimplemented(status) ? 2 : 1;
  }
  return 0;
}
