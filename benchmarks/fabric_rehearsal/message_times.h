// How long a message takes from one process to another over the real TCP transport, on hosts of a
// virtual network.
#ifndef FABRICAST_BENCHMARKS_FABRIC_REHEARSAL_MESSAGE_TIMES_H_
#define FABRICAST_BENCHMARKS_FABRIC_REHEARSAL_MESSAGE_TIMES_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "tools/virtual_network/virtual_network.h"

namespace fabricast {

struct MessageTimes {
  int64_t bytes = 0;
  double undisturbed_s = 0;  // a tenth is shorter
  double median_s = 0;
  double p99_s = 0;
};

// Sends messages of each size, one at a time, from a process on `from` to one on `to` (which may be
// the same host), `repeats` of each after some that are not counted. A message's time is from Send
// until the receiver is told that it is there; its buffer was posted before. The bytes are checked.
// The calling process must have no other threads.
absl::StatusOr<std::vector<MessageTimes>> TimeMessages(VirtualNetwork& network,
                                                       const std::string& from,
                                                       const std::string& to,
                                                       const std::vector<int64_t>& sizes,
                                                       int repeats);

}  // namespace fabricast

#endif  // FABRICAST_BENCHMARKS_FABRIC_REHEARSAL_MESSAGE_TIMES_H_
