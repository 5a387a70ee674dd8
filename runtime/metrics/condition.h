// Conditions on metrics that end a CI job: --fail-if 'tpot.p50 > +1%'.
#ifndef FABRICAST_RUNTIME_METRICS_CONDITION_H_
#define FABRICAST_RUNTIME_METRICS_CONDITION_H_

#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "runtime/metrics/result.pb.h"

namespace fabricast {

// METRIC OP VALUE, OP one of > >= < <=.
//   tpot.p50 > +1%              more than 1 % above the baseline       (a sign and %: relative to
//   the baseline) output_tokens_per_s < -5%   more than 5 % below the baseline ttft.p99 > +200ms
//   200 ms above the baseline              (a sign: difference to the baseline) ttft.p99 > 6s
//   absolute; units s, ms, us, or none for the metric's own stages[2].bubble_fraction > 30%
//   absolute, 0.3
struct Condition {
  enum class Kind { kAbsolute, kDifference, kRelative };
  std::string text;
  std::string metric;
  std::string op;
  double value = 0;
  Kind kind = Kind::kAbsolute;

  bool NeedsBaseline() const { return kind != Kind::kAbsolute; }
};

absl::StatusOr<Condition> ParseCondition(absl::string_view text);

struct ConditionOutcome {
  bool holds = false;
  std::string explanation;  // "tpot.p50 = 0.1402 s, baseline 0.1361 s: +3.0 %"
};

// `baseline` may be null if !condition.NeedsBaseline(). Errors are MetricAt's.
absl::StatusOr<ConditionOutcome> Evaluate(const Condition& condition, const Result& result,
                                          const Result* baseline);

}  // namespace fabricast

#endif  // FABRICAST_RUNTIME_METRICS_CONDITION_H_
