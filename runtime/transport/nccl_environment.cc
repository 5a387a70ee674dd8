#include "runtime/transport/nccl_environment.h"

#include <arpa/inet.h>
#include <ifaddrs.h>
#include <netinet/in.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <set>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"

namespace fabricast {
namespace {

namespace fs = std::filesystem;

// As GPUs of one host went over an emulated 400 Gbps link, with data verified: 24.5 GB/s with
// NCCL's chunk of 131,072 bytes, 49.2 with these.
constexpr int64_t kFastChunkBytes = 524'288;
constexpr int64_t kFastBufferBytes = 8'388'608;
constexpr int64_t kNcclChunkBytes = 131'072;
// Beyond this the default chunk is slower than the wire.
constexpr double kFastGbps = 200;

std::string FirstLine(const fs::path& path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return std::string(absl::StripAsciiWhitespace(line));
}

// Names in a folder that are there, sorted; numbers by value.
std::vector<std::string> Entries(const fs::path& folder) {
  std::vector<std::string> names;
  std::error_code error;
  for (const fs::directory_entry& entry : fs::directory_iterator(folder, error)) {
    names.push_back(entry.path().filename().string());
  }
  std::sort(names.begin(), names.end(), [](const std::string& a, const std::string& b) {
    return std::make_pair(a.size(), a) < std::make_pair(b.size(), b);
  });
  return names;
}

// The first entry of the port's table for RoCE v2 whose address is an IPv4 one (::ffff:a.b.c.d).
int FindGid(const fs::path& port) {
  for (const std::string& index : Entries(port / "gid_attrs" / "types")) {
    if (FirstLine(port / "gid_attrs" / "types" / index) != "RoCE v2") continue;
    if (!absl::StartsWith(FirstLine(port / "gids" / index), "0000:0000:0000:0000:0000:ffff:")) {
      continue;
    }
    int value = -1;
    if (absl::SimpleAtoi(index, &value)) return value;
  }
  return -1;
}

const Host* FindHost(const Topology& topology, absl::string_view name) {
  for (const Host& host : topology.cluster().hosts()) {
    if (absl::string_view(host.name()) == name) return &host;
  }
  return nullptr;
}

const char* LevelName(PcieDistance level) {
  switch (level) {
    case PCIE_DISTANCE_LOC:
      return "LOC";
    case PCIE_DISTANCE_PIX:
      return "PIX";
    case PCIE_DISTANCE_PHB:
      return "PHB";
    case PCIE_DISTANCE_SYS:
      return "SYS";
    default:
      return "PXB";
  }
}

// Those that carry the pipeline: active, with an address for RoCE v2.
std::vector<HostNetwork::RdmaPort> UsablePorts(const HostNetwork& network) {
  std::vector<HostNetwork::RdmaPort> usable;
  for (const HostNetwork::RdmaPort& port : network.rdma_ports) {
    if (port.active && port.gid_index >= 0) usable.push_back(port);
  }
  return usable;
}

void AddRdma(const Topology& topology, const std::vector<HostNetwork::RdmaPort>& ports,
             std::vector<EnvironmentSetting>& settings) {
  std::vector<std::string> names;
  std::set<int> indices;
  for (const HostNetwork::RdmaPort& port : ports) {
    names.push_back(absl::StrCat(port.device, ":", port.port));
    indices.insert(port.gid_index);
  }
  settings.push_back({"NCCL_IB_HCA", absl::StrCat("=", absl::StrJoin(names, ",")),
                      "the active ports with an IPv4 address for RoCE v2"});
  if (indices.size() == 1) {
    settings.push_back({"NCCL_IB_GID_INDEX", absl::StrCat(*indices.begin()),
                        "the entry for RoCE v2 over IPv4 in the port's table"});
  } else {
    settings.push_back({"NCCL_IB_ROCE_VERSION_NUM", "2",
                        "the ports have RoCE v2 at different entries of their tables"});
    settings.push_back({"NCCL_IB_ADDR_FAMILY", "AF_INET", "and IPv4"});
  }

  const Communication& communication = topology.cluster().communication();
  if (communication.has_gpudirect() && !communication.gpudirect()) {
    settings.push_back({"NCCL_NET_GDR_LEVEL", "LOC", "the topology has GPUDirect off"});
  } else if (communication.gdr_level() != PCIE_DISTANCE_UNSPECIFIED) {
    settings.push_back({"NCCL_NET_GDR_LEVEL", LevelName(communication.gdr_level()),
                        "how far a NIC may be from a GPU for GPUDirect, as the topology says; "
                        "NCCL's own is PXB"});
  }

  const bool given = communication.has_p2p_net_chunk_bytes();
  const double gbps = topology.network_rate_gbps();
  if (!given && gbps <= kFastGbps) return;
  const int64_t chunk = given ? communication.p2p_net_chunk_bytes() : kFastChunkBytes;
  settings.push_back(
      {"NCCL_P2P_NET_CHUNKSIZE", absl::StrCat(chunk),
       given ? std::string("the topology's p2p_net_chunk_bytes")
             : absl::StrFormat(
                   "NCCL's own of %d bytes moves some 25 GB/s, whatever the wire; this topology's "
                   "has %g Gbps. Set communication.p2p_net_chunk_bytes so that forecasts know, and "
                   "keep below 1 MiB: wrong results have been seen there",
                   kNcclChunkBytes, gbps)});
  if (chunk > kNcclChunkBytes) {
    settings.push_back({"NCCL_BUFFSIZE", absl::StrCat(std::max(kFastBufferBytes, 16 * chunk)),
                        "room for chunks of that size"});
  }
}

}  // namespace

HostNetwork HostNetwork::Read(const std::string& sysfs) {
  HostNetwork network;
  ifaddrs* addresses = nullptr;
  if (getifaddrs(&addresses) == 0) {
    for (const ifaddrs* entry = addresses; entry != nullptr; entry = entry->ifa_next) {
      if (entry->ifa_addr == nullptr) continue;
      char text[INET6_ADDRSTRLEN] = {};
      const void* address = nullptr;
      if (entry->ifa_addr->sa_family == AF_INET) {
        address = &reinterpret_cast<const sockaddr_in*>(entry->ifa_addr)->sin_addr;
      } else if (entry->ifa_addr->sa_family == AF_INET6) {
        address = &reinterpret_cast<const sockaddr_in6*>(entry->ifa_addr)->sin6_addr;
      } else {
        continue;
      }
      if (inet_ntop(entry->ifa_addr->sa_family, address, text, sizeof(text)) != nullptr) {
        network.interfaces.emplace(text, entry->ifa_name);
      }
    }
    freeifaddrs(addresses);
  }

  const fs::path devices = fs::path(sysfs) / "class" / "infiniband";
  for (const std::string& device : Entries(devices)) {
    for (const std::string& name : Entries(devices / device / "ports")) {
      const fs::path path = devices / device / "ports" / name;
      RdmaPort port;
      port.device = device;
      if (!absl::SimpleAtoi(name, &port.port)) continue;
      port.active = absl::StrContains(FirstLine(path / "state"), "ACTIVE");
      port.gid_index = FindGid(path);
      network.rdma_ports.push_back(std::move(port));
    }
  }
  return network;
}

std::vector<EnvironmentSetting> CudaEnvironment(bool shared) {
  std::vector<EnvironmentSetting> settings = {
      {"CUDA_DEVICE_MAX_CONNECTIONS", "32",
       "streams that share a queue of the GPU wait for one another"}};
  // It takes seconds and hundreds of MB for NCCL's kernels, most of which nobody needs.
  if (shared) {
    settings.push_back({"CUDA_MODULE_LOADING", "EAGER",
                        "loading a kernel on one GPU while a sum on another waits could block"});
  }
  return settings;
}

std::vector<EnvironmentSetting> NcclEnvironment(const Topology& topology,
                                                absl::Span<const int> gpus, absl::string_view host,
                                                const HostNetwork& network) {
  std::vector<EnvironmentSetting> settings;
  settings.push_back({"NCCL_NVLS_ENABLE", "0",
                      "stages are joined point to point and groups are small: NVLink's multicast "
                      "gives nothing"});

  const Host* const own = FindHost(topology, host);
  const std::string address =
      own == nullptr || own->address().empty() ? "127.0.0.1" : own->address();
  if (const auto found = network.interfaces.find(address); found != network.interfaces.end()) {
    settings.push_back({"NCCL_SOCKET_IFNAME", absl::StrCat("=", found->second),
                        absl::StrCat("has ", address, ", which the topology gives this host")});
  }

  const bool leaves_host = std::any_of(gpus.begin(), gpus.end(), [&](int gpu) {
    return absl::string_view(topology.gpus()[gpu].host) != host;
  });
  if (!leaves_host) {
    settings.push_back({"NCCL_IB_DISABLE", "1", "all stages are on this host"});
    return settings;
  }
  std::vector<HostNetwork::RdmaPort> ports;
  std::string without;
  if (topology.transport() == TRANSPORT_TCP) {
    without = "the topology's transport is TCP";
  } else {
    ports = UsablePorts(network);
    if (ports.empty()) without = "this host has no active port with an IPv4 address for RoCE v2";
  }
  if (ports.empty()) {
    settings.push_back({"NCCL_IB_DISABLE", "1", without});
  } else {
    AddRdma(topology, ports, settings);
  }
  return settings;
}

std::vector<EnvironmentSetting> SetEnvironment(std::vector<EnvironmentSetting> settings) {
  for (EnvironmentSetting& setting : settings) {
    if (const char* const own = std::getenv(setting.name.c_str()); own != nullptr) {
      setting.users_own = true;
      setting.value = own;
    } else {
      setenv(setting.name.c_str(), setting.value.c_str(), /*overwrite=*/1);
    }
  }
  return settings;
}

std::string EnvironmentText(absl::Span<const EnvironmentSetting> settings) {
  std::string text;
  for (const EnvironmentSetting& setting : settings) {
    absl::StrAppend(&text, setting.name, "=", setting.value, " (",
                    setting.users_own ? "set already" : setting.reason, ")\n");
  }
  return text;
}

}  // namespace fabricast
