#include "tools/virtual_network/host_process.h"

#include <errno.h>
#include <signal.h>
#include <unistd.h>

#include <fstream>
#include <sstream>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tools/virtual_network/test_network.h"

namespace fabricast {
namespace {

using ::testing::HasSubstr;

class HostProcessTest : public ::testing::Test {
 protected:
  void SetUp() override {
    const std::string reason = WhyNoVirtualNetwork();
    if (!reason.empty()) GTEST_SKIP() << reason;
    absl::StatusOr<std::vector<NetworkNamespace>> made = NetworkNamespace::Make(2);
    ASSERT_TRUE(made.ok()) << made.status();
    spaces_ = *std::move(made);
    output_ = absl::StrCat(::testing::TempDir(), "/",
                           ::testing::UnitTest::GetInstance()->current_test_info()->name());
    unlink(output_.c_str());
  }

  std::unique_ptr<HostProcess> Start(const std::string& script, const ProcessOptions& options) {
    absl::StatusOr<std::unique_ptr<HostProcess>> process =
        HostProcess::Start(spaces_[0], {"sh", "-c", script}, options);
    EXPECT_TRUE(process.ok()) << process.status();
    return *std::move(process);
  }

  std::string Output() const {
    std::ifstream file(output_);
    std::stringstream text;
    text << file.rdbuf();
    return text.str();
  }

  // Of the process whose number is the first line that was printed.
  void ExpectPrintedProcessEnds() const {
    int pid = 0;
    ASSERT_TRUE(absl::SimpleAtoi(Output(), &pid)) << Output();
    const absl::Time deadline = absl::Now() + kPatience;
    while (kill(pid, 0) == 0 && absl::Now() < deadline) absl::SleepFor(absl::Milliseconds(5));
    EXPECT_EQ(kill(pid, 0), -1);
    EXPECT_EQ(errno, ESRCH);
  }

  void WaitForOutput() const {
    const absl::Time deadline = absl::Now() + kPatience;
    while (!absl::StrContains(Output(), "\n") && absl::Now() < deadline) {
      absl::SleepFor(absl::Milliseconds(5));
    }
  }

  std::vector<NetworkNamespace> spaces_;
  std::string output_;
};

TEST_F(HostProcessTest, WaitGivesTheExitStatusAsOftenAsItIsAsked) {
  const std::unique_ptr<HostProcess> process = Start("exit 7", {});
  EXPECT_EQ(process->Wait(kPatience).value_or(-1), 7);
  EXPECT_EQ(process->Wait(kPatience).value_or(-1), 7);
}

TEST_F(HostProcessTest, ASignalIsAddedTo128) {
  const std::unique_ptr<HostProcess> process = Start("sleep 1000", {});
  const absl::Status status = process->Wait(absl::Milliseconds(1)).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_THAT(std::string(status.message()), HasSubstr("'sh -c sleep 1000' still runs after 1ms"));
  process->Signal(SIGKILL);
  EXPECT_EQ(process->Wait(kPatience).value_or(-1), 128 + SIGKILL);
  process->Signal(SIGKILL);  // nobody's any more
}

TEST_F(HostProcessTest, WhatItStartedEndsWithIt) {
  const std::unique_ptr<HostProcess> process =
      Start("sleep 1000 & echo $!", {.output_file = output_});
  EXPECT_EQ(process->Wait(kPatience).value_or(-1), 0);
  ExpectPrintedProcessEnds();
}

TEST_F(HostProcessTest, ItEndsWithItsObject) {
  std::unique_ptr<HostProcess> process = Start("echo $$; sleep 1000", {.output_file = output_});
  WaitForOutput();
  process.reset();
  ExpectPrintedProcessEnds();
}

TEST_F(HostProcessTest, EnvironmentFolderAndFilesAreAsGiven) {
  ASSERT_EQ(setenv("KEPT", "kept", 1), 0);
  ASSERT_EQ(setenv("CHANGED", "before", 1), 0);
  const ProcessOptions options{.environment = {"CHANGED=after", "ADDED=added"},
                               .directory = "/usr",
                               .output_file = output_,
                               .error_file = output_};
  for (int i = 0; i < 2; ++i) {
    const std::unique_ptr<HostProcess> process =
        Start("echo $KEPT $CHANGED $ADDED; pwd >&2", options);
    EXPECT_EQ(process->Wait(kPatience).value_or(-1), 0);
  }
  EXPECT_EQ(Output(), "kept after added\n/usr\nkept after added\n/usr\n");
}

TEST_F(HostProcessTest, WhatCannotBeStartedSaysWhy) {
  const auto message = [&](const std::vector<std::string>& command, const ProcessOptions& options) {
    return std::string(HostProcess::Start(spaces_[0], command, options).status().message());
  };
  EXPECT_THAT(message({}, {}), HasSubstr("no program is given"));
  EXPECT_THAT(message({"no_such_program"}, {}), HasSubstr("no program is called no_such_program"));
  EXPECT_EQ(message({"/no/such/program"}, {}),
            "/no/such/program: cannot be executed: No such file or directory");
  EXPECT_EQ(message({"true"}, {.directory = "/no/folder"}),
            "true: folder /no/folder: No such file or directory");
  EXPECT_EQ(message({"true"}, {.output_file = "/no/folder/file"}),
            "/no/folder/file: No such file or directory");
}

TEST_F(HostProcessTest, AToolThatFailsIsQuoted) {
  EXPECT_TRUE(RunTool(spaces_[0], {"ip", "link", "set", "dev", "lo", "up"}).ok());
  EXPECT_EQ(RunTool(spaces_[0], {"ip", "link", "show", "dev", "none0"}),
            absl::InternalError("virtual network: ip link show dev none0: Device \"none0\" does "
                                "not exist."));
  EXPECT_EQ(RunTool(spaces_[0], {"false"}), absl::InternalError("virtual network: false: failed"));
}

TEST_F(HostProcessTest, WhatTheMachineLacksIsUnimplemented) {
  EXPECT_EQ(RunTool(spaces_[0], {"no_such_tool"}).code(), absl::StatusCode::kUnimplemented);
  const absl::Status status =
      RunTool(spaces_[0], {"ip", "link", "add", "name", "x0", "type", "no_such_kind"});
  EXPECT_EQ(status.code(), absl::StatusCode::kUnimplemented) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("this kernel lacks it"));
  const absl::Status shaped =
      RunTool(spaces_[0], {"tc", "qdisc", "add", "dev", "lo", "root", "no_such_kind"});
  EXPECT_EQ(shaped.code(), absl::StatusCode::kUnimplemented) << shaped;
}

// A namespace is handed to ip by the number of an open file, which no other program inherits.
TEST_F(HostProcessTest, OnlyTheOtherNamespaceIsInherited) {
  EXPECT_TRUE(RunTool(spaces_[0], {"test", "-e", spaces_[1].path()}, &spaces_[1]).ok());
  EXPECT_FALSE(RunTool(spaces_[0], {"test", "-e", spaces_[1].path()}).ok());
}

}  // namespace
}  // namespace fabricast
