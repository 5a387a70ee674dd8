// Conditions on metrics that end a CI job: --fail-if 'tpot.p50 > +1%'.
#ifndef FABRICAST_RUNTIME_METRICS_CONDITION_H_
#define FABRICAST_RUNTIME_METRICS_CONDITION_H_

#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "runtime/metrics/result.pb.h"

namespace fabricast {

// METRIC OP VALUE, OP one of > >= < <=. VALUE is
// - relative to the baseline, with a sign and %: `tpot.p50 > +1%` is more than 1 % above it,
//   `output_tokens_per_s < -5%` more than 5 % below;
// - a difference to the baseline, with a sign: `ttft.p99 > +200ms` is 200 ms above it;
// - absolute, without: `ttft.p99 > 6s`, `stages[2].bubble_fraction > 30%` (0.3).
// Units are s, ms, us, %, or none for the metric's own.
struct Condition {
  enum class Kind { kAbsolute, kDifference, kRelative };
  std::string text;
  std::string metric;
  std::string op;
  double value = 0;
  Kind kind = Kind::kAbsolute;

  bool NeedsBaseline() const { return kind != Kind::kAbsolute; }
};

// kInvalidArgument if `text` has another form or no run has such a metric.
absl::StatusOr<Condition> ParseCondition(absl::string_view text);

struct ConditionOutcome {
  bool holds = false;
  std::string explanation;  // "tpot.p50 = 0.1402, baseline 0.1361: +3.01249 %"
};

// `baseline` may be null if !condition.NeedsBaseline(). Errors are MetricAt's, and
// kNotFound where a distribution has no samples.
absl::StatusOr<ConditionOutcome> Evaluate(const Condition& condition, const Result& result,
                                          const Result* baseline);

}  // namespace fabricast

#endif  // FABRICAST_RUNTIME_METRICS_CONDITION_H_
