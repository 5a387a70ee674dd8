#include "runtime/launch/child_process.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <cstring>
#include <deque>
#include <mutex>
#include <optional>
#include <thread>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "runtime/check.h"

namespace fabricast {
namespace {

constexpr absl::Duration kPollInterval = absl::Milliseconds(20);
constexpr size_t kReadBytes = 16 << 10;

// Closes its descriptor.
class Descriptor {
 public:
  explicit Descriptor(int fd = -1) : fd_(fd) {}
  Descriptor(Descriptor&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  Descriptor& operator=(Descriptor&& other) noexcept {
    std::swap(fd_, other.fd_);
    return *this;
  }
  ~Descriptor() { Close(); }

  int get() const { return fd_; }
  bool is_open() const { return fd_ >= 0; }
  void Close() {
    if (fd_ >= 0) close(fd_);
    fd_ = -1;
  }

 private:
  int fd_;
};

// A copy of `fd` that no program inherits, above all numbers that the child wants for itself.
absl::StatusOr<Descriptor> CopyAbove(int fd, int lowest) {
  Descriptor copy(fcntl(fd, F_DUPFD_CLOEXEC, lowest));
  if (!copy.is_open()) {
    return absl::ErrnoToStatus(errno,
                               absl::StrCat("descriptor ", fd, " cannot be handed to a child"));
  }
  return copy;
}

struct Pipe {
  Descriptor read;
  Descriptor write;
};

absl::StatusOr<Pipe> MakePipe() {
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) return absl::ErrnoToStatus(errno, "no pipe to a child");
  return Pipe{.read = Descriptor(ends[0]), .write = Descriptor(ends[1])};
}

// All that a child needs between its birth and its program, where nothing may be allocated.
struct Birth {
  const char* program;
  char* const* arguments;
  char* const* environment;
  pid_t parent;
  // Sources and error are above every target.
  int input;
  int output;  // -1: the parent's own
  int pass;    // -1: none
  int pass_as;
  int error;  // a pipe to tell errno by; closed when the program runs
};

[[noreturn]] void GiveUp(const Birth& birth) {
  const int error = errno;
  (void)!write(birth.error, &error, sizeof(error));  // a pipe takes so few bytes whole
  _exit(127);
}

// The child's first steps. It may share the parent's memory (vfork), and other threads of the
// parent may hold any lock: only async-signal-safe calls, and no writing to what is not its own.
[[noreturn]] void BecomeProgram(const Birth& birth) {
  // SIGKILL when the thread that gave birth ends, unless that was before.
  if (prctl(PR_SET_PDEATHSIG, SIGKILL) != 0) GiveUp(birth);
  if (getppid() != birth.parent) _exit(127);
  if (setpgid(0, 0) != 0) GiveUp(birth);

  struct sigaction by_default = {};
  by_default.sa_handler = SIG_DFL;
  for (int number = 1; number < NSIG; ++number) {
    struct sigaction action = {};
    if (number == SIGHUP && sigaction(SIGHUP, nullptr, &action) == 0 &&
        action.sa_handler == SIG_IGN) {
      continue;
    }
    sigaction(number, &by_default, nullptr);  // fails for SIGKILL and its like
  }
  sigset_t none;
  sigemptyset(&none);
  if (sigprocmask(SIG_SETMASK, &none, nullptr) != 0) GiveUp(birth);

  // Whatever others have left open. Linux before 5.11 cannot; there theirs must be O_CLOEXEC.
  constexpr unsigned int kCloseRangeCloexec = 1U << 2;
  syscall(SYS_close_range, 3U, ~0U, kCloseRangeCloexec);
  if (dup2(birth.input, STDIN_FILENO) < 0) GiveUp(birth);
  if (birth.output >= 0 &&
      (dup2(birth.output, STDOUT_FILENO) < 0 || dup2(birth.output, STDERR_FILENO) < 0)) {
    GiveUp(birth);
  }
  if (birth.pass >= 0 && dup2(birth.pass, birth.pass_as) < 0) GiveUp(birth);

  execve(birth.program, birth.arguments, birth.environment);
  GiveUp(birth);
}

// To be called with all signals blocked, so that no handler runs in the memory that both share.
__attribute__((noinline)) pid_t GiveBirth(const Birth& birth) {
  // vfork copies no page tables, which may be those of a model, and runs no handlers of libraries.
  const pid_t pid = vfork();
  if (pid == 0) BecomeProgram(birth);
  return pid;
}

std::vector<std::string> MergedEnvironment(const std::map<std::string, std::string>& added) {
  std::vector<std::string> merged;
  for (char** entry = environ; entry != nullptr && *entry != nullptr; ++entry) {
    const std::string name(*entry, std::strcspn(*entry, "="));
    if (added.count(name) == 0) merged.push_back(*entry);
  }
  for (const auto& [name, value] : added) merged.push_back(absl::StrCat(name, "=", value));
  return merged;
}

// As execve wants them; points into `strings`.
std::vector<char*> Pointers(std::vector<std::string>& strings) {
  std::vector<char*> pointers;
  for (std::string& text : strings) pointers.push_back(text.data());
  pointers.push_back(nullptr);
  return pointers;
}

absl::Duration MonotonicNow() {
  return absl::FromChrono(std::chrono::steady_clock::now().time_since_epoch());
}

// Cuts a stream into lines.
class LineCutter {
 public:
  explicit LineCutter(std::function<void(absl::string_view)> on_line)
      : on_line_(std::move(on_line)) {}

