// Steps and reports as messages. What comes from a message is checked completely: a message that
// makes no sense is an error, never a crash.
#ifndef FABRICAST_RUNTIME_CONTROL_STEP_MESSAGE_H_
#define FABRICAST_RUNTIME_CONTROL_STEP_MESSAGE_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "runtime/control/control.pb.h"
#include "runtime/engine/stages.h"
#include "runtime/executor/stage_executor.h"

namespace fabricast {

control::Step ToMessage(const Step& step, int64_t generation);

// kInvalidArgument unless the lists fit together, counts and positions make sense and the sampling
// parameters are valid.
absl::StatusOr<std::shared_ptr<const Step>> FromMessage(const control::Step& message);

// Messages of at most kMaxBytesFromStage; several, where the tokens do not fit into one.
std::vector<control::Reports> ToMessages(const std::vector<StageReport>& reports,
                                         int64_t generation);

// Puts one stage's reports together again.
class ReportReader {
 public:
  // Of `stage`, whose clock is `offset_ns` ahead of this process's. kInvalidArgument as above, also
  // if more than kMaxSampled tokens were to be kept.
  absl::StatusOr<std::vector<StageReport>> Take(const control::Reports& message, int stage,
                                                int64_t offset_ns);

  static constexpr size_t kMaxSampled = 1 << 20;  // of one micro-batch, alternatives included

 private:
  std::vector<SampledToken> sampled_;  // of a report that goes on
  size_t size_ = 0;
};

}  // namespace fabricast

#endif  // FABRICAST_RUNTIME_CONTROL_STEP_MESSAGE_H_
