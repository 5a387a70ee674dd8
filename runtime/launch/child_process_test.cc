#include "runtime/launch/child_process.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <condition_variable>
#include <filesystem>
#include <fstream>
#include <future>
#include <memory>
#include <mutex>
#include <sstream>
#include <thread>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace fabricast {
namespace {

using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::EndsWith;
using ::testing::HasSubstr;
using ::testing::SizeIs;

// Longer than any test; who waits so long fails by its own time limit.
constexpr absl::Duration kForever = absl::Hours(1);

// What callbacks told, in order: "line", "[exited with 0]". They may outlive this.
class Heard {
 public:
  std::function<void(absl::string_view)> on_line() {
    return [told = told_](absl::string_view line) { told->Add(std::string(line)); };
  }
  std::function<void(const ChildExit&)> on_exit() {
    return [told = told_](const ChildExit& exit) {
      told->Add(absl::StrCat("[", exit.ToString(), "]"));
    };
  }
  std::vector<std::string> WaitFor(size_t count) {
    return told_->Wait([count](const auto& all) { return all.size() >= count; });
  }
  std::vector<std::string> WaitForAnEnd() {
    return told_->Wait(
        [](const auto& all) { return !all.empty() && absl::StartsWith(all.back(), "["); });
  }

 private:
  struct Told {
    std::mutex mutex;
    std::condition_variable changed;
    std::vector<std::string> all;

