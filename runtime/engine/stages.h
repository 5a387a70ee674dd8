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

// What a stage did with a micro-batch.
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
// Stages::Stop.
class StagesListener {
 public:
  virtual ~StagesListener() = default;

  // All stages are there and know of no request: the first micro-batch is 0. Generations count from
  // 0.
  virtual void Ready(int64_t generation) = 0;
  // Of the generation that is ready. Reports of one stage come in the order in which things
  // happened there, those of different stages in any order.
  virtual void Reported(std::vector<StageReport> reports) = 0;
  // The generation has ended: what is in flight will never be completed, and nothing more is
  // reported of it. `cause` names the stage. Ready follows if the stages recover.
  virtual void Lost(const absl::Status& cause) = 0;
  // They will not recover. Nothing follows.
  virtual void Gone(const absl::Status& cause) = 0;
};

class Stages {
 public:
  virtual ~Stages() = default;

  virtual int count() const = 0;

  // Once. The listener must outlive Stop.
  virtual void Start(StagesListener& listener) = 0;

  // Tells every stage of `step`. One caller at a time, in launch order; nothing happens if
  // `generation` is past.
  virtual void Launch(int64_t generation, std::shared_ptr<const Step> step) = 0;

  // Lets the stages go. The listener is not called any more when this returns. Idempotent.
  virtual void Stop() = 0;
};

}  // namespace fabricast

#endif  // FABRICAST_RUNTIME_ENGINE_STAGES_H_
