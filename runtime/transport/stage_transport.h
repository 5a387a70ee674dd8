// Carries activations between the stages of a pipeline.
//
// This is the only seam between the engine and the wire: loopback copies between stages of one
// process.
#ifndef FABRICAST_RUNTIME_TRANSPORT_STAGE_TRANSPORT_H_
#define FABRICAST_RUNTIME_TRANSPORT_STAGE_TRANSPORT_H_

#include <cstddef>

#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "absl/types/span.h"

namespace fabricast {

// One stage's end. Messages from one stage to another arrive in the order of Send, each into the
// buffer of the Receive that was posted in the same place. Thread-safe.
class StageTransport {
 public:
  // Runs exactly once, on any thread, and must not block; it may call Send and Receive.
  using Done = absl::AnyInvocable<void(absl::Status) &&>;

  virtual ~StageTransport() = default;

  // Queues `bytes` for stage `to` and returns without waiting for the receiver. The caller keeps
  // them alive and unchanged until `done` runs, which says that they have left. If Send fails,
  // `done` never runs: kNotFound if there is no such stage, kFailedPrecondition once closed.
  //
  // `done` gets kCancelled if the transport is closed first.
  virtual absl::Status Send(int to, absl::Span<const std::byte> bytes, Done done) = 0;

  // Posts `buffer` for the next message from stage `from` that has none yet. As for Send, until
  // `done` runs. `done` gets kInvalidArgument if the message is not exactly as long as `buffer`:
  // sender and receiver know the length from the step.
  virtual absl::Status Receive(int from, absl::Span<std::byte> buffer, Done done) = 0;

  // Ends all that is pending, as kCancelled; both ends of this stage's links see it. Idempotent.
  virtual void Close() = 0;
};

}  // namespace fabricast

#endif  // FABRICAST_RUNTIME_TRANSPORT_STAGE_TRANSPORT_H_
