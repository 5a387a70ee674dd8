// A head and two stages on hosts of their own, and what a network does to them: cables are pulled
// out, packets are lost and late.

#include <signal.h>
#include <sys/stat.h>

#include <chrono>
#include <fstream>
#include <functional>
#include <thread>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tools/virtual_network/virtual_network.h"

namespace fabricast {
namespace {

using ::testing::AllOf;
using ::testing::AnyOf;
using ::testing::HasSubstr;

constexpr char kProgram[] = "runtime/control/testing/fake_pipeline";
using Clock = std::chrono::steady_clock;
// What the project promises, from the failure to the request's error.
constexpr std::chrono::seconds kBound(10);

// The lines that a process has appended to a file.
class Lines {
 public:
  explicit Lines(std::string file) : file_(std::move(file)) { std::ofstream give(file_); }

  const std::string& file() const { return file_; }
  // From now on.
  void Skip() {
    while (!Next().empty()) {
    }
  }
  // The next line that starts with `start`; fails the test and gives "" after `at_most`.
  std::string Await(const std::string& start, std::chrono::seconds at_most = kBound) {
    const auto end = Clock::now() + at_most;
    while (Clock::now() < end) {
      const std::string line = Next();
      if (!line.empty() && absl::StartsWith(line, start)) return line;
      if (line.empty()) std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
    ADD_FAILURE() << "no line that starts with '" << start << "'";
    return "";
  }

 private:
  // Whole lines only.
  std::string Next() {
    std::ifstream in(file_);
    in.seekg(at_);
    std::string line;
    if (!std::getline(in, line) || in.eof()) return "";
    at_ = in.tellg();
    return line;
  }

  const std::string file_;
  std::streamoff at_ = 0;
};

// Head and stage 0 on host_a, stage 1 on host_b, stage 2 on host_c.
class NetworkFailuresTest : public testing::Test {
 protected:
  void SetUp() override {
    auto network = VirtualNetwork::Make({{"host_a", 0}, {"host_b", 0}, {"host_c", 0}});
    if (!network.ok() && (network.status().code() == absl::StatusCode::kPermissionDenied ||
                          network.status().code() == absl::StatusCode::kUnimplemented)) {
      GTEST_SKIP() << network.status().message();
    }
    ASSERT_TRUE(network.ok()) << network.status();
    network_ = *std::move(network);
    token_ = testing::TempDir() + "/token";
    std::ofstream(token_) << "a token for these tests";
    chmod(token_.c_str(), 0600);
    head_lines_ = std::make_unique<Lines>(testing::TempDir() + "/head_output");
  }

  void StartAll(int step_ms = 1) {
    head_ = Run("host_a", {"head", "--ip", network_->ip("host_a"), "--port", "29400"},
                head_lines_->file(), step_ms);
    for (int stage = 0; stage < 3; ++stage) StartStage(stage, step_ms);
  }

  void StartStage(int stage, int step_ms = 1) {
    const std::string host = HostOf(stage);
    stages_[stage] = Run(host,
                         {"stage", "--stage", absl::StrCat(stage), "--ip", network_->ip(host),
                          "--head", absl::StrCat(network_->ip("host_a"), ":29400")},
                         testing::TempDir() + absl::StrCat("/stage_", stage), step_ms);
  }

  static std::string HostOf(int stage) {
    return absl::StrCat("host_", std::string(1, static_cast<char>('a' + stage)));
  }

  std::unique_ptr<HostProcess> Run(const std::string& host, std::vector<std::string> arguments,
                                   const std::string& output, int step_ms) {
    std::vector<std::string> command = {kProgram};
    command.insert(command.end(), arguments.begin(), arguments.end());
    for (const std::string& flag :
         {std::string("--stages"), std::string("3"), std::string("--token-file"), token_,
          std::string("--step-ms"), absl::StrCat(step_ms)}) {
      command.push_back(flag);
    }
    ProcessOptions options;
    options.output_file = output;
    options.error_file = output + "_errors";
    auto process = network_->Start(host, command, options);
    EXPECT_TRUE(process.ok()) << process.status();
    return *std::move(process);
  }

