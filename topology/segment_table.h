// All directed capacities of a cluster, and which of them belong to which piece of hardware.
#ifndef FABRICAST_TOPOLOGY_SEGMENT_TABLE_H_
#define FABRICAST_TOPOLOGY_SEGMENT_TABLE_H_

#include <string>
#include <vector>

#include "topology/hardware.h"
#include "topology/route.h"

namespace fabricast {

struct SegmentTable {
  // Indices into `segments`; kNone where there is no such capacity or it is never the bottleneck.
  static constexpr int kNone = -1;
  struct Pair {
    int out = kNone;  // also: up, forward, a to b
    int in = kNone;   // also: down, backward, b to a
  };
  struct Host {
    int memory = kNone;
    std::vector<Pair> pcie_switches;  // uplinks
    std::vector<Pair> root_complexes;
    std::vector<int> root_links;  // [from * number of root complexes + to]
  };

  std::vector<Segment> segments;
  std::vector<Host> hosts;
  std::vector<Pair> gpu_pcie;  // none for processors
  std::vector<Pair> gpu_nvlink;
  std::vector<Pair> nic_pcie;
  std::vector<Pair> nic_staging;
  std::vector<Pair> links;
  std::vector<int> switch_fabrics;
};

// `staging_bytes_per_s`: what NCCL's copies through host memory reach for one NIC and direction.
SegmentTable MakeSegments(const Hardware& hardware, double staging_bytes_per_s);

// NICs and GPUs whose slot is too narrow for them, one line each, beginning with `file`.
std::vector<std::string> SlotWarnings(absl::string_view file, const Hardware& hardware);

}  // namespace fabricast

#endif  // FABRICAST_TOPOLOGY_SEGMENT_TABLE_H_
