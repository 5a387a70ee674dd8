#include "runtime/metrics/condition.h"

#include <cmath>

#include "absl/status/status.h"
#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/strip.h"
#include "runtime/check.h"
#include "runtime/metrics/metric_path.h"

namespace fabricast {
namespace {

bool Compare(double left, absl::string_view op, double right) {
  if (op == ">") return left > right;
  if (op == ">=") return left >= right;
  if (op == "<") return left < right;
  FABRICAST_CHECK(op == "<=") << op;
  return left <= right;
}

// MetricAt, which gives 0 for a distribution without samples: no condition can be judged by that.
absl::StatusOr<double> MeasuredAt(const Result& result, const std::string& metric) {
  const size_t dot = metric.rfind('.');
  if (dot != std::string::npos) {
    const absl::StatusOr<double> samples = MetricAt(result, metric.substr(0, dot) + ".count");
    if (samples.ok() && *samples == 0 && metric.substr(dot) != ".count") {
      return absl::NotFoundError(absl::StrCat(
          "metric '", metric, "': this run has no value for it, no request got there"));
    }
  }
  return MetricAt(result, metric);
}

}  // namespace

absl::StatusOr<Condition> ParseCondition(absl::string_view text) {
  const auto bad = [&](absl::string_view why) {
    return absl::InvalidArgumentError(
        absl::StrCat("condition '", text, "': ", why,
                     "; write METRIC OP VALUE, such as 'tpot.p50 > +1%' or 'ttft.p99 > 6s'"));
  };
  const size_t at = text.find_first_of("<>");
  if (at == absl::string_view::npos) return bad("no >, >=, < or <=");
  Condition condition;
  condition.text = std::string(absl::StripAsciiWhitespace(text));
  condition.metric = std::string(absl::StripAsciiWhitespace(text.substr(0, at)));
  if (condition.metric.empty()) return bad("no metric");
  absl::string_view rest = text.substr(at + 1);
  condition.op = std::string(text.substr(at, 1));
  if (absl::ConsumePrefix(&rest, "=")) condition.op += "=";
  rest = absl::StripAsciiWhitespace(rest);
  if (rest.empty()) return bad("no value");

  const bool is_signed = rest.front() == '+' || rest.front() == '-';
  double scale = 1;
  bool percent = false;
  if (absl::ConsumeSuffix(&rest, "%")) {
    scale = 0.01;
    percent = true;
  } else if (absl::ConsumeSuffix(&rest, "ms")) {
    scale = 1e-3;
  } else if (absl::ConsumeSuffix(&rest, "us")) {
    scale = 1e-6;
  } else {
    absl::ConsumeSuffix(&rest, "s");
  }
  double number = 0;
  if (!absl::SimpleAtod(absl::StripAsciiWhitespace(rest), &number) || !std::isfinite(number)) {
    return bad("the value is not a number with the unit %, s, ms, us or none");
  }
  condition.value = number * scale;
  condition.kind = !is_signed ? Condition::Kind::kAbsolute
                   : percent  ? Condition::Kind::kRelative
                              : Condition::Kind::kDifference;
  // Misspelt metrics come to light before anything is simulated; indices only in a run.
  if (absl::Status status = CheckMetricPath(condition.metric); !status.ok()) {
    return bad(status.message());
  }
  return condition;
}

absl::StatusOr<ConditionOutcome> Evaluate(const Condition& condition, const Result& result,
                                          const Result* baseline) {
  const absl::StatusOr<double> value = MeasuredAt(result, condition.metric);
  if (!value.ok()) return value.status();
  ConditionOutcome outcome;
  if (!condition.NeedsBaseline()) {
    outcome.holds = Compare(*value, condition.op, condition.value);
    outcome.explanation = absl::StrFormat("%s = %.6g", condition.metric, *value);
    return outcome;
  }
  if (baseline == nullptr) {
    return absl::InvalidArgumentError(
        absl::StrCat("condition '", condition.text,
                     "' is relative to a baseline, and there is one run only: "
                     "drop the sign for an absolute value, or compare two topologies"));
  }
  const absl::StatusOr<double> before = MeasuredAt(*baseline, condition.metric);
  if (!before.ok()) return before.status();
  const double difference = *value - *before;
  double measured = difference;
  if (condition.kind == Condition::Kind::kRelative) {
    // From 0, any change is beyond every percentage; no change is 0 %.
    measured = *before != 0      ? difference / std::fabs(*before)
               : difference == 0 ? 0
                                 : std::copysign(HUGE_VAL, difference);
  }
  outcome.holds = Compare(measured, condition.op, condition.value);
  outcome.explanation =
      absl::StrFormat("%s = %.6g, baseline %.6g: %+.6g%s", condition.metric, *value, *before,
                      condition.kind == Condition::Kind::kRelative ? 100 * measured : measured,
                      condition.kind == Condition::Kind::kRelative ? " %" : "");
  return outcome;
}

}  // namespace fabricast
