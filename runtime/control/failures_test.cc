// Stages and heads that are processes, and what happens when they die, freeze or are disturbed.
// What networks do to them is in network_failures_test.

#include <arpa/inet.h>
#include <dirent.h>
#include <signal.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <deque>
#include <fstream>
#include <functional>
#include <mutex>
#include <random>
#include <sstream>
#include <thread>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "runtime/control/stage_children.h"
#include "runtime/control/testing/stranger.h"
#include "runtime/control/testing/test_pipeline.h"
#include "runtime/engine/fake_executor.h"
#include "runtime/launch/child_process.h"

namespace fabricast {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::StartsWith;

constexpr char kProgram[] = "runtime/control/testing/fake_pipeline";
// What the project promises for every loss.
constexpr std::chrono::seconds kBound(10);

using Clock = std::chrono::steady_clock;

std::string Message(const absl::Status& status) { return std::string(status.message()); }

// Waits until `holds`, and fails the test if that takes more than kBound.
void Eventually(const std::function<bool()>& holds, const std::string& what) {
  const auto end = Clock::now() + kBound;
  while (!holds()) {
    ASSERT_LT(Clock::now(), end) << what;
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
}

int OpenFiles() {
  int count = 0;
  DIR* const folder = opendir("/proc/self/fd");
  while (readdir(folder) != nullptr) ++count;
  closedir(folder);
  return count;
}

int64_t ResidentBytes() {
  std::ifstream in("/proc/self/statm");
  int64_t size = 0, resident = 0;
  in >> size >> resident;
  return resident * sysconf(_SC_PAGESIZE);
}

bool Exists(pid_t pid) { return kill(pid, 0) == 0; }

// A pipeline whose stages are children of this process.
class ChildPipeline {
 public:
  explicit ChildPipeline(int stages, double silent_after_s = 4, int step_ms = 0) {
    RemoteStagesOptions options = TestHeadOptions(stages, secret_);
    options.silent_after = absl::Seconds(silent_after_s);
    pipeline_ = std::make_unique<TestPipeline>(options);
    StageChildrenOptions all;
    for (int s = 0; s < stages; ++s) all.stages.push_back(s);
    all.program = kProgram;
    all.secret = secret_;
    all.arguments = [=, this](int stage) -> std::vector<std::string> {
      return {"stage",
              "--stages",
              absl::StrCat(stages),
              "--stage",
              absl::StrCat(stage),
              "--head",
              pipeline_->address(),
              "--token-file",
              StageChildrenOptions::kTokenFile,
              "--step-ms",
              absl::StrCat(step_ms),
              "--silent-after",
              absl::StrCat(silent_after_s)};
    };
    all.on_end = [this](int stage, absl::string_view how, bool fatal) {
      pipeline_->remote().ProcessEnded(stage, how, fatal);
    };
    auto children = StageChildren::Start(std::move(all));
    EXPECT_TRUE(children.ok()) << children.status();
    children_ = *std::move(children);
  }
  ~ChildPipeline() { children_->LetGo(absl::ZeroDuration()); }

  TestPipeline& pipeline() { return *pipeline_; }
  pid_t AwaitPid(int stage) {
    Eventually([&] { return children_->pid(stage) > 0; }, "a stage runs");
    return children_->pid(stage);
  }

 private:
  const SharedSecret secret_ = SharedSecret::Random();
  std::unique_ptr<TestPipeline> pipeline_;
  std::unique_ptr<StageChildren> children_;
};

TEST(FailuresTest, AHundredKillsAreAHundredNamedErrorsAndNoLeak) {
  constexpr int kStages = 3;
  ChildPipeline processes(kStages);
  TestPipeline& pipeline = processes.pipeline();
  ASSERT_EQ(pipeline.GenerateAgain({1, 2}, 5), FakeContinuation({1, 2}, 5));
  int files = 0;
  int64_t resident = 0;
  int kept_waiting = 0;
  for (int round = 0; round < 100; ++round) {
    SCOPED_TRACE(absl::StrCat("kill ", round));
    const int stage = round % kStages;
    const RequestId running = pipeline.Submit({round}, 5000);
    pipeline.AwaitTokens(running, 2);
    // Some find a place beside it, the others wait for one.
    std::vector<RequestId> others;
    for (int i = 0; i < 2 * kMaxRunning; ++i) others.push_back(pipeline.Submit({i}, 2000));
    const pid_t pid = processes.AwaitPid(stage);
    const auto killed = Clock::now();
    ASSERT_EQ(kill(pid, SIGKILL), 0);
    const absl::Status lost = pipeline.Await(running).status();
    EXPECT_LT(Clock::now() - killed, kBound);
    EXPECT_THAT(Message(lost), HasSubstr(absl::StrCat("stage ", stage, " (host_")));
    EXPECT_THAT(Message(lost), HasSubstr("was killed by signal 9 (SIGKILL)"));
    for (const RequestId id : others) pipeline.engine().Cancel(id);
    for (const RequestId id : others) {
      const absl::Status status = pipeline.Await(id).status();
      // Those that had not started are still there to be cancelled.
      kept_waiting += status.ok() ? 1 : 0;
      if (!status.ok()) {
        EXPECT_THAT(Message(status), HasSubstr("was killed by signal 9"));
      }
    }
    EXPECT_EQ(pipeline.GenerateAgain({round, 3}, 4), FakeContinuation({round, 3}, 4));
    EXPECT_FALSE(Exists(pid));
    if (round == 20) {
      files = OpenFiles();
      resident = ResidentBytes();
    }
  }
  EXPECT_GE(kept_waiting, 100 * kMaxRunning);
  EXPECT_LE(OpenFiles(), files + 2);
  // Sanitizers keep what was freed for a while.
  const int64_t grown = ResidentBytes() - resident;
  RecordProperty("resident_bytes_grown", absl::StrCat(grown));
  std::printf("open files %d -> %d, resident memory grew by %.1f MB in 80 kills\n", files,
              OpenFiles(), 1e-6 * static_cast<double>(grown));
  EXPECT_LT(grown, 64 << 20);
}

TEST(FailuresTest, RequestsThatHadNotStartedAreComputedWhenTheStageIsBack) {
  ChildPipeline processes(2);
  TestPipeline& pipeline = processes.pipeline();
  for (int round = 0; round < 5; ++round) {
    std::vector<RequestId> running, waiting;
    for (int i = 0; i < kMaxRunning; ++i) running.push_back(pipeline.Submit({i}, 5000));
    for (const RequestId id : running) pipeline.AwaitTokens(id, 1);
    for (int i = 0; i < 30; ++i) waiting.push_back(pipeline.Submit({i, round}, 3));
    ASSERT_EQ(kill(processes.AwaitPid(round % 2), SIGKILL), 0);
    for (const RequestId id : running) EXPECT_FALSE(pipeline.Await(id).ok());
    for (int i = 0; i < 30; ++i) {
      const absl::StatusOr<std::vector<int32_t>> tokens = pipeline.Await(waiting[i]);
      ASSERT_TRUE(tokens.ok()) << tokens.status();
      EXPECT_EQ(*tokens, FakeContinuation({i, round}, 3));
    }
  }
}

TEST(FailuresTest, AFrozenStageIsNamedAndComesBackWhenItThaws) {
  ChildPipeline processes(2, /*silent_after_s=*/1);
  TestPipeline& pipeline = processes.pipeline();
  for (int round = 0; round < 6; ++round) {
    SCOPED_TRACE(round);
    const int stage = round % 2;
    ASSERT_EQ(pipeline.GenerateAgain({1}, 2), FakeContinuation({1}, 2));
    const RequestId running = pipeline.Submit({7}, 50'000);
    pipeline.AwaitTokens(running, 1);
    const pid_t pid = processes.AwaitPid(stage);
    ASSERT_EQ(kill(pid, SIGSTOP), 0);
    const absl::Status lost = pipeline.Await(running).status();
    EXPECT_THAT(Message(lost),
                AllOf(HasSubstr(absl::StrCat("stage ", stage)),
                      HasSubstr("silent for 1 s: it is frozen, or its link is cut")));
    ASSERT_EQ(kill(pid, round < 4 ? SIGCONT : SIGKILL), 0);
    EXPECT_EQ(pipeline.GenerateAgain({round}, 4), FakeContinuation({round}, 4));
    if (round < 4) {
      EXPECT_EQ(processes.AwaitPid(stage), pid);
    }
  }
}

TEST(FailuresTest, AFreezeIsFoundOutInTimeByDefault) {
  ChildPipeline processes(2);
  TestPipeline& pipeline = processes.pipeline();
  const RequestId running = pipeline.Submit({7}, 60'000);
  pipeline.AwaitTokens(running, 1);
  const pid_t pid = processes.AwaitPid(1);
  const auto frozen = Clock::now();
  ASSERT_EQ(kill(pid, SIGSTOP), 0);
  const absl::Status lost = pipeline.Await(running).status();
  EXPECT_LT(Clock::now() - frozen, kBound);
  EXPECT_THAT(Message(lost), AllOf(HasSubstr("stage 1 (host_b)"), HasSubstr("silent for 4 s")));
  kill(pid, SIGKILL);
}

TEST(FailuresTest, AShortFreezeHarmsNobody) {
  ChildPipeline processes(2);
  TestPipeline& pipeline = processes.pipeline();
  const RequestId running = pipeline.Submit({7}, 3000);
  pipeline.AwaitTokens(running, 1);
  const pid_t pid = processes.AwaitPid(0);
  ASSERT_EQ(kill(pid, SIGSTOP), 0);
  std::this_thread::sleep_for(std::chrono::milliseconds(500));
  ASSERT_EQ(kill(pid, SIGCONT), 0);
  EXPECT_EQ(*pipeline.Await(running), FakeContinuation({7}, 3000));
}

// A socket that is connected to "127.0.0.1:PORT", or -1.
int ConnectTo(const std::string& address) {
  const std::pair<std::string, std::string> parts = absl::StrSplit(address, ':');
  sockaddr_in to = {};
  to.sin_family = AF_INET;
  to.sin_port = htons(static_cast<uint16_t>(std::stoi(parts.second)));
  inet_pton(AF_INET, parts.first.c_str(), &to.sin_addr);
  const int socket_fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (connect(socket_fd, reinterpret_cast<sockaddr*>(&to), sizeof(to)) == 0) return socket_fd;
  close(socket_fd);
  return -1;
}

// The head's port and those of its stages.
std::vector<std::string> Addresses(ChildPipeline& processes) {
  TestPipeline& pipeline = processes.pipeline();
  pipeline.GenerateAgain({1}, 1);
  Eventually([&] { return pipeline.remote().Description().size() == 2; }, "stages are known");
  std::vector<std::string> addresses = {pipeline.address()};
  for (const std::string& line : pipeline.remote().Description()) {
    const size_t at = line.find(" at ") + 4;
    addresses.push_back(line.substr(at, line.find(',', at) - at));
  }
  return addresses;
}

TEST(FailuresTest, GarbageOnAnyPortDisturbsNobody) {
  ChildPipeline processes(2);
  TestPipeline& pipeline = processes.pipeline();
  const std::vector<std::string> addresses = Addresses(processes);
  const RequestId running = pipeline.Submit({7}, 5000);
  pipeline.AwaitTokens(running, 1);
  std::mt19937_64 random(1);
  for (int round = 0; round < 40; ++round) {
    for (const std::string& address : addresses) {
      const int socket_fd = ConnectTo(address);
      ASSERT_GE(socket_fd, 0) << address;
      std::string bytes = round % 2 == 0 ? "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" : "";
      for (int i = 0; i < 1 + round * 200; ++i) bytes.push_back(static_cast<char>(random()));
      send(socket_fd, bytes.data(), bytes.size(), MSG_NOSIGNAL);
      close(socket_fd);
    }
  }
  EXPECT_EQ(*pipeline.Await(running), FakeContinuation({7}, 5000));
}

TEST(FailuresTest, ConnectionsThatSayNothingKeepNobodyOut) {
  ChildPipeline processes(2);
  TestPipeline& pipeline = processes.pipeline();
  std::vector<int> sockets;
  for (const std::string& address : Addresses(processes)) {
    for (int i = 0; i < 40; ++i) sockets.push_back(ConnectTo(address));
  }
  EXPECT_EQ(pipeline.GenerateAgain({1}, 50), FakeContinuation({1}, 50));
  ASSERT_EQ(kill(processes.AwaitPid(1), SIGKILL), 0);
  EXPECT_EQ(pipeline.GenerateAgain({2}, 5), FakeContinuation({2}, 5));
  for (const int socket_fd : sockets) close(socket_fd);
}

TEST(FailuresTest, AStageThatCannotBeStartedEndsTheRun) {
  const SharedSecret secret = SharedSecret::Random();
  TestPipeline pipeline(TestHeadOptions(1, secret));
  const RequestId waiting = pipeline.Submit({1}, 1);
  StageChildrenOptions options;
  options.stages = {0};
  options.program = kProgram;
  options.arguments = [](int) { return std::vector<std::string>{"stage", "--no-such-flag"}; };
  options.on_end = [&](int stage, absl::string_view how, bool fatal) {
    pipeline.remote().ProcessEnded(stage, how, fatal);
  };
  auto children = StageChildren::Start(std::move(options));
  ASSERT_TRUE(children.ok()) << children.status();
  EXPECT_THAT(Message(pipeline.Await(waiting).status()),
              AllOf(HasSubstr("stage 0 (host_a) exited with"), HasSubstr("--help")));
  StageChildrenOptions missing;
  missing.stages = {0};
  missing.program = "no/such/program";
  missing.arguments = [](int) { return std::vector<std::string>(); };
  EXPECT_THAT(Message(StageChildren::Start(std::move(missing)).status()),
              HasSubstr("no/such/program"));
}

// A head as a process, and the lines that it prints.
class HeadProcess {
 public:
  explicit HeadProcess(std::vector<std::string> flags) : HeadProcess() {
    ChildOptions options;
    options.program = kProgram;
    options.arguments = {"head", "--stages", "2", "--token-file", token_file_};
    for (std::string& flag : flags) options.arguments.push_back(std::move(flag));
    options.on_line = [this](absl::string_view line) {
      const std::lock_guard<std::mutex> lock(mutex_);
      lines_.push_back(std::string(line));
      changed_.notify_all();
    };
    const absl::StatusOr<pid_t> pid = children_.Start(std::move(options));
    EXPECT_TRUE(pid.ok()) << pid.status();
    pid_ = *pid;
  }

  pid_t pid() const { return pid_; }
  const std::string& token_file() const { return token_file_; }

  // Whether a line has started so.
  bool Printed(const std::string& start) {
    const std::lock_guard<std::mutex> lock(mutex_);
    return std::any_of(lines_.begin(), lines_.end(),
                       [&](const std::string& line) { return absl::StartsWith(line, start); });
  }

  // Waits for the next line that starts so, and returns it.
  std::string Await(const std::string& start) {
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      while (next_ < lines_.size()) {
        const std::string& line = lines_[next_++];
        if (absl::StartsWith(line, start)) return line;
      }
      if (changed_.wait_for(lock, 2 * kBound) == std::cv_status::timeout) {
        ADD_FAILURE() << "no line that starts with " << start;
        return "";
      }
    }
  }

 private:
  HeadProcess() : token_file_(testing::TempDir() + "/token") {
    std::ofstream(token_file_) << "a token for these tests";
    chmod(token_file_.c_str(), 0600);
  }

  const std::string token_file_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<std::string> lines_;
  size_t next_ = 0;
  pid_t pid_ = -1;
  ChildProcesses children_;
};

#if defined(__SANITIZE_ADDRESS__) || defined(_GLIBCXX_TSAN)
constexpr int64_t kMostFromStrangersKilobytes = 300'000;  // with what sanitizers keep
#else
constexpr int64_t kMostFromStrangersKilobytes = 80'000;
#endif

int64_t MostResidentKilobytes(pid_t pid) {
  std::ifstream in(absl::StrCat("/proc/", pid, "/status"));
  for (std::string line; std::getline(in, line);) {
    if (absl::StartsWith(line, "VmHWM:")) return std::stoll(line.substr(6));
  }
  return -1;
}

TEST(FailuresTest, AStrangersLongMessageIsNotKept) {
  HeadProcess head({"--children"});
  const std::string address = head.Await("listening").substr(10);
  head.Await("ok");
  const int64_t before = MostResidentKilobytes(head.pid());
  control::FromStage message;
  message.mutable_hello()->set_nonce(std::string(100'000'000, 'x'));
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&] {
      Stranger stranger(address);
      stranger.stream().Write(message);
      EXPECT_FALSE(stranger.End().ok());
    });
  }
  for (std::thread& thread : threads) thread.join();
  const int64_t grown = MostResidentKilobytes(head.pid()) - before;
  std::printf("100 MB from a stranger: the head grew by %ld kB at most\n",
              static_cast<long>(grown));
  // gRPC reads what its quota lets it before it refuses; without, it would be all 400 MB.
  EXPECT_LT(grown, kMostFromStrangersKilobytes);
  head.Await("ok");
  EXPECT_FALSE(head.Printed("error"));
}

