#include "tools/virtual_network/host_process.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"

namespace fabricast {
namespace {

// Where ip and tc are, on Debian too, though an ordinary user's PATH lacks it.
constexpr char kAdministration[] = ":/usr/sbin:/sbin";

absl::StatusOr<std::string> FindProgram(const std::string& name) {
  if (absl::StrContains(name, "/")) return name;
  const char* const path = getenv("PATH");
  for (absl::string_view folder :
       absl::StrSplit(absl::StrCat(path == nullptr ? "" : path, kAdministration), ':')) {
    std::string file = absl::StrCat(folder, "/", name);
    if (access(file.c_str(), X_OK) == 0) return file;
  }
  return absl::NotFoundError(absl::StrCat(
      "no program is called ", name, ": install it",
      name == "ip" || name == "tc" ? " (apt-get install iproute2)" : " or give its path"));
}

// This process's environment, with `changes`.
std::vector<std::string> Environment(const std::vector<std::string>& changes) {
  std::vector<std::string> result = changes;
  const auto name = [](const std::string& entry) { return entry.substr(0, entry.find('=')); };
  for (char** entry = environ; *entry != nullptr; ++entry) {
    const bool changed = std::any_of(changes.begin(), changes.end(), [&](const auto& change) {
      return name(change) == name(*entry);
    });
    if (!changed) result.push_back(*entry);
  }
  return result;
}

std::vector<char*> Pointers(std::vector<std::string>& strings) {
  std::vector<char*> pointers;
  for (std::string& string : strings) pointers.push_back(string.data());
  pointers.push_back(nullptr);
  return pointers;
}

struct Pipe {
  FileDescriptor read;
  FileDescriptor write;
};

absl::StatusOr<Pipe> MakePipe() {
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) {
    return absl::ResourceExhaustedError(absl::StrCat("no pipe: ", strerror(errno)));
  }
  return Pipe{.read = FileDescriptor(ends[0]), .write = FileDescriptor(ends[1])};
}

absl::StatusOr<FileDescriptor> OpenToAppend(const std::string& path) {
  if (path.empty()) return FileDescriptor();
  const int fd = open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  if (fd < 0) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": ", strerror(errno)));
  }
  return FileDescriptor(fd);
}

std::string ReadAll(int fd) {
  std::string text;
  char buffer[4096];
  ssize_t got = 0;
  while ((got = read(fd, buffer, sizeof(buffer))) > 0 || (got < 0 && errno == EINTR)) {
    if (got > 0) text.append(buffer, got);
  }
  return text;
}

// What a child cannot do, for its parent to word.
struct Failure {
  char step = ' ';
  int error = 0;
};

// Between fork and exec; calls only what may be called there.

void Fail(int fd, char step) {
  const Failure failure{.step = step, .error = errno};
  if (write(fd, &failure, sizeof(failure)) < 0) _exit(126);
  _exit(127);
}

void BecomeHostProcess(const NetworkNamespace& space, pid_t parent, int failures) {
  setpgid(0, 0);
  if (!space.Join()) Fail(failures, 'n');
  // After joining, which may change what it belongs to and then forgets this.
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (getppid() != parent) _exit(126);
  sigset_t none;
  sigemptyset(&none);
  sigprocmask(SIG_SETMASK, &none, nullptr);
}

void UseAs(const FileDescriptor& file, int fd, int failures) {
  if (file.get() >= 0 && dup2(file.get(), fd) < 0) Fail(failures, 'f');
}

struct Execution {
  const char* file = nullptr;
  char** arguments = nullptr;
  char** environment = nullptr;
  const char* directory = nullptr;  // null: none
  const FileDescriptor* output = nullptr;
  const FileDescriptor* errors = nullptr;
  int kept_open = -1;
};

[[noreturn]] void Execute(const Execution& execution, int failures) {
  if (execution.directory != nullptr && chdir(execution.directory) != 0) Fail(failures, 'd');
  UseAs(*execution.output, STDOUT_FILENO, failures);
  UseAs(*execution.errors, STDERR_FILENO, failures);
  if (execution.kept_open >= 0) fcntl(execution.kept_open, F_SETFD, 0);
  execve(execution.file, execution.arguments, execution.environment);
  Fail(failures, 'e');
  _exit(127);
}

