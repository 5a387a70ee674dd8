// Computes one stage of the pipeline: the seam between the engine and the device.
#ifndef FABRICAST_RUNTIME_EXECUTOR_STAGE_EXECUTOR_H_
#define FABRICAST_RUNTIME_EXECUTOR_STAGE_EXECUTOR_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "runtime/executor/sampling.h"
#include "runtime/scheduler/scheduler.h"

namespace fabricast {

// What the head tells every stage about a micro-batch.
struct Step {
  MicroBatch micro_batch;
  // Token ids of all entries, in their order: entry i's are the next entries[i].tokens of them. A
  // decode's is the token that was sampled last.
  std::vector<int32_t> tokens;
  // One an entry, the same in all entries of a request; read by the last stage.
  std::vector<SamplingParams> sampling;
  // Requests that ended or were preempted since the previous step: their KV blocks (and what else a
  // stage keeps of them) are free before this step runs. One that was preempted may come again,
  // from its first token.
  std::vector<RequestId> released;
};

// One owner; calls do not overlap. Steps come in launch order.
class StageExecutor {
 public:
  virtual ~StageExecutor() = default;

  // Of the activations between stages: float32 on the CPU, BF16 on a GPU.
  virtual int64_t activation_bytes_per_token() const = 0;

  // Computes `step` and returns when that is done.
  // `input`: [tokens, hidden] of the stage before; empty on the first stage.
  // `output`: the same for the next stage, filled; empty on the last stage, which fills `sampled`
  // with one token for each entry that samples, in their order, and leaves it empty elsewhere.
  //
  // On the CPU results do not depend on what else is in the micro-batch, on how a prompt is cut
  // into chunks, or on how layers are divided among stages: bit for bit. On a GPU the same step
  // after the same steps gives the same bits; in other micro-batches, chunks and stages results
  // differ by rounding, for each number of tokens has its own fastest kernel.
  //
  // kResourceExhausted if KV blocks run out: the scheduler's budget is larger than the executor's.
  // kInternal if results are not finite, naming request and layer. After an error only Reset may
  // follow.
  virtual absl::Status Run(const Step& step, absl::Span<const std::byte> input,
                           absl::Span<std::byte> output, std::vector<SampledToken>& sampled) = 0;

  // Forgets all requests: as new, also after an error. The next step is the first.
  virtual void Reset() = 0;

  // Asked after Reset: why it is of no use any more, as when a GPU's context is lost. Only another
  // executor, of another process, may be.
  virtual absl::Status usable() const { return absl::OkStatus(); }
};

}  // namespace fabricast

#endif  // FABRICAST_RUNTIME_EXECUTOR_STAGE_EXECUTOR_H_
