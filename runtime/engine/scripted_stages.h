// Stages that do what a test says, when it says so, on the test's thread. What they compute is
// FakeExecutor's.
#ifndef FABRICAST_RUNTIME_ENGINE_SCRIPTED_STAGES_H_
#define FABRICAST_RUNTIME_ENGINE_SCRIPTED_STAGES_H_

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <random>
#include <vector>

#include "absl/status/status.h"
#include "runtime/engine/fake_executor.h"
#include "runtime/engine/stages.h"

namespace fabricast {

class ScriptedStages : public Stages {
 public:
  // Not ready. The seed decides how reports of different stages are mixed.
  explicit ScriptedStages(int stages, uint64_t seed = 0);

  // The test's part. These call the listener: they need a started engine.
  void BecomeReady();
  void Lose(const absl::Status& cause);
  void Leave(const absl::Status& cause);
  // Waits for a step, computes it in all stages and reports that, in any order that the listener
  // must put up with, in some calls.
  void RunStep();
  // The same if there is a step; returns whether there was.
  bool TryRunStep();
  // Waits for a step, computes it and reports a part of it: a beginning of what happened, as when
  // the stages are lost meanwhile. Lose must follow.
  void RunPartOfStep();

  int64_t launched() const;  // steps of all generations that were ready

  // Stages.
  int count() const override { return static_cast<int>(executors_.size()); }
  void Start(StagesListener& listener) override { listener_ = &listener; }
  void Launch(int64_t generation, std::shared_ptr<const Step> step) override;
  void Stop() override {}

 private:
  using Buffer = std::vector<std::byte>;

  std::shared_ptr<const Step> NextStep();
  // In an order in which they happened.
  std::vector<StageReport> Compute(const Step& step);
  void Report(std::vector<StageReport> reports);

  std::vector<std::unique_ptr<StageExecutor>> executors_;
  StagesListener* listener_ = nullptr;
  std::mt19937_64 random_;

  mutable std::mutex mutex_;
  std::condition_variable launch_;
  int64_t generation_ = -1;
  bool ready_ = false;
  int64_t launched_ = 0;
  std::deque<std::shared_ptr<const Step>> steps_;
};

}  // namespace fabricast

#endif  // FABRICAST_RUNTIME_ENGINE_SCRIPTED_STAGES_H_
