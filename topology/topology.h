// A cluster that has been read, completed from its hardware specs and found sound, and the routes
// between its GPUs.
//
// Capacities are directed: a cable is two segments, a PCIe link is two, so traffic in one direction
// never takes from the other. All rates are bytes a second, all sizes bytes.
//
// Thread-safe once made (immutable), and cheap to copy. Errors are absl::Status that name file,
// object, field and mend.
#ifndef FABRICAST_TOPOLOGY_TOPOLOGY_H_
#define FABRICAST_TOPOLOGY_TOPOLOGY_H_

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "topology/calibration.pb.h"
#include "topology/cluster.pb.h"
#include "topology/override.h"
#include "topology/route.h"
#include "topology/spec_library.h"

namespace fabricast {

struct GpuNode {
  std::string name;  // "node_a.gpu0"
  std::string host;  // "node_a"
  GpuSpec spec;      // with the instance's overrides
};

class Topology {
 public:
  // `file_or_name`: a textproto file of message fabricast.Cluster, or the name of a bundled cluster
  // ("trinity_200g"). A name without '/' and '.' that is bundled is the bundled one; write "./name"
  // for a file of that name. If folders `../specs` and `../calibration` lie beside the file, their
  // specs are added; a file there that says the same as one that was built in is left out.
  static absl::StatusOr<Topology> Load(const std::string& file_or_name,
                                       const std::vector<Override>& overrides = {});

  // The same from memory; `file` is used in messages only. Nothing of `specs` is needed afterwards.
  static absl::StatusOr<Topology> Parse(absl::string_view file, absl::string_view text,
                                        const std::vector<Override>& overrides = {},
                                        const SpecLibrary& specs = SpecLibrary::Bundled());

  // The same from a message.
  static absl::StatusOr<Topology> Create(absl::string_view file, const Cluster& cluster,
                                         const std::vector<Override>& overrides = {},
                                         const SpecLibrary& specs = SpecLibrary::Bundled());

  // Names of the bundled clusters, sorted.
  static std::vector<std::string> BundledNames();
  // The textproto of a bundled cluster, to start a description from; empty if there is none of that
  // name.
  static absl::string_view BundledText(absl::string_view name);

  const std::string& name() const;
  const Cluster& cluster() const;  // with overrides applied
  absl::Span<const std::string> warnings()
      const;  // "...: node_a.nic0: PCIe 4.0 x8 (...) carries 115 of its 200 Gbps"

  // GPUs in rank order.
  absl::Span<const GpuNode> gpus() const;
  absl::Span<const Segment> segments() const;

  // Between two different GPUs, by index into gpus(). That there is one was checked at load time:
  // cannot fail. The first call for a `from` finds the routes to all others. Valid as long as a
  // copy of the topology lives.
  const Route& route(int from, int to) const;

  const KernelCalibration& kernels(int gpu) const;  // the calibration that the GPU's spec names
  const NcclCalibration& nccl() const;
  Transport transport() const;
  int64_t p2p_net_chunk_bytes() const;

  // Payload of a packet between hosts: the RoCE path MTU, or with TCP the Ethernet MTU. One for the
  // whole cluster, the least of its NICs'.
  int network_mtu_bytes() const;

  // The same cluster with every NIC and every switch port it is cabled to at `gbps`; PCIe and
  // cables between switches stay as they are. For break-even searches. `gbps` must be more than 0.
  Topology WithNetworkRate(double gbps) const;

  // The rate of the slowest NIC that a route between hosts uses, in Gbps; 0 if no route leaves a
  // host.
  double network_rate_gbps() const;

 private:
  struct State;
  explicit Topology(std::shared_ptr<const State> state) : state_(std::move(state)) {}

  std::shared_ptr<const State> state_;
};

}  // namespace fabricast

#endif  // FABRICAST_TOPOLOGY_TOPOLOGY_H_
