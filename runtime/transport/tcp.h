// Stages in several processes or hosts, joined by TCP.
//
// A link between two stages is a few TCP connections ("streams"): a long message is cut into
// segments that are dealt to them, and each arrives in the place of the posted buffer where it
// belongs, without a copy of our own. A message waits in the sender's memory and the sockets until
// its Receive is posted (back-pressure).
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
  int streams = 1;  // a link
  // A peer that is silent for so long, though it should acknowledge, is gone.
  absl::Duration dead_after = absl::Seconds(4);
};

// Stages that are joined to one another for a while.
struct TcpGroup {
  // The same in all of the group and in no other: connections of another session are refused.
  std::string session;
  int stage = 0;
  std::map<int, std::string> peers;  // TcpEndpoint::address() of each stage that this one talks to
  // A link broke, also if nothing was pending on it; the status is what `done`s get. Once a peer,
  // on any thread, never after Close has returned; must not block.
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
  // is up. Both sides prove the secret. kDeadlineExceeded names the peers that are missing and why;
  // kCancelled after Abort. One group at a time.
  virtual absl::StatusOr<std::unique_ptr<StageTransport>> Connect(const TcpGroup& group,
                                                                  absl::Time deadline) = 0;

  // Ends the Connect that runs, if one does.
  virtual void Abort() = 0;
};

}  // namespace fabricast

#endif  // FABRICAST_RUNTIME_TRANSPORT_TCP_H_
