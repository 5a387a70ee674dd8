#include <cmath>
#include <cstdint>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "nlohmann/json.hpp"
#include "runtime/workload/lengths.h"
#include "runtime/workload/trace.h"

namespace fabricast {
namespace {

using Json = nlohmann::json;

constexpr size_t kMaxLineBytes = 1'000'000;
constexpr double kMaxArrivalS = 1e12;  // 30,000 years: a time in other units, surely

// A field of a row under our name or Mooncake's.
struct Field {
  const char* own;
  const char* mooncake;
};
constexpr Field kArrival = {.own = "arrival_s", .mooncake = "timestamp"};
constexpr Field kPrompt = {.own = "prompt_tokens", .mooncake = "input_length"};
constexpr Field kOutput = {.own = "output_tokens", .mooncake = "output_length"};

struct Found {
  const char* name;
  const Json* value;
};

absl::StatusOr<Found> Find(const Json& row, const Field& field) {
  const auto own = row.find(field.own);
  const auto mooncake = row.find(field.mooncake);
  if ((own == row.end()) == (mooncake == row.end())) {
    return absl::InvalidArgumentError(absl::StrCat(own == row.end() ? "neither " : "both ",
                                                   field.own, own == row.end() ? " nor " : " and ",
                                                   field.mooncake, " given"));
  }
  if (own != row.end()) return Found{field.own, &*own};
  return Found{field.mooncake, &*mooncake};
}

std::string Shown(const Json& value) {
  if (value.is_structured()) return absl::StrCat("an ", value.type_name());
  return value.dump(-1, ' ', /*ensure_ascii=*/true, Json::error_handler_t::replace).substr(0, 40);
}

absl::StatusOr<double> ArrivalOf(const Json& row) {
  const absl::StatusOr<Found> found = Find(row, kArrival);
  if (!found.ok()) return found.status();
  double arrival_s = found->value->is_number() ? found->value->get<double>() : NAN;
  if (found->name == kArrival.mooncake) arrival_s /= 1e3;
  // Written so that NaN fails.
  if (!(arrival_s >= 0 && arrival_s <= kMaxArrivalS)) {
    return absl::InvalidArgumentError(
        absl::StrCat(found->name, " is ", Shown(*found->value), ", not a number of at least 0"));
  }
  return arrival_s;
}

absl::StatusOr<int64_t> TokensOf(const Json& row, const Field& field) {
  const absl::StatusOr<Found> found = Find(row, field);
  if (!found.ok()) return found.status();
  // The parser makes numbers of at least 0 unsigned, and those beyond 64 bits floating-point.
  if (!found->value->is_number_unsigned() || found->value->get<uint64_t>() > kMaxTokens) {
    return absl::InvalidArgumentError(absl::StrCat(found->name, " is ", Shown(*found->value),
                                                   ", not a whole number up to ", kMaxTokens));
  }
  return found->value->get<int64_t>();
}

absl::StatusOr<Request> ParseRow(absl::string_view text) {
  if (text.size() > kMaxLineBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat(text.size(), " bytes, and a row may have ", kMaxLineBytes));
  }
  const Json row =
      Json::parse(text.begin(), text.end(), /*cb=*/nullptr, /*allow_exceptions=*/false);
  if (!row.is_object()) {
    return absl::InvalidArgumentError(
        absl::StrCat("\"", absl::CHexEscape(text.substr(0, 40)), "\" is not a JSON object"));
  }
  const absl::StatusOr<double> arrival_s = ArrivalOf(row);
  if (!arrival_s.ok()) return arrival_s.status();
  const absl::StatusOr<int64_t> prompt = TokensOf(row, kPrompt);
  if (!prompt.ok()) return prompt.status();
  const absl::StatusOr<int64_t> output = TokensOf(row, kOutput);
  if (!output.ok()) return output.status();
  return Request{*arrival_s, *prompt, *output};
}

bool IsBlank(absl::string_view line) {
  return line.find_first_not_of(" \t\r") == absl::string_view::npos;
}

}  // namespace

absl::StatusOr<Trace> ParseJsonl(absl::string_view file, absl::string_view text) {
  TraceBuilder builder(file);
  int64_t line = 0;
  for (absl::string_view content : absl::StrSplit(text, '\n')) {
    ++line;
    if (IsBlank(content)) continue;
    const absl::StatusOr<Request> request = ParseRow(content);
    if (request.ok()) {
      builder.Add(line, *request);
    } else {
      builder.AddBadRow(line, request.status().message());
    }
  }
  return std::move(builder).Build();
}

}  // namespace fabricast
