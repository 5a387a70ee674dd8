#include "runtime/executor/cpu/thread_pool.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "runtime/check.h"

namespace fabricast {
namespace {

// A pause takes some 10 to 40 ns (140 cycles on Intel since Skylake, 40 to 65 on Zen): 20 to 40 us,
// more than the serial parts between two loops of a decode step take, less than it costs to let
// another process have the core.
constexpr int kSpins = 1000;

void Pause() {
#if defined(__x86_64__)
  _mm_pause();
#endif
}

}  // namespace

ThreadPool::ThreadPool(int threads) {
  FABRICAST_CHECK(threads >= 1) << "threads=" << threads;
  for (int thread = 1; thread < threads; ++thread) {
    workers_.emplace_back([this, thread] { Work(thread); });
  }
}

ThreadPool::~ThreadPool() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    stop_ = true;
    loops_.fetch_add(1, std::memory_order_release);
  }
  wake_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void ThreadPool::TakeTasks(const Task& task, int64_t tasks, int thread) {
  for (;;) {
    const int64_t i = next_task_.fetch_add(1, std::memory_order_relaxed);
    if (i >= tasks) return;
    task(i, thread);
  }
}

void ThreadPool::Run(int64_t tasks, Task task) {
  if (tasks <= 1 || workers_.empty()) {
    for (int64_t i = 0; i < tasks; ++i) task(i, 0);
    return;
  }
  bool wake;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    task_ = &task;
    tasks_ = tasks;
    next_task_.store(0, std::memory_order_relaxed);
    open_ = true;
    loops_.fetch_add(1, std::memory_order_release);
    wake = sleeping_ > 0;
  }
  if (wake) wake_.notify_all();

  TakeTasks(task, tasks, 0);

  {
    std::lock_guard<std::mutex> lock(mutex_);
    open_ = false;  // who comes now finds nothing left to do
  }
  for (int spin = 0; spin < kSpins; ++spin) {
    if (working_.load(std::memory_order_acquire) == 0) return;
    Pause();
  }
  std::unique_lock<std::mutex> lock(mutex_);
  waiting_ = true;
  finished_.wait(lock, [this] { return working_.load(std::memory_order_acquire) == 0; });
  waiting_ = false;
}

void ThreadPool::Work(int thread) {
  int64_t seen = 0;
  for (;;) {
    for (int spin = 0; spin < kSpins && loops_.load(std::memory_order_acquire) == seen; ++spin) {
      Pause();
    }
    const Task* task = nullptr;
    int64_t tasks = 0;
    {
      std::unique_lock<std::mutex> lock(mutex_);
      ++sleeping_;
      wake_.wait(lock, [&] { return stop_ || loops_.load(std::memory_order_relaxed) != seen; });
      --sleeping_;
      if (stop_) return;
      seen = loops_.load(std::memory_order_relaxed);
      if (!open_) continue;
      task = task_;
      tasks = tasks_;
      working_.fetch_add(1, std::memory_order_relaxed);
    }
    TakeTasks(*task, tasks, thread);
    // Under the lock only if Run may sleep: it must not find working_ at 1 and miss the call.
    if (working_.fetch_sub(1, std::memory_order_acq_rel) == 1) {
      std::lock_guard<std::mutex> lock(mutex_);
      if (waiting_) finished_.notify_one();
    }
  }
}

}  // namespace fabricast