// In the parent again.

absl::Status Worded(const Failure& failure, const std::string& name, const std::string& directory) {
  const char* const reason = strerror(failure.error);
  switch (failure.step) {
    case 'n':
      return absl::PermissionDeniedError(
          absl::StrCat(name, ": cannot join the host's network namespace: ", reason));
    case 'd':
      return absl::NotFoundError(absl::StrCat(name, ": folder ", directory, ": ", reason));
    case 'e':
      return absl::NotFoundError(absl::StrCat(name, ": cannot be executed: ", reason));
    default:
      return absl::InternalError(absl::StrCat(name, ": cannot redirect what it prints: ", reason));
  }
}

void WaitFor(pid_t pid, int* status) {
  while (waitpid(pid, status, 0) < 0 && errno == EINTR) {
  }
}

// OK once the child has executed its program or begins with its function.
absl::Status Begun(Pipe& failures, pid_t pid, const std::string& name,
                   const std::string& directory) {
  failures.write.Close();
  const std::string text = ReadAll(failures.read.get());
  if (text.empty()) return absl::OkStatus();
  WaitFor(pid, nullptr);
  Failure failure;
  memcpy(&failure, text.data(), std::min(text.size(), sizeof(failure)));
  return Worded(failure, name, directory);
}

absl::StatusOr<pid_t> Spawn(const NetworkNamespace& space, const std::vector<std::string>& command,
                            const std::string& directory, const std::vector<std::string>& changes,
                            const FileDescriptor& output, const FileDescriptor& errors,
                            int kept_open) {
  if (command.empty()) return absl::InvalidArgumentError("no program is given to be run");
  absl::StatusOr<std::string> file = FindProgram(command[0]);
  if (!file.ok()) return file.status();
  absl::StatusOr<Pipe> failures = MakePipe();
  if (!failures.ok()) return failures.status();
  std::vector<std::string> arguments = command;
  std::vector<std::string> environment = Environment(changes);
  std::vector<char*> argument_pointers = Pointers(arguments);
  std::vector<char*> environment_pointers = Pointers(environment);
  const Execution execution{
      .file = file->c_str(),
      .arguments = argument_pointers.data(),
      .environment = environment_pointers.data(),
      .directory = directory.empty() ? nullptr : directory.c_str(),
      .output = &output,
      .errors = &errors,
      .kept_open = kept_open,
  };
  const pid_t parent = getpid();
  const pid_t pid = fork();
  if (pid == 0) {
    BecomeHostProcess(space, parent, failures->write.get());
    Execute(execution, failures->write.get());
  }
  if (pid < 0) return absl::ResourceExhaustedError(absl::StrCat("no process: ", strerror(errno)));
  absl::Status begun = Begun(*failures, pid, command[0], directory);
  if (!begun.ok()) return begun;
  return pid;
}

}  // namespace

HostProcess::HostProcess(pid_t pid, std::string name) : pid_(pid), name_(std::move(name)) {}

absl::StatusOr<std::unique_ptr<HostProcess>> HostProcess::Start(
    const NetworkNamespace& space, const std::vector<std::string>& command,
    const ProcessOptions& options) {
  absl::StatusOr<FileDescriptor> output = OpenToAppend(options.output_file);
  if (!output.ok()) return output.status();
  absl::StatusOr<FileDescriptor> errors = OpenToAppend(options.error_file);
  if (!errors.ok()) return errors.status();
  absl::StatusOr<pid_t> pid =
      Spawn(space, command, options.directory, options.environment, *output, *errors, -1);
  if (!pid.ok()) return pid.status();
  return std::unique_ptr<HostProcess>(new HostProcess(*pid, absl::StrJoin(command, " ")));
}

