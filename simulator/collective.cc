#include "simulator/collective.h"

#include <cstring>
#include <limits>
#include <map>
#include <utility>

#include "absl/status/status.h"
#include "runtime/cost/communication_cost.h"
#include "simulator/flow_network.h"
#include "simulator/isolated.h"

namespace fabricast {
namespace {

// One candidate of one size.
struct Trial {
  size_t row;
  CollectiveCandidate candidate;
  double seconds = 0;
};

std::vector<FlowNetwork::Path> PathsOf(const Topology& topology, CollectiveOp op,
                                       const std::vector<Trial>& trials) {
  std::map<std::pair<int, int>, double> limits;
  for (const Trial& trial : trials) {
    for (const CollectiveFlow& flow : trial.candidate.flows) {
      double limit = std::numeric_limits<double>::infinity();
      if (op == COLLECTIVE_OP_SEND_RECV) {
        absl::StatusOr<SendCost> send = SendCost::For(topology, topology.route(flow.from, flow.to));
        if (send.ok()) limit = send->max_bytes_per_s();
      }
      limits[{flow.from, flow.to}] = limit;
    }
  }
  std::vector<FlowNetwork::Path> paths;
  for (const auto& [pair, limit] : limits) paths.push_back({pair.first, pair.second, limit});
  return paths;
}

// Runs the trials one after the other on one engine.
void RunTrials(const Topology& topology, CollectiveOp op, std::vector<Trial>& trials) {
  FlowNetwork network(topology, PathsOf(topology, op, trials));
  for (Trial& trial : trials) {
    const double start = network.now();
    network.After(trial.candidate.fixed_s, [&] {
      for (const CollectiveFlow& flow : trial.candidate.flows) {
        network.StartFlow(flow.from, flow.to, flow.bytes,
                          [&] { trial.seconds = network.now() - start; });
      }
    });
    network.Run();
  }
}

}  // namespace

absl::StatusOr<std::vector<CollectiveRow>> SimulateCollective(const Topology& topology,
                                                              const CollectiveRun& run) {
  std::vector<Trial> trials;
  for (size_t row = 0; row < run.sizes.size(); ++row) {
    absl::StatusOr<std::vector<CollectiveCandidate>> candidates = CollectiveCandidates(
        topology, run.op, run.gpus, run.sizes[row], run.algorithm, run.protocol);
    if (!candidates.ok()) return candidates.status();
    for (CollectiveCandidate& candidate : *candidates)
      trials.push_back({row, std::move(candidate)});
  }
  const IsolatedTask task = [&](std::atomic<double>&) -> absl::StatusOr<std::string> {
    RunTrials(topology, run.op, trials);
    std::string bytes(trials.size() * sizeof(double), '\0');
    for (size_t i = 0; i < trials.size(); ++i) {
      memcpy(&bytes[i * sizeof(double)], &trials[i].seconds, sizeof(double));
    }
    return bytes;
  };
  const absl::StatusOr<std::string> bytes = RunIsolated(absl::MakeConstSpan(&task, 1)).front();
  if (!bytes.ok()) return bytes.status();

  std::vector<CollectiveRow> rows(run.sizes.size());
  for (size_t i = 0; i < trials.size(); ++i) {
    double seconds;
    memcpy(&seconds, bytes->data() + i * sizeof(double), sizeof(double));
    CollectiveRow& row = rows[trials[i].row];
    if (row.seconds > 0 && row.seconds <= seconds) continue;
    row.bytes = run.sizes[trials[i].row];
    row.algorithm = trials[i].candidate.algorithm;
    row.protocol = trials[i].candidate.protocol;
    row.seconds = seconds;
    row.algorithm_bytes_per_s = row.bytes / seconds;
    row.bus_bytes_per_s =
        row.algorithm_bytes_per_s * BusBandwidthFactor(run.op, static_cast<int>(run.gpus.size()));
  }
  return rows;
}

}  // namespace fabricast
