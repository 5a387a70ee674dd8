// A cable that loses and delays frames: between two interfaces of one network namespace, by a
// process of its own, since not every kernel has netem.
#ifndef FABRICAST_TOOLS_VIRTUAL_NETWORK_CABLE_RELAY_H_
#define FABRICAST_TOOLS_VIRTUAL_NETWORK_CABLE_RELAY_H_

#include <sys/types.h>

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "tools/virtual_network/file_descriptor.h"
#include "tools/virtual_network/network_namespace.h"

namespace fabricast {

// What happens to frames, in each direction, independently.
struct Disturbance {
  double loss = 0;  // probability that a frame is lost, 0 ... 1
  absl::Duration delay = absl::ZeroDuration();
};

class CableRelay {
 public:
  // Forks a process that lasts as long as this. Which frames are lost depends on `seed` and on the
  // frames alone.
  static absl::StatusOr<std::unique_ptr<CableRelay>> Start(const NetworkNamespace& space,
                                                           uint64_t seed);

  CableRelay(const CableRelay&) = delete;
  CableRelay& operator=(const CableRelay&) = delete;
  ~CableRelay();

  // Carries all frames between two interfaces, from now on. Frames stay in order; those under way
  // keep the delay that they were given. The names of a pair come in the same order each time.
  absl::Status Join(const std::string& one, const std::string& other,
                    const Disturbance& disturbance);

  pid_t pid() const { return pid_; }

 private:
  CableRelay(pid_t pid, FileDescriptor control);

  const pid_t pid_;
  FileDescriptor control_;
};

}  // namespace fabricast

#endif  // FABRICAST_TOOLS_VIRTUAL_NETWORK_CABLE_RELAY_H_
