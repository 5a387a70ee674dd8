#ifndef FABRICAST_RUNTIME_WORKLOAD_TIMESTAMP_H_
#define FABRICAST_RUNTIME_WORKLOAD_TIMESTAMP_H_

#include <cstdint>
#include <optional>

#include "absl/strings/string_view.h"

namespace fabricast {

// Nanoseconds since 1970 of "2023-11-16 18:15:46.6805900", exactly: up to 9 digits after the
// second, 'T' or a space before the hour, and at the end nothing (UTC), 'Z' or an offset such as
// "+00:00". Years 1970 to 2261, which fit 64 bits; leap seconds are refused.
std::optional<int64_t> ParseTimestampNs(absl::string_view text);

}  // namespace fabricast

#endif  // FABRICAST_RUNTIME_WORKLOAD_TIMESTAMP_H_
