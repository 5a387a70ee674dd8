// `--set object.field=value`: what-if changes to a cluster, before it is checked.
#ifndef FABRICAST_TOPOLOGY_OVERRIDE_H_
#define FABRICAST_TOPOLOGY_OVERRIDE_H_

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "topology/cluster.pb.h"

namespace fabricast {

// `--set`: a field of one or many objects. `path` is "object.field" with shell wildcards in the
// object part: "node_*.nic0.rate_gbps", "switch0.latency_ns", "node_a.gpudirect_driver",
// "communication.p2p_net_chunk_bytes", "*.gpu*.memory_gb",
// "node_a.nic0--switch0.qsfpdd1.rate_gbps" (a link by its name), "cluster.ranks".
struct Override {
  std::string path;
  std::string value;  // as textproto would have it; a list of texts with spaces between them
};

// Reads "path=value"; an error says what is missing.
absl::StatusOr<Override> ParseOverride(absl::string_view text);

// Applies `overrides` in their order, so that the last one counts.
//
// An object is "host", "host.gpu", "host.nic", "switch", a link's name, "communication", or
// "cluster" for what stands at the top of the file. A wildcard does not match the dot, so "*.nic0"
// is the nic0 of every host and not a cable that ends in one; a pattern with "--" is matched
// against names of cables, and there wildcards match the dot too. The field is looked up in the
// object itself, else in the hardware spec it names, whose value is then overridden. Objects that a
// wildcard matches and that have no such field are left alone, as long as one has it.
//
// kInvalidArgument, naming `file`, the override and what there is, if nothing matches, no match has
// the field, the field is not a number, flag, text, enum or list of texts, or the value does not
// fit it.
absl::Status ApplyOverrides(absl::string_view file, const std::vector<Override>& overrides,
                            Cluster* cluster);

}  // namespace fabricast

#endif  // FABRICAST_TOPOLOGY_OVERRIDE_H_
