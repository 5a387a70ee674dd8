#include "topology/pcie_tree.h"

#include <algorithm>
#include <map>

#include "absl/strings/str_cat.h"
#include "topology/field_rules.h"
#include "topology/nearest_name.h"

namespace fabricast {
namespace {

// PCIe switches in a row; real hosts have one or two.
constexpr int kMaxDepth = 16;

// Where an upstream name leads: a root complex or a PCIe switch, by index.
struct Upstream {
  bool is_root;
  int index;
};

using Upstreams = std::map<std::string, Upstream, std::less<>>;

absl::Status AddName(absl::string_view file, absl::string_view object, absl::string_view kind,
                     const std::string& name, std::map<std::string, std::string>* kinds) {
  absl::Status status = CheckObjectName(file, absl::StrCat(object, ": ", kind), name);
  if (!status.ok()) return status;
  const auto [entry, is_new] = kinds->emplace(name, std::string(kind));
  if (is_new) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(file, ": ", object, ": \"", name,
                                                 "\" names both a ", entry->second, " and a ", kind,
                                                 "; rename one"));
}

absl::StatusOr<Upstream> FindUpstream(absl::string_view file, absl::string_view object,
                                      const std::string& upstream, const Upstreams& upstreams) {
  const auto entry = upstreams.find(upstream);
  if (entry != upstreams.end()) return entry->second;
  std::vector<std::string> known;
  for (const auto& [name, unused] : upstreams) known.push_back(name);
  if (upstream.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat(file, ": ", object, ": upstream is missing", Suggest(upstream, known)));
  }
  return absl::InvalidArgumentError(absl::StrCat(file, ": ", object, ": upstream \"", upstream,
                                                 "\" is no root complex or PCIe switch",
                                                 Suggest(upstream, known)));
}

}  // namespace

absl::StatusOr<PcieTree> PcieTree::Create(absl::string_view file, absl::string_view object,
                                          const HostSpec& spec) {
  if (spec.root_complexes().empty()) {
    return absl::InvalidArgumentError(absl::StrCat(
        file, ": ", object, ": no root_complexes; add root_complexes { name: \"rc0\" }"));
  }
  std::map<std::string, std::string> kinds;
  Upstreams upstreams;
  for (int i = 0; i < spec.root_complexes_size(); ++i) {
    const std::string& name = spec.root_complexes(i).name();
    absl::Status status = AddName(file, object, "root complex", name, &kinds);
    if (!status.ok()) return status;
    upstreams[name] = {.is_root = true, .index = i};
  }
  for (int i = 0; i < spec.pcie_switches_size(); ++i) {
    const std::string& name = spec.pcie_switches(i).name();
    absl::Status status = AddName(file, object, "PCIe switch", name, &kinds);
    if (!status.ok()) return status;
    upstreams[name] = {.is_root = false, .index = i};
  }

  std::vector<Upstream> above_switch;
  for (const PcieSwitch& pcie_switch : spec.pcie_switches()) {
    absl::StatusOr<Upstream> upstream =
        FindUpstream(file, absl::StrCat(object, ": PCIe switch ", pcie_switch.name()),
                     pcie_switch.upstream(), upstreams);
    if (!upstream.ok()) return upstream.status();
    above_switch.push_back(*upstream);
  }
  // A cycle is noticed by its depth.
  for (int i = 0; i < spec.pcie_switches_size(); ++i) {
    Upstream at = above_switch[i];
    for (int steps = 0; !at.is_root; ++steps) {
      if (steps == kMaxDepth) {
        return absl::InvalidArgumentError(
            absl::StrCat(file, ": ", object, ": PCIe switch ", spec.pcie_switches(i).name(),
                         ": no root complex within ", kMaxDepth,
                         " upstreams: they form a cycle; let one of them name a root complex"));
      }
      at = above_switch[at.index];
    }
  }

  PcieTree tree;
  for (const PcieSlot& slot : spec.slots()) {
    absl::Status status = AddName(file, object, "slot", slot.name(), &kinds);
    if (!status.ok()) return status;
    absl::StatusOr<Upstream> at = FindUpstream(file, absl::StrCat(object, ": slot ", slot.name()),
                                               slot.upstream(), upstreams);
    if (!at.ok()) return at.status();
    Leaf leaf;
    while (!at->is_root) {
      leaf.switches.push_back(at->index);
      at = above_switch[at->index];
    }
    leaf.root = at->index;
    tree.slot_names_.push_back(slot.name());
    tree.leaves_.push_back(std::move(leaf));
  }
  return tree;
}

PcieTree::Path PcieTree::Between(int from_slot, int to_slot) const {
  const Leaf& from = At(from_slot);
  const Leaf& to = At(to_slot);
  // Shared switches are the ends of both lists, the root's side.
  std::size_t shared = 0;
  while (from.root == to.root && shared < from.switches.size() && shared < to.switches.size() &&
         from.switches[from.switches.size() - 1 - shared] ==
             to.switches[to.switches.size() - 1 - shared]) {
    ++shared;
  }
  Path path;
  path.from_root = from.root;
  path.to_root = to.root;
  path.through_root = shared == 0;
  // An uplink is crossed for each switch below the one where the two meet.
  path.up.assign(from.switches.begin(), from.switches.end() - shared);
  path.down.assign(to.switches.rbegin() + shared, to.switches.rend());
  if (from.root != to.root) {
    path.distance = PCIE_DISTANCE_SYS;
  } else if (path.through_root) {
    path.distance = PCIE_DISTANCE_PHB;
  } else {
    path.distance = path.up.empty() && path.down.empty() ? PCIE_DISTANCE_PIX : PCIE_DISTANCE_PXB;
  }
  return path;
}

PcieTree::Path PcieTree::ToRoot(int slot) const {
  Path path;
  path.up = At(slot).switches;
  path.from_root = path.to_root = At(slot).root;
  return path;
}

PcieTree::Path PcieTree::FromRoot(int slot) const {
  Path path;
  path.down.assign(At(slot).switches.rbegin(), At(slot).switches.rend());
  path.from_root = path.to_root = At(slot).root;
  return path;
}

int PcieTree::FindSlot(absl::string_view name) const {
  const auto slot = std::find(slot_names_.begin(), slot_names_.end(), name);
  return slot == slot_names_.end() ? -1 : static_cast<int>(slot - slot_names_.begin());
}

}  // namespace fabricast
