#ifndef FABRICAST_RUNTIME_WORKLOAD_NUMBERS_H_
#define FABRICAST_RUNTIME_WORKLOAD_NUMBERS_H_

#include <cstdint>
#include <optional>

#include "absl/strings/string_view.h"

namespace fabricast {

// Decimal digits and nothing else, at most 18 of them. absl::SimpleAtoi also takes signs and
// spaces.
std::optional<int64_t> ParseWhole(absl::string_view text);

// A finite decimal number such as "0.5" or "1e-3", without spaces.
std::optional<double> ParseReal(absl::string_view text);

}  // namespace fabricast

#endif  // FABRICAST_RUNTIME_WORKLOAD_NUMBERS_H_
