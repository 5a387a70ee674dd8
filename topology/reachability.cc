#include "topology/reachability.h"

#include <algorithm>
#include <iterator>
#include <map>
#include <numeric>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "topology/hardware.h"

namespace fabricast {
namespace {

// Union-find over NICs and, behind them, switches.
class Components {
 public:
  explicit Components(const Hardware& hardware)
      : nics_(hardware.nics.size()), parent_(nics_ + hardware.switches.size()) {
    std::iota(parent_.begin(), parent_.end(), 0);
    for (const Hardware::Link& link : hardware.links) {
      parent_[Find(Node(link.a))] = Find(Node(link.b));
    }
  }

  int OfNic(int nic) { return Find(nic); }

 private:
  int Node(const Hardware::End& end) const {
    return end.is_switch ? static_cast<int>(nics_) + end.index : end.index;
  }
  int Find(int node) {
    while (parent_[node] != node) node = parent_[node] = parent_[parent_[node]];
    return node;
  }

  std::size_t nics_;
  std::vector<int> parent_;
};

}  // namespace

absl::Status CheckReachability(absl::string_view file, const Hardware& hardware) {
  Components components(hardware);
  // One GPU for each set of components that a host's NICs belong to: hosts with the same set are
  // alike.
  std::map<std::vector<int>, int> alike;
  std::map<int, int> first_gpu_of_host;
  for (const int gpu : hardware.ranks) {
    const auto [host, is_new] = first_gpu_of_host.emplace(hardware.gpus[gpu].host, gpu);
    if (!is_new) continue;
    std::vector<int> reached;
    for (const int nic : hardware.hosts[host->first].nics) {
      if (hardware.nics[nic].link >= 0) reached.push_back(components.OfNic(nic));
    }
    std::sort(reached.begin(), reached.end());
    reached.erase(std::unique(reached.begin(), reached.end()), reached.end());
    const auto [entry, is_first] = alike.emplace(std::move(reached), gpu);
    int unreachable = -1;
    if (!is_first && entry->first.empty()) unreachable = entry->second;
    for (const auto& [other, other_gpu] : alike) {
      if (!is_first || unreachable >= 0) break;
      if (other == entry->first) continue;
      std::vector<int> common;
      std::set_intersection(other.begin(), other.end(), entry->first.begin(), entry->first.end(),
                            std::back_inserter(common));
      if (common.empty()) unreachable = other_gpu;
    }
    if (unreachable < 0) continue;
    const std::string& host_name = hardware.hosts[host->first].name;
    const bool has_nic = !hardware.hosts[host->first].nics.empty();
    return absl::InvalidArgumentError(absl::StrCat(
        file, ": ", hardware.gpus[unreachable].name, " cannot reach ", hardware.gpus[gpu].name,
        ": no cables lead from ", hardware.hosts[hardware.gpus[unreachable].host].name, " to ",
        host_name, has_nic ? "" : ", which has no NIC", "; add links { a: \"", host_name,
        ".<nic>\" b: \"<switch>.<port>\" } or leave the GPU out of ranks"));
  }
  return absl::OkStatus();
}

}  // namespace fabricast
