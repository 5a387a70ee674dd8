#include "topology/hardware.h"

#include <arpa/inet.h>

#include <algorithm>
#include <map>
#include <optional>
#include <set>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "topology/field_rules.h"
#include "topology/nearest_name.h"
#include "topology/reachability.h"

namespace fabricast {
namespace {

// Distances are kept between switches: 4096 x 4096 of them take 32 MiB.
constexpr int kMaxSwitches = 4096;

// The rate of the port called `name`; no value if the switch has no such port.
std::optional<double> PortRate(const SwitchSpec& spec, absl::string_view name) {
  for (const SwitchPortGroup& group : spec.ports()) {
    int number = 0;
    if (!absl::StartsWith(name, group.prefix())) continue;
    const absl::string_view digits = name.substr(group.prefix().size());
    // "port01" and "port+1" are no names of port1.
    if (!absl::SimpleAtoi(digits, &number) || digits != absl::StrCat(number)) continue;
    if (number >= 1 && number <= group.count()) return group.rate_gbps();
  }
  return std::nullopt;
}

std::vector<std::string> PortRanges(const SwitchSpec& spec) {
  std::vector<std::string> ranges;
  for (const SwitchPortGroup& group : spec.ports()) {
    ranges.push_back(absl::StrCat(
        group.prefix(), "1",
        group.count() == 1 ? std::string() : absl::StrCat(" ... ", group.prefix(), group.count())));
  }
  return ranges;
}

class Resolver {
 public:
  Resolver(absl::string_view file, const Cluster& cluster, const SpecLibrary& specs)
      : file_(file), cluster_(cluster), specs_(specs) {}

  absl::StatusOr<Hardware> Run() {
    absl::Status status = CheckTexts(file_, cluster_);
    if (status.ok()) status = CheckObjectName(file_, "cluster", cluster_.name());
    if (status.ok()) status = AddHosts();
    if (status.ok()) status = AddSwitches();
    if (status.ok()) status = AddLinks();
    if (status.ok()) status = SetCommunication();
    if (status.ok()) status = AddRanks();
    if (status.ok()) status = CheckReachability(file_, hardware_);
    if (!status.ok()) return status;
    SetPacketSizes();
    return std::move(hardware_);
  }

 private:
  template <typename... Parts>
  absl::Status Error(absl::string_view object, const Parts&... parts) const {
    return absl::InvalidArgumentError(absl::StrCat(file_, ": ", object, ": ", parts...));
  }
  template <typename... Parts>
  void Warn(absl::string_view object, const Parts&... parts) {
    hardware_.warnings.push_back(absl::StrCat(file_, ": ", object, ": ", parts...));
  }

  // The error for a spec that is missing or unknown.
  absl::Status NoSpec(absl::string_view object, absl::string_view kind, const std::string& name,
                      const std::vector<std::string>& known) const {
    if (name.empty()) {
      return Error(object, "spec is missing; name a ", kind, " spec", Suggest(name, known));
    }
    return Error(object, "no ", kind, " spec \"", name, "\"", Suggest(name, known));
  }

  // `spec` with the instance's override on top.
  template <typename Spec>
  absl::StatusOr<Spec> Merge(absl::string_view object, const Spec& spec,
                             const Spec& override_spec) const {
    const absl::Status status = CheckOverride(file_, object, override_spec);
    if (!status.ok()) return status;
    Spec merged = spec;
    merged.MergeFrom(override_spec);
    return merged;
  }

  // Hosts and switches share one set of names, because an end of a cable starts with either.
  absl::Status ClaimName(absl::string_view kind, const std::string& name) {
    absl::Status status = CheckObjectName(file_, kind, name);
    if (!status.ok()) return status;
    const auto [entry, is_new] = top_names_.emplace(name, kind);
    if (is_new) return absl::OkStatus();
    return Error(name, "name is used twice, by a ", entry->second, " and a ", kind, "; rename one");
  }

  absl::Status AddHosts();
  absl::Status AddHost(const ::fabricast::Host& host);
  absl::StatusOr<int> TakeSlot(const Hardware::Host& host, const std::string& object,
                               const std::string& slot, std::map<int, std::string>* taken) const;
  Hardware::PcieLink LinkOf(const Hardware::Host& host, int slot, int generation, int lanes) const;
  absl::Status AddNvlinkDomains(const ::fabricast::Host& host, int host_index);
  absl::Status AddSwitches();
  absl::Status AddLinks();
  absl::StatusOr<Hardware::End> FindEnd(const std::string& link, absl::string_view side,
                                        const std::string& text) const;
  absl::Status SetCommunication();
  absl::Status AddRanks();
  void SetPacketSizes();

