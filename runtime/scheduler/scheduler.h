// Decides which tokens of which requests run together: admission, continuous batching, chunked
// prefill, micro-batches in flight across the stages of a pipeline, and the budget of KV-cache
// blocks.
//
// A pure state machine: an event goes in, actions come out. It knows no clock, thread, socket, GPU
// or simulator, draws no random numbers, and iterates over nothing whose order is not defined; the
// same events give the same actions. The driver (simulator, CPU engine, GPU engine) stamps events
// with its own time for the metrics; no decision depends on it.
//
// Policy
// - Requests are admitted in order of arrival, none overtaking another, when a micro-batch has room
//   for their first tokens and the KV cache for the blocks of these tokens, beside a watermark of
//   1 % of the blocks (rounded up) that admissions leave free, so that the decodes of the running
//   requests do not at once preempt the new one. When no request runs the watermark is waived.
// - A request takes part in at most one decode at a time: its next one may be launched once the
//   micro-batch that sampled its last token has completed. The last prefill chunk samples the first
//   output token. Prefill chunks of one prompt may follow each other down the pipeline without
//   waiting for the end of it: stages run micro-batches in the order of launch.
// - A micro-batch takes its share of decodes first, ceil(decoding requests / max_in_flight), so
//   that all micro-batches in flight are equally large (a pipeline whose decodes are all in one
//   micro-batch leaves its other stages idle), then prefill chunks up to the token budgets, of the
//   request whose prompt is launched in part, of which there is at most one, then of those that are
//   admitted. So prefill cannot starve decode, and since
//   max_batch_tokens > the share of decodes, decode cannot starve prefill.
//   "Decoding" are the requests whose last prefill chunk is launched, in flight or not. Decodes are
//   taken in the order in which their requests became ready (their last token became known), which
//   is a round robin.
// - Blocks hold what is computed or launched: ceil(tokens / kv_block_tokens) a request, taken at
//   launch. A decode that finds no free block takes them from the running request that arrived last
//   of those not in flight (*preemption*), provided that it arrived later than the one that
//   decodes; if there is none, the decode keeps its place and waits for a micro-batch to complete.
//   The victim goes back to waiting, before all that arrived later, and is computed again from its
//   first token, its generated tokens included, of which none is sampled again. It is admitted
//   again when the blocks of all its known tokens are free beside the watermark: with fewer it
//   would soon lose them again. A launch that preempts admits nobody.
// - A prefill chunk is cut to the blocks that are free, and waits if there are none; only the
//   oldest running request preempts for prefill, and it takes its blocks before the decodes do. So
//   the oldest running request is never preempted, nor starved: scheduler.cc argues why this
//   excludes deadlock and livelock.
// - A launch is never empty, and when an event returns with nothing in flight, no request is left.
//
// Not thread-safe; one owner.
#ifndef FABRICAST_RUNTIME_SCHEDULER_SCHEDULER_H_
#define FABRICAST_RUNTIME_SCHEDULER_SCHEDULER_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"

namespace fabricast {

using RequestId = int64_t;  // chosen by the driver, unique among all requests of a scheduler's life
using MicroBatchId = int64_t;  // 0, 1, 2, ... in order of launch

struct SchedulerOptions {
  // Micro-batches between launch and completion; usually the number of stages.
  int max_in_flight = 1;
  // Micro-batches launched but not yet through the first stage; 1: launch when it idles.
  int first_stage_queue = 1;
  // Of a micro-batch, decodes included; more than ceil(max_running / max_in_flight), the largest
  // share of decodes.
  int64_t max_batch_tokens = 2048;
  // Prefill tokens of a micro-batch, all its requests together.
  int64_t max_chunk_tokens = 512;
  // Requests admitted at a time.
  int max_running = 256;
  int64_t kv_block_tokens = 16;
  // Of the whole cache: the stage with the fewest. Must be given.
  int64_t kv_blocks = 0;
};

// Tokens [first_token, first_token + tokens) of one request, counted from the start of its prompt.
struct BatchEntry {
  RequestId request;
  int64_t first_token;  // = context already in the KV cache when it runs
  int64_t tokens;       // 1 for a decode
  bool decode;
  bool samples;  // yields the request's next output token
};

struct MicroBatch {
  MicroBatchId id = -1;
  std::vector<BatchEntry> entries;  // decodes first; at least one, at most one of a request
  int64_t tokens() const;
};

enum class FinishReason { kLength, kStop, kCancelled };

struct Action {
  enum class Kind {
    kLaunch,   // run `micro_batch` through the stages, beginning with the first
    kAdmit,    // `request` is in a micro-batch for the first time (once a request)
    kPreempt,  // `request` lost its KV blocks
    kFinish,   // `request` is over and its blocks are free
    kReject,   // `request` can never run: `error` says why; follows its arrival at once
  };
  Kind kind = Kind::kLaunch;
  RequestId request = -1;
  FinishReason reason = FinishReason::kLength;
  absl::Status error;
  MicroBatch micro_batch;
};

class Scheduler {
 public:
  // Returns kInvalidArgument naming the option if one is out of range.
  static absl::Status Validate(const SchedulerOptions& options);

  // CHECKs Validate(options).
  explicit Scheduler(const SchedulerOptions& options);
  ~Scheduler();

  // Events. Each returns the actions that follow from it, in order: first the requests that it
  // ends, then launches, each preceded by the preemptions and admissions that it brings. The span
  // is valid until the next event. Events that break the protocol (an id that arrives while it is
  // known, micro-batches unknown or out of order, `stopped` requests that sampled nothing)
  // CHECK-fail.

  // `prompt_tokens` >= 1, `max_output_tokens` >= 1 (else kReject with kInvalidArgument). Rejected
  // too, with kResourceExhausted, if prompt + output can never fit the cache: the last output token
  // is sampled but never computed, so they take prompt_tokens + max_output_tokens - 1 places.
  absl::Span<const Action> RequestArrived(RequestId id, int64_t prompt_tokens,
                                          int64_t max_output_tokens);

  // The first stage has computed `id` and can take another micro-batch. Comes for every
  // micro-batch, in launch order and before its completion; with one stage, immediately before.
  absl::Span<const Action> FirstStageDone(MicroBatchId id);

  // The last stage has computed `id` and its tokens are known at the head. Micro-batches complete
  // in launch order. `stopped`: requests of `id` that ended with the token they sampled in it (end
  // of sequence, stop string): kStop, even if it is the last one that max_output_tokens allows.
  // Naming one that was cancelled in the meantime is fine: it ends as cancelled.
  absl::Span<const Action> MicroBatchCompleted(MicroBatchId id,
                                               absl::Span<const RequestId> stopped = {});

  // Ends a request wherever it is. One that is in flight takes part in no further launch and
  // finishes, as kCancelled, when its micro-batches have completed; until then it keeps its blocks
  // and counts as running. Unknown or ended ids are ignored (the race with its end is the driver's
  // to lose).
  absl::Span<const Action> RequestCancelled(RequestId id);

  int64_t waiting() const;  // not admitted, or preempted
  int64_t running() const;  // admitted, not ended, not preempted
  int in_flight() const;
  int64_t kv_blocks_used() const;
  int64_t preemptions() const;
  bool idle() const;  // no request known that has not ended

  // CHECK-fails if an internal invariant is broken. For tests and fuzzing; O(requests).
  void CheckInvariants() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace fabricast

#endif  // FABRICAST_RUNTIME_SCHEDULER_SCHEDULER_H_
