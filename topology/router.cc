#include "topology/router.h"

#include <algorithm>
#include <cstdint>
#include <deque>
#include <tuple>

#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "topology/link_rates.h"

namespace fabricast {
namespace {

// The finaliser of SplitMix64: every bit of the input changes half of the output's.
std::uint64_t Mix(std::uint64_t x) {
  x += 0x9E3779B97F4A7C15u;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
  return x ^ (x >> 31);
}

// "PHB" for PCIE_DISTANCE_PHB.
std::string ShortName(PcieDistance distance) {
  const std::string& name = PcieDistance_Name(distance);
  return std::string(absl::StripPrefix(name, "PCIE_DISTANCE_"));
}

void Append(int segment, Route* route) {
  if (segment != SegmentTable::kNone) route->segments.push_back(segment);
}

}  // namespace

Router::Router(const Hardware* hardware, const SegmentTable* table)
    : hardware_(*hardware), table_(*table) {
  for (const Hardware::Gpu& gpu : hardware_.gpus) {
    const Hardware::Host& host = hardware_.hosts[gpu.host];
    std::vector<PcieDistance> distances;
    for (const int nic : host.nics) {
      distances.push_back(host.tree.Between(gpu.slot, hardware_.nics[nic].slot).distance);
    }
    // Of the nearest NICs that are cabled: the one with the GPU's own number, else they take turns.
    std::vector<int> nearest;
    PcieDistance least = PCIE_DISTANCE_SYS;
    for (std::size_t i = 0; i < host.nics.size(); ++i) {
      if (hardware_.nics[host.nics[i]].link < 0 || distances[i] > least) continue;
      if (distances[i] < least) nearest.clear();
      least = distances[i];
      nearest.push_back(host.nics[i]);
    }
    int preferred = -1;
    if (!nearest.empty()) preferred = nearest[gpu.order % nearest.size()];
    for (const int nic : nearest) {
      if (hardware_.nics[nic].order == gpu.order) preferred = nic;
    }
    preferred_nic_.push_back(preferred);
    distances_.push_back(std::move(distances));
  }
  FindSwitchDistances();
}

void Router::FindSwitchDistances() {
  const int count = static_cast<int>(hardware_.switches.size());
  hops_.resize(count);
  for (std::size_t i = 0; i < hardware_.links.size(); ++i) {
    const Hardware::Link& link = hardware_.links[i];
    if (!link.a.is_switch || !link.b.is_switch) continue;
    hops_[link.a.index].push_back(
        {.to = link.b.index, .segment = table_.links[i].out, .latency_s = link.latency_s});
    hops_[link.b.index].push_back(
        {.to = link.a.index, .segment = table_.links[i].in, .latency_s = link.latency_s});
  }
  switch_distances_.assign(count, {});
  for (const Hardware::Link& link : hardware_.links) {
    if (link.a.is_switch == link.b.is_switch) continue;
    const int start = link.a.is_switch ? link.a.index : link.b.index;
    std::vector<std::uint16_t>& distance = switch_distances_[start];
    if (!distance.empty()) continue;
    distance.assign(count, kUnreachable);
    distance[start] = 0;
    std::deque<int> queue = {start};
    while (!queue.empty()) {
      const int at = queue.front();
      queue.pop_front();
      for (const Hop& hop : hops_[at]) {
        if (distance[hop.to] != kUnreachable) continue;
        distance[hop.to] = distance[at] + 1;
        queue.push_back(hop.to);
      }
    }
  }
}

PcieDistance Router::Distance(int gpu, int nic) const {
  return distances_[gpu][hardware_.nics[nic].order];
}

int Router::SwitchesBetween(int from_nic, int to_nic) const {
  const auto other_end = [this](int nic) -> const Hardware::End& {
    const Hardware::Link& link = hardware_.links[hardware_.nics[nic].link];
    return !link.a.is_switch && link.a.index == nic ? link.b : link.a;
  };
  const Hardware::End& from = other_end(from_nic);
  const Hardware::End& to = other_end(to_nic);
  if (!from.is_switch) return from.index == to_nic ? 0 : kUnreachable;
  if (!to.is_switch) return kUnreachable;
  const int cables = switch_distances_[to.index][from.index];
  return cables == kUnreachable ? kUnreachable : cables + 1;
}

Router::NicPair Router::ChooseNics(int from, int to) const {
  const Hardware::Gpu& sender = hardware_.gpus[from];
  const Hardware::Gpu& receiver = hardware_.gpus[to];
  NicPair best;
  // Nearest first, then the GPUs' own NICs, then fewest switches, then the order of the file.
  std::tuple<int, int, int> least(1 << 20, 0, 0);
  for (const int a : hardware_.hosts[sender.host].nics) {
    if (hardware_.nics[a].link < 0) continue;
    for (const int b : hardware_.hosts[receiver.host].nics) {
      if (hardware_.nics[b].link < 0) continue;
      const int switches = SwitchesBetween(a, b);
      if (switches >= kUnreachable) continue;
      const std::tuple<int, int, int> cost(
          Distance(from, a) + Distance(to, b),
          (preferred_nic_[from] == a ? 0 : 1) + (preferred_nic_[to] == b ? 0 : 1), switches);
      if (cost >= least) continue;
      least = cost;
      best = {.sender = a, .receiver = b};
    }
  }
  return best;
}

Route Router::Find(int from, int to) const {
  Route route;
  if (hardware_.gpus[from].host == hardware_.gpus[to].host) {
    AddLocal(from, to, &route);
  } else {
    AddNetwork(from, to, &route);
  }
  route.bottleneck = route.segments.front();
  for (const int segment : route.segments) {
    if (table_.segments[segment].payload_bytes_per_s <
        table_.segments[route.bottleneck].payload_bytes_per_s) {
      route.bottleneck = segment;
    }
  }
  route.payload_bytes_per_s = table_.segments[route.bottleneck].payload_bytes_per_s;
  return route;
}

void Router::AddPcie(int host, const PcieTree::Path& path, bool forward, Route* route) const {
  const SegmentTable::Host& segments = table_.hosts[host];
  for (const int node : path.up) Append(segments.pcie_switches[node].out, route);
  if (path.through_root) {
    const auto peer = [&](int root) {
      const SegmentTable::Pair& pair = segments.root_complexes[root];
      Append(forward ? pair.out : pair.in, route);
    };
    peer(path.from_root);
    if (path.from_root != path.to_root) {
      const int roots = static_cast<int>(segments.root_complexes.size());
      Append(segments.root_links[path.from_root * roots + path.to_root], route);
      peer(path.to_root);
    }
  }
  for (const int node : path.down) Append(segments.pcie_switches[node].in, route);
}

void Router::AddLocal(int from, int to, Route* route) const {
  const Hardware::Gpu& sender = hardware_.gpus[from];
  const Hardware::Gpu& receiver = hardware_.gpus[to];
  const PcieTree& tree = hardware_.hosts[sender.host].tree;
  if (sender.nvlink_domain >= 0 && sender.nvlink_domain == receiver.nvlink_domain) {
    route->kind = PATH_KIND_NVLINK;
    route->latency_s = kNvlinkLatencySeconds;
    Append(table_.gpu_nvlink[from].out, route);
    Append(table_.gpu_nvlink[to].in, route);
    return;
  }
  Append(table_.gpu_pcie[from].out, route);
  if (sender.spec.pcie_peer_to_peer() && receiver.spec.pcie_peer_to_peer()) {
    route->kind = PATH_KIND_PCIE_PEER;
    route->latency_s = kPciePeerLatencySeconds;
    AddPcie(sender.host, tree.Between(sender.slot, receiver.slot), sender.slot < receiver.slot,
            route);
  } else {
    route->kind = PATH_KIND_HOST_MEMORY;
    route->latency_s = sender.spec.processor() && receiver.spec.processor()
                           ? kProcessorLatencySeconds
                           : kHostMemoryLatencySeconds;
    AddStaging(sender.host, sender.slot, receiver.slot, SegmentTable::kNone, route);
  }
  Append(table_.gpu_pcie[to].in, route);
}

void Router::AddStaging(int host, int from_slot, int to_slot, int copies, Route* route) const {
  const PcieTree& tree = hardware_.hosts[host].tree;
  const PcieTree::Path up = tree.ToRoot(from_slot);
  const PcieTree::Path down = tree.FromRoot(to_slot);
  AddPcie(host, up, true, route);
  Append(table_.hosts[host].memory, route);
  if (up.to_root != down.from_root) {
    const int roots = static_cast<int>(table_.hosts[host].root_complexes.size());
    Append(table_.hosts[host].root_links[up.to_root * roots + down.from_root], route);
  }
  Append(copies, route);
  AddPcie(host, down, true, route);
}

void Router::AddNetwork(int from, int to, Route* route) const {
  const Hardware::Gpu& sender = hardware_.gpus[from];
  const Hardware::Gpu& receiver = hardware_.gpus[to];
  const NicPair nics = ChooseNics(from, to);
  const Hardware::Nic& out = hardware_.nics[nics.sender];
  const Hardware::Nic& in = hardware_.nics[nics.receiver];
  const bool rdma = hardware_.transport == TRANSPORT_NCCL_RDMA && out.spec.rdma() && in.spec.rdma();
  route->kind = rdma ? PATH_KIND_NETWORK_RDMA : PATH_KIND_NETWORK_TCP;
  route->sender_distance = Distance(from, nics.sender);
  route->receiver_distance = Distance(to, nics.receiver);
  route->gpudirect_reason = WhyNoGpudirect(from, to, nics);
  route->gpudirect = route->gpudirect_reason.empty();
  route->latency_s = (out.spec.latency_us() + in.spec.latency_us()) * 1e-6;

  Append(table_.gpu_pcie[from].out, route);
  // NICs read and write a processor's memory without NCCL's copies.
  if (sender.spec.processor()) {
    AddStaging(sender.host, sender.slot, out.slot, SegmentTable::kNone, route);
  } else if (route->gpudirect) {
    AddPcie(sender.host, hardware_.hosts[sender.host].tree.Between(sender.slot, out.slot),
            sender.slot < out.slot, route);
  } else {
    AddStaging(sender.host, sender.slot, out.slot,
               rdma ? table_.nic_staging[nics.sender].out : SegmentTable::kNone, route);
    route->latency_s += kPciePeerLatencySeconds;
  }
  Append(table_.nic_pcie[nics.sender].in, route);
  AddCables(nics, from, to, route);
  Append(table_.nic_pcie[nics.receiver].out, route);
  if (receiver.spec.processor()) {
    AddStaging(receiver.host, in.slot, receiver.slot, SegmentTable::kNone, route);
  } else if (route->gpudirect) {
    AddPcie(receiver.host, hardware_.hosts[receiver.host].tree.Between(in.slot, receiver.slot),
            in.slot < receiver.slot, route);
  } else {
    AddStaging(receiver.host, in.slot, receiver.slot,
               rdma ? table_.nic_staging[nics.receiver].in : SegmentTable::kNone, route);
    route->latency_s += kPciePeerLatencySeconds;
  }
  Append(table_.gpu_pcie[to].in, route);
}

void Router::AddCables(const NicPair& nics, int from, int to, Route* route) const {
  const int first_link = hardware_.nics[nics.sender].link;
  const int last_link = hardware_.nics[nics.receiver].link;
  const auto is_nic = [](const Hardware::End& end, int nic) {
    return !end.is_switch && end.index == nic;
  };
  const Hardware::Link& first = hardware_.links[first_link];
  const bool from_a = is_nic(first.a, nics.sender);
  Append(from_a ? table_.links[first_link].out : table_.links[first_link].in, route);
  route->latency_s += first.latency_s;
  if (first_link == last_link) return;  // a cable from NIC to NIC

  const Hardware::Link& last = hardware_.links[last_link];
  const bool to_b = is_nic(last.b, nics.receiver);
  const int goal = to_b ? last.a.index : last.b.index;
  int at = from_a ? first.b.index : first.a.index;
  // GPUs of one cluster are fewer than 2^32, so the two indices make one number.
  std::uint64_t hash = Mix((static_cast<std::uint64_t>(from) << 32) | static_cast<unsigned>(to));
  const auto cross = [&](int node) {
    Append(table_.switch_fabrics[node], route);
    route->latency_s += hardware_.switches[node].spec.latency_ns() * 1e-9;
  };
  cross(at);
  const std::vector<std::uint16_t>& distance = switch_distances_[goal];
  while (at != goal) {
    std::vector<const Hop*> nearer;
    for (const Hop& hop : hops_[at]) {
      if (distance[hop.to] < distance[at]) nearer.push_back(&hop);
    }
    hash = Mix(hash);
    const Hop& hop = *nearer[hash % nearer.size()];
    Append(hop.segment, route);
    route->latency_s += hop.latency_s;
    at = hop.to;
    cross(at);
  }
  Append(to_b ? table_.links[last_link].out : table_.links[last_link].in, route);
  route->latency_s += last.latency_s;
}

std::string Router::WhyNoGpudirect(int from, int to, const NicPair& nics) const {
  // Without a GPU there is no GPU memory that NICs might not reach.
  if (hardware_.gpus[from].spec.processor() && hardware_.gpus[to].spec.processor()) return "";
  if (hardware_.transport != TRANSPORT_NCCL_RDMA) {
    return "transport is TCP, which copies through host memory: set communication.transport to "
           "TRANSPORT_NCCL_RDMA";
  }
  if (!hardware_.gpudirect) {
    return "communication.gpudirect is false: remove it or set it to true";
  }
  for (const auto& [gpu_index, nic_index] :
       {std::pair(from, nics.sender), std::pair(to, nics.receiver)}) {
    const Hardware::Gpu& gpu = hardware_.gpus[gpu_index];
    const Hardware::Nic& nic = hardware_.nics[nic_index];
    const Hardware::Host& host = hardware_.hosts[gpu.host];
    if (gpu.spec.processor()) continue;
    if (!nic.spec.rdma()) {
      return absl::StrCat(nic.name, " (", nic.spec.name(),
                          ") has no RDMA: use a NIC with RoCE, or set transport to TRANSPORT_TCP");
    }
    if (!gpu.spec.gpudirect_rdma()) {
      return absl::StrCat(gpu.name, " (", gpu.spec.name(),
                          ") does not support GPUDirect RDMA: use a data-center or RTX PRO GPU");
    }
    if (!host.gpudirect_driver) {
      return absl::StrCat(host.name,
                          " has no GPUDirect driver: load nvidia_peermem or use a kernel "
                          "with DMA-BUF, then set gpudirect_driver: true");
    }
    const PcieDistance distance = Distance(gpu_index, nic_index);
    if (distance > hardware_.gdr_level) {
      return absl::StrCat(gpu.name, " and ", nic.name, " are ", ShortName(distance),
                          " apart, gdr_level is ", ShortName(hardware_.gdr_level),
                          ": set NCCL_NET_GDR_LEVEL=", ShortName(distance));
    }
  }
  return "";
}

}  // namespace fabricast
