// --fail-if: conditions on results that end a command with a status of its own.
#ifndef FABRICAST_TOOLS_FABRICAST_GUARDS_H_
#define FABRICAST_TOOLS_FABRICAST_GUARDS_H_

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "runtime/metrics/condition.h"
#include "runtime/metrics/result.pb.h"

namespace fabricast {

inline constexpr int kExitConditionHolds = 3;

// Of the flag's texts. kInvalidArgument if one cannot be read, or is against a baseline and there
// is none.
absl::StatusOr<std::vector<Condition>> ParseConditions(const std::vector<std::string>& texts,
                                                       bool baseline);

// Evaluates the conditions on every result (relative ones not on the first, the baseline) and says
// on standard error which hold. Returns the exit status: 0 or kExitConditionHolds.
absl::StatusOr<int> CheckConditions(const std::vector<Condition>& conditions,
                                    const std::vector<Result>& results);

}  // namespace fabricast

#endif  // FABRICAST_TOOLS_FABRICAST_GUARDS_H_
