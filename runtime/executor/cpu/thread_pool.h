// Threads that wait for loops to share.
#ifndef FABRICAST_RUNTIME_EXECUTOR_CPU_THREAD_POOL_H_
#define FABRICAST_RUNTIME_EXECUTOR_CPU_THREAD_POOL_H_

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

#include "absl/functional/function_ref.h"

namespace fabricast {

// Fork and join: a loop's tasks are handed out one by one to whoever is free, so that threads which
// the operating system delays hold nobody up for longer than a task. Tasks must not depend on which
// thread runs them, nor on the order.
//
// Between loops a thread spins for some microseconds, as a decode step has a loop every few of
// them, and then sleeps. One owner; Run is not to be called by two threads, nor by a task.
class ThreadPool {
 public:
  // `threads` >= 1 compute, the caller of Run among them.
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return static_cast<int>(workers_.size()) + 1; }

  // Calls task(0, thread), ..., task(tasks - 1, thread), each once, and returns when all have
  // returned; what they wrote is visible then. `thread`, in [0, threads()), names who runs it: no
  // two tasks of one thread overlap.
  void Run(int64_t tasks, absl::FunctionRef<void(int64_t task, int thread)> task);

 private:
  using Task = absl::FunctionRef<void(int64_t task, int thread)>;

  void Work(int thread);
  void TakeTasks(const Task& task, int64_t tasks, int thread);

  // The loop being run. Written by Run while `working_` is 0 and `open_` false.
  const Task* task_ = nullptr;
  int64_t tasks_ = 0;
  std::atomic<int64_t> next_task_{0};

  std::mutex mutex_;
  std::condition_variable wake_;      // workers: there is a loop, or the end
  std::condition_variable finished_;  // Run: working_ is 0
  bool open_ = false;                 // a worker may join the loop
  bool stop_ = false;
  int sleeping_ = 0;
  bool waiting_ = false;  // Run sleeps

  std::atomic<int64_t> loops_{0};  // counts loops, for those who spin
  std::atomic<int> working_{0};    // workers in the loop

  std::vector<std::thread> workers_;
};

}  // namespace fabricast

#endif  // FABRICAST_RUNTIME_EXECUTOR_CPU_THREAD_POOL_H_
