// A stage that is a process of its own: joins the head, loads its share of the model, and computes
// for one generation after the other until the head lets it go.
#ifndef FABRICAST_RUNTIME_CONTROL_STAGE_PROCESS_H_
#define FABRICAST_RUNTIME_CONTROL_STAGE_PROCESS_H_

#include <atomic>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "runtime/control/control.pb.h"
#include "runtime/control/protocol.h"
#include "runtime/executor/device_executor.h"
#include "runtime/executor/stage_executor.h"
#include "runtime/transport/device_transport.h"
#include "runtime/transport/shared_secret.h"
#include "runtime/transport/tcp.h"
#include "runtime/version.h"

namespace fabricast {

struct StageProcessOptions {
  int stage = 0;
  std::string head = "";         // "10.0.0.1:29400"
  std::string ip = "127.0.0.1";  // where other stages reach this one; nothing else is listened on
  SharedSecret secret = SharedSecret::Random();  // the head's
  std::string version = kVersion;
  Fingerprints fingerprints = {};
  TcpOptions transport = {};
  // Called once, on the caller's thread. Its error ends the run, at the head too.
  std::function<absl::StatusOr<std::unique_ptr<StageExecutor>>(const control::Load&)> load =
      nullptr;
  // Where the head asks for NCCL and `load` made a DeviceExecutor: what joins its GPU to those of
  // the stages before and after. `joined` is connected to them, and is closed if one of them is
  // lost, which must end this. Called once a generation, as `load`.
  std::function<absl::StatusOr<std::unique_ptr<DeviceTransport>>(
      int stages, std::unique_ptr<StageTransport> joined, absl::Time deadline)>
      join_devices = nullptr;
  // What the head shall tell the user of this stage, and what is known of it by now; any thread.
  std::function<std::string()> describe = nullptr;
  // How long the head may take to be there.
  absl::Duration join_timeout = absl::Seconds(60);
  // A head that says nothing for so long is lost.
  absl::Duration silent_after = absl::Seconds(4);
  // A head that was lost may come back for so long; then this gives up.
  absl::Duration rejoin_timeout = absl::Seconds(4);
  const std::atomic<bool>* interrupted = nullptr;  // looked at twice a second
  // A launcher interrupts all processes of a run, and the head then ends it in good order: it has
  // so long to say goodbye.
  absl::Duration interrupt_grace = absl::Seconds(5);
  std::function<void(absl::string_view)> log = nullptr;
};

// Returns OK when the head has let it go, else why it is over: refused, no head (naming its
// address), kCancelled if interrupted. Starts threads and ends them.
absl::Status RunStageProcess(const StageProcessOptions& options);

}  // namespace fabricast

#endif  // FABRICAST_RUNTIME_CONTROL_STAGE_PROCESS_H_
