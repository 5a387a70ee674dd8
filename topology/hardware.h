// A cluster with its names resolved: specs merged with overrides, slots, ports and cables as
// indices. Made and checked by ResolveHardware, read by the segment table and the router.
#ifndef FABRICAST_TOPOLOGY_HARDWARE_H_
#define FABRICAST_TOPOLOGY_HARDWARE_H_

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "topology/cluster.pb.h"
#include "topology/pcie_tree.h"
#include "topology/spec_library.h"

namespace fabricast {

struct Hardware {
  // The narrower and slower of a card and its slot.
  struct PcieLink {
    int generation = 0;
    int lanes = 0;
  };
  struct Gpu {
    std::string name;  // "node_a.gpu0"
    int host = 0;
    int order = 0;  // among the host's GPUs
    int slot = 0;   // of the host's PCIe tree; PcieTree::kHostMemory for a processor
    GpuSpec spec;
    PcieLink pcie;
    int nvlink_domain = -1;  // of its host; -1: none
  };
  struct Nic {
    std::string name;
    int host = 0;
    int order = 0;
    int slot = 0;
    NicSpec spec;
    PcieLink pcie;
    int link = -1;  // -1: not cabled
  };
  struct Host {
    std::string name;
    HostSpec spec;
    PcieTree tree;
    bool gpudirect_driver = true;
    std::vector<int> gpus;  // indices into Hardware::gpus
    std::vector<int> nics;
  };
  struct Switch {
    std::string name;
    SwitchSpec spec;
    std::vector<int> links;  // cables on its ports
  };
  // One end of a cable.
  struct End {
    std::string name;  // "node_a.nic0", "switch0.port1"
    bool is_switch = false;
    int index = 0;         // into Hardware::nics or Hardware::switches
    double rate_gbps = 0;  // of the NIC or of the port
  };
  struct Link {
    std::string name;
    End a;
    End b;
    double rate_gbps = 0;  // what the cable can do: the least of both ends and of its own
    double latency_s = 0;
  };

  std::vector<Host> hosts;
  std::vector<Gpu> gpus;
  std::vector<Nic> nics;
  std::vector<Switch> switches;
  std::vector<Link> links;

  std::vector<int> ranks;  // indices into gpus, in the order of the pipeline
  Transport transport = TRANSPORT_NCCL_RDMA;
  PcieDistance gdr_level = PCIE_DISTANCE_PXB;
  bool gpudirect = true;  // communication.gpudirect
  // A flow between hosts uses one packet size from end to end: the least that any cabled NIC is set
  // to.
  int roce_mtu_bytes = 4096;
  int ethernet_mtu_bytes = 9000;

  // What is allowed but surprising, one line each, beginning with the file.
  std::vector<std::string> warnings;
};

// Resolves `cluster` against `specs`. kInvalidArgument, naming `file`, object, field and mend, for
// whatever does not fit together; see topology_errors_test.cc for all of it.
absl::StatusOr<Hardware> ResolveHardware(absl::string_view file, const Cluster& cluster,
                                         const SpecLibrary& specs);

}  // namespace fabricast

#endif  // FABRICAST_TOPOLOGY_HARDWARE_H_
