#include "runtime/workload/numbers.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"

namespace fabricast {
namespace {

constexpr size_t kMaxDigits = 18;  // 10^18 - 1 < 2^63

bool InRealNumber(char c) {
  return absl::ascii_isdigit(c) || c == '.' || c == '-' || c == '+' || c == 'e' || c == 'E';
}

}  // namespace

std::optional<int64_t> ParseWhole(absl::string_view text) {
  if (text.empty() || text.size() > kMaxDigits) return std::nullopt;
  int64_t value = 0;
  for (char c : text) {
    if (!absl::ascii_isdigit(c)) return std::nullopt;
    value = 10 * value + (c - '0');
  }
  return value;
}

std::optional<double> ParseReal(absl::string_view text) {
  double value = 0;
  if (!std::all_of(text.begin(), text.end(), InRealNumber) || !absl::SimpleAtod(text, &value) ||
      !std::isfinite(value)) {
    return std::nullopt;
  }
  return value;
}

}  // namespace fabricast
