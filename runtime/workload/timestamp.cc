#include "runtime/workload/timestamp.h"

#include "absl/strings/ascii.h"
#include "absl/strings/strip.h"
#include "absl/time/civil_time.h"

namespace fabricast {
namespace {

// Takes exactly `digits` digits from the front of `text`; -1 if they are not there.
int64_t ConsumeDigits(absl::string_view* text, size_t digits) {
  if (text->size() < digits) return -1;
  int64_t value = 0;
  for (char c : text->substr(0, digits)) {
    if (!absl::ascii_isdigit(c)) return -1;
    value = 10 * value + (c - '0');
  }
  text->remove_prefix(digits);
  return value;
}

// ".68059": 680'590'000 ns. Nothing: 0. -1 if there is a dot without 1 to 9 digits.
int64_t ConsumeFractionNs(absl::string_view* text) {
  if (!absl::ConsumePrefix(text, ".")) return 0;
  int64_t ns = 0;
  int digits = 0;
  for (; !text->empty() && absl::ascii_isdigit(text->front()); text->remove_prefix(1), ++digits) {
    if (digits == 9) return -1;
    ns = 10 * ns + (text->front() - '0');
  }
  if (digits == 0) return -1;
  for (; digits < 9; ++digits) ns *= 10;
  return ns;
}

// "", "Z", "+01:30": seconds to subtract.
std::optional<int64_t> ParseOffset(absl::string_view text) {
  if (text.empty() || text == "Z") return 0;
  const int64_t sign = text[0] == '+' ? 1 : -1;
  if (!absl::ConsumePrefix(&text, "+") && !absl::ConsumePrefix(&text, "-")) return std::nullopt;
  const int64_t hours = ConsumeDigits(&text, 2);
  const bool colon = absl::ConsumePrefix(&text, ":");
  const int64_t minutes = ConsumeDigits(&text, 2);
  if (!colon || !text.empty() || hours < 0 || hours > 23 || minutes < 0 || minutes > 59) {
    return std::nullopt;
  }
  return sign * (hours * 3600 + minutes * 60);
}

}  // namespace

std::optional<int64_t> ParseTimestampNs(absl::string_view text) {
  const int64_t year = ConsumeDigits(&text, 4);
  if (!absl::ConsumePrefix(&text, "-")) return std::nullopt;
  const int64_t month = ConsumeDigits(&text, 2);
  if (!absl::ConsumePrefix(&text, "-")) return std::nullopt;
  const int64_t day = ConsumeDigits(&text, 2);
  if (!absl::ConsumePrefix(&text, " ") && !absl::ConsumePrefix(&text, "T")) return std::nullopt;
  const int64_t hour = ConsumeDigits(&text, 2);
  if (!absl::ConsumePrefix(&text, ":")) return std::nullopt;
  const int64_t minute = ConsumeDigits(&text, 2);
  if (!absl::ConsumePrefix(&text, ":")) return std::nullopt;
  const int64_t second = ConsumeDigits(&text, 2);
  const int64_t fraction_ns = ConsumeFractionNs(&text);
  const std::optional<int64_t> offset_s = ParseOffset(text);
  if (year < 1970 || year > 2261 || fraction_ns < 0 || !offset_s) return std::nullopt;

  // CivilSecond carries 30 February over to March and -1 (from ConsumeDigits) to the month before:
  // whatever it has changed was no date.
  const absl::CivilSecond civil(year, month, day, hour, minute, second);
  if (civil.month() != month || civil.day() != day || civil.hour() != hour ||
      civil.minute() != minute || civil.second() != second) {
    return std::nullopt;
  }
  const int64_t seconds = civil - absl::CivilSecond(1970, 1, 1) - *offset_s;
  return seconds * 1'000'000'000 + fraction_ns;
}

}  // namespace fabricast