  void Add(absl::string_view bytes) {
    while (!bytes.empty()) {
      const size_t end = std::min(bytes.find('\n'), bytes.size());
      const size_t room = ChildProcesses::kMaxLineBytes - line_.size();
      const size_t taken = std::min(end, room);
      line_.append(bytes.data(), taken);
      bytes.remove_prefix(taken);
      if (taken < end) {
        Tell();
      } else if (!bytes.empty()) {
        bytes.remove_prefix(1);
        Tell();
      }
    }
  }
  void End() {
    if (!line_.empty()) Tell();
  }

 private:
  void Tell() {
    const std::string line = std::exchange(line_, std::string());
    on_line_(line);
  }

  const std::function<void(absl::string_view)> on_line_;
  std::string line_;
};

// A child that runs, or has ended and is not yet forgotten.
struct Child {
  pid_t pid = 0;
  Descriptor pidfd;   // closed where there is none
  Descriptor output;  // closed if nobody hears its lines, or at their end
  std::optional<LineCutter> lines;
  std::function<void(const ChildExit&)> on_exit;
  bool asked = false;                                 // SIGTERM was sent
  absl::Duration kill_at = absl::InfiniteDuration();  // on MonotonicNow's clock
};

}  // namespace

std::string ChildExit::ToString() const {
  if (signal == 0) return absl::StrCat("exited with ", code);
  const char* const name = sigabbrev_np(signal);
  return absl::StrCat("killed by signal ", signal,
                      name == nullptr ? std::string() : absl::StrCat(" (SIG", name, ")"));
}

std::function<void(absl::string_view line)> PrefixedLines(int fd, std::string prefix) {
  return [fd, prefix = std::move(prefix)](absl::string_view line) {
    const std::string text = absl::StrCat(prefix, line, "\n");
    for (size_t written = 0; written < text.size();) {
      const ssize_t count = write(fd, text.data() + written, text.size() - written);
      if (count < 0 && errno == EINTR) continue;
      if (count <= 0) return;
      written += static_cast<size_t>(count);
    }
  };
}

class ChildProcesses::Impl {
 public:
  explicit Impl(bool use_pidfd)
      : use_pidfd_(use_pidfd), wake_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
    FABRICAST_CHECK(wake_.is_open()) << std::strerror(errno);
    // Who ignores SIGCHLD, which a program inherits, never learns how a child ended.
    struct sigaction action = {};
    FABRICAST_CHECK(sigaction(SIGCHLD, nullptr, &action) == 0) << std::strerror(errno);
    if (action.sa_handler == SIG_IGN) {
      action.sa_handler = SIG_DFL;
      FABRICAST_CHECK(sigaction(SIGCHLD, &action, nullptr) == 0) << std::strerror(errno);
    }
    // Signals are for other threads; GiveBirth wants none here.
    sigset_t all;
    sigset_t before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    thread_ = std::thread([this] { Run(); });
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
  }

