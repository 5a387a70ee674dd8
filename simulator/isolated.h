// Runs work in child processes: SimGrid keeps one engine a process, and a run that dies takes
// nothing with it.
#ifndef FABRICAST_SIMULATOR_ISOLATED_H_
#define FABRICAST_SIMULATOR_ISOLATED_H_

#include <atomic>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"

namespace fabricast {

// Computes some bytes. May store its progress, 0 ... 1, in `progress`, which the parent sees.
using IsolatedTask = std::function<absl::StatusOr<std::string>(std::atomic<double>& progress)>;

// Called in the parent a few times a second with the mean progress of all tasks, 0 ... 1.
using ProgressCallback = std::function<void(double)>;

// Runs each task in a fork of this process, at most `jobs` at a time (0: one a core), and returns
// their results in order of the tasks. A task that crashes, or is killed, gives kInternal with the
// signal's name. The calling process must have no other threads. Children end with their parent.
std::vector<absl::StatusOr<std::string>> RunIsolated(absl::Span<const IsolatedTask> tasks,
                                                     int jobs = 0,
                                                     const ProgressCallback& progress = nullptr);

}  // namespace fabricast

#endif  // FABRICAST_SIMULATOR_ISOLATED_H_
