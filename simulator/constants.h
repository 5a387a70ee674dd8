// The calibrated constants that a scenario uses: what they rest on and how well they are known.
#ifndef FABRICAST_SIMULATOR_CONSTANTS_H_
#define FABRICAST_SIMULATOR_CONSTANTS_H_

#include <string>
#include <vector>

#include "simulator/simulate.h"
#include "topology/calibration.pb.h"

namespace fabricast {

struct ConstantsInUse {
  enum class Kind { kKernelTimes, kMessageLatencies };
  Kind kind;
  std::string what;  // "rtx_pro_6000_blackwell_max_q, int4 matrix products"
  Provenance provenance;
  std::string scaled_from;  // the GPU that was measured, if it is another; else empty

  // One line: what, measured on what, residuals, interval.
  std::string Describe() const;
};

// Matrix products of each kind of GPU, or the measured times of the stages, if those are used; then
// messages of each kind of path; once each.
std::vector<ConstantsInUse> ConstantsOf(const Scenario& scenario);

}  // namespace fabricast

#endif  // FABRICAST_SIMULATOR_CONSTANTS_H_
