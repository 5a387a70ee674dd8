#include "tools/fabricast/guards.h"

#include <iostream>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace fabricast {

absl::StatusOr<std::vector<Condition>> ParseConditions(const std::vector<std::string>& texts,
                                                       bool baseline) {
  std::vector<Condition> conditions;
  for (const std::string& text : texts) {
    absl::StatusOr<Condition> condition = ParseCondition(text);
    if (!condition.ok()) return condition.status();
    if (condition->NeedsBaseline() && !baseline) {
      return absl::InvalidArgumentError(
          absl::StrCat("--fail-if '", text,
                       "' is against a baseline, and there is one "
                       "topology: drop the sign or use `fabricast compare`"));
    }
    conditions.push_back(*std::move(condition));
  }
  return conditions;
}

absl::StatusOr<int> CheckConditions(const std::vector<Condition>& conditions,
                                    const std::vector<Result>& results) {
  int status = 0;
  for (size_t i = 0; i < results.size(); ++i) {
    for (const Condition& condition : conditions) {
      if (condition.NeedsBaseline() && i == 0) continue;
      absl::StatusOr<ConditionOutcome> outcome = Evaluate(condition, results[i], &results[0]);
      if (!outcome.ok()) return outcome.status();
      if (!outcome->holds) continue;
      std::cerr << "fabricast: " << results[i].label() << ": --fail-if '" << condition.text
                << "' holds: " << outcome->explanation << "\n";
      status = kExitConditionHolds;
    }
  }
  return status;
}

}  // namespace fabricast
