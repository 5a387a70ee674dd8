// Stages that are processes, on this host or others, as the head sees them.
//
// The head listens; stages join when they are started, in any order (stage_process.h). When all are
// there a generation begins, and it ends when one of them is lost: its stream breaks, it is silent,
// it reports a failure, or its end is announced. The others stay, with the weights that they have
// loaded, and wait for the next.
#ifndef FABRICAST_RUNTIME_CONTROL_REMOTE_STAGES_H_
#define FABRICAST_RUNTIME_CONTROL_REMOTE_STAGES_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "runtime/control/control.pb.h"
#include "runtime/control/protocol.h"
#include "runtime/engine/stages.h"
#include "runtime/transport/shared_secret.h"
#include "runtime/version.h"

namespace fabricast {

struct RemoteStagesOptions {
  std::string ip = "127.0.0.1";                  // the only address that is listened on
  int port = 0;                                  // 0: any free one
  SharedSecret secret = SharedSecret::Random();  // stages that lack it are refused,
  std::string version = kVersion;                // those of another version,
  Fingerprints fingerprints = {};                // and those whose own differ
  std::vector<control::Load> loads = {};         // a stage's share, one each
  // "host_b.gpu0", one a stage, for messages; may be empty.
  std::vector<std::string> names = {};
  // How long stages may take to join, at first or again, before the run is given up.
  absl::Duration join_timeout = absl::Seconds(60);
  // A stage that answers nothing for so long is lost. A process that is frozen, or a link that is
  // cut, cannot be told from one another.
  absl::Duration silent_after = absl::Seconds(4);
  // Hears of stages that come and go, for the user to read. Any thread; must not block.
  std::function<void(absl::string_view)> log = nullptr;
};

// Thread-safe but for Start and Stop.
class RemoteStages : public Stages {
 public:
  // Fails, naming the address, if it cannot listen there.
  static absl::StatusOr<std::unique_ptr<RemoteStages>> Listen(const RemoteStagesOptions& options);

  virtual std::string address() const = 0;  // "10.0.0.1:29400"

  // The process of a stage has ended: a better cause than its broken stream. `fatal`: it will not
  // come again, so the stages are gone.
  virtual void ProcessEnded(int stage, absl::string_view how, bool fatal) = 0;

  // Where stages run and how well their clocks are known, a line each.
  virtual std::vector<std::string> Description() const = 0;
};

}  // namespace fabricast

#endif  // FABRICAST_RUNTIME_CONTROL_REMOTE_STAGES_H_
