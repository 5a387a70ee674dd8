// Puts the reports of all stages into one order in which things can have happened.
//
// Reports of one stage come in order, those of different stages as their messages travel: a stage's
// "delivered" may be here before the "send started" of the stage before. A report is held until
// what it follows from is known, and no longer:
// - those of a stage keep their order;
// - kDelivered of a micro-batch follows kSendStarted of it at the stage before.
// So whatever a stage did with a micro-batch comes after all that the stages before did with it.
//
// No clock: times are carried, not compared. Not thread-safe.
#ifndef FABRICAST_RUNTIME_ENGINE_CAUSAL_ORDER_H_
#define FABRICAST_RUNTIME_ENGINE_CAUSAL_ORDER_H_

#include <cstdint>
#include <deque>
#include <vector>

#include "runtime/engine/stages.h"

namespace fabricast {

class CausalOrder {
 public:
  explicit CausalOrder(int stages) : stages_(stages) {}

  // Appends to `ordered` what may come now: nothing, or `report` and those that waited for it.
  // CHECKs that `report` is of one of the stages, and no delivery at the first.
  void Add(StageReport report, std::vector<StageReport>& ordered);

  bool holds_any() const { return held_ > 0; }

  // Forgets all, for the next generation.
  void Clear();

 private:
  struct Stage {
    MicroBatchId sent = -1;  // the last that began to leave
    std::deque<StageReport> held;
  };

  bool MayCome(const StageReport& report) const;
  void Append(StageReport report, std::vector<StageReport>& ordered);

  std::vector<Stage> stages_;
  int64_t held_ = 0;  // of all stages
};

}  // namespace fabricast

#endif  // FABRICAST_RUNTIME_ENGINE_CAUSAL_ORDER_H_
