#include "runtime/executor/cpu/thread_pool.h"

#include <chrono>
#include <cstdint>
#include <thread>
#include <vector>

#include "gtest/gtest.h"

namespace fabricast {
namespace {

TEST(ThreadPoolTest, RunsEachTaskOnce) {
  for (const int threads : {1, 2, 3, 8}) {
    ThreadPool pool(threads);
    EXPECT_EQ(pool.threads(), threads);
    for (int64_t tasks = 0; tasks < 50; ++tasks) {
      std::vector<int> runs(tasks, 0);
      pool.Run(tasks, [&](int64_t task, int) { ++runs[task]; });
      EXPECT_EQ(runs, std::vector<int>(tasks, 1)) << threads << " threads";
    }
  }
}

TEST(ThreadPoolTest, TasksOfOneThreadDoNotOverlap) {
  ThreadPool pool(4);
  std::vector<int64_t> of_thread(4, 0);  // unsynchronised: a race if two ran at once
  for (int loop = 0; loop < 200; ++loop) {
    pool.Run(16, [&](int64_t, int thread) { ++of_thread[thread]; });
  }
  EXPECT_EQ(of_thread[0] + of_thread[1] + of_thread[2] + of_thread[3], 200 * 16);
}

TEST(ThreadPoolTest, ALoopSeesWhatTheLoopBeforeWrote) {
  ThreadPool pool(3);
  std::vector<int64_t> values(64, 0);
  for (int loop = 0; loop < 500; ++loop) {
    pool.Run(64, [&](int64_t task, int) { values[task] = values[(task + 0) % 64] + 1; });
  }
  EXPECT_EQ(values, std::vector<int64_t>(64, 500));
}

TEST(ThreadPoolTest, WakesThreadsThatSleep) {
  ThreadPool pool(3);
  for (int loop = 0; loop < 5; ++loop) {
    // Longer than any thread spins.
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
    std::vector<int> runs(9, 0);
    pool.Run(9, [&](int64_t task, int) {
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
      ++runs[task];
    });
    EXPECT_EQ(runs, std::vector<int>(9, 1));
  }
}

TEST(ThreadPoolTest, EndsWithoutALoop) {
  for (int i = 0; i < 20; ++i) ThreadPool pool(4);
}

}  // namespace
}  // namespace fabricast
