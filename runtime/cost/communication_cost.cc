#include "runtime/cost/communication_cost.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <set>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"

namespace fabricast {
namespace {

// The parent of `rank` in NCCL's binary tree over 0 ... ranks-1 (its btree: leaves at odd ranks,
// root 0); -1 for the root.
int TreeParent(int rank, int ranks) {
  if (rank == 0) return -1;
  const int bit = rank & -rank;
  const int up = (rank ^ bit) | (bit << 1);
  return up >= ranks ? rank ^ bit : up;
}

// NCCL's double binary tree: the second tree is the first mirrored (even) or shifted by one (odd),
// so that a leaf of the one is an inner node of the other. Each tree carries half of the vector up
// and then down.
std::vector<CollectiveFlow> TreeFlows(absl::Span<const int> gpus, double bytes) {
  const int n = static_cast<int>(gpus.size());
  std::map<std::pair<int, int>, double> edges;
  for (int rank = 0; rank < n; ++rank) {
    const int parent = TreeParent(rank, n);
    if (parent < 0) continue;
    const auto second = [&](int r) { return n % 2 == 0 ? n - 1 - r : (r + 1) % n; };
    for (const auto& [child, up] :
         {std::pair(rank, parent), std::pair(second(rank), second(parent))}) {
      edges[{gpus[child], gpus[up]}] += bytes / 2;
      edges[{gpus[up], gpus[child]}] += bytes / 2;
    }
  }
  std::vector<CollectiveFlow> flows;
  for (const auto& [edge, size] : edges) flows.push_back({edge.first, edge.second, size});
  return flows;
}

std::vector<CollectiveFlow> RingFlows(absl::Span<const int> gpus, double bytes_per_edge) {
  std::vector<CollectiveFlow> flows;
  for (size_t i = 0; i < gpus.size(); ++i) {
    flows.push_back({gpus[i], gpus[(i + 1) % gpus.size()], bytes_per_edge});
  }
  return flows;
}

int RingSteps(CollectiveOp op, int ranks) {
  switch (op) {
    case COLLECTIVE_OP_ALL_REDUCE:
      return 2 * (ranks - 1);
    case COLLECTIVE_OP_ALL_GATHER:
    case COLLECTIVE_OP_REDUCE_SCATTER:
      return ranks - 1;
    default:
      return 1;
  }
}

const SendCalibration* FindSend(const NcclCalibration& calibration, PathKind kind) {
  for (const SendCalibration& send : calibration.sends()) {
    if (send.path() == kind) return &send;
  }
  return nullptr;
}

// The slowest kind on the ring: its protocol constants price every step, as the steps wait for each
// other.
PathKind SlowestKind(const Topology& topology, absl::Span<const int> gpus) {
  PathKind slowest = PATH_KIND_NVLINK;
  for (size_t i = 0; i < gpus.size(); ++i) {
    const Route& route = topology.route(gpus[i], gpus[(i + 1) % gpus.size()]);
    slowest = std::max(slowest, route.kind);
  }
  return slowest;
}

}  // namespace

absl::string_view PathKindName(PathKind kind) {
  switch (kind) {
    case PATH_KIND_NVLINK:
      return "NVLink";
    case PATH_KIND_PCIE_PEER:
      return "PCIe peer";
    case PATH_KIND_HOST_MEMORY:
      return "host memory";
    case PATH_KIND_NETWORK_RDMA:
      return "network, RDMA";
    case PATH_KIND_NETWORK_TCP:
      return "network, TCP";
    default:
      return "unspecified";
  }
}

absl::string_view CollectiveOpName(CollectiveOp op) {
  switch (op) {
    case COLLECTIVE_OP_ALL_REDUCE:
      return "all_reduce";
    case COLLECTIVE_OP_ALL_GATHER:
      return "all_gather";
    case COLLECTIVE_OP_REDUCE_SCATTER:
      return "reduce_scatter";
    case COLLECTIVE_OP_SEND_RECV:
      return "sendrecv";
    default:
      return "unspecified";
  }
}

absl::StatusOr<CollectiveOp> ParseCollectiveOp(absl::string_view name) {
  std::vector<absl::string_view> known;
  for (CollectiveOp op : {COLLECTIVE_OP_ALL_REDUCE, COLLECTIVE_OP_ALL_GATHER,
                          COLLECTIVE_OP_REDUCE_SCATTER, COLLECTIVE_OP_SEND_RECV}) {
    if (name == CollectiveOpName(op)) return op;
    known.push_back(CollectiveOpName(op));
  }
  return absl::InvalidArgumentError(absl::StrCat("no collective is called '", name,
                                                 "': use one of ", absl::StrJoin(known, ", ")));
}

double BusBandwidthFactor(CollectiveOp op, int ranks) {
  const double n = ranks;
  switch (op) {
    case COLLECTIVE_OP_ALL_REDUCE:
      return 2 * (n - 1) / n;
    case COLLECTIVE_OP_ALL_GATHER:
    case COLLECTIVE_OP_REDUCE_SCATTER:
      return (n - 1) / n;
    default:
      return 1;
  }
}

double InterpolateLatencySeconds(const google::protobuf::RepeatedPtrField<LatencyPoint>& points,
                                 double bytes) {
  if (points.empty()) return 0;
  if (bytes <= points.begin()->bytes()) return points.begin()->latency_us() * 1e-6;
  for (int i = 1; i < points.size(); ++i) {
    if (bytes > points[i].bytes()) continue;
    // A point at 0 bytes counts as one at 1 byte, which has a logarithm.
    const auto log2 = [](double x) { return std::log2(std::max(x, 1.0)); };
    const double low = log2(points[i - 1].bytes());
    const double high = log2(points[i].bytes());
    const double share = high > low ? (log2(bytes) - low) / (high - low) : 1;
    return (points[i - 1].latency_us() +
            share * (points[i].latency_us() - points[i - 1].latency_us())) *
           1e-6;
  }
  return points.rbegin()->latency_us() * 1e-6;
}

absl::StatusOr<SendCost> SendCost::For(const Topology& topology, const Route& route) {
  const SendCalibration* calibration = FindSend(topology.nccl(), route.kind);
  if (calibration == nullptr) {
    return absl::NotFoundError(absl::StrCat("calibration ", topology.nccl().name(),
                                            ": no `sends` entry for the path kind ",
                                            PathKind_Name(route.kind), ": add one"));
  }
  SendCost cost;
  cost.calibration_ = *calibration;
  cost.hardware_latency_s_ = route.latency_s;
  cost.route_bytes_per_s_ = route.payload_bytes_per_s;
  cost.max_bytes_per_s_ = std::numeric_limits<double>::infinity();
  if (calibration->chunk_step_us() > 0) {
    const double chunk = static_cast<double>(topology.p2p_net_chunk_bytes());
    cost.max_bytes_per_s_ = chunk / (calibration->chunk_step_us() * 1e-6);
    cost.limit_ = absl::StrFormat(
        "NCCL's send chunks of %d bytes (%.1f GB/s at %.2f us a chunk; NCCL_P2P_NET_CHUNKSIZE "
        "sets them)",
        topology.p2p_net_chunk_bytes(), cost.max_bytes_per_s_ / 1e9, calibration->chunk_step_us());
  }
  if (calibration->max_gb_s() > 0 && calibration->max_gb_s() * 1e9 < cost.max_bytes_per_s_) {
    cost.max_bytes_per_s_ = calibration->max_gb_s() * 1e9;
    cost.limit_ = absl::StrFormat("one stream's %.1f GB/s over %s", calibration->max_gb_s(),
                                  PathKindName(route.kind));
  }
  return cost;
}

double SendCost::LatencySeconds(double bytes) const {
  return std::max(hardware_latency_s_, InterpolateLatencySeconds(calibration_.points(), bytes));
}

double SendCost::LoneSeconds(double bytes) const {
  return LatencySeconds(bytes) + bytes / std::min(route_bytes_per_s_, max_bytes_per_s_);
}

absl::StatusOr<std::vector<CollectiveCandidate>> CollectiveCandidates(
    const Topology& topology, CollectiveOp op, absl::Span<const int> gpus, double bytes,
    absl::string_view algorithm, absl::string_view protocol) {
  const int n = static_cast<int>(gpus.size());
  if (n < 2) return absl::InvalidArgumentError("a collective needs two GPUs at least");
  const PathKind kind = SlowestKind(topology, gpus);
  // Inside a host NCCL's tree is a chain: measured times follow the ring's steps.
  const bool has_tree = op == COLLECTIVE_OP_ALL_REDUCE &&
                        (kind == PATH_KIND_NETWORK_RDMA || kind == PATH_KIND_NETWORK_TCP);
  std::vector<CollectiveCandidate> candidates;

  if (op == COLLECTIVE_OP_SEND_RECV) {
    // Every rank sends to the next: one message a route, at its own cost.
    CollectiveCandidate candidate{
        .algorithm = "ring", .protocol = "Simple", .fixed_s = 0, .flows = {}};
    for (const CollectiveFlow& flow : RingFlows(gpus, bytes)) {
      absl::StatusOr<SendCost> send = SendCost::For(topology, topology.route(flow.from, flow.to));
      if (!send.ok()) return send.status();
      candidate.fixed_s = std::max(candidate.fixed_s, send->LatencySeconds(bytes));
      candidate.flows.push_back(flow);
    }
    if ((algorithm.empty() || algorithm == "ring") && (protocol.empty() || protocol == "Simple")) {
      candidates.push_back(candidate);
    }
  } else {
    const double wire = BusBandwidthFactor(op, n) * bytes;
    for (const CollectiveCalibration& entry : topology.nccl().collectives()) {
      if (entry.path() != kind) continue;
      if (!protocol.empty() && protocol != absl::string_view(entry.protocol())) continue;
      if (entry.max_bytes() > 0 && bytes > entry.max_bytes()) continue;
      const double step_s = InterpolateLatencySeconds(entry.step(), bytes);
      if (algorithm.empty() || algorithm == "ring") {
        candidates.push_back({.algorithm = "ring",
                              .protocol = entry.protocol(),
                              .fixed_s = entry.base_us() * 1e-6 + RingSteps(op, n) * step_s,
                              .flows = RingFlows(gpus, wire / entry.rate_fraction())});
      }
      // "auto" is what NCCL chose itself.
      if (has_tree && entry.protocol() != "auto" && (algorithm.empty() || algorithm == "tree")) {
        const int depth = static_cast<int>(std::ceil(std::log2(n)));
        candidates.push_back({.algorithm = "tree",
                              .protocol = entry.protocol(),
                              .fixed_s = entry.base_us() * 1e-6 + 2 * depth * step_s,
                              .flows = TreeFlows(gpus, bytes / entry.rate_fraction())});
      }
    }
  }
  if (candidates.empty()) {
    std::set<std::string> protocols;
    if (op == COLLECTIVE_OP_SEND_RECV) {
      protocols.insert("Simple");
    } else {
      for (const CollectiveCalibration& entry : topology.nccl().collectives()) {
        if (entry.path() == kind) protocols.insert(entry.protocol());
      }
    }
    return absl::NotFoundError(absl::StrCat(
        "calibration ", topology.nccl().name(), " prices no ", CollectiveOpName(op), " over ",
        PathKindName(kind), " with algorithm '", algorithm, "' and protocol '", protocol,
        "' at this size; algorithms: ring", has_tree ? ", tree" : "",
        "; protocols: ", protocols.empty() ? "none" : absl::StrJoin(protocols, ", ")));
  }
  return candidates;
}

absl::StatusOr<double> LoneCollectiveSeconds(const Topology& topology, CollectiveOp op,
                                             absl::Span<const int> gpus, double bytes) {
  absl::StatusOr<std::vector<CollectiveCandidate>> candidates =
      CollectiveCandidates(topology, op, gpus, bytes);
  if (!candidates.ok()) return candidates.status();
  double best = std::numeric_limits<double>::infinity();
  for (const CollectiveCandidate& candidate : *candidates) {
    // The most loaded segment ends last: bytes of all flows over it / its rate.
    std::map<int, double> load;
    for (const CollectiveFlow& flow : candidate.flows) {
      for (int segment : topology.route(flow.from, flow.to).segments) load[segment] += flow.bytes;
    }
    double wire_s = 0;
    if (op == COLLECTIVE_OP_SEND_RECV) {
      // No stream is faster than its sender.
      for (const CollectiveFlow& flow : candidate.flows) {
        absl::StatusOr<SendCost> send = SendCost::For(topology, topology.route(flow.from, flow.to));
        if (!send.ok()) return send.status();
        wire_s = std::max(wire_s, flow.bytes / send->max_bytes_per_s());
      }
    }
    for (const auto& [segment, size] : load) {
      wire_s = std::max(wire_s, size / topology.segments()[segment].payload_bytes_per_s);
    }
    best = std::min(best, candidate.fixed_s + wire_s);
  }
  return best;
}

}  // namespace fabricast
