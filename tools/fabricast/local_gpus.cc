#include "tools/fabricast/local_gpus.h"

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "runtime/check.h"

namespace fabricast {
namespace {

constexpr int kMostGpus = 8;  // slots of the hosts below
constexpr char kSxmHost[] = "hgx_sxm";
constexpr char kPcieHost[] = "pcie_8gpu_server";

// CUDA's names of GPUs, as they begin, and what describes them and hosts that they are in.
struct KnownGpu {
  absl::string_view name;
  absl::string_view spec;
  absl::string_view host;
};

constexpr KnownGpu kKnownGpus[] = {
    {"NVIDIA B200", "b200", kSxmHost},
    {"NVIDIA H100", "h100_sxm", kSxmHost},
    {"NVIDIA H20", "h20", kSxmHost},
    {"NVIDIA H200", "h200_sxm", kSxmHost},
    {"NVIDIA L40S", "l40s", kPcieHost},
    {"NVIDIA GeForce RTX 5090", "rtx_5090", kPcieHost},
    {"NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition", "rtx_pro_6000_blackwell_max_q",
     kPcieHost},
    {"NVIDIA RTX PRO 6000 Blackwell Server Edition", "rtx_pro_6000_blackwell_server", kPcieHost},
    {"NVIDIA RTX PRO 6000 Blackwell Workstation Edition", "rtx_pro_6000_blackwell_workstation",
     kPcieHost},
};

// "NVIDIA H100" is "NVIDIA H100 80GB HBM3", but "NVIDIA H20" is not "NVIDIA H200".
const KnownGpu* Known(absl::string_view name) {
  for (const KnownGpu& known : kKnownGpus) {
    if (name == known.name || absl::StartsWith(name, absl::StrCat(known.name, " "))) return &known;
  }
  return nullptr;
}

}  // namespace

absl::StatusOr<Cluster> LocalGpuCluster(absl::Span<const FoundGpu> gpus) {
  FABRICAST_CHECK(!gpus.empty());
  if (gpus.size() > kMostGpus) {
    return absl::UnimplementedError(absl::StrFormat(
        "local_gpu: %d GPUs, and it describes up to %d: choose some with CUDA_VISIBLE_DEVICES",
        gpus.size(), kMostGpus));
  }
  Cluster cluster;
  cluster.set_name(kLocalGpu);
  cluster.set_description("The GPUs of this machine");
  Host& host = *cluster.add_hosts();
  host.set_name("local");
  for (const FoundGpu& found : gpus) {
    const KnownGpu* const known = Known(found.name);
    if (known == nullptr) {
      return absl::NotFoundError(absl::StrFormat(
          "local_gpu: GPU %d is a %s, and there are specifications of %s only: describe it in a "
          "topology of your own (topology/README.md; `fabricast topology show h200_x4` is one)",
          host.gpus_size(), found.name,
          absl::StrJoin(kKnownGpus, ", ", [](std::string* out, const KnownGpu& gpu) {
            absl::StrAppend(out, gpu.name);
          })));
    }
    host.set_spec(std::string(known->host));
    Gpu& gpu = *host.add_gpus();
    gpu.set_name(absl::StrCat("gpu", host.gpus_size() - 1));
    gpu.set_spec(std::string(known->spec));
    gpu.set_slot(gpu.name());
  }
  if (host.spec() == kSxmHost && host.gpus_size() > 1) {
    NvlinkDomain& domain = *host.add_nvlink_domains();
    domain.set_name("nvswitch");
    for (const Gpu& gpu : host.gpus()) domain.add_gpus(gpu.name());
  }
  return cluster;
}

int DeviceOf(const Topology& topology, int gpu) {
  const GpuNode& node = topology.gpus()[gpu];
  for (const Host& host : topology.cluster().hosts()) {
    if (host.name() != node.host) continue;
    for (int i = 0; i < host.gpus_size(); ++i) {
      if (absl::StrCat(host.name(), ".", host.gpus(i).name()) == node.name) return i;
    }
  }
  FABRICAST_CHECK(false) << node.name;
  return -1;
}

std::vector<int> DevicesOf(const Topology& topology, absl::Span<const int> gpus) {
  std::vector<int> devices;
  for (const int gpu : gpus) devices.push_back(DeviceOf(topology, gpu));
  return devices;
}

std::vector<std::string> Differences(const Topology& topology, absl::Span<const int> gpus,
                                     absl::Span<const FoundGpu> found) {
  std::vector<std::string> differences;
  for (const int gpu : gpus) {
    const size_t device = DeviceOf(topology, gpu);
    if (device >= found.size()) continue;
    std::string difference = Difference(topology, gpu, found[device]);
    if (!difference.empty()) differences.push_back(std::move(difference));
  }
  return differences;
}

std::string Difference(const Topology& topology, int gpu, const FoundGpu& found) {
  const GpuNode& node = topology.gpus()[gpu];
  const KnownGpu* const known = Known(found.name);
  std::string difference;
  if (known != nullptr && known->spec != node.spec.name()) {
    difference = absl::StrFormat("is a %s (%s)", found.name, known->spec);
  } else if (static_cast<double>(found.memory_bytes) < 0.95e9 * node.spec.memory_gb()) {
    // Nameplates are GB or GiB, and some memory goes to ECC: 5 % is no other GPU.
    difference =
        absl::StrFormat("has %.1f GB of memory, not %.1f",
                        static_cast<double>(found.memory_bytes) / 1e9, node.spec.memory_gb());
  }
  if (difference.empty()) return difference;
  return absl::StrFormat(
      "%s: the topology says %s, and this machine's GPU %d %s: what is planned and forecast is of "
      "another GPU than what is measured; use --topology local_gpu",
      node.name, node.spec.name(), DeviceOf(topology, gpu), difference);
}

}  // namespace fabricast