    void Add(const std::string& what) {
      const std::lock_guard<std::mutex> lock(mutex);
      all.push_back(what);
      changed.notify_all();
    }
    std::vector<std::string> Wait(
        const std::function<bool(const std::vector<std::string>&)>& enough) {
      std::unique_lock<std::mutex> lock(mutex);
      changed.wait(lock, [&] { return enough(all); });
      return all;
    }
  };
  const std::shared_ptr<Told> told_ = std::make_shared<Told>();
};

// A shell that runs `script`, heard by `heard`.
ChildOptions Shell(const std::string& script, Heard& heard) {
  ChildOptions options;
  options.program = "/bin/sh";
  options.arguments = {"-c", script};
  options.on_line = heard.on_line();
  options.on_exit = heard.on_exit();
  return options;
}

size_t OpenDescriptors() {
  size_t count = 0;
  for ([[maybe_unused]] const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) {
    ++count;
  }
  return count;
}

// With pidfds and without.
class ChildProcessTest : public testing::TestWithParam<bool> {
 protected:
  ChildProcesses children_{/*use_pidfd=*/GetParam()};
};

INSTANTIATE_TEST_SUITE_P(Pidfd, ChildProcessTest, testing::Bool());

TEST_P(ChildProcessTest, TellsHowAChildEnded) {
  const auto end = [&](const std::string& script) {
    Heard heard;
    EXPECT_TRUE(children_.Start(Shell(script, heard)).ok());
    return heard.WaitForAnEnd().back();
  };
  EXPECT_EQ(end("exit 0"), "[exited with 0]");
  EXPECT_EQ(end("exit 3"), "[exited with 3]");
  EXPECT_EQ(end("kill -9 $$"), "[killed by signal 9 (SIGKILL)]");
  EXPECT_EQ(end("ulimit -c 0; kill -SEGV $$"), "[killed by signal 11 (SIGSEGV)]");
  EXPECT_EQ(end("kill -40 $$"), "[killed by signal 40]");
}

TEST(ChildExitTest, OnlyZeroIsOk) {
  EXPECT_TRUE((ChildExit{.code = 0, .signal = 0}).ok());
  EXPECT_FALSE((ChildExit{.code = 1, .signal = 0}).ok());
  EXPECT_FALSE((ChildExit{.code = 0, .signal = 9}).ok());
}

TEST_P(ChildProcessTest, LinesComeInOrderAndAllBeforeTheEnd) {
  Heard heard;
  ASSERT_TRUE(children_.Start(Shell("echo a; echo b >&2; printf 'c\\n\\nd'", heard)).ok());
  EXPECT_THAT(heard.WaitForAnEnd(), ElementsAre("a", "b", "c", "", "d", "[exited with 0]"));
}

TEST_P(ChildProcessTest, WhatAPipeHoldsAtTheEndIsTold) {
  Heard heard;
  std::promise<void> ended;
  ChildOptions options = Shell("echo first; head -c 50000 /dev/zero | tr '\\0' '\\n'", heard);
  options.on_line = [hear = heard.on_line(), &ended](absl::string_view line) {
    if (line == "first") ended.get_future().wait();
    hear(line);
  };
  const absl::StatusOr<pid_t> pid = children_.Start(std::move(options));
  ASSERT_TRUE(pid.ok()) << pid.status();
  siginfo_t end;
  ASSERT_EQ(waitid(P_PID, *pid, &end, WEXITED | WNOWAIT), 0);
  ended.set_value();
  EXPECT_THAT(heard.WaitForAnEnd(), SizeIs(1 + 50'000 + 1));
}

TEST_P(ChildProcessTest, ALineIsToldWhileTheChildRuns) {
  Heard heard;
  const absl::StatusOr<pid_t> pid = children_.Start(Shell("echo ready; exec sleep 1000", heard));
  EXPECT_THAT(heard.WaitFor(1), ElementsAre("ready"));
  children_.Terminate(*pid, kForever);
  EXPECT_THAT(heard.WaitForAnEnd(), ElementsAre("ready", "[killed by signal 15 (SIGTERM)]"));
}

TEST_P(ChildProcessTest, LongLinesAreCut) {
  Heard heard;
  // 150,000 = 2 x 65,536 + 18,928; then one of just the limit.
  ASSERT_TRUE(children_
                  .Start(Shell("head -c 150000 /dev/zero | tr '\\0' x; echo; "
                               "head -c 65536 /dev/zero | tr '\\0' y; echo; echo z",
                               heard))
                  .ok());
  const std::vector<std::string> lines = heard.WaitForAnEnd();
  EXPECT_THAT(lines,
              ElementsAre(std::string(65536, 'x'), std::string(65536, 'x'), std::string(18928, 'x'),
                          std::string(65536, 'y'), "z", "[exited with 0]"));
}

TEST_P(ChildProcessTest, TheLinesOfAGrandchildAreNotWaitedFor) {
  Heard heard;
  // The grandchild keeps the pipe open until it is told to end through another one.
  int ends[2];
  ASSERT_EQ(pipe2(ends, O_CLOEXEC), 0);
  ChildOptions options = Shell("(read x <&3; exit) & echo started", heard);
  options.pass_fd = ends[0];
  ASSERT_TRUE(children_.Start(std::move(options)).ok());
  EXPECT_THAT(heard.WaitForAnEnd(), ElementsAre("started", "[exited with 0]"));
  close(ends[0]);
  close(ends[1]);
}

TEST_P(ChildProcessTest, ArgumentsAndEnvironmentArriveAsTheyAre) {
  ASSERT_EQ(setenv("FABRICAST_KEPT", "kept", 1), 0);
  ASSERT_EQ(setenv("FABRICAST_REPLACED", "old", 1), 0);
  Heard heard;
  ChildOptions options = Shell(
      "echo \"$0|$1|$2\"; echo \"$FABRICAST_KEPT|$FABRICAST_REPLACED|$FABRICAST_ADDED\"; "
      "tr '\\0' '\\n' </proc/$$/environ | grep -c FABRICAST_REPLACED=",
      heard);
  options.arguments.insert(options.arguments.end(), {"zero", "with space", "$HOME *"});
  options.environment = {{"FABRICAST_REPLACED", "new"}, {"FABRICAST_ADDED", "a=b c"}};
  ASSERT_TRUE(children_.Start(std::move(options)).ok());
  EXPECT_THAT(heard.WaitForAnEnd(),
              ElementsAre("zero|with space|$HOME *", "kept|new|a=b c", "1", "[exited with 0]"));
}

TEST_P(ChildProcessTest, ADescriptorIsPassedUnderAnyNumber) {
  // Also those that it, and what Start opens, have here.
  const int lowest_free = dup(STDIN_FILENO);
  close(lowest_free);
  for (int as = 3; as < lowest_free + 12; ++as) {
    int ends[2];
    ASSERT_EQ(pipe2(ends, O_CLOEXEC), 0);
    ASSERT_EQ(write(ends[1], "secret\n", 7), 7);
    close(ends[1]);
    Heard heard;
    ChildOptions options = Shell(absl::StrCat("cat /dev/fd/", as), heard);
    options.pass_fd = ends[0];
    options.pass_fd_as = as;
    ASSERT_TRUE(children_.Start(options).ok());
    EXPECT_THAT(heard.WaitForAnEnd(), ElementsAre("secret", "[exited with 0]")) << as;
    options.program = "/no/such/program";
    EXPECT_EQ(children_.Start(options).status().code(), absl::StatusCode::kNotFound) << as;
    close(ends[0]);
  }
}

TEST_P(ChildProcessTest, AChildHasNoOtherDescriptors) {
  const int careless = open("/dev/null", O_RDONLY);  // without O_CLOEXEC
  ASSERT_GE(careless, 0);
  Heard heard;
  ChildOptions options = Shell("ls /proc/$$/fd; readlink /proc/$$/fd/0", heard);
  options.pass_fd = careless;
  options.pass_fd_as = 9;
  ASSERT_TRUE(children_.Start(std::move(options)).ok());
  EXPECT_THAT(heard.WaitForAnEnd(),
              ElementsAre("0", "1", "2", "9", "/dev/null", "[exited with 0]"));
  close(careless);
}

TEST_P(ChildProcessTest, OutputGoesToADescriptor) {
  const std::string path = testing::TempDir() + "/output";
  const int file = open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
  ASSERT_GE(file, 0);
  Heard heard;
  ChildOptions options = Shell("echo a; echo b >&2", heard);
  options.on_line = nullptr;
  options.output = file;
  ASSERT_TRUE(children_.Start(std::move(options)).ok());
  close(file);
  EXPECT_THAT(heard.WaitForAnEnd(), ElementsAre("[exited with 0]"));
  std::ostringstream text;
  text << std::ifstream(path).rdbuf();
  EXPECT_EQ(text.str(), "a\nb\n");
}

TEST(PrefixedLinesTest, WritesThePrefixBeforeEachLine) {
  int ends[2];
  ASSERT_EQ(pipe2(ends, O_CLOEXEC), 0);
  const auto write_line = PrefixedLines(ends[1], "stage 2: ");
  write_line("a");
  write_line("");
  close(ends[1]);
  char text[100] = {};
  ASSERT_GT(read(ends[0], text, sizeof(text)), 0);
  EXPECT_STREQ(text, "stage 2: a\nstage 2: \n");
  close(ends[0]);
}

TEST_P(ChildProcessTest, AProgramThatCannotRunIsNamedAndLeavesNothing) {
  const size_t before = OpenDescriptors();
  Heard heard;
  ChildOptions missing;
  missing.program = "/no/such/program";
  missing.on_line = heard.on_line();
  missing.on_exit = heard.on_exit();
  const absl::Status status = children_.Start(missing).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("/no/such/program cannot be started: No such file"));
  EXPECT_EQ(children_.Start({.program = "/"}).status().code(), absl::StatusCode::kPermissionDenied);
  EXPECT_EQ(OpenDescriptors(), before);
  EXPECT_EQ(waitpid(-1, nullptr, WNOHANG), -1);
  EXPECT_EQ(errno, ECHILD);
  children_.EndAll(kForever);
  EXPECT_TRUE(heard.WaitFor(0).empty());
}

TEST_P(ChildProcessTest, ADescriptorThatIsNotOpenIsAnError) {
  ChildOptions options;
  options.program = "/bin/true";
  options.pass_fd = 987;
  EXPECT_THAT(std::string(children_.Start(options).status().message()),
              HasSubstr("descriptor 987 cannot be handed to a child"));
}

TEST_P(ChildProcessTest, TerminateGivesGrace) {
  Heard heard;
  const absl::StatusOr<pid_t> pid = children_.Start(
      Shell("trap 'echo asked; exit 5' TERM; echo ready; while :; do sleep 0.01; done", heard));
  heard.WaitFor(1);
  children_.Terminate(*pid, kForever);
  EXPECT_THAT(heard.WaitForAnEnd(), ElementsAre("ready", "asked", "[exited with 5]"));
}

TEST_P(ChildProcessTest, TerminateKillsAfterTheGrace) {
  Heard heard;
  const absl::StatusOr<pid_t> pid =
      children_.Start(Shell("trap '' TERM; echo ready; while :; do sleep 1000; done", heard));
  heard.WaitFor(1);
  const absl::Time asked = absl::Now();
  children_.Terminate(*pid, absl::Milliseconds(50));
  EXPECT_THAT(heard.WaitForAnEnd(), ElementsAre("ready", "[killed by signal 9 (SIGKILL)]"));
  EXPECT_GE(absl::Now() - asked, absl::Milliseconds(50));
}

TEST_P(ChildProcessTest, AskedAgainTheEarlierEndCounts) {
  Heard heard;
  const absl::StatusOr<pid_t> pid = children_.Start(
      Shell("trap 'echo asked' TERM; echo ready; while :; do sleep 0.01; done", heard));
  heard.WaitFor(1);
  children_.Terminate(*pid, kForever);
  heard.WaitFor(2);
  children_.Terminate(*pid, absl::ZeroDuration());
  children_.Terminate(*pid, kForever);
  EXPECT_THAT(heard.WaitForAnEnd(),
              ElementsAre("ready", "asked", "[killed by signal 9 (SIGKILL)]"));
}

TEST_P(ChildProcessTest, WithoutGraceAChildIsNotAsked) {
  Heard heard;
  const absl::StatusOr<pid_t> pid = children_.Start(Shell("echo ready; exec sleep 1000", heard));
  heard.WaitFor(1);
  children_.Terminate(*pid, absl::ZeroDuration());
  EXPECT_THAT(heard.WaitForAnEnd(), ElementsAre("ready", "[killed by signal 9 (SIGKILL)]"));
}

TEST_P(ChildProcessTest, AStrangersPidIsLeftAlone) {
  const pid_t stranger = fork();
  if (stranger == 0) {
    pause();
    _exit(0);
  }
  ASSERT_GT(stranger, 0);
  children_.Terminate(stranger, absl::ZeroDuration());
  Heard heard;
  ASSERT_TRUE(children_.Start(Shell("exit 0", heard)).ok());
  heard.WaitForAnEnd();
  EXPECT_EQ(kill(stranger, 0), 0);
  EXPECT_EQ(waitpid(stranger, nullptr, WNOHANG), 0);
  kill(stranger, SIGKILL);
  waitpid(stranger, nullptr, 0);
}

TEST_P(ChildProcessTest, AChildHasAProcessGroupOfItsOwn) {
  Heard heard;
  const absl::StatusOr<pid_t> pid = children_.Start(Shell("exec sleep 1000", heard));
  ASSERT_TRUE(pid.ok()) << pid.status();
  EXPECT_EQ(getpgid(*pid), *pid);
  EXPECT_NE(getpgid(0), *pid);
}

TEST_P(ChildProcessTest, AChildBlocksAndIgnoresNoSignals) {
  signal(SIGPIPE, SIG_IGN);
  sigset_t blocked;
  sigset_t before;
  sigemptyset(&blocked);
  sigaddset(&blocked, SIGUSR1);
  pthread_sigmask(SIG_BLOCK, &blocked, &before);
  Heard heard;
  ASSERT_TRUE(children_.Start(Shell("grep -E 'Sig(Blk|Ign)' /proc/self/status", heard)).ok());
  // All but the C library's own, 32 and 33, which cannot be changed and may be ignored by who runs
  // the test.
  EXPECT_THAT(heard.WaitForAnEnd(),
              ElementsAre("SigBlk:\t0000000000000000", EndsWith("0000000"), "[exited with 0]"));
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  signal(SIGPIPE, SIG_DFL);
}

TEST_P(ChildProcessTest, AnIgnoredHangUpStaysIgnored) {
  signal(SIGHUP, SIG_IGN);
  Heard heard;
  ASSERT_TRUE(children_.Start(Shell("grep SigIgn /proc/self/status", heard)).ok());
  EXPECT_THAT(heard.WaitForAnEnd(), ElementsAre(EndsWith("0000001"), "[exited with 0]"));
  signal(SIGHUP, SIG_DFL);
}

TEST_P(ChildProcessTest, DescriptorsAndZombiesDoNotAddUp) {
  size_t before = 0;
  for (int i = 0; i < 110; ++i) {
    if (i == 10) before = OpenDescriptors();
    Heard heard;
    ASSERT_TRUE(children_.Start(Shell("echo a", heard)).ok());
    heard.WaitForAnEnd();
    // It is forgotten when its on_exit has returned.
    children_.EndAll(kForever);
  }
  EXPECT_EQ(OpenDescriptors(), before);
  EXPECT_EQ(waitpid(-1, nullptr, WNOHANG), -1);
  EXPECT_EQ(errno, ECHILD);
}

TEST_P(ChildProcessTest, ManyThreadsStartAtOnce) {
  std::atomic<int> ended = 0;
  std::vector<std::thread> threads;
  for (int i = 0; i < 8; ++i) {
    threads.emplace_back([&, i] {
      for (int j = 0; j < 5; ++j) {
        ChildOptions options;
        options.program = "/bin/sh";
        options.arguments = {"-c", absl::StrCat("exit ", i)};
        options.on_exit = [&ended, i](const ChildExit& exit) {
          EXPECT_EQ(exit.code, i);
          ++ended;
        };
        EXPECT_TRUE(children_.Start(std::move(options)).ok());
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  while (ended < 40) std::this_thread::yield();
}

TEST_P(ChildProcessTest, ACallbackMayStartAndTerminate) {
  Heard heard;
  ASSERT_TRUE(children_.Start(Shell("exec sleep 1000", heard)).ok());
  pid_t second = 0;
  ChildOptions first = Shell("exit 1", heard);
  first.on_exit = [&](const ChildExit&) {
    const absl::StatusOr<pid_t> started = children_.Start(
        Shell("trap 'exit 2' TERM; echo again; while :; do sleep 0.01; done", heard));
    ASSERT_TRUE(started.ok()) << started.status();
    second = *started;
  };
  ASSERT_TRUE(children_.Start(std::move(first)).ok());
  EXPECT_THAT(heard.WaitFor(1), ElementsAre("again"));
  children_.Terminate(second, kForever);
  EXPECT_THAT(heard.WaitForAnEnd(), ElementsAre("again", "[exited with 2]"));
}

TEST_P(ChildProcessTest, EndAllEndsAllAndAllowsNoMore) {
  Heard heard;
  for (int i = 0; i < 3; ++i) {
    ASSERT_TRUE(children_.Start(Shell("exec sleep 1000", heard)).ok());
  }
  absl::Status refused;
  ChildOptions stubborn = Shell("exec sleep 1000", heard);
  stubborn.on_exit = [&](const ChildExit&) { refused = children_.Start({"/bin/true"}).status(); };
  ASSERT_TRUE(children_.Start(std::move(stubborn)).ok());
  children_.EndAll(kForever);
  EXPECT_THAT(heard.WaitFor(0), SizeIs(3));
  EXPECT_THAT(heard.WaitFor(0), Each("[killed by signal 15 (SIGTERM)]"));
  EXPECT_EQ(refused.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(refused.message()), HasSubstr("/bin/true is not started"));
  ASSERT_TRUE(children_.Start(Shell("echo after; exec sleep 1000", heard)).ok());
  EXPECT_EQ(heard.WaitFor(4).back(), "after");
}

TEST(ChildProcessesTest, TheirEndIsTheEndOfAll) {
  Heard heard;
  pid_t pid = 0;
  {
    ChildProcesses children;
    pid = *children.Start(Shell("trap '' TERM; echo ready; while :; do sleep 1000; done", heard));
    heard.WaitFor(1);
  }
  EXPECT_THAT(heard.WaitForAnEnd(), ElementsAre("ready", "[killed by signal 9 (SIGKILL)]"));
  EXPECT_EQ(kill(pid, 0), -1);
  EXPECT_EQ(errno, ESRCH);
}

TEST(ChildProcessesTest, AnIgnoredSigchldHidesNoEnd) {
  signal(SIGCHLD, SIG_IGN);
  ChildProcesses children;
  Heard heard;
  ASSERT_TRUE(children.Start(Shell("exit 4", heard)).ok());
  EXPECT_THAT(heard.WaitForAnEnd(), ElementsAre("[exited with 4]"));
}

TEST(ChildProcessesTest, NothingHappensNothingRuns) {
  ChildProcesses children;
  Heard heard;
  ASSERT_TRUE(children.Start(Shell("echo ready; exec sleep 1000", heard)).ok());
  heard.WaitFor(1);
  // Times that this process's other thread has gone to sleep by itself.
  const auto sleeps = [] {
    uint64_t sum = 0;
    for (const auto& task : std::filesystem::directory_iterator("/proc/self/task")) {
      if (task.path().filename() == std::to_string(getpid())) continue;
      std::ifstream status(task.path() / "status");
      for (std::string line; std::getline(status, line);) {
        if (absl::StartsWith(line, "voluntary_ctxt_switches:")) {
          sum += std::stoull(line.substr(line.find(':') + 1));
        }
      }
    }
    return sum;
  };
  absl::SleepFor(absl::Milliseconds(100));
  const uint64_t before = sleeps();
  absl::SleepFor(absl::Milliseconds(300));
  // Looking every 20 ms would be 15 times; a sanitizer's own thread wakes up now and then.
  EXPECT_LT(sleeps() - before, 8u);
}

TEST(ChildProcessesTest, AChildDiesWithItsParentButNotWithTheThreadThatAskedForIt) {
  // Orphans come to this process.
  ASSERT_EQ(prctl(PR_SET_CHILD_SUBREAPER, 1), 0);
  int ends[2];
  ASSERT_EQ(pipe2(ends, O_CLOEXEC), 0);
  const pid_t parent = fork();
  if (parent == 0) {
    dup2(ends[1], STDOUT_FILENO);
    execl("runtime/launch/start_and_wait", "start_and_wait", nullptr);
    _exit(127);
  }
  close(ends[1]);
  char text[32] = {};
  ASSERT_GT(read(ends[0], text, sizeof(text) - 1), 0);
  close(ends[0]);
  const pid_t child = std::stoi(text);
  ASSERT_GT(child, 0);
  EXPECT_EQ(kill(child, 0), 0);
  EXPECT_EQ(kill(parent, SIGKILL), 0);
  EXPECT_EQ(waitpid(parent, nullptr, 0), parent);
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  ASSERT_EQ(prctl(PR_SET_CHILD_SUBREAPER, 0), 0);
  EXPECT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL) << status;
}

}  // namespace
}  // namespace fabricast
