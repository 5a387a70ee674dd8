// The ways of messages between GPUs: directed capacities, and which of them a message crosses.
#ifndef FABRICAST_TOPOLOGY_ROUTE_H_
#define FABRICAST_TOPOLOGY_ROUTE_H_

#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "topology/calibration.pb.h"
#include "topology/cluster.pb.h"

namespace fabricast {

enum class SegmentKind { kNvlink, kPcie, kRootComplex, kHostMemory, kNic, kSwitch };

// "NVLink", "PCIe", "root complex", "host memory", "NIC", "switch".
absl::string_view SegmentKindName(SegmentKind kind);

// One directed capacity that flows share.
//
// The names, for a GPU node_a.gpu0, a NIC node_a.nic0 and a switch leaf1:
//   "node_a.gpu0 nvlink out|in"
//   "node_a.gpu0 pcie up|down"         towards the root complex | away from it; likewise NICs and
//   PCIe switches "node_a.rc0 peer forward|backward" through a root complex, from a lower slot to a
//   higher one | back "node_a.rc0->rc1"                  between root complexes "node_a memory"
//   host memory that messages are staged in (both directions share it) "node_a.nic0 staging out|in"
//   NCCL's copies through host memory when GPUDirect RDMA is off "node_a.nic0 tx|rx" the NIC's
//   cable: the least of NIC, cable and port "leaf1.port17 out"                 a cable between
//   switches, out of that port "leaf1 fabric"                     a switch's own capacity, only
//   where its cabled ports exceed it
struct Segment {
  std::string name;
  SegmentKind kind;
  double line_bytes_per_s;     // what the hardware moves: 200 Gbps = 25e9
  double payload_bytes_per_s;  // less packet headers (or PCIe's TLP headers): what is left for
                               // messages
  std::string limit;           // what sets the rate: "PCIe 4.0 x16", "200 Gbps of switch0.qsfpdd1"
};

// The way of a message from one GPU's memory to another's.
struct Route {
  PathKind kind = PATH_KIND_UNSPECIFIED;
  std::vector<int>
      segments;        // indices into Topology::segments(), in the order of travel; never empty
  int bottleneck = 0;  // the one of `segments` with the least payload rate (the first, if several)
  double payload_bytes_per_s = 0;  // of a lone flow: the bottleneck's
  double latency_s = 0;            // of the hardware, without software
  // Whether NICs touch GPU memory themselves, and why not. True and empty for routes inside a host
  // that need no NIC, and between processors, whose memory is the host's.
  bool gpudirect = true;
  std::string gpudirect_reason;
  PcieDistance sender_distance =
      PCIE_DISTANCE_UNSPECIFIED;  // GPU to NIC; unspecified without a NIC
  PcieDistance receiver_distance = PCIE_DISTANCE_UNSPECIFIED;
};

}  // namespace fabricast

#endif  // FABRICAST_TOPOLOGY_ROUTE_H_
