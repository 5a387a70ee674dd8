#include "runtime/workload/lengths.h"

#include <algorithm>
#include <cmath>
#include <optional>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "boost/random/exponential_distribution.hpp"
#include "boost/random/normal_distribution.hpp"
#include "boost/random/uniform_int_distribution.hpp"
#include "runtime/workload/numbers.h"

namespace fabricast {
namespace {

constexpr double kMaxSigma = 10;  // e^10: far beyond any workload

absl::Status Unknown(absl::string_view text) {
  return absl::InvalidArgumentError(absl::StrFormat(
      "\"%s\": give a whole number from 1 to %d, uniform(LO;HI), lognormal(MEDIAN;SIGMA;MAX) or "
      "exponential(MEAN;MAX), with LO up to HI, MEDIAN or MEAN from 1 to MAX, SIGMA from 0 to %g",
      absl::CHexEscape(text.substr(0, 80)), kMaxTokens, kMaxSigma));
}

std::optional<int64_t> ParseTokens(absl::string_view text) {
  const std::optional<int64_t> value = ParseWhole(text);
  if (!value || *value < 1 || *value > kMaxTokens) return std::nullopt;
  return value;
}

std::optional<double> ParseCenter(absl::string_view text) {
  const std::optional<double> value = ParseReal(text);
  if (!value || *value < 1 || *value > kMaxTokens) return std::nullopt;
  return value;
}

}  // namespace

absl::StatusOr<LengthDistribution> LengthDistribution::Parse(absl::string_view text) {
  LengthDistribution result;
  if (const std::optional<int64_t> tokens = ParseTokens(text)) {
    result.lo_ = result.hi_ = *tokens;
    return result;
  }
  const size_t open = text.find('(');
  absl::string_view inside = text.substr(std::min(open, text.size()));
  if (!absl::ConsumePrefix(&inside, "(") || !absl::ConsumeSuffix(&inside, ")")) {
    return Unknown(text);
  }
  const absl::string_view name = text.substr(0, open);
  const std::vector<absl::string_view> numbers = absl::StrSplit(inside, ';');
  const std::optional<int64_t> max = ParseTokens(numbers.back());
  if (!max) return Unknown(text);
  result.hi_ = *max;
  if (name == "uniform" && numbers.size() == 2) {
    const std::optional<int64_t> lo = ParseTokens(numbers[0]);
    if (!lo || *lo > *max) return Unknown(text);
    result.kind_ = Kind::kUniform;
    result.lo_ = *lo;
    return result;
  }
  const std::optional<double> center = ParseCenter(numbers[0]);
  if (!center || *center > static_cast<double>(*max)) return Unknown(text);
  result.center_ = *center;
  if (name == "lognormal" && numbers.size() == 3) {
    const std::optional<double> sigma = ParseReal(numbers[1]);
    if (!sigma || *sigma < 0 || *sigma > kMaxSigma) return Unknown(text);
    result.kind_ = Kind::kLognormal;
    result.sigma_ = *sigma;
    return result;
  }
  if (name == "exponential" && numbers.size() == 2) {
    result.kind_ = Kind::kExponential;
    return result;
  }
  return Unknown(text);
}

int64_t LengthDistribution::Draw(boost::random::mt19937_64& random) const {
  double value = 0;
  switch (kind_) {
    case Kind::kFixed:
      return lo_;
    case Kind::kUniform:
      return boost::random::uniform_int_distribution<int64_t>(lo_, hi_)(random);
    case Kind::kLognormal:
      value = center_ * std::exp(sigma_ * boost::random::normal_distribution<double>()(random));
      break;
    case Kind::kExponential:
      value = center_ * boost::random::exponential_distribution<double>()(random);
      break;
  }
  return static_cast<int64_t>(std::clamp(std::round(value), 1.0, static_cast<double>(hi_)));
}

std::string LengthDistribution::Description() const {
  switch (kind_) {
    case Kind::kFixed:
      return absl::StrCat(lo_);
    case Kind::kUniform:
      return absl::StrCat("uniform ", lo_, " to ", hi_);
    case Kind::kLognormal:
      return absl::StrCat("lognormal (median ", center_, ", sigma ", sigma_, ", at most ", hi_,
                          ")");
    case Kind::kExponential:
      return absl::StrCat("exponential (mean ", center_, ", at most ", hi_, ")");
  }
  return "";
}

}  // namespace fabricast
