// One stage on several GPUs (tensor parallelism): an executor a GPU, each with its share of the
// weights, and all of them take every step.
#ifndef FABRICAST_RUNTIME_EXECUTOR_CUDA_TENSOR_PARALLEL_RANKS_H_
#define FABRICAST_RUNTIME_EXECUTOR_CUDA_TENSOR_PARALLEL_RANKS_H_

#include <functional>
#include <memory>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "runtime/executor/device_executor.h"

namespace fabricast {

struct TensorParallelRanksOptions {
  int ranks = 0;
  // Makes rank `rank`'s executor; on a thread of its own, at the same time as the others'.
  std::function<absl::StatusOr<std::unique_ptr<DeviceExecutor>>(int rank)> make = nullptr;
  // Ends whatever ranks wait for one another in, on GPUs too, now and later. Any thread.
  std::function<void()> abort = nullptr;
  // How long a rank may still be at work on what another has failed in. Ranks fail alike in what
  // lies in the step, within a step's time; longer than any.
  absl::Duration grace = absl::Seconds(2);
};

// Slots and what they hold, times and tokens are rank 0's; the others have no input and output. A
// rank has a thread that enqueues and one that finishes, so that no rank's launches wait for
// another's, and a call returns when all ranks are done with it.
//
// An error of all ranks alike is the step's, and Reset mends it. If only some fail, or one is not
// done in time, or sampled tokens differ, the ranks are aborted and the error names the GPU; so do
// all later calls, for they are of no use any more.
absl::StatusOr<std::unique_ptr<DeviceExecutor>> MakeTensorParallelRanks(
    const TensorParallelRanksOptions& options);

}  // namespace fabricast

#endif  // FABRICAST_RUNTIME_EXECUTOR_CUDA_TENSOR_PARALLEL_RANKS_H_
