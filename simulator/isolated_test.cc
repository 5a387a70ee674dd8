#include "simulator/isolated.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <unistd.h>

#include <stdexcept>

namespace fabricast {
namespace {

using ::testing::HasSubstr;

IsolatedTask Returns(std::string bytes) {
  return [=](std::atomic<double>&) -> absl::StatusOr<std::string> { return bytes; };
}

TEST(RunIsolatedTest, ResultsComeInTheOrderOfTheTasks) {
  std::vector<IsolatedTask> tasks;
  for (int i = 0; i < 10; ++i) tasks.push_back(Returns(std::string(1, static_cast<char>('a' + i))));
  const auto results = RunIsolated(tasks, 3);
  ASSERT_EQ(results.size(), 10u);
  for (int i = 0; i < 10; ++i) EXPECT_EQ(*results[i], std::string(1, static_cast<char>('a' + i)));
}

TEST(RunIsolatedTest, EveryTaskHasAProcessOfItsOwn) {
  const IsolatedTask pid = [](std::atomic<double>&) -> absl::StatusOr<std::string> {
    return std::to_string(getpid());
  };
  const auto results = RunIsolated(std::vector<IsolatedTask>{pid, pid}, 1);
  EXPECT_NE(*results[0], *results[1]);
  EXPECT_NE(*results[0], std::to_string(getpid()));
}

TEST(RunIsolatedTest, ResultsLargerThanAPipeArriveWhole) {
  std::string large(5'000'000, 'x');
  large.back() = 'y';
  const std::vector<IsolatedTask> tasks = {Returns(large), Returns("")};
  const auto results = RunIsolated(tasks, 2);
  EXPECT_EQ(*results[0], large);
  EXPECT_EQ(*results[1], "");
}

TEST(RunIsolatedTest, ErrorsKeepCodeAndMessage) {
  const std::vector<IsolatedTask> tasks = {[](std::atomic<double>&) -> absl::StatusOr<std::string> {
                                             return absl::NotFoundError("no such thing");
                                           },
                                           Returns("fine")};
  const auto results = RunIsolated(tasks, 1);
  EXPECT_EQ(results[0].status(), absl::NotFoundError("no such thing"));
  EXPECT_EQ(*results[1], "fine");
}

TEST(RunIsolatedTest, ATaskThatIsKilledNamesTheSignalAndTheOthersGoOn) {
  const std::vector<IsolatedTask> tasks = {[](std::atomic<double>&) -> absl::StatusOr<std::string> {
                                             kill(getpid(), SIGKILL);
                                             return "";
                                           },
                                           Returns("fine")};
  const auto results = RunIsolated(tasks, 2);
  EXPECT_EQ(results[0].status().code(), absl::StatusCode::kInternal);
  EXPECT_THAT(std::string(results[0].status().message()), HasSubstr("Killed"));
  EXPECT_EQ(*results[1], "fine");
}

TEST(RunIsolatedTest, ExceptionsOfLibrariesBecomeErrors) {
  const std::vector<IsolatedTask> tasks = {[](std::atomic<double>&) -> absl::StatusOr<std::string> {
    throw std::runtime_error("boom");
  }};
  EXPECT_THAT(std::string(RunIsolated(tasks)[0].status().message()), HasSubstr("boom"));
}

TEST(RunIsolatedTest, AChildThatExitsWithoutAResultIsAnError) {
  const std::vector<IsolatedTask> tasks = {
      [](std::atomic<double>&) -> absl::StatusOr<std::string> { _exit(7); }};
  EXPECT_THAT(std::string(RunIsolated(tasks)[0].status().message()), HasSubstr("exit status 7"));
}

TEST(RunIsolatedTest, TheParentSeesProgressUpToTheEnd) {
  const std::vector<IsolatedTask> tasks = {
      [](std::atomic<double>& progress) -> absl::StatusOr<std::string> {
        progress = 0.5;
        return "";
      }};
  double last = -1;
  RunIsolated(tasks, 1, [&](double done) {
    EXPECT_GE(done, last);
    last = done;
  });
  EXPECT_EQ(last, 1);
}

TEST(RunIsolatedTest, NoTasksNoResults) { EXPECT_TRUE(RunIsolated({}).empty()); }

}  // namespace
}  // namespace fabricast
