// The environment variables that NCCL and CUDA need for a pipeline on a topology, each with its
// reason.
#ifndef FABRICAST_RUNTIME_TRANSPORT_NCCL_ENVIRONMENT_H_
#define FABRICAST_RUNTIME_TRANSPORT_NCCL_ENVIRONMENT_H_

#include <map>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "topology/topology.h"

namespace fabricast {

// What a host says of its own network.
struct HostNetwork {
  struct RdmaPort {
    std::string device;  // "mlx5_0"
    int port = 1;
    bool active = false;
    int gid_index = -1;  // of its entry for RoCE v2 over IPv4; -1: it has none
  };
  std::map<std::string, std::string> interfaces;  // by IP address: "10.0.0.2": "enp1s0"
  std::vector<RdmaPort> rdma_ports;               // by device and port

  // Of this machine; what cannot be read is left out. `sysfs`: where it is mounted.
  static HostNetwork Read(const std::string& sysfs = "/sys");
};

struct EnvironmentSetting {
  std::string name;
  std::string value;
  std::string reason;      // a clause
  bool users_own = false;  // it was set already, to `value`, which stays
};

// What CUDA needs for stages that wait for one another on their GPUs, whatever the topology.
// `shared`: some stage has several GPUs (tensor parallelism).
std::vector<EnvironmentSetting> CudaEnvironment(bool shared);

// What NCCL needs. For a process on `host` whose pipeline runs on `gpus` (indices into the
// topology); `network` is the host's own. In a fixed order; nothing that depends on what is set
// already.
std::vector<EnvironmentSetting> NcclEnvironment(const Topology& topology,
                                                absl::Span<const int> gpus, absl::string_view host,
                                                const HostNetwork& network);

// Sets those that this process's environment does not have, and tells which it had. Before the
// first call of CUDA or NCCL, which read them once, and before there are threads (setenv).
std::vector<EnvironmentSetting> SetEnvironment(std::vector<EnvironmentSetting> settings);

// A line a setting: "NCCL_NVLS_ENABLE=0 (...)".
std::string EnvironmentText(absl::Span<const EnvironmentSetting> settings);

}  // namespace fabricast

#endif  // FABRICAST_RUNTIME_TRANSPORT_NCCL_ENVIRONMENT_H_