  ~Impl() {
    EndAll(absl::ZeroDuration());
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      stopped_ = true;
    }
    Wake();
    thread_.join();
  }

  absl::StatusOr<pid_t> Start(ChildOptions options) {
    if (std::this_thread::get_id() == thread_.get_id()) return GiveBirthTo(options);
    std::optional<absl::StatusOr<pid_t>> result;
    std::unique_lock<std::mutex> lock(mutex_);
    orders_.push_back([&] {
      absl::StatusOr<pid_t> started = GiveBirthTo(options);
      const std::lock_guard<std::mutex> order_lock(mutex_);
      result = std::move(started);
      changed_.notify_all();
    });
    Wake();
    changed_.wait(lock, [&result] { return result.has_value(); });
    return *std::move(result);
  }

  void Terminate(pid_t pid, absl::Duration grace) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto child = children_.find(pid);
    if (child == children_.end()) return;
    TerminateLocked(child->second, grace);
    Wake();
  }

  void EndAll(absl::Duration grace) {
    FABRICAST_CHECK(std::this_thread::get_id() != thread_.get_id()) << "EndAll in a callback";
    std::unique_lock<std::mutex> lock(mutex_);
    ++ending_;
    for (auto& [pid, child] : children_) TerminateLocked(child, grace);
    Wake();
    changed_.wait(lock, [this] { return children_.empty(); });
    --ending_;
  }

 private:
  void Wake() {
    const uint64_t one = 1;
    (void)!write(wake_.get(), &one, sizeof(one));  // fails only if it is full, so awake
  }

  // The child is not forgotten, so its pid is nobody else's.
  void TerminateLocked(Child& child, absl::Duration grace) {
    child.kill_at = std::min(child.kill_at, MonotonicNow() + grace);
    if (grace <= absl::ZeroDuration() || child.asked) return;
    child.asked = true;
    kill(child.pid, SIGTERM);
  }

  // On the thread. Locked throughout: what EndAll sees is all there is.
  absl::StatusOr<pid_t> GiveBirthTo(ChildOptions& options) {
    FABRICAST_CHECK(options.pass_fd < 0 || options.pass_fd_as > STDERR_FILENO)
        << options.pass_fd_as;
    const std::lock_guard<std::mutex> lock(mutex_);
    if (ending_ > 0) {
      return absl::FailedPreconditionError(
          absl::StrCat(options.program, " is not started: all child processes are being ended"));
    }
    const int above = std::max(STDERR_FILENO, options.pass_fd_as) + 1;
    std::vector<Descriptor> handed;  // to the child; closed here when it has them
    const auto hand = [&handed, above](int fd, int& copy) {
      absl::StatusOr<Descriptor> above_all = CopyAbove(fd, above);
      if (!above_all.ok()) return above_all.status();
      copy = above_all->get();
      handed.push_back(*std::move(above_all));
      return absl::OkStatus();
    };

    std::vector<std::string> arguments = {options.program};
    arguments.insert(arguments.end(), options.arguments.begin(), options.arguments.end());
    std::vector<std::string> environment = MergedEnvironment(options.environment);
    const std::vector<char*> argument_pointers = Pointers(arguments);
    const std::vector<char*> environment_pointers = Pointers(environment);
    Birth birth = {.program = options.program.c_str(),
                   .arguments = argument_pointers.data(),
                   .environment = environment_pointers.data(),
                   .parent = getpid(),
                   .input = -1,
                   .output = -1,
                   .pass = -1,
                   .pass_as = options.pass_fd_as,
                   .error = -1};
    const Descriptor nothing(open("/dev/null", O_RDONLY | O_CLOEXEC));
    if (!nothing.is_open()) return absl::ErrnoToStatus(errno, "/dev/null");
    absl::Status ready = hand(nothing.get(), birth.input);
    Pipe lines;
    if (ready.ok() && options.on_line != nullptr) {
      absl::StatusOr<Pipe> made = MakePipe();
      if (!made.ok()) return made.status();
      lines = *std::move(made);
      fcntl(lines.read.get(), F_SETFL, O_NONBLOCK);
      ready = hand(lines.write.get(), birth.output);
      lines.write.Close();
    } else if (ready.ok() && options.output >= 0) {
      ready = hand(options.output, birth.output);
    }
    if (ready.ok() && options.pass_fd >= 0) ready = hand(options.pass_fd, birth.pass);
    absl::StatusOr<Pipe> error = MakePipe();
    if (ready.ok()) ready = error.ok() ? hand(error->write.get(), birth.error) : error.status();
    if (!ready.ok()) return ready;
    error->write.Close();

    const pid_t pid = GiveBirth(birth);
    const int birth_error = pid < 0 ? errno : 0;
    handed.clear();
    if (pid < 0) {
      return absl::ErrnoToStatus(birth_error, absl::StrCat(options.program, " cannot be started"));
    }
    int program_error = 0;
    ssize_t told = 0;
    do {
      told = read(error->read.get(), &program_error, sizeof(program_error));
    } while (told < 0 && errno == EINTR);
    if (told == sizeof(program_error)) {
      Reap(pid);
      return absl::ErrnoToStatus(program_error,
                                 absl::StrCat(options.program, " cannot be started"));
    }

    Child& child = children_[pid];
    child.pid = pid;
    if (use_pidfd_) child.pidfd = Descriptor(static_cast<int>(syscall(SYS_pidfd_open, pid, 0)));
    child.output = std::move(lines.read);
    if (options.on_line != nullptr) child.lines.emplace(std::move(options.on_line));
    child.on_exit = std::move(options.on_exit);
    return pid;
  }

  static void Reap(pid_t pid) {
    siginfo_t end;
    while (waitid(P_PID, pid, &end, WEXITED) != 0 && errno == EINTR) {
    }
  }

  // Nothing if it runs; else it stays a zombie.
  static std::optional<ChildExit> Ended(pid_t pid) {
    siginfo_t end = {};
    FABRICAST_CHECK(waitid(P_PID, pid, &end, WEXITED | WNOHANG | WNOWAIT) == 0)
        << "child " << pid << ": somebody else has waited for it: " << std::strerror(errno);
    if (end.si_pid == 0) return std::nullopt;
    if (end.si_code == CLD_EXITED) return ChildExit{.code = end.si_status, .signal = 0};
    return ChildExit{.code = 0, .signal = end.si_status};
  }

  void Run() {
    std::vector<pollfd> polled;
    while (true) {
      std::deque<std::function<void()>> orders;
      absl::Duration wait = absl::InfiniteDuration();
      {
        const std::lock_guard<std::mutex> lock(mutex_);
        if (stopped_) return;
        orders.swap(orders_);
      }
      for (const std::function<void()>& order : orders) order();

      polled.assign(1, {.fd = wake_.get(), .events = POLLIN, .revents = 0});
      {
        const std::lock_guard<std::mutex> lock(mutex_);
        for (auto& [pid, child] : children_) {
          polled.push_back({.fd = child.pidfd.get(), .events = POLLIN, .revents = 0});
          polled.push_back({.fd = child.output.get(), .events = POLLIN, .revents = 0});
          wait = std::min(wait, child.kill_at - MonotonicNow());
          if (!child.pidfd.is_open()) wait = std::min(wait, kPollInterval);
        }
      }
      Poll(polled, wait);
      uint64_t wakes = 0;
      (void)!read(wake_.get(), &wakes, sizeof(wakes));
      LookAfterChildren(polled);
    }
  }

  static void Poll(std::vector<pollfd>& polled, absl::Duration wait) {
    const bool forever = wait == absl::InfiniteDuration();
    const timespec timeout = absl::ToTimespec(std::max(wait, absl::ZeroDuration()));
    if (ppoll(polled.data(), polled.size(), forever ? nullptr : &timeout, nullptr) < 0) {
      FABRICAST_CHECK(errno == EINTR) << std::strerror(errno);
      for (pollfd& entry : polled) entry.revents = 0;
    }
  }

  // Only this thread adds and removes children, so `polled` still has the order of children_ when
  // this begins; callbacks may start more.
  void LookAfterChildren(const std::vector<pollfd>& polled) {
    std::vector<std::pair<Child*, const pollfd*>> looked_at;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      const pollfd* entry = polled.data() + 1;
      for (auto& [pid, child] : children_) {
        looked_at.emplace_back(&child, entry);
        entry += 2;
        if (child.kill_at > MonotonicNow()) continue;
        kill(pid, SIGKILL);
        child.kill_at = absl::InfiniteDuration();
      }
    }
    for (const auto& [child, entry] : looked_at) {
      if (entry[1].revents != 0) ReadLines(*child, 1);
      if (child->pidfd.is_open() && entry[0].revents == 0) continue;
      const std::optional<ChildExit> end = Ended(child->pid);
      if (end.has_value()) Forget(*child, *end);
    }
  }

  void Forget(Child& child, const ChildExit& end) {
    // A pipe holds 1 MiB at most, so what comes then is not the child's own but of its children,
    // for which nobody waits.
    ReadLines(child, (1 << 20) / kReadBytes);
    if (child.lines.has_value()) child.lines->End();
    if (child.on_exit != nullptr) child.on_exit(end);
    const std::lock_guard<std::mutex> lock(mutex_);
    const pid_t pid = child.pid;
    Reap(pid);
    children_.erase(pid);
    changed_.notify_all();
  }

  // What there is, in so many pieces at most.
  static void ReadLines(Child& child, size_t pieces) {
    char bytes[kReadBytes];
    for (; pieces > 0 && child.output.is_open(); --pieces) {
      const ssize_t count = read(child.output.get(), bytes, sizeof(bytes));
      if (count > 0) {
        child.lines->Add({bytes, static_cast<size_t>(count)});
      } else if (count == 0 || errno != EAGAIN) {
        child.output.Close();
      } else {
        return;
      }
    }
  }

  const bool use_pidfd_;
  const Descriptor wake_;
  std::mutex mutex_;
  std::condition_variable changed_;  // children_ or the result of an order
  // Added and removed by the thread alone; pointers stay.
  std::map<pid_t, Child> children_;
  std::deque<std::function<void()>> orders_;
  int ending_ = 0;  // EndAlls that wait
  bool stopped_ = false;
  std::thread thread_;
};

ChildProcesses::ChildProcesses(bool use_pidfd) : impl_(std::make_unique<Impl>(use_pidfd)) {}

ChildProcesses::~ChildProcesses() = default;

absl::StatusOr<pid_t> ChildProcesses::Start(ChildOptions options) {
  return impl_->Start(std::move(options));
}

void ChildProcesses::Terminate(pid_t pid, absl::Duration grace) { impl_->Terminate(pid, grace); }

void ChildProcesses::EndAll(absl::Duration grace) { impl_->EndAll(grace); }

}  // namespace fabricast
