// The PCIe tree of a host: root complexes, PCIe switches below them, slots at the leaves.
#ifndef FABRICAST_TOPOLOGY_PCIE_TREE_H_
#define FABRICAST_TOPOLOGY_PCIE_TREE_H_

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "topology/cluster.pb.h"

namespace fabricast {

class PcieTree {
 public:
  // Builds the tree of `spec`. kInvalidArgument, naming `file`, `object` and the mend, for names
  // that are missing or used twice, upstreams that do not exist, cycles, and a host without a root
  // complex.
  static absl::StatusOr<PcieTree> Create(absl::string_view file, absl::string_view object,
                                         const HostSpec& spec);

  // In place of a slot: where host memory is, at the first root complex.
  static constexpr int kHostMemory = -1;

  // The way between two slots. Switches and root complexes are indices into the spec's lists.
  struct Path {
    std::vector<int>
        up;  // PCIe switches whose uplinks are used towards the root, in order of travel
    std::vector<int>
        down;  // PCIe switches whose uplinks are used away from the root, in order of travel
    // Root complexes that are crossed: none if the two meet below one, otherwise that of the first
    // and that of the second slot (the same one, if both hang off it).
    bool through_root = false;
    int from_root = 0;
    int to_root = 0;
    PcieDistance distance = PCIE_DISTANCE_UNSPECIFIED;
  };
  Path Between(int from_slot, int to_slot) const;

  // Up from a slot to its root complex: host memory is there.
  Path ToRoot(int slot) const;
  // And down.
  Path FromRoot(int slot) const;

  // The slot of that name, -1 if there is none.
  int FindSlot(absl::string_view name) const;
  const std::vector<std::string>& slot_names() const { return slot_names_; }

 private:
  struct Leaf {
    std::vector<int> switches;  // from the slot towards the root
    int root = 0;
  };
  const Leaf& At(int slot) const { return slot == kHostMemory ? host_memory_ : leaves_[slot]; }

  std::vector<std::string> slot_names_;
  std::vector<Leaf> leaves_;  // of the slots
  Leaf host_memory_;
};

}  // namespace fabricast

#endif  // FABRICAST_TOPOLOGY_PCIE_TREE_H_
