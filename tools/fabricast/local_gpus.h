// The GPUs of the machine at hand as a topology: `--topology local_gpu`.
#ifndef FABRICAST_TOOLS_FABRICAST_LOCAL_GPUS_H_
#define FABRICAST_TOOLS_FABRICAST_LOCAL_GPUS_H_

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "runtime/engine/gpu_pipeline.h"
#include "topology/cluster.pb.h"
#include "topology/topology.h"

namespace fabricast {

inline constexpr char kLocalGpu[] = "local_gpu";

// One host with these GPUs, in their order. kNotFound if there is no specification of one of them;
// kUnimplemented for more than 8.
absl::StatusOr<Cluster> LocalGpuCluster(absl::Span<const FoundGpu> gpus);

// The place of `gpu` (an index into the topology) among the GPUs of its host; and of several.
int DeviceOf(const Topology& topology, int gpu);
std::vector<int> DevicesOf(const Topology& topology, absl::Span<const int> gpus);

// What `found` is not as the topology says of `gpu`, with the mend; empty if it is.
std::string Difference(const Topology& topology, int gpu, const FoundGpu& found);
// Of several, for those that differ; `found` are this machine's.
std::vector<std::string> Differences(const Topology& topology, absl::Span<const int> gpus,
                                     absl::Span<const FoundGpu> found);

}  // namespace fabricast

#endif  // FABRICAST_TOOLS_FABRICAST_LOCAL_GPUS_H_
