// Whether a pipeline's reports make sense, so that a stage that does not keep to the protocol is
// found out and named before what it says reaches the engine.
#ifndef FABRICAST_RUNTIME_CONTROL_REPORT_ORDER_H_
#define FABRICAST_RUNTIME_CONTROL_REPORT_ORDER_H_

#include <cstdint>
#include <deque>
#include <vector>

#include "absl/status/status.h"
#include "runtime/engine/stages.h"
#include "runtime/scheduler/scheduler.h"

namespace fabricast {

// Of one generation. Not thread-safe.
class ReportOrder {
 public:
  explicit ReportOrder(int stages) : stages_(stages), progress_(stages) {}

  void Launched(const MicroBatch& micro_batch);

  // kInvalidArgument, saying what is wrong, unless the report is of a micro-batch that was
  // launched, comes in launch order and after what must go before it at that stage, and brings as
  // many tokens as are sampled. Stages are not compared with one another: their reports may cross.
  absl::Status Take(const StageReport& report);

 private:
  // How many micro-batches have got so far, at one stage.
  struct Progress {
    MicroBatchId delivered = 0;
    MicroBatchId started = 0;
    MicroBatchId computed = 0;
    MicroBatchId sent = 0;
  };

  int stages_;
  std::vector<Progress> progress_;
  MicroBatchId launched_ = 0;
  std::deque<size_t> samples_;  // of those that the last stage has not computed
};

}  // namespace fabricast

#endif  // FABRICAST_RUNTIME_CONTROL_REPORT_ORDER_H_