  const absl::string_view file_;
  const Cluster& cluster_;
  const SpecLibrary& specs_;
  Hardware hardware_;
  std::map<std::string, std::string> top_names_;
  std::map<std::string, int> gpu_by_name_;
  std::map<std::string, int> nic_by_name_;
  std::map<std::string, int> switch_by_name_;
};

bool IsIpAddress(const std::string& text) {
  in6_addr address;
  return inet_pton(AF_INET, text.c_str(), &address) == 1 ||
         inet_pton(AF_INET6, text.c_str(), &address) == 1;
}

absl::Status Resolver::AddHosts() {
  for (const ::fabricast::Host& host : cluster_.hosts()) {
    absl::Status status = ClaimName("host", host.name());
    if (status.ok()) status = AddHost(host);
    if (!status.ok()) return status;
  }
  if (!hardware_.gpus.empty()) return absl::OkStatus();
  return Error(absl::StrCat("cluster ", cluster_.name()),
               "no GPUs; add hosts { name: \"node_a\" spec: \"...\" gpus { ... } }");
}

absl::Status Resolver::AddHost(const ::fabricast::Host& host) {
  const HostSpec* spec = specs_.host(host.spec());
  if (spec == nullptr) return NoSpec(host.name(), "host", host.spec(), specs_.host_names());
  if (!host.address().empty() && !IsIpAddress(host.address())) {
    return Error(host.name(), "address \"", host.address(),
                 "\" is not an IP address; give the one that its processes listen on");
  }
  absl::StatusOr<HostSpec> merged = Merge(host.name(), *spec, host.override());
  if (!merged.ok()) return merged.status();
  absl::StatusOr<PcieTree> tree = PcieTree::Create(file_, host.name(), *merged);
  if (!tree.ok()) return tree.status();

  const int host_index = static_cast<int>(hardware_.hosts.size());
  Hardware::Host resolved{
      .name = host.name(),
      .spec = *std::move(merged),
      .tree = *std::move(tree),
      .gpudirect_driver = !host.has_gpudirect_driver() || host.gpudirect_driver(),
      .gpus = {},
      .nics = {}};
  std::map<int, std::string> slots_taken;
  std::set<std::string> names;
  for (const ::fabricast::Gpu& gpu : host.gpus()) {
    const std::string name = absl::StrCat(host.name(), ".", gpu.name());
    absl::Status status = CheckObjectName(file_, absl::StrCat(host.name(), ": gpus"), gpu.name());
    if (!status.ok()) return status;
    if (!names.insert(gpu.name()).second) return Error(name, "name is used twice; rename one");
    const GpuSpec* gpu_spec = specs_.gpu(gpu.spec());
    if (gpu_spec == nullptr) return NoSpec(name, "GPU", gpu.spec(), specs_.gpu_names());
    absl::StatusOr<GpuSpec> card = Merge(name, *gpu_spec, gpu.override());
    if (!card.ok()) return card.status();
    if (specs_.kernels(card->calibration()) == nullptr) {
      return Error(name, "no kernel calibration \"", card->calibration(), "\"",
                   Suggest(card->calibration(), specs_.kernels_names()));
    }
    if (card->processor() != gpu_spec->processor()) {
      return Error(name, "override cannot set processor; name another spec");
    }
    absl::StatusOr<int> slot = PcieTree::kHostMemory;
    Hardware::PcieLink pcie;
    if (!card->processor()) {
      slot = TakeSlot(resolved, name, gpu.slot(), &slots_taken);
      if (!slot.ok()) return slot.status();
      pcie = LinkOf(resolved, *slot, card->pcie_generation(), card->pcie_lanes());
    } else if (!gpu.slot().empty()) {
      return Error(name, "slot is \"", gpu.slot(), "\", and ", card->name(),
                   " is a processor, which has none; leave it out");
    }
    gpu_by_name_[name] = static_cast<int>(hardware_.gpus.size());
    resolved.gpus.push_back(static_cast<int>(hardware_.gpus.size()));
    hardware_.gpus.push_back({.name = name,
                              .host = host_index,
                              .order = static_cast<int>(resolved.gpus.size()) - 1,
                              .slot = *slot,
                              .spec = *std::move(card),
                              .pcie = pcie});
  }
  for (const ::fabricast::Nic& nic : host.nics()) {
    const std::string name = absl::StrCat(host.name(), ".", nic.name());
    absl::Status status = CheckObjectName(file_, absl::StrCat(host.name(), ": nics"), nic.name());
    if (!status.ok()) return status;
    if (!names.insert(nic.name()).second) return Error(name, "name is used twice; rename one");
    const NicSpec* nic_spec = specs_.nic(nic.spec());
    if (nic_spec == nullptr) return NoSpec(name, "NIC", nic.spec(), specs_.nic_names());
    absl::StatusOr<NicSpec> card = Merge(name, *nic_spec, nic.override());
    if (!card.ok()) return card.status();
    absl::StatusOr<int> slot = TakeSlot(resolved, name, nic.slot(), &slots_taken);
    if (!slot.ok()) return slot.status();
    const Hardware::PcieLink pcie =
        LinkOf(resolved, *slot, card->pcie_generation(), card->pcie_lanes());
    nic_by_name_[name] = static_cast<int>(hardware_.nics.size());
    resolved.nics.push_back(static_cast<int>(hardware_.nics.size()));
    hardware_.nics.push_back({.name = name,
                              .host = host_index,
                              .order = static_cast<int>(resolved.nics.size()) - 1,
                              .slot = *slot,
                              .spec = *std::move(card),
                              .pcie = pcie});
  }
  hardware_.hosts.push_back(std::move(resolved));
  return AddNvlinkDomains(host, host_index);
}

absl::StatusOr<int> Resolver::TakeSlot(const Hardware::Host& host, const std::string& object,
                                       const std::string& slot,
                                       std::map<int, std::string>* taken) const {
  const std::vector<std::string>& known = host.tree.slot_names();
  if (slot.empty()) {
    return Error(object, "slot is missing; name one of host spec ", host.spec.name(),
                 Suggest(slot, known));
  }
  const int index = host.tree.FindSlot(slot);
  if (index < 0) {
    return Error(object, "host spec ", host.spec.name(), " has no slot \"", slot, "\"",
                 Suggest(slot, known));
  }
  const auto [entry, is_free] = taken->emplace(index, object);
  if (is_free) return index;
  std::vector<std::string> unused;
  for (int i = 0; i < static_cast<int>(known.size()); ++i) {
    if (taken->count(i) == 0) unused.push_back(known[i]);
  }
  return Error(object, "slot ", slot, " is taken by ", entry->second, "; free ",
               unused.empty() ? std::string("are none") : absl::StrJoin(unused, ", "));
}

Hardware::PcieLink Resolver::LinkOf(const Hardware::Host& host, int slot, int generation,
                                    int lanes) const {
  const PcieSlot& socket = host.spec.slots(slot);
  return {.generation = std::min(generation, socket.generation()),
          .lanes = std::min(lanes, socket.lanes())};
}

absl::Status Resolver::AddNvlinkDomains(const ::fabricast::Host& host, int host_index) {
  std::vector<std::string> known;
  for (const ::fabricast::Gpu& gpu : host.gpus()) known.push_back(gpu.name());
  std::set<std::string> names;
  for (int i = 0; i < host.nvlink_domains_size(); ++i) {
    const NvlinkDomain& domain = host.nvlink_domains(i);
    absl::Status status =
        CheckObjectName(file_, absl::StrCat(host.name(), ": nvlink_domains"), domain.name());
    if (!status.ok()) return status;
    const std::string object = absl::StrCat(host.name(), ".", domain.name());
    if (!names.insert(domain.name()).second) return Error(object, "name is used twice; rename one");
    for (const std::string& name : domain.gpus()) {
      const auto entry = gpu_by_name_.find(absl::StrCat(host.name(), ".", name));
      if (entry == gpu_by_name_.end()) {
        return Error(object, "gpus: ", host.name(), " has no GPU \"", name, "\"",
                     Suggest(name, known));
      }
      Hardware::Gpu& gpu = hardware_.gpus[entry->second];
      if (gpu.host != host_index) return Error(object, "gpus: ", name, " is of another host");
      if (gpu.nvlink_domain >= 0) {
        return Error(object, "gpus: ", gpu.name, " is already in NVLink domain ",
                     host.nvlink_domains(gpu.nvlink_domain).name(), "; list it once");
      }
      if (!gpu.spec.has_nvlink_gb_s()) {
        return Error(object, "gpus: ", gpu.name, " has no NVLink (", gpu.spec.name(),
                     " has no nvlink_gb_s); leave it out");
      }
      gpu.nvlink_domain = i;
    }
  }
  return absl::OkStatus();
}

absl::Status Resolver::AddSwitches() {
  if (cluster_.switches_size() > kMaxSwitches) {
    return Error(absl::StrCat("cluster ", cluster_.name()), cluster_.switches_size(),
                 " switches; at most ", kMaxSwitches, " are routed");
  }
  for (const ::fabricast::Switch& node : cluster_.switches()) {
    absl::Status status = ClaimName("switch", node.name());
    if (!status.ok()) return status;
    const SwitchSpec* spec = specs_.switch_spec(node.spec());
    if (spec == nullptr) return NoSpec(node.name(), "switch", node.spec(), specs_.switch_names());
    absl::StatusOr<SwitchSpec> merged = Merge(node.name(), *spec, node.override());
    if (!merged.ok()) return merged.status();
    switch_by_name_[node.name()] = static_cast<int>(hardware_.switches.size());
    hardware_.switches.push_back({.name = node.name(), .spec = *std::move(merged), .links = {}});
  }
  return absl::OkStatus();
}

absl::StatusOr<Hardware::End> Resolver::FindEnd(const std::string& link, absl::string_view side,
                                                const std::string& text) const {
  const std::string object = absl::StrCat("link ", link);
  const std::pair<absl::string_view, absl::string_view> parts =
      absl::StrSplit(text, absl::MaxSplits('.', 1));
  if (text.empty() || parts.second.empty()) {
    return Error(object, side, " is \"", text, "\"; write \"host.nic\" or \"switch.port\"");
  }
  const std::string owner(parts.first);
  const auto node = switch_by_name_.find(owner);
  if (node != switch_by_name_.end()) {
    const SwitchSpec& spec = hardware_.switches[node->second].spec;
    const std::optional<double> rate = PortRate(spec, parts.second);
    if (!rate.has_value()) {
      return Error(object, side, ": switch ", owner, " (", spec.name(), ") has no port \"",
                   parts.second, "\"; it has ", absl::StrJoin(PortRanges(spec), ", "));
    }
    return Hardware::End{
        .name = text, .is_switch = true, .index = node->second, .rate_gbps = *rate};
  }
  const auto nic = nic_by_name_.find(text);
  if (nic != nic_by_name_.end()) {
    return Hardware::End{.name = text,
                         .is_switch = false,
                         .index = nic->second,
                         .rate_gbps = hardware_.nics[nic->second].spec.rate_gbps()};
  }
  std::vector<std::string> known;
  for (const Hardware::Host& host : hardware_.hosts) {
    if (host.name != owner) continue;
    for (const int i : host.nics) known.push_back(hardware_.nics[i].name);
    return Error(object, side, ": host ", owner, " has no NIC \"", parts.second, "\"",
                 Suggest(text, known));
  }
  for (const auto& [name, unused] : top_names_) known.push_back(name);
  return Error(object, side, ": no host or switch \"", owner, "\"", Suggest(owner, known));
}

absl::Status Resolver::AddLinks() {
  std::set<std::string> names;
  std::map<std::string, std::string> cabled;  // an end's name to its link's
  for (const ::fabricast::Link& link : cluster_.links()) {
    const std::string name =
        link.name().empty() ? absl::StrCat(link.a(), "--", link.b()) : link.name();
    const std::string object = absl::StrCat("link ", name);
    const absl::Status status = CheckNumbers(file_, object, link);
    if (!status.ok()) return status;
    absl::StatusOr<Hardware::End> a = FindEnd(name, "a", link.a());
    if (!a.ok()) return a.status();
    absl::StatusOr<Hardware::End> b = FindEnd(name, "b", link.b());
    if (!b.ok()) return b.status();
    if (a->name == b->name) {
      return Error(object, a->name, " is cabled to itself; let b be the other end");
    }
    for (const Hardware::End* end : {&*a, &*b}) {
      const auto [entry, is_free] = cabled.emplace(end->name, name);
      if (is_free) continue;
      return Error(object, end->name, " is cabled already, by link ", entry->second,
                   "; use another port");
    }
    if (!names.insert(name).second) {
      return Error(object, "name is used twice; rename one");
    }
    const Hardware::End& slower = a->rate_gbps <= b->rate_gbps ? *a : *b;
    if (link.has_rate_gbps() && link.rate_gbps() > slower.rate_gbps) {
      Warn(object, "rate_gbps is ", link.rate_gbps(), ", but ", slower.name, " has ",
           slower.rate_gbps, ": ", slower.rate_gbps, " is used");
    }
    const int index = static_cast<int>(hardware_.links.size());
    for (const Hardware::End* end : {&*a, &*b}) {
      if (end->is_switch) {
        hardware_.switches[end->index].links.push_back(index);
      } else {
        hardware_.nics[end->index].link = index;
      }
    }
    const double rate =
        link.has_rate_gbps() ? std::min(link.rate_gbps(), slower.rate_gbps) : slower.rate_gbps;
    hardware_.links.push_back({.name = name,
                               .a = *std::move(a),
                               .b = *std::move(b),
                               .rate_gbps = rate,
                               .latency_s = link.latency_ns() * 1e-9});
  }
  for (const Hardware::Nic& nic : hardware_.nics) {
    if (nic.link < 0) Warn(nic.name, "no link leads to it: unused");
  }
  return absl::OkStatus();
}

absl::Status Resolver::SetCommunication() {
  const Communication& communication = cluster_.communication();
  const absl::Status status = CheckNumbers(file_, "communication", communication);
  if (!status.ok()) return status;
  if (!Transport_IsValid(communication.transport())) {
    return Error("communication", "transport is ", communication.transport(),
                 "; it is one of TRANSPORT_NCCL_RDMA, TRANSPORT_TCP");
  }
  if (!PcieDistance_IsValid(communication.gdr_level())) {
    return Error("communication", "gdr_level is ", communication.gdr_level(),
                 "; it is one of PCIE_DISTANCE_LOC, _PIX, _PXB, _PHB, _SYS");
  }
  if (communication.transport() != TRANSPORT_UNSPECIFIED) {
    hardware_.transport = communication.transport();
  }
  if (communication.gdr_level() != PCIE_DISTANCE_UNSPECIFIED) {
    hardware_.gdr_level = communication.gdr_level();
  }
  hardware_.gpudirect = !communication.has_gpudirect() || communication.gpudirect();
  return absl::OkStatus();
}

absl::Status Resolver::AddRanks() {
  if (cluster_.ranks().empty()) {
    for (int i = 0; i < static_cast<int>(hardware_.gpus.size()); ++i) hardware_.ranks.push_back(i);
    return absl::OkStatus();
  }
  std::map<int, int> rank_of;
  for (int i = 0; i < cluster_.ranks_size(); ++i) {
    const std::string object = absl::StrCat("ranks[", i, "]");
    const auto gpu = gpu_by_name_.find(cluster_.ranks(i));
    if (gpu == gpu_by_name_.end()) {
      std::vector<std::string> known;
      for (const auto& [name, unused] : gpu_by_name_) known.push_back(name);
      return Error(object, "no GPU \"", cluster_.ranks(i), "\"", Suggest(cluster_.ranks(i), known));
    }
    const auto [entry, is_new] = rank_of.emplace(gpu->second, i);
    if (!is_new) {
      return Error(object, cluster_.ranks(i), " is ranks[", entry->second,
                   "] already; a GPU has one rank");
    }
    hardware_.ranks.push_back(gpu->second);
  }
  return absl::OkStatus();
}

void Resolver::SetPacketSizes() {
  bool any = false;
  const Hardware::Nic* least = nullptr;
  bool differs = false;
  for (const Hardware::Nic& nic : hardware_.nics) {
    if (nic.link < 0) continue;
    const int roce = nic.spec.roce_mtu_bytes();
    const int ethernet = nic.spec.ethernet_mtu_bytes();
    differs = differs || (any && roce != hardware_.roce_mtu_bytes);
    if (!any || roce < hardware_.roce_mtu_bytes) {
      hardware_.roce_mtu_bytes = roce;
      least = &nic;
    }
    hardware_.ethernet_mtu_bytes =
        any ? std::min(hardware_.ethernet_mtu_bytes, ethernet) : ethernet;
    any = true;
  }
  if (differs && hardware_.transport == TRANSPORT_NCCL_RDMA) {
    Warn(least->name, "roce_mtu_bytes ", hardware_.roce_mtu_bytes,
         " is the least of the cluster and used for all of it");
  }
}

}  // namespace

absl::StatusOr<Hardware> ResolveHardware(absl::string_view file, const Cluster& cluster,
                                         const SpecLibrary& specs) {
  return Resolver(file, cluster, specs).Run();
}

}  // namespace fabricast
