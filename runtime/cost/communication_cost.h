// What a message or a collective costs beyond its bytes on the wire, and which bytes those are.
//
// Messages and collectives are priced by segments of measured latency (topology/calibration), never
// by one latency-and-rate line: NCCL changes protocol with size, and time can fall as size grows.
// The bytes themselves are flows: the simulator shares the wire among them; LoneSeconds() gives the
// time without anybody else on it.
#ifndef FABRICAST_RUNTIME_COST_COMMUNICATION_COST_H_
#define FABRICAST_RUNTIME_COST_COMMUNICATION_COST_H_

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "topology/topology.h"

namespace fabricast {

// Point-to-point messages on one route.
class SendCost {
 public:
  // kNotFound if the topology's calibration has no entry for the kind of the route.
  static absl::StatusOr<SendCost> For(const Topology& topology, const Route& route);

  // Software and protocol time of a message, before and beside its bytes.
  double LatencySeconds(double bytes) const;

  // The rate that one stream cannot exceed on any wire, bytes/s; infinity if the wire is the only
  // limit.
  double max_bytes_per_s() const { return max_bytes_per_s_; }
  // What sets it: "NCCL's send chunks of 131072 bytes (24.9 GB/s at 5.26 us a chunk)"; empty if
  // nothing does.
  const std::string& limit() const { return limit_; }

  // Latency + bytes at the lower of the route's payload rate and max_bytes_per_s().
  double LoneSeconds(double bytes) const;

 private:
  SendCalibration calibration_;
  double hardware_latency_s_ = 0;
  double route_bytes_per_s_ = 0;
  double max_bytes_per_s_ = 0;
  std::string limit_;
};

// "all_reduce", "all_gather", "reduce_scatter", "sendrecv", as nccl-tests' programs are called.
absl::string_view CollectiveOpName(CollectiveOp op);
absl::StatusOr<CollectiveOp> ParseCollectiveOp(absl::string_view name);

// Bus bandwidth / algorithm bandwidth, as nccl-tests defines it: 2(n-1)/n for all-reduce, (n-1)/n
// for all-gather and reduce-scatter, 1 for send/recv.
double BusBandwidthFactor(CollectiveOp op, int ranks);

struct CollectiveFlow {
  int from = 0;  // GPU, index into the topology
  int to = 0;
  double bytes = 0;  // as the wire sees them: divided by the protocol's rate fraction
};

// One way to do a collective: fixed time + flows that run at the same time.
struct CollectiveCandidate {
  std::string algorithm;  // "ring", "tree"
  std::string protocol;   // "LL", "LL128", "Simple"
  double fixed_s = 0;
  std::vector<CollectiveFlow> flows;
};

// All ways that the calibration prices. `gpus`: indices into the topology, in ring order, two at
// least. `bytes`: as in nccl-tests' size column (all-reduce: of the vector; all-gather: of the
// gathered output; reduce-scatter: of the input; send/recv: of the message, sent around a ring).
// `algorithm`, `protocol`: "" for all, else only these. kNotFound if nothing is left; says what
// there is.
absl::StatusOr<std::vector<CollectiveCandidate>> CollectiveCandidates(
    const Topology& topology, CollectiveOp op, absl::Span<const int> gpus, double bytes,
    absl::string_view algorithm = "", absl::string_view protocol = "");

// The fastest candidate's time if nothing else uses the wires: segments are shared evenly among its
// own flows. Send/recv: no flow is faster than SendCost::max_bytes_per_s() of its route.
absl::StatusOr<double> LoneCollectiveSeconds(const Topology& topology, CollectiveOp op,
                                             absl::Span<const int> gpus, double bytes);

// Linear between points in log2(bytes), constant beyond the ends. 0 without points.
double InterpolateLatencySeconds(const google::protobuf::RepeatedPtrField<LatencyPoint>& points,
                                 double bytes);

// "NVLink", "PCIe peer", "host memory", "network, RDMA", "network, TCP".
absl::string_view PathKindName(PathKind kind);

}  // namespace fabricast

#endif  // FABRICAST_RUNTIME_COST_COMMUNICATION_COST_H_
