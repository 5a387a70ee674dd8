// Whether a spec or a calibration is sound by itself.
#ifndef FABRICAST_TOPOLOGY_SPEC_RULES_H_
#define FABRICAST_TOPOLOGY_SPEC_RULES_H_

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "topology/calibration.pb.h"
#include "topology/cluster.pb.h"

namespace fabricast {

// Each: kInvalidArgument naming `file`, the spec, the field and the mend, unless the name is good,
// every number is within bounds and has a source, and nothing that routes or costs need is missing.
absl::Status CheckSpec(absl::string_view file, const GpuSpec& spec);
absl::Status CheckSpec(absl::string_view file, const NicSpec& spec);
absl::Status CheckSpec(absl::string_view file, const SwitchSpec& spec);
absl::Status CheckSpec(absl::string_view file, const HostSpec& spec);

// Calibrations: every number is finite and not negative, efficiencies and shares are more than 0,
// and the points of a curve come in rising order.
absl::Status CheckSpec(absl::string_view file, const KernelCalibration& spec);
absl::Status CheckSpec(absl::string_view file, const NcclCalibration& spec);

}  // namespace fabricast

#endif  // FABRICAST_TOPOLOGY_SPEC_RULES_H_
