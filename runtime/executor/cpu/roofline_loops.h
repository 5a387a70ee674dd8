// What a machine can do at most: plain loops to measure others against.
#ifndef FABRICAST_RUNTIME_EXECUTOR_CPU_ROOFLINE_LOOPS_H_
#define FABRICAST_RUNTIME_EXECUTOR_CPU_ROOFLINE_LOOPS_H_

#include "runtime/executor/cpu/thread_pool.h"

namespace fabricast {

// Gigabytes a second that all threads together read of an array larger than caches, adding it up:
// the best of some passes.
double StreamRate(ThreadPool& pool);

// 1e9 operations a second of independent fused multiply-adds in registers, two operations each:
// the best of some passes.
double MultiplyAddRate(ThreadPool& pool);

}  // namespace fabricast

#endif  // FABRICAST_RUNTIME_EXECUTOR_CPU_ROOFLINE_LOOPS_H_
