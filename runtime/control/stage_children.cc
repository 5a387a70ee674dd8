#include "runtime/control/stage_children.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <cstring>
#include <map>
#include <mutex>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "runtime/check.h"
#include "runtime/launch/child_process.h"

namespace fabricast {
namespace {

using Clock = std::chrono::steady_clock;

// A child that lived for less is started again after a while, doubled each time.
constexpr std::chrono::milliseconds kSettled(500);
constexpr std::chrono::milliseconds kFirstPause(100);
constexpr std::chrono::milliseconds kLongestPause(5000);

// A pipe to read `secret` from.
absl::StatusOr<int> PipeWith(const SharedSecret& secret) {
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) {
    return absl::ResourceExhaustedError(absl::StrCat("a pipe: ", std::strerror(errno)));
  }
  // A pipe holds more than the longest secret, so this does not wait.
  const ssize_t written = write(ends[1], secret.bytes().data(), secret.bytes().size());
  close(ends[1]);
  FABRICAST_CHECK(written == static_cast<ssize_t>(secret.bytes().size())) << written;
  return ends[0];
}

class Children : public StageChildren {
 public:
  explicit Children(StageChildrenOptions options) : options_(std::move(options)) {}
  ~Children() override { LetGo(absl::ZeroDuration()); }

  absl::Status StartAll() {
    for (const int stage : options_.stages) {
      if (absl::Status status = StartOne(stage); !status.ok()) return status;
    }
    restarter_ = std::thread([this] { RestartLoop(); });
    return absl::OkStatus();
  }

  void LetGo(absl::Duration grace) override {
    {
      std::unique_lock<std::mutex> lock(mutex_);
      stopping_ = true;
      wake_.notify_all();
      wake_.wait_for(lock, absl::ToChronoNanoseconds(grace), [this] {
        return std::none_of(children_.begin(), children_.end(),
                            [](const auto& child) { return child.second.pid >= 0; });
      });
    }
    if (restarter_.joinable()) restarter_.join();
    processes_.EndAll(absl::Seconds(1));
  }

  pid_t pid(int stage) const override {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto it = children_.find(stage);
    return it == children_.end() ? -1 : it->second.pid;
  }

 private:
  struct Child {
    pid_t pid = -1;
    int64_t ends = 0;  // of its processes so far
    std::string last_line;
    Clock::time_point started{};
    Clock::time_point restart_at{};
    bool wants_restart = false;
    std::chrono::milliseconds pause = kFirstPause;
  };

  absl::Status StartOne(int stage) {
    absl::StatusOr<int> token = PipeWith(options_.secret);
    if (!token.ok()) return token.status();
    ChildOptions child;
    child.program = options_.program;
    child.arguments = options_.arguments(stage);
    child.pass_fd = *token;
    child.pass_fd_as = 3;
    child.on_line = [this, stage,
                     print = PrefixedLines(STDERR_FILENO, absl::StrCat("[stage ", stage, "] "))](
                        absl::string_view line) {
      print(line);
      const std::lock_guard<std::mutex> lock(mutex_);
      children_[stage].last_line = std::string(line);
    };
    child.on_exit = [this, stage](const ChildExit& exit) { Ended(stage, exit); };
    int64_t ends = 0;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      children_[stage].started = Clock::now();
      children_[stage].last_line.clear();
      ends = children_[stage].ends;
    }
    absl::StatusOr<pid_t> pid = processes_.Start(std::move(child));
    close(*token);
    if (!pid.ok()) return pid.status();
    const std::lock_guard<std::mutex> lock(mutex_);
    // It may have ended by now.
    if (children_[stage].ends == ends) children_[stage].pid = *pid;
    return absl::OkStatus();
  }

  void Ended(int stage, const ChildExit& exit) {
    std::string how = exit.ToString();
    bool fatal = false;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      Child& child = children_[stage];
      child.pid = -1;
      ++child.ends;
      wake_.notify_all();
      if (stopping_ || exit.ok()) return;
      if (exit.signal != 0) {
        how = absl::StrCat("was ", how);
        const auto now = Clock::now();
        if (now - child.started > kSettled) child.pause = std::chrono::milliseconds(0);
        child.restart_at = now + child.pause;
        child.pause = std::clamp(child.pause * 2, kFirstPause, kLongestPause);
        child.wants_restart = true;
      } else {
        fatal = true;
        if (!child.last_line.empty()) absl::StrAppend(&how, ": ", child.last_line);
      }
    }
    if (options_.on_end != nullptr) options_.on_end(stage, how, fatal);
  }

  void RestartLoop() {
    std::unique_lock<std::mutex> lock(mutex_);
    while (!stopping_) {
      Clock::time_point next = Clock::time_point::max();
      int due = -1;
      for (const auto& [stage, child] : children_) {
        if (!child.wants_restart || child.restart_at >= next) continue;
        next = child.restart_at;
        due = stage;
      }
      if (due < 0) {
        wake_.wait(lock);
        continue;
      }
      if (next > Clock::now()) {
        wake_.wait_until(lock, next);
        continue;
      }
      children_[due].wants_restart = false;
      lock.unlock();
      const absl::Status status = StartOne(due);
      if (!status.ok() && options_.on_end != nullptr) {
        options_.on_end(due, absl::StrCat("cannot be started: ", status.message()), true);
      }
      lock.lock();
    }
  }

  const StageChildrenOptions options_;
  mutable std::mutex mutex_;
  std::condition_variable wake_;
  bool stopping_ = false;
  std::map<int, Child> children_;
  std::thread restarter_;
  ChildProcesses processes_;  // calls what is above
};

}  // namespace

absl::StatusOr<std::unique_ptr<StageChildren>> StageChildren::Start(StageChildrenOptions options) {
  auto children = std::make_unique<Children>(std::move(options));
  if (absl::Status status = children->StartAll(); !status.ok()) return status;
  return children;
}

}  // namespace fabricast
