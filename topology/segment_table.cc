#include "topology/segment_table.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "topology/link_rates.h"

namespace fabricast {
namespace {

std::string PcieName(const Hardware::PcieLink& link) {
  return absl::StrCat("PCIe ", link.generation, ".0 x", link.lanes);
}

// Share of a cable's rate that is left for messages. Where a NIC cannot do RDMA, NCCL uses TCP
// there.
double NetworkShare(const Hardware& hardware, bool rdma) {
  return hardware.transport == TRANSPORT_NCCL_RDMA && rdma
             ? RocePayloadShare(hardware.roce_mtu_bytes)
             : TcpPayloadShare(hardware.ethernet_mtu_bytes);
}

class Builder {
 public:
  Builder(const Hardware& hardware, double staging_bytes_per_s)
      : hardware_(hardware), staging_bytes_per_s_(staging_bytes_per_s) {}

  SegmentTable Build() {
    for (const Hardware::Host& host : hardware_.hosts) AddHost(host);
    for (const Hardware::Gpu& gpu : hardware_.gpus) {
      SegmentTable::Pair nvlink;
      if (gpu.nvlink_domain >= 0) {
        const double rate = gpu.spec.nvlink_gb_s() * 1e9;
        nvlink = AddPair(absl::StrCat(gpu.name, " nvlink"), "out", "in", SegmentKind::kNvlink, rate,
                         rate * kNvlinkPayloadShare, absl::StrCat("NVLink of ", gpu.spec.name()));
      }
      table_.gpu_nvlink.push_back(nvlink);
      table_.gpu_pcie.push_back(gpu.spec.processor() ? SegmentTable::Pair()
                                                     : AddPcie(gpu.name, gpu.pcie));
    }
    for (const Hardware::Nic& nic : hardware_.nics) {
      table_.nic_pcie.push_back(AddPcie(nic.name, nic.pcie));
      SegmentTable::Pair staging;
      if (nic.link >= 0 && hardware_.transport == TRANSPORT_NCCL_RDMA) {
        staging = AddPair(absl::StrCat(nic.name, " staging"), "out", "in", SegmentKind::kHostMemory,
                          staging_bytes_per_s_, staging_bytes_per_s_,
                          "NCCL's copies through host memory");
      }
      table_.nic_staging.push_back(staging);
    }
    for (const Hardware::Link& link : hardware_.links) {
      table_.links.push_back(
          {.out = AddCable(link, link.a, link.b), .in = AddCable(link, link.b, link.a)});
    }
    for (const Hardware::Switch& node : hardware_.switches) AddFabric(node);
    return std::move(table_);
  }

 private:
  int Add(std::string name, SegmentKind kind, double line, double payload, std::string limit) {
    table_.segments.push_back({.name = std::move(name),
                               .kind = kind,
                               .line_bytes_per_s = line,
                               .payload_bytes_per_s = payload,
                               .limit = std::move(limit)});
    return static_cast<int>(table_.segments.size()) - 1;
  }

  SegmentTable::Pair AddPair(const std::string& name, absl::string_view out, absl::string_view in,
                             SegmentKind kind, double line, double payload,
                             const std::string& limit) {
    SegmentTable::Pair pair;
    pair.out = Add(absl::StrCat(name, " ", out), kind, line, payload, limit);
    pair.in = Add(absl::StrCat(name, " ", in), kind, line, payload, limit);
    return pair;
  }

  SegmentTable::Pair AddPcie(const std::string& name, const Hardware::PcieLink& link) {
    const double line = PcieBytesPerSecond(link.generation, link.lanes);
    return AddPair(absl::StrCat(name, " pcie"), "up", "down", SegmentKind::kPcie, line,
                   line * kPciePayloadShare, PcieName(link));
  }

  void AddHost(const Hardware::Host& host) {
    SegmentTable::Host entry;
    const double memory = host.spec.memory_bandwidth_gb_s() * 1e9;
    entry.memory = Add(absl::StrCat(host.name, " memory"), SegmentKind::kHostMemory, memory,
                       memory * kStagingMemoryShare, "written and read");
    for (const PcieSwitch& node : host.spec.pcie_switches()) {
      entry.pcie_switches.push_back(
          AddPcie(absl::StrCat(host.name, ".", node.name()),
                  {.generation = node.generation(), .lanes = node.lanes()}));
    }
    for (const RootComplex& root : host.spec.root_complexes()) {
      SegmentTable::Pair peer;
      if (root.has_peer_gb_s()) {
        const double rate = root.peer_gb_s() * 1e9;
        peer = AddPair(absl::StrCat(host.name, ".", root.name(), " peer"), "forward", "backward",
                       SegmentKind::kRootComplex, rate, rate, "peer traffic of the root complex");
      }
      entry.root_complexes.push_back(peer);
    }
    const double between = host.spec.root_complex_link_gb_s() * 1e9;
    for (const RootComplex& from : host.spec.root_complexes()) {
      for (const RootComplex& to : host.spec.root_complexes()) {
        entry.root_links.push_back(
            &from == &to
                ? SegmentTable::kNone
                : Add(absl::StrCat(host.name, ".", from.name(), "->", to.name()),
                      SegmentKind::kRootComplex, between, between, "between root complexes"));
      }
    }
    table_.hosts.push_back(std::move(entry));
  }