  Lines& head() { return *head_lines_; }

  std::unique_ptr<VirtualNetwork> network_;
  std::string token_;
  std::unique_ptr<Lines> head_lines_;
  std::unique_ptr<HostProcess> head_;
  std::unique_ptr<HostProcess> stages_[3];
};

TEST_F(NetworkFailuresTest, ACableThatIsPulledOutIsAnErrorThatNamesItsStage) {
  StartAll();
  head().Await("ok");
  for (int round = 0; round < 4; ++round) {
    SCOPED_TRACE(round);
    const int stage = 1 + round % 2;
    head().Skip();
    const auto cut = Clock::now();
    ASSERT_TRUE(network_->Cut(HostOf(stage)).ok());
    const std::string error = head().Await("error: ");
    EXPECT_LT(Clock::now() - cut, kBound);
    // Who finds out first tells it: the head that hears nothing, or the stage before or after.
    EXPECT_THAT(error, HasSubstr(absl::StrCat("stage ", stage)));
    ASSERT_TRUE(network_->Restore(HostOf(stage)).ok());
    if (stages_[stage]->Wait(absl::Seconds(6)).ok()) StartStage(stage);
    head().Await("ok", 3 * kBound);
  }
}

TEST_F(NetworkFailuresTest, AShortCutHarmsNobody) {
  StartAll();
  head().Await("ok");
  ASSERT_TRUE(network_->Cut("host_b").ok());
  std::this_thread::sleep_for(std::chrono::seconds(1));
  ASSERT_TRUE(network_->Restore("host_b").ok());
  head().Skip();
  for (int i = 0; i < 20; ++i) EXPECT_EQ(head().Await(""), "ok");
}

TEST_F(NetworkFailuresTest, LostPacketsCostTimeAndNothingElse) {
  StartAll();
  head().Await("ok");
  ASSERT_TRUE(network_->Disturb("host_b", {.loss = 0.05}).ok());
  head().Skip();
  for (int i = 0; i < 20; ++i) EXPECT_EQ(head().Await("", 6 * kBound), "ok");
}

TEST_F(NetworkFailuresTest, LatePacketsCostTimeAndNothingElse) {
  StartAll();
  head().Await("ok");
  ASSERT_TRUE(network_->Disturb("host_b", {.delay = absl::Milliseconds(200)}).ok());
  head().Skip();
  for (int i = 0; i < 5; ++i) EXPECT_EQ(head().Await("", 6 * kBound), "ok");
}

TEST_F(NetworkFailuresTest, AHeadThatIsCutOffIsGivenUp) {
  StartAll();
  head().Await("ok");
  ASSERT_TRUE(network_->Cut("host_a").ok());
  for (const int stage : {1, 2}) {
    const absl::StatusOr<int> status = stages_[stage]->Wait(absl::Seconds(20));
    ASSERT_TRUE(status.ok()) << status.status();
    EXPECT_EQ(*status, 1);
  }
  EXPECT_THAT(head().Await("error: "), AnyOf(HasSubstr("stage 1"), HasSubstr("stage 2")));
}

TEST_F(NetworkFailuresTest, AStageThatIsKilledOnAnotherHostIsNamedAndReplaced) {
  StartAll();
  for (int round = 0; round < 3; ++round) {
    head().Await("ok", 3 * kBound);
    head().Skip();
    stages_[2]->Signal(SIGKILL);
    EXPECT_THAT(head().Await("error: "),
                AllOf(HasSubstr("stage 2 (host_c)"), HasSubstr("it ended or was killed")));
    StartStage(2);
  }
  head().Await("ok", 3 * kBound);
}

}  // namespace
}  // namespace fabricast
