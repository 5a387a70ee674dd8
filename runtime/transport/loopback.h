// Stages of one process: a message is a copy from the sender's buffer to the receiver's.
#ifndef FABRICAST_RUNTIME_TRANSPORT_LOOPBACK_H_
#define FABRICAST_RUNTIME_TRANSPORT_LOOPBACK_H_

#include <memory>
#include <vector>

#include "runtime/transport/stage_transport.h"

namespace fabricast {

// The ends of `stages` stages (at least one), in order, each joined to every other. The copy runs
// on the thread of the later of Send and Receive, and so do both their `done`. Closing one end
// closes its links, not those between others.
std::vector<std::unique_ptr<StageTransport>> MakeLoopbackTransports(int stages);

}  // namespace fabricast

#endif  // FABRICAST_RUNTIME_TRANSPORT_LOOPBACK_H_
