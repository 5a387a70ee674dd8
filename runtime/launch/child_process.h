// Starts programs and looks after them: each dies with this process, and its end is told in words.
#ifndef FABRICAST_RUNTIME_LAUNCH_CHILD_PROCESS_H_
#define FABRICAST_RUNTIME_LAUNCH_CHILD_PROCESS_H_

#include <sys/types.h>

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace fabricast {

// How a process ended.
struct ChildExit {
  int code = 0;    // if it ended by itself
  int signal = 0;  // that killed it; 0 otherwise

  bool ok() const { return code == 0 && signal == 0; }
  // "exited with 3", "killed by signal 9 (SIGKILL)".
  std::string ToString() const;
};

struct ChildOptions {
  // Of the program; PATH is not searched. "/proc/self/exe" is this one.
  std::string program;
  std::vector<std::string> arguments = {};  // without the program's name
  // Added to this process's environment, or in the place of what is there.
  std::map<std::string, std::string> environment = {};

  // If not -1, the child has it, open, as `pass_fd_as`, 3 or more. It is the caller's to close,
  // once Start has returned.
  int pass_fd = -1;
  int pass_fd_as = 3;

  // Standard output and standard error: line by line to on_line if it is set, else to the
  // descriptor `output` if that is not -1, else where this process's own go. Lines come without
  // their ends, also the last one that has none; they are cut at kMaxLineBytes.
  int output = -1;
  std::function<void(absl::string_view line)> on_line = nullptr;

  // The child has ended, and all its lines were told. Until this returns, its pid is nobody else's.
  std::function<void(const ChildExit&)> on_exit = nullptr;
};

// Writes a line to descriptor `fd` at once, with `prefix` before it: for ChildOptions::on_line.
// `fd` must stay open. What cannot be written is lost.
std::function<void(absl::string_view line)> PrefixedLines(int fd, std::string prefix);

// The children of this process. Thread-safe.
//
// A thread of its own starts them all, waits for them and runs the callbacks, which must not block,
// and may call Start and Terminate but not EndAll. It sleeps while nothing happens. A child gets
// SIGKILL when that thread ends, so also when this process dies, however it does. It has:
// - a process group of its own, so that Ctrl-C at the terminal is for this process alone;
// - standard input from /dev/null, and no open files but standard output and error, and pass_fd;
// - no blocked and no ignored signals (an ignored SIGHUP stays so, for nohup).
//
// Nobody else may wait for these children (as waitpid(-1) does) while this exists.
class ChildProcesses {
 public:
  static constexpr size_t kMaxLineBytes = 64 << 10;

  // Without `use_pidfd`, as on a Linux before 5.3, the thread looks every 20 ms instead of
  // sleeping.
  explicit ChildProcesses(bool use_pidfd = true);
  // EndAll without grace.
  ~ChildProcesses();
  ChildProcesses(const ChildProcesses&) = delete;
  ChildProcesses& operator=(const ChildProcesses&) = delete;

  // Returns the child's pid when the program runs in it. kNotFound, kPermissionDenied, ... name the
  // program; nothing is left of the child then, and on_exit never runs. on_exit may run before this
  // returns.
  absl::StatusOr<pid_t> Start(ChildOptions options);

  // Asks the child to end (SIGTERM), and after `grace` kills it. Asked again, the earlier end
  // counts. Does nothing if `pid` is no child of these, or not any more. Returns at once.
  void Terminate(pid_t pid, absl::Duration grace);

  // Terminates all, and returns when every on_exit has returned. Nothing can be started meanwhile:
  // Start returns kFailedPrecondition.
  void EndAll(absl::Duration grace);

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace fabricast

#endif  // FABRICAST_RUNTIME_LAUNCH_CHILD_PROCESS_H_
