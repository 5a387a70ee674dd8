// A stage's end of links that are already connected.
#ifndef FABRICAST_RUNTIME_TRANSPORT_TCP_TRANSPORT_H_
#define FABRICAST_RUNTIME_TRANSPORT_TCP_TRANSPORT_H_

#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "runtime/transport/stage_transport.h"
#include "runtime/transport/tcp_link.h"

namespace fabricast {

// With a thread that does the I/O of all links, and sleeps when there is none. kUnavailable if the
// system has no descriptors for it.
absl::StatusOr<std::unique_ptr<StageTransport>> MakeTcpTransport(int stage,
                                                                 std::vector<TcpLink::Setup> links);

}  // namespace fabricast

#endif  // FABRICAST_RUNTIME_TRANSPORT_TCP_TRANSPORT_H_
