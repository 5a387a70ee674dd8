// Whether the cables join all hosts that have to talk.
#ifndef FABRICAST_TOPOLOGY_REACHABILITY_H_
#define FABRICAST_TOPOLOGY_REACHABILITY_H_

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace fabricast {

struct Hardware;

// kInvalidArgument, naming two GPUs of `hardware.ranks` and the mend, if no NIC of the one's host
// is joined by cables and switches to a NIC of the other's.
absl::Status CheckReachability(absl::string_view file, const Hardware& hardware);

}  // namespace fabricast

#endif  // FABRICAST_TOPOLOGY_REACHABILITY_H_
