#include "simulator/isolated.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <exception>
#include <new>
#include <thread>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace fabricast {
namespace {

constexpr int kPollMilliseconds = 200;

// What a child writes: the status code (0: OK) in a byte, then the result or the message.
void WriteAll(int fd, absl::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t written = write(fd, bytes.data(), bytes.size());
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) _exit(1);  // the parent is gone
    bytes.remove_prefix(written);
  }
}

[[noreturn]] void RunChild(const IsolatedTask& task, std::atomic<double>& progress, int fd) {
  absl::StatusOr<std::string> result = absl::InternalError("the run did not start");
  // SimGrid reports some errors as exceptions; they end here.
  try {
    result = task(progress);
  } catch (const std::exception& error) {
    result = absl::InternalError(absl::StrCat("the simulation failed: ", error.what()));
  }
  const std::string code(1, static_cast<char>(result.status().code()));
  WriteAll(fd, code);
  WriteAll(fd, result.ok() ? absl::string_view(*result) : result.status().message());
  close(fd);
  fflush(stdout);
  fflush(stderr);
  // No destructors: they belong to the parent.
  _exit(0);
}

struct Child {
  size_t task;
  pid_t pid;
  int fd;
  std::string output;
};

absl::StatusOr<std::string> Outcome(const Child& child, int wait_status) {
  if (WIFSIGNALED(wait_status)) {
    return absl::InternalError(absl::StrCat("the simulation's process was ended by signal ",
                                            WTERMSIG(wait_status), " (",
                                            strsignal(WTERMSIG(wait_status)), ")"));
  }
  if (!WIFEXITED(wait_status) || WEXITSTATUS(wait_status) != 0 || child.output.empty()) {
    return absl::InternalError(
        absl::StrCat("the simulation's process ended without a result (exit status ",
                     WEXITSTATUS(wait_status), ")"));
  }
  const auto code = static_cast<absl::StatusCode>(child.output[0]);
  if (code == absl::StatusCode::kOk) return child.output.substr(1);
  return absl::Status(code, absl::string_view(child.output).substr(1));
}

// Progress shared with the children.
class SharedProgress {
 public:
  explicit SharedProgress(size_t tasks)
      : bytes_(std::max<size_t>(1, tasks) * sizeof(std::atomic<double>)) {
    memory_ = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (memory_ == MAP_FAILED) {
      memory_ = nullptr;
      return;
    }
    values_ = static_cast<std::atomic<double>*>(memory_);
    for (size_t i = 0; i < tasks; ++i) new (&values_[i]) std::atomic<double>(0);
  }
  ~SharedProgress() {
    if (memory_ != nullptr) munmap(memory_, bytes_);
  }
  SharedProgress(const SharedProgress&) = delete;
  SharedProgress& operator=(const SharedProgress&) = delete;

  bool ok() const { return memory_ != nullptr; }
  std::atomic<double>& operator[](size_t i) { return values_[i]; }

 private:
  size_t bytes_;
  void* memory_ = nullptr;
  std::atomic<double>* values_ = nullptr;
};

}  // namespace

std::vector<absl::StatusOr<std::string>> RunIsolated(absl::Span<const IsolatedTask> tasks, int jobs,
                                                     const ProgressCallback& progress) {
  std::vector<absl::StatusOr<std::string>> results(tasks.size(),
                                                   absl::InternalError("the run did not start"));
  SharedProgress shared(tasks.size());
  if (!shared.ok()) {
    for (auto& result : results)
      result = absl::ResourceExhaustedError("no memory to share progress");
    return results;
  }
  if (jobs <= 0) jobs = std::max(1u, std::thread::hardware_concurrency());
  std::vector<Child> running;
  size_t next = 0;
  size_t ended = 0;
  fflush(stdout);
  fflush(stderr);
  while (ended < tasks.size()) {
    while (next < tasks.size() && static_cast<int>(running.size()) < jobs) {
      int fds[2];
      if (pipe2(fds, O_CLOEXEC) != 0) {
        results[next++] = absl::ResourceExhaustedError(absl::StrCat("no pipe: ", strerror(errno)));
        ++ended;
        continue;
      }
      const pid_t parent = getpid();
      const pid_t pid = fork();
      if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (getppid() != parent) _exit(1);
        close(fds[0]);
        for (const Child& other : running) close(other.fd);
        RunChild(tasks[next], shared[next], fds[1]);
      }
      close(fds[1]);
      if (pid < 0) {
        close(fds[0]);
        results[next] = absl::ResourceExhaustedError(absl::StrCat("no process: ", strerror(errno)));
        ++ended;
      } else {
        running.push_back({.task = next, .pid = pid, .fd = fds[0], .output = ""});
      }
      ++next;
    }
    std::vector<pollfd> polled;
    for (const Child& child : running)
      polled.push_back({.fd = child.fd, .events = POLLIN, .revents = 0});
    poll(polled.data(), polled.size(), kPollMilliseconds);
    for (size_t i = running.size(); i-- > 0;) {
      if (polled[i].revents == 0) continue;
      char buffer[1 << 16];
      const ssize_t got = read(running[i].fd, buffer, sizeof(buffer));
      if (got < 0 && errno == EINTR) continue;
      if (got > 0) {
        running[i].output.append(buffer, got);
        continue;
      }
      int wait_status = 0;
      while (waitpid(running[i].pid, &wait_status, 0) < 0 && errno == EINTR) {
      }
      close(running[i].fd);
      results[running[i].task] = Outcome(running[i], wait_status);
      shared[running[i].task] = 1;
      running.erase(running.begin() + static_cast<ptrdiff_t>(i));
      ++ended;
    }
    if (progress) {
      double sum = 0;
      for (size_t i = 0; i < tasks.size(); ++i) sum += shared[i].load();
      progress(sum / static_cast<double>(tasks.size()));
    }
  }
  return results;
}

}  // namespace fabricast
