// Any text is a refusal or a condition that can be judged, and that reads the same when it is
// written again.
#include <cmath>
#include <cstdint>
#include <cstdlib>

#include "runtime/metrics/condition.h"

namespace {

fabricast::Result SomeRun() {
  fabricast::Result run;
  run.mutable_tpot()->set_count(1);
  run.mutable_tpot()->set_p50(0.125);
  for (int i = 0; i < 3; ++i) {
    run.add_stages()->set_bubble_fraction(0.25);
    run.add_hops()->set_exposed_s(0.5);
  }
  return run;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const fabricast::Result run = SomeRun();
  const absl::string_view text(reinterpret_cast<const char*>(data), size);
  const absl::StatusOr<fabricast::Condition> condition = fabricast::ParseCondition(text);
  if (!condition.ok()) {
    if (!absl::IsInvalidArgument(condition.status())) abort();
    return 0;
  }
  if (condition->metric.empty() || !std::isfinite(condition->value)) abort();
  const absl::StatusOr<fabricast::ConditionOutcome> outcome =
      fabricast::Evaluate(*condition, run, &run);
  if (!outcome.ok() && !absl::IsNotFound(outcome.status()) &&
      !absl::IsOutOfRange(outcome.status())) {
    abort();
  }
  const absl::StatusOr<fabricast::Condition> again = fabricast::ParseCondition(condition->text);
  if (!again.ok() || again->metric != condition->metric || again->op != condition->op ||
      again->value != condition->value || again->kind != condition->kind) {
    abort();
  }
  return 0;
}
