// The stages of a pipeline as the head sees them: it launches steps, they report what they did.
#ifndef FABRICAST_RUNTIME_ENGINE_STAGES_H_
#define FABRICAST_RUNTIME_ENGINE_STAGES_H_

#include <chrono>
#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "runtime/executor/stage_executor.h"
#include "runtime/scheduler/scheduler.h"

namespace fabricast {

// What a stage did with a micro-batch. It reports kDelivered (but for the first stage), kStarted,
// kComputed and kSendStarted (but for the last) of each, in this order, micro-batches in launch
// order; a delivery may come before the stage is done with the micro-batches before.
struct StageReport {
  enum class Kind {
    kDelivered,    // its activations are here, sent by the stage before
    kStarted,      // it computes
    kComputed,     // it has computed
    kSendStarted,  // its activations begin to leave for the next stage
  };
  Kind kind = Kind::kStarted;
  int stage = 0;
  MicroBatchId id = -1;
  int64_t bytes = 0;                           // kSendStarted
  std::vector<SampledToken> sampled = {};      // kComputed by the last stage
  std::chrono::steady_clock::time_point at{};  // by the head's clock
};

// Hears of the stages, in order. Called on any thread, one call at a time; must not block, nor call
// the stages.
class StagesListener {
 public:
  virtual ~StagesListener() = default;

  // All stages are there and know of no request: the first micro-batch is 0. Each generation has a
  // larger number than those before.
  virtual void Ready(int64_t generation) = 0;
  // Of the generation that is ready, of micro-batches that it was given. Reports of one stage come
  // in the order in which things happened there, those of different stages in any order.
  virtual void Reported(std::vector<StageReport> reports) = 0;
  // The generation has ended: what is in flight will never be completed, and nothing more is
  // reported of it. May come before there was one. `cause`, an error other than kCancelled, names
  // the stage. Ready follows if the stages recover.
  virtual void Lost(const absl::Status& cause) = 0;
  // They will not recover, or never came. Nothing follows.
  virtual void Gone(const absl::Status& cause) = 0;
};

class Stages {
 public:
  virtual ~Stages() = default;

  virtual int count() const = 0;

  // Once. May call the listener, which must outlive Stop.
  virtual void Start(StagesListener& listener) = 0;

  // Tells every stage of `step`, and returns without waiting for them. One caller at a time, in
  // launch order; nothing happens if `generation` is past.
  virtual void Launch(int64_t generation, std::shared_ptr<const Step> step) = 0;

  // Lets the stages go. The listener is not called any more when this returns. Idempotent.
  virtual void Stop() = 0;
};

}  // namespace fabricast

#endif  // FABRICAST_RUNTIME_ENGINE_STAGES_H_
