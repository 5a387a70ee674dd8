// Finds the ways of messages between GPUs.
#ifndef FABRICAST_TOPOLOGY_ROUTER_H_
#define FABRICAST_TOPOLOGY_ROUTER_H_

#include <cstdint>
#include <string>
#include <vector>

#include "topology/hardware.h"
#include "topology/route.h"
#include "topology/segment_table.h"

namespace fabricast {

// GPUs are given by their index into Hardware::gpus.
//
// Inside a host: NVLink if both GPUs are in one domain, else PCIe peer to peer if both allow it,
// else through host memory. Between hosts: from the NIC nearest to the sender to the NIC nearest to
// the receiver (of several equally near, GPU i takes the i-th), over the fewest switches; of
// several equally short ways one by a fixed hash of the two GPUs, as switches spread flows (ECMP).
class Router {
 public:
  // Both must outlive the router. Every pair of GPUs that is asked for must be reachable
  // (CheckReachability).
  Router(const Hardware* hardware, const SegmentTable* table);

  Route Find(int from, int to) const;

  // The NICs of a route between hosts, as indices into Hardware::nics.
  struct NicPair {
    int sender = -1;
    int receiver = -1;
  };
  NicPair ChooseNics(int from, int to) const;

 private:
  // A cable that leaves a switch for another one.
  struct Hop {
    int to;
    int segment;
    double latency_s;
  };
  static constexpr int kUnreachable = 0xFFFF;  // Hardware has at most 4096 switches

  void FindSwitchDistances();
  // PCIe distance from a GPU to a NIC of its host.
  PcieDistance Distance(int gpu, int nic) const;
  // Switches crossed between two cabled NICs; kUnreachable if there is no way.
  int SwitchesBetween(int from_nic, int to_nic) const;

  void AddLocal(int from, int to, Route* route) const;
  void AddNetwork(int from, int to, Route* route) const;
  // Segments of PCIe from slot to slot, the devices' own links excluded.
  void AddPcie(int host, const PcieTree::Path& path, bool forward, Route* route) const;
  // From one slot into host memory, by `copies` (a segment or none), and out of it to another slot.
  void AddStaging(int host, int from_slot, int to_slot, int copies, Route* route) const;
  void AddCables(const NicPair& nics, int from, int to, Route* route) const;
  // Why GPUDirect RDMA is not used between the two; empty if it is.
  std::string WhyNoGpudirect(int from, int to, const NicPair& nics) const;

  const Hardware& hardware_;
  const SegmentTable& table_;
  // [gpu][order of the NIC in its host]
  std::vector<std::vector<PcieDistance>> distances_;
  // [gpu]: the NIC it takes if all are reachable.
  std::vector<int> preferred_nic_;
  std::vector<std::vector<Hop>> hops_;  // [switch]
  // [to][from]: cables between two switches. Only for a `to` that a NIC is cabled to.
  std::vector<std::vector<std::uint16_t>> switch_distances_;
};

}  // namespace fabricast

#endif  // FABRICAST_TOPOLOGY_ROUTER_H_