absl::StatusOr<std::unique_ptr<HostProcess>> HostProcess::Fork(const NetworkNamespace& space,
                                                               const std::function<int()>& body) {
  absl::StatusOr<Pipe> failures = MakePipe();
  if (!failures.ok()) return failures.status();
  fflush(stdout);
  fflush(stderr);
  const pid_t parent = getpid();
  const pid_t pid = fork();
  if (pid == 0) {
    BecomeHostProcess(space, parent, failures->write.get());
    failures->write.Close();
    const int status = body();
    fflush(stdout);
    fflush(stderr);
    _exit(status);
  }
  if (pid < 0) return absl::ResourceExhaustedError(absl::StrCat("no process: ", strerror(errno)));
  absl::Status begun = Begun(*failures, pid, "a fork", "");
  if (!begun.ok()) return begun;
  return std::unique_ptr<HostProcess>(new HostProcess(pid, "a fork"));
}

HostProcess::~HostProcess() {
  if (status_ >= 0) return;
  kill(pid_, SIGKILL);
  Reap();
}

absl::StatusOr<int> HostProcess::Wait(absl::Duration at_most) {
  if (status_ >= 0) return status_;
  const FileDescriptor ended(static_cast<int>(syscall(SYS_pidfd_open, pid_, 0)));
  if (ended.get() < 0) {
    return absl::UnimplementedError(absl::StrCat(
        "virtual network: this kernel cannot wait for a process for a while (pidfd_open: ",
        strerror(errno), "): use Linux 5.3 or later"));
  }
  const absl::Time deadline = absl::Now() + at_most;
  while (true) {
    pollfd polled{.fd = ended.get(), .events = POLLIN, .revents = 0};
    const absl::Duration left = std::max(absl::ZeroDuration(), deadline - absl::Now());
    const int milliseconds =
        static_cast<int>(std::min<int64_t>(absl::ToInt64Milliseconds(left) + 1, 1'000'000));
    if (poll(&polled, 1, milliseconds) == 1) break;
    if (absl::Now() >= deadline) {
      return absl::DeadlineExceededError(
          absl::StrCat("'", name_, "' still runs after ", absl::FormatDuration(at_most)));
    }
  }
  Reap();
  return status_;
}

void HostProcess::Signal(int signal) {
  if (status_ < 0) kill(pid_, signal);
}

void HostProcess::Reap() {
  // Not reaped before its group is killed, so that the group's number is not another's by then.
  siginfo_t ignored;
  while (waitid(P_PID, pid_, &ignored, WEXITED | WNOWAIT) < 0 && errno == EINTR) {
  }
  kill(-pid_, SIGKILL);
  int status = 0;
  WaitFor(pid_, &status);
  status_ = WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

absl::Status RunTool(const NetworkNamespace& space, const std::vector<std::string>& command,
                     const NetworkNamespace* other) {
  absl::StatusOr<Pipe> errors = MakePipe();
  if (!errors.ok()) return errors.status();
  absl::StatusOr<pid_t> pid = Spawn(space, command, "", {}, errors->write, errors->write,
                                    other == nullptr ? -1 : other->fd());
  if (absl::IsNotFound(pid.status())) return absl::UnimplementedError(pid.status().message());
  if (!pid.ok()) return pid.status();
  errors->write.Close();
  const std::string text = ReadAll(errors->read.get());
  int status = 0;
  WaitFor(*pid, &status);
  if (WIFEXITED(status) && WEXITSTATUS(status) == 0) return absl::OkStatus();
  const std::string message =
      absl::StrCat("virtual network: ", absl::StrJoin(command, " "), ": ",
                   absl::StripAsciiWhitespace(text.empty() ? "failed" : text));
  if (absl::StrContains(text, "Operation not permitted")) {
    return absl::PermissionDeniedError(
        absl::StrCat(message, ": run as root with CAP_SYS_ADMIN and CAP_NET_ADMIN"));
  }
  for (const char* unknown : {"Unknown device type", "not supported", "kind is unknown"}) {
    if (absl::StrContains(text, unknown)) {
      return absl::UnimplementedError(
          absl::StrCat(message, ": this kernel lacks it (veth, bridge and sch_tbf are needed)"));
    }
  }
  return absl::InternalError(message);
}

}  // namespace fabricast
