// Stages in several processes or hosts, joined by TCP.
//
// A link between two stages is a few TCP connections ("streams"): a long message is cut into
// segments that are dealt to them, and each arrives in the place of the posted buffer where it
// belongs, without a copy of our own. A message waits in the sender's memory and the sockets until
// its Receive is posted (back-pressure). One more connection a link says why an end goes, and is
// where a death shows.
//
// A transport has one thread, which sleeps while nothing happens. `done`s run on it, or on the
// thread of Send for a short message that leaves at once.
#ifndef FABRICAST_RUNTIME_TRANSPORT_TCP_H_
#define FABRICAST_RUNTIME_TRANSPORT_TCP_H_

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "runtime/transport/shared_secret.h"
#include "runtime/transport/stage_transport.h"

namespace fabricast {

struct TcpOptions {
  // A link's data connections. One I/O thread serves them all, so more help only where the network
  // gives each a share: on loopback 1, 2 and 4 moved 4.6, 3.0 and 4.0 GB/s in messages of 1 MiB, at
  // 0.39, 0.39 and 0.43 CPU seconds a GB (benchmarks/transport, 2 hardware threads).
  int streams = 1;
  // A host that does not acknowledge for so long, a second to a day, is gone; it is found out up to
  // a second later. A process that stops but lives is not: its kernel acknowledges.
  absl::Duration dead_after = absl::Seconds(4);
};

// Stages that are joined to one another for a while.
struct TcpGroup {
  // The same in all of the group and in no other: connections of another session are refused.
  std::string session;
  int stage = 0;
  std::map<int, std::string> peers;  // TcpEndpoint::address() of each stage that this one talks to
  // A link broke, also if nothing was pending on it, or its peer closed it; the status is what
  // `done`s get. Once a peer, on any thread, before the `done`s that are pending, never after Close
  // has returned nor because of it; must not block, but may call Close.
  std::function<void(int peer, const absl::Status&)> on_broken;
};

// Where a process can be reached. Thread-safe.
class TcpEndpoint {
 public:
  // Listens on that address only (an IP address of this machine; port 0: any free one).
  static absl::StatusOr<std::unique_ptr<TcpEndpoint>> Listen(const std::string& ip, int port,
                                                             SharedSecret secret,
                                                             const TcpOptions& options);
  virtual ~TcpEndpoint() = default;

  virtual const std::string& address() const = 0;  // "10.0.0.2:41234", "[::1]:41234"

  // Joins this stage to its peers, who do the same at about the same time; returns when every link
  // is up. Both sides prove the secret. The lower stage dials, until it is answered. Only while
  // this runs is anybody accepted, on its thread; strangers are sent away, and take the place of
  // none.
  //
  // kDeadlineExceeded names the peers that are missing and why; kCancelled after Abort;
  // kInvalidArgument for peers that cannot be. One call at a time.
  virtual absl::StatusOr<std::unique_ptr<StageTransport>> Connect(const TcpGroup& group,
                                                                  absl::Time deadline) = 0;

  // Ends the Connect that runs, if one does.
  virtual void Abort() = 0;
};

}  // namespace fabricast

#endif  // FABRICAST_RUNTIME_TRANSPORT_TCP_H_