  bool Rdma(const Hardware::End& end) const {
    return end.is_switch || hardware_.nics[end.index].spec.rdma();
  }

  int AddCable(const Hardware::Link& link, const Hardware::End& from, const Hardware::End& to) {
    const double line = BytesPerSecond(link.rate_gbps);
    const double payload = line * NetworkShare(hardware_, Rdma(from) && Rdma(to));
    // What holds it back, the sender first.
    std::string limit = link.rate_gbps < std::min(from.rate_gbps, to.rate_gbps)
                            ? absl::StrCat("link ", link.name)
                            : (from.rate_gbps <= to.rate_gbps ? from.name : to.name);
    limit = absl::StrFormat("%g Gbps of %s", link.rate_gbps, limit);
    if (!from.is_switch) {
      return Add(absl::StrCat(from.name, " tx"), SegmentKind::kNic, line, payload, limit);
    }
    if (!to.is_switch) {
      return Add(absl::StrCat(to.name, " rx"), SegmentKind::kNic, line, payload, limit);
    }
    return Add(absl::StrCat(from.name, " out"), SegmentKind::kSwitch, line, payload, limit);
  }

  void AddFabric(const Hardware::Switch& node) {
    double cabled_gbps = 0;
    for (const int link : node.links) cabled_gbps += hardware_.links[link].rate_gbps;
    if (!node.spec.has_capacity_gbps() || node.spec.capacity_gbps() >= cabled_gbps) {
      table_.switch_fabrics.push_back(SegmentTable::kNone);
      return;
    }
    const double line = BytesPerSecond(node.spec.capacity_gbps());
    table_.switch_fabrics.push_back(Add(absl::StrCat(node.name, " fabric"), SegmentKind::kSwitch,
                                        line, line * NetworkShare(hardware_, true),
                                        absl::StrCat("capacity of ", node.spec.name())));
  }

  const Hardware& hardware_;
  const double staging_bytes_per_s_;
  SegmentTable table_;
};

}  // namespace

absl::string_view SegmentKindName(SegmentKind kind) {
  switch (kind) {
    case SegmentKind::kNvlink:
      return "NVLink";
    case SegmentKind::kPcie:
      return "PCIe";
    case SegmentKind::kRootComplex:
      return "root complex";
    case SegmentKind::kHostMemory:
      return "host memory";
    case SegmentKind::kNic:
      return "NIC";
    case SegmentKind::kSwitch:
      return "switch";
  }
  return "unknown";
}

SegmentTable MakeSegments(const Hardware& hardware, double staging_bytes_per_s) {
  return Builder(hardware, staging_bytes_per_s).Build();
}

std::vector<std::string> SlotWarnings(absl::string_view file, const Hardware& hardware) {
  std::vector<std::string> warnings;
  for (const Hardware::Nic& nic : hardware.nics) {
    const double network =
        BytesPerSecond(nic.spec.rate_gbps()) * NetworkShare(hardware, nic.spec.rdma());
    const double pcie = PcieBytesPerSecond(nic.pcie.generation, nic.pcie.lanes) * kPciePayloadShare;
    if (pcie >= network) continue;
    const PcieSlot& slot = hardware.hosts[nic.host].spec.slots(nic.slot);
    warnings.push_back(absl::StrFormat(
        "%s: %s: %s (card %d.0 x%d, slot %s %d.0 x%d) carries %.0f of its %g Gbps", file, nic.name,
        PcieName(nic.pcie), nic.spec.pcie_generation(), nic.spec.pcie_lanes(), slot.name(),
        slot.generation(), slot.lanes(), pcie * 8 / 1e9, nic.spec.rate_gbps()));
  }
  for (const Hardware::Gpu& gpu : hardware.gpus) {
    const double card = PcieBytesPerSecond(gpu.spec.pcie_generation(), gpu.spec.pcie_lanes());
    const double link = PcieBytesPerSecond(gpu.pcie.generation, gpu.pcie.lanes);
    if (link >= card) continue;
    warnings.push_back(absl::StrFormat(
        "%s: %s: slot %s gives it %s of PCIe %d.0 x%d: %.1f of %.1f GB/s", file, gpu.name,
        hardware.hosts[gpu.host].spec.slots(gpu.slot).name(), PcieName(gpu.pcie),
        gpu.spec.pcie_generation(), gpu.spec.pcie_lanes(), link / 1e9, card / 1e9));
  }
  return warnings;
}

}  // namespace fabricast
