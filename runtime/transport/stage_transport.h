// Carries activations between the stages of a pipeline.
//
// This is the only seam between the engine and the wire: loopback copies between stages of one
// process, TCP joins processes and hosts. All pass the same tests (conformance/).
#ifndef FABRICAST_RUNTIME_TRANSPORT_STAGE_TRANSPORT_H_
#define FABRICAST_RUNTIME_TRANSPORT_STAGE_TRANSPORT_H_

#include <cstddef>

#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "absl/types/span.h"

namespace fabricast {

// One stage's end. Messages from one stage to another arrive in the order of Send, each into the
// buffer of the Receive that was posted in the same place. Thread-safe.
//
// What ends a link ends all that is pending on it and all that comes later, with one status:
// - kCancelled: one of its ends was closed;
// - kUnavailable: the other end is gone (its process died, the network failed); names the stage;
// - kInvalidArgument, at the receiver (kUnavailable at the sender, if it hears of it): a message
//   was not exactly as long as its buffer, so the two disagree about the step; nothing is received.
class StageTransport {
 public:
  // Runs exactly once, on any thread, and must not block; it may call Send and Receive. Those of
  // one direction of a link run one at a time, in order. Then the bytes are the caller's again.
  using Done = absl::AnyInvocable<void(absl::Status) &&>;

  virtual ~StageTransport() = default;

  // Queues `bytes` for stage `to` and returns without waiting for the receiver. The caller keeps
  // them alive and unchanged until `done` runs, which says that they have left, not that they have
  // arrived. If Send fails, `done` never runs: kNotFound if there is no such stage, or what ended
  // the link.
  virtual absl::Status Send(int to, absl::Span<const std::byte> bytes, Done done) = 0;

  // Posts `buffer` for the next message from stage `from` that has none yet. As for Send, until
  // `done` runs, which says that the message is there.
  virtual absl::Status Receive(int from, absl::Span<std::byte> buffer, Done done) = 0;

  // Ends all links of this stage; what has left but not arrived is lost. When it returns, every
  // `done` has run, unless it is called by one. Idempotent. The destructor does it too; it must not
  // be called by a `done`, nor while another call runs.
  virtual void Close() = 0;
};

}  // namespace fabricast

#endif  // FABRICAST_RUNTIME_TRANSPORT_STAGE_TRANSPORT_H_
