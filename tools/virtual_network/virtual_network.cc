#include "tools/virtual_network/virtual_network.h"

#include <algorithm>
#include <cmath>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "runtime/check.h"

namespace fabricast {
namespace {

constexpr char kSwitch[] = "switch0";
constexpr char kInterface[] = "eth0";
constexpr int kMaxHosts = 253;

// Preamble 8, frame check 4 and gap 12: what a cable carries and a kernel does not count.
constexpr int kUncountedBytes = 24;
constexpr int kEthernetHeaderBytes = 14;

// A token bucket lets this much through at once after a pause. So it is to be small; but the kernel
// wakes up late, by some 0.1 ms, and what a bucket cannot hold by then is lost as rate. README.md
// has the measurements.
constexpr double kBurstSeconds = 0.15e-3;
constexpr int kLeastBurstBytes = 2048;
// The memory of a switch's port: 160 ms at 50 Mbit/s, and more than TCP's first window of a few
// connections.
constexpr int kQueueBytes = 1'000'000;

std::string Port(int host) { return absl::StrCat("port", host); }
// The pair that stands between a port and the switch once the host's frames are relayed.
std::string RelayedPort(int host) { return absl::StrCat("relayed", host); }
std::string SwitchedPort(int host) { return absl::StrCat("switched", host); }

absl::Status CheckHosts(const std::vector<VirtualHost>& hosts) {
  if (hosts.size() < 2 || hosts.size() > kMaxHosts) {
    return absl::InvalidArgumentError(
        absl::StrCat("virtual network: ", hosts.size(), " hosts: give 2 to ", kMaxHosts));
  }
  std::set<std::string> names;
  for (const VirtualHost& host : hosts) {
    if (host.name.empty() || !names.insert(host.name).second) {
      return absl::InvalidArgumentError(absl::StrCat("virtual network: host '", host.name,
                                                     "': give each host a name of its own"));
    }
  }
  return absl::OkStatus();
}

absl::Status CheckRate(const std::string& host, double rate_mbit) {
  if (rate_mbit == 0 || (rate_mbit >= 0.01 && rate_mbit <= 100'000)) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("virtual network: host ", host, ": rate_mbit is ", rate_mbit,
                   ": give 0.01 to 100000, or 0 for as fast as the machine can"));
}

}  // namespace

VirtualNetwork::VirtualNetwork(const VirtualNetworkOptions& options, NetworkNamespace switch_space,
                               std::unique_ptr<CableRelay> relay)
    : options_(options), switch_(std::move(switch_space)), relay_(std::move(relay)) {}

absl::StatusOr<std::unique_ptr<VirtualNetwork>> VirtualNetwork::Make(
    const std::vector<VirtualHost>& hosts, const VirtualNetworkOptions& options) {
  absl::Status checked = CheckHosts(hosts);
  if (!checked.ok()) return checked;
  absl::StatusOr<std::vector<NetworkNamespace>> spaces =
      NetworkNamespace::Make(static_cast<int>(hosts.size()) + 1);
  if (!spaces.ok()) return spaces.status();
  NetworkNamespace switch_space = std::move(spaces->back());
  absl::StatusOr<std::unique_ptr<CableRelay>> relay = CableRelay::Start(switch_space, options.seed);
  if (!relay.ok()) return relay.status();
  std::unique_ptr<VirtualNetwork> network(
      new VirtualNetwork(options, std::move(switch_space), *std::move(relay)));
  absl::Status status = network->AddSwitch();
  if (!status.ok()) return status;
  for (size_t i = 0; i < hosts.size(); ++i) {
    network->hosts_.push_back({.name = hosts[i].name, .space = std::move((*spaces)[i])});
    status = network->AddCable(static_cast<int>(i));
    if (status.ok()) status = network->SetRate(hosts[i].name, hosts[i].rate_mbit);
    if (!status.ok()) return status;
  }
  return network;
}

absl::Status VirtualNetwork::AddSwitch() {
  absl::Status status = RunTool(switch_, {"ip", "link", "add", "name", kSwitch, "mtu",
                                          absl::StrCat(options_.mtu_bytes), "type", "bridge"});
  if (!status.ok()) return status;
  return RunTool(switch_, {"ip", "link", "set", "dev", kSwitch, "addrgenmode", "none", "up"});
}

absl::Status VirtualNetwork::AddCable(int index) {
  const NetworkNamespace& space = hosts_[index].space;
  const std::string mtu = absl::StrCat(options_.mtu_bytes);
  absl::Status status =
      RunTool(switch_,
              {"ip", "link", "add", "name", Port(index), "mtu", mtu, "type", "veth", "peer", "name",
               kInterface, "mtu", mtu, "netns", space.path()},
              &space);
  if (!status.ok()) return status;
  const std::string network = "10.77.0.0/24";
  const std::vector<std::pair<const NetworkNamespace*, std::vector<std::string>>> commands = {
      // No addresses of IPv6, whose announcements would take of the rate.
      {&switch_, {"link", "set", "dev", Port(index), "master", kSwitch, "addrgenmode", "none"}},
      {&switch_, {"link", "set", "dev", Port(index), "up"}},
      {&space, {"link", "set", "dev", "lo", "up"}},
      // One frame a packet, as on a wire: a packet of many frames would take the bucket at once.
      {&space, {"link", "set", "dev", kInterface, "gso_max_segs", "1", "addrgenmode", "none"}},
      {&space, {"link", "set", "dev", kInterface, "up"}},
      {&space, {"address", "add", absl::StrCat(IpOf(index), "/24"), "dev", kInterface}},
      // The same congestion control wherever this runs: Linux' default.
      {&space,
       {"route", "replace", network, "dev", kInterface, "src", IpOf(index), "congctl", "cubic"}},
  };
  for (auto [where, command] : commands) {
    command.insert(command.begin(), "ip");
    status = RunTool(*where, command);
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

std::string VirtualNetwork::IpOf(int index) const { return absl::StrCat("10.77.0.", index + 1); }

absl::StatusOr<int> VirtualNetwork::Find(const std::string& host) const {
  for (size_t i = 0; i < hosts_.size(); ++i) {
    if (hosts_[i].name == host) return static_cast<int>(i);
  }
  return absl::NotFoundError(absl::StrCat(
      "virtual network: no host is called ", host, "; there are ",
      absl::StrJoin(hosts_, ", ",
                    [](std::string* out, const Host& other) { out->append(other.name); })));
}

std::string VirtualNetwork::ip(const std::string& host) const {
  const absl::StatusOr<int> index = Find(host);
  FABRICAST_CHECK(index.ok()) << index.status().message();
  return IpOf(*index);
}

absl::StatusOr<std::unique_ptr<HostProcess>> VirtualNetwork::Start(
    const std::string& host, const std::vector<std::string>& command,
    const ProcessOptions& options) {
  const absl::StatusOr<int> index = Find(host);
  if (!index.ok()) return index.status();
  return HostProcess::Start(hosts_[*index].space, command, options);
}

absl::StatusOr<std::unique_ptr<HostProcess>> VirtualNetwork::Fork(
    const std::string& host, const std::function<int()>& body) {
  const absl::StatusOr<int> index = Find(host);
  if (!index.ok()) return index.status();
  return HostProcess::Fork(hosts_[*index].space, body);
}

absl::Status VirtualNetwork::Shape(const NetworkNamespace& space, const std::string& device,
                                   double rate_mbit, bool was_shaped) const {
  if (rate_mbit == 0) {
    if (!was_shaped) return absl::OkStatus();
    return RunTool(space, {"tc", "qdisc", "delete", "dev", device, "root"});
  }
  const double bytes_per_s = rate_mbit * 1e6 / 8;
  const int frame_bytes = options_.mtu_bytes + kEthernetHeaderBytes + kUncountedBytes;
  const int burst_bytes = std::max(std::max(frame_bytes, kLeastBurstBytes),
                                   static_cast<int>(bytes_per_s * kBurstSeconds));
  return RunTool(space,
                 {"tc", "qdisc", "replace", "dev", device, "root", "tbf", "rate",
                  absl::StrFormat("%.0fbit", rate_mbit * 1e6), "burst", absl::StrCat(burst_bytes),
                  "limit", absl::StrCat(kQueueBytes), "overhead", absl::StrCat(kUncountedBytes)});
}

absl::Status VirtualNetwork::SetRate(const std::string& host, double rate_mbit) {
  const absl::StatusOr<int> index = Find(host);
  if (!index.ok()) return index.status();
  absl::Status status = CheckRate(host, rate_mbit);
  if (!status.ok()) return status;
  Host& at = hosts_[*index];
  const bool was_shaped = at.rate_mbit != 0;
  status = Shape(at.space, kInterface, rate_mbit, was_shaped);
  if (!status.ok()) return status;
  status = Shape(switch_, Port(*index), rate_mbit, was_shaped);
  if (status.ok()) at.rate_mbit = rate_mbit;
  return status;
}

absl::Status VirtualNetwork::Cut(const std::string& host) {
  const absl::StatusOr<int> index = Find(host);
  if (!index.ok()) return index.status();
  return RunTool(switch_, {"ip", "link", "set", "dev", Port(*index), "down"});
}

absl::Status VirtualNetwork::Restore(const std::string& host) {
  const absl::StatusOr<int> index = Find(host);
  if (!index.ok()) return index.status();
  return RunTool(switch_, {"ip", "link", "set", "dev", Port(*index), "up"});
}

absl::Status VirtualNetwork::Disturb(const std::string& host, const Disturbance& disturbance) {
  const absl::StatusOr<int> found = Find(host);
  if (!found.ok()) return found.status();
  if (!(disturbance.loss >= 0 && disturbance.loss <= 1) ||
      disturbance.delay < absl::ZeroDuration() || disturbance.delay > absl::Hours(1)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "virtual network: host ", host, ": loss ", disturbance.loss, ", delay ",
        absl::FormatDuration(disturbance.delay), ": give a loss of 0 to 1 and a delay up to 1h"));
  }
  const int index = *found;
  if (hosts_[index].relayed) {
    return relay_->Join(Port(index), RelayedPort(index), disturbance);
  }
  const std::string mtu = absl::StrCat(options_.mtu_bytes);
  const std::vector<std::vector<std::string>> commands = {
      {"ip", "link", "add", "name", RelayedPort(index), "mtu", mtu, "type", "veth", "peer", "name",
       SwitchedPort(index), "mtu", mtu},
      {"ip", "link", "set", "dev", RelayedPort(index), "addrgenmode", "none", "up"},
      {"ip", "link", "set", "dev", SwitchedPort(index), "master", kSwitch, "addrgenmode", "none"},
      {"ip", "link", "set", "dev", SwitchedPort(index), "up"},
  };
  for (const std::vector<std::string>& command : commands) {
    absl::Status status = RunTool(switch_, command);
    if (!status.ok()) return status;
  }
  // From the switch to the relay at once: between these two, frames are lost.
  absl::Status status = RunTool(switch_, {"ip", "link", "set", "dev", Port(index), "nomaster"});
  if (status.ok()) status = relay_->Join(Port(index), RelayedPort(index), disturbance);
  if (status.ok()) hosts_[index].relayed = true;
  return status;
}

}  // namespace fabricast
