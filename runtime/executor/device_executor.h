// A stage whose steps are put into a GPU's stream, one behind the other, without waiting for them.
#ifndef FABRICAST_RUNTIME_EXECUTOR_DEVICE_EXECUTOR_H_
#define FABRICAST_RUNTIME_EXECUTOR_DEVICE_EXECUTOR_H_

#include <chrono>
#include <cstddef>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "kernels/gpu/gpu_stream.h"
#include "runtime/executor/stage_executor.h"

namespace fabricast {

// One owner. Enqueue may be called while another thread is in Finish; other calls do not overlap.
// Steps take slots in turn: 0, 1, ..., slots() - 1, 0, ... A slot is a step's from Enqueue until
// its Finish has returned and its output has left. Run does both, in the next slot, and must not be
// called while a step is not finished.
class DeviceExecutor : public StageExecutor {
 public:
  // By the host's clock, when the GPU passed these points, to some 10 us.
  struct Times {
    std::chrono::steady_clock::time_point arrived{};  // the input; not on the first stage
    std::chrono::steady_clock::time_point started{};
    std::chrono::steady_clock::time_point computed{};
  };
  // Of a slot, always the same; the executor's.
  struct Slot {
    // Room in the GPU's memory for the largest step: [tokens, hidden] BF16 from the stage before
    // and for the next one. Empty on the first and on the last stage.
    absl::Span<std::byte> input;
    absl::Span<std::byte> output;
    GpuEventHandle arrived = nullptr;   // to be recorded when the input is there
    GpuEventHandle computed = nullptr;  // recorded by Enqueue: the output is there
  };

  // Makes the GPU of the slots the calling thread's own: for threads that call a DeviceTransport. A
  // thread that has not said which it means is taken for one of GPU 0, where a call would make, and
  // keep, a context. Any thread.
  virtual absl::Status UseDevice() const = 0;

  virtual int slots() const = 0;
  virtual Slot slot(int index) const = 0;

  // Puts `step` into the stream: the GPU computes it, in the next slot, when it has passed that
  // slot's `arrived`, which must have been recorded (not on the first stage), and the steps before
  // it are done. Returns without waiting for the GPU, unless log-probabilities are asked for.
  // Errors are those of Run that are known by then.
  virtual absl::Status Enqueue(const Step& step) = 0;

  // Waits until `step`, which was enqueued first of those not finished, has been computed. The rest
  // of Run's errors. After an error only Reset may follow, which waits for the GPU.
  virtual absl::Status Finish(const Step& step, std::vector<SampledToken>& sampled,
                              Times& times) = 0;
};

}  // namespace fabricast

#endif  // FABRICAST_RUNTIME_EXECUTOR_DEVICE_EXECUTOR_H_