std::vector<pid_t> ChildrenOf(pid_t parent) {
  std::vector<pid_t> children;
  DIR* const tasks = opendir(absl::StrCat("/proc/", parent, "/task").c_str());
  for (const dirent* task = readdir(tasks); task != nullptr; task = readdir(tasks)) {
    std::ifstream in(absl::StrCat("/proc/", parent, "/task/", task->d_name, "/children"));
    for (pid_t pid; in >> pid;) children.push_back(pid);
  }
  closedir(tasks);
  return children;
}

TEST(FailuresTest, WhenTheHeadDiesItsChildrenDo) {
  for (int round = 0; round < 5; ++round) {
    HeadProcess head({"--children"});
    head.Await("ok");
    const std::vector<pid_t> stages = ChildrenOf(head.pid());
    ASSERT_EQ(stages.size(), 2u);
    ASSERT_EQ(kill(head.pid(), SIGKILL), 0);
    for (const pid_t pid : stages) {
      Eventually([&] { return !Exists(pid); }, "a stage ends with its head");
    }
  }
}

TEST(FailuresTest, WhenTheHeadDiesOrFreezesStagesThatAreNotItsChildrenGiveUp) {
  for (const int signal : {SIGKILL, SIGSTOP}) {
    HeadProcess head({"--silent-after", "2"});
    const std::string address = head.Await("listening").substr(10);
    ChildProcesses children;
    std::mutex mutex;
    std::vector<std::string> ends, lines;
    for (int stage = 0; stage < 2; ++stage) {
      ChildOptions options;
      options.program = kProgram;
      options.arguments = {"stage",
                           "--stages",
                           "2",
                           "--stage",
                           absl::StrCat(stage),
                           "--head",
                           address,
                           "--token-file",
                           head.token_file(),
                           "--silent-after",
                           "2"};
      options.on_line = [&](absl::string_view line) {
        const std::lock_guard<std::mutex> lock(mutex);
        lines.push_back(std::string(line));
      };
      options.on_exit = [&](const ChildExit& exit) {
        const std::lock_guard<std::mutex> lock(mutex);
        ends.push_back(exit.ToString());
      };
      ASSERT_TRUE(children.Start(std::move(options)).ok());
    }
    head.Await("ok");
    ASSERT_EQ(kill(head.pid(), signal), 0);
    Eventually(
        [&] {
          const std::lock_guard<std::mutex> lock(mutex);
          return ends.size() == 2;
        },
        "stages give up");
    const std::lock_guard<std::mutex> lock(mutex);
    EXPECT_THAT(ends, ::testing::Each("exited with 1"));
    EXPECT_THAT(lines,
                ::testing::Contains(HasSubstr(absl::StrCat("no head at ", address, " any more"))));
    kill(head.pid(), SIGKILL);
  }
}

}  // namespace
}  // namespace fabricast
