// Stages as child processes of the head's: started, and started again when they are killed.
#ifndef FABRICAST_RUNTIME_CONTROL_STAGE_CHILDREN_H_
#define FABRICAST_RUNTIME_CONTROL_STAGE_CHILDREN_H_

#include <sys/types.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "runtime/transport/shared_secret.h"

namespace fabricast {

struct StageChildrenOptions {
  std::vector<int> stages;
  std::string program = "/proc/self/exe";
  std::function<std::vector<std::string>(int stage)> arguments;
  // Each child can read it, once, from kTokenFile.
  SharedSecret secret = SharedSecret::Random();
  // A child has ended, though it was not let go: "was killed by signal 9 (SIGKILL)", "exited with
  // 1: LAST LINE IT PRINTED". One that was killed is started again, at once if it had lived for a
  // while. `fatal`: it gave up by itself, which it would do again, so it is not. On a thread of its
  // own; must not block.
  std::function<void(int stage, absl::string_view how, bool fatal)> on_end;

  static constexpr char kTokenFile[] = "/dev/fd/3";
};

// What children print goes to standard error, with the stage before it. Thread-safe.
class StageChildren {
 public:
  static absl::StatusOr<std::unique_ptr<StageChildren>> Start(StageChildrenOptions options);

  // LetGo without grace.
  virtual ~StageChildren() = default;

  // Starts none any more, and returns when all have ended: by themselves, or terminated after
  // `grace`. on_end is not called any more. Idempotent.
  virtual void LetGo(absl::Duration grace) = 0;

  virtual pid_t pid(int stage) const = 0;  // -1: not running now
};

}  // namespace fabricast

#endif  // FABRICAST_RUNTIME_CONTROL_STAGE_CHILDREN_H_
