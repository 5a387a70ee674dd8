// A process in a network namespace.
#ifndef FABRICAST_TOOLS_VIRTUAL_NETWORK_HOST_PROCESS_H_
#define FABRICAST_TOOLS_VIRTUAL_NETWORK_HOST_PROCESS_H_

#include <sys/types.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "tools/virtual_network/file_descriptor.h"
#include "tools/virtual_network/network_namespace.h"

namespace fabricast {

struct ProcessOptions {
  // "NAME=value", beside or instead of this process's own.
  std::vector<std::string> environment = {};
  std::string directory = "";  // empty: this process's
  // What it prints is appended to these; they may be one file. Empty: where this process prints.
  std::string output_file = "";
  std::string error_file = "";
};

// A child, which leads a process group of its own. The group is killed when the child has ended or
// this object goes. The child is also killed when the thread that started it ends: start it on one
// that lasts.
class HostProcess {
 public:
  // Runs `command`, a program and its arguments; the program is looked for in PATH and in the
  // system's folders of administration. kNotFound if there is none, or what exec said.
  static absl::StatusOr<std::unique_ptr<HostProcess>> Start(const NetworkNamespace& space,
                                                            const std::vector<std::string>& command,
                                                            const ProcessOptions& options);

  // Runs `body` in a fork of this process, which should have no other threads; its value is the
  // exit status, and no destructor outside of it runs there.
  static absl::StatusOr<std::unique_ptr<HostProcess>> Fork(const NetworkNamespace& space,
                                                           const std::function<int()>& body);

  HostProcess(const HostProcess&) = delete;
  HostProcess& operator=(const HostProcess&) = delete;
  ~HostProcess();

  pid_t pid() const { return pid_; }

  // The exit status, or 128 + the signal that ended it. kDeadlineExceeded if it still runs.
  absl::StatusOr<int> Wait(absl::Duration at_most = absl::InfiniteDuration());

  // To the process alone, not to its group. Nothing happens if it has ended.
  void Signal(int signal);

 private:
  HostProcess(pid_t pid, std::string name);
  void Reap();

  const pid_t pid_;
  const std::string name_;
  int status_ = -1;  // what Wait returns; -1: it has not been waited for
};

// Runs a tool of the system to its end; `command` may name `other`, by its path(). If it fails,
// what it printed: as kPermissionDenied for a right that is missing, kUnimplemented if the tool is
// not there or the kernel lacks what it asked for, kInternal else.
absl::Status RunTool(const NetworkNamespace& space, const std::vector<std::string>& command,
                     const NetworkNamespace* other = nullptr);

}  // namespace fabricast

#endif  // FABRICAST_TOOLS_VIRTUAL_NETWORK_HOST_PROCESS_H_
