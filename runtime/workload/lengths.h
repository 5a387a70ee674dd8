#ifndef FABRICAST_RUNTIME_WORKLOAD_LENGTHS_H_
#define FABRICAST_RUNTIME_WORKLOAD_LENGTHS_H_

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "boost/random/mersenne_twister.hpp"

namespace fabricast {

// Tokens of a prompt or an answer: at least 1, at most kMaxTokens.
constexpr int64_t kMaxTokens = 10'000'000;

// How many tokens, as a distribution. A value drawn is rounded to the nearest whole number, then
// clamped to [1, max].
class LengthDistribution {
 public:
  // "512", "uniform(LO;HI)" (both ends included), "lognormal(MEDIAN;SIGMA;MAX)" (SIGMA: of the
  // natural logarithm) or "exponential(MEAN;MAX)". The mean of what is drawn is less than the
  // distribution's own where MAX cuts it.
  static absl::StatusOr<LengthDistribution> Parse(absl::string_view text);

  int64_t Draw(boost::random::mt19937_64& random) const;

  // "512", "uniform 100 to 200", "lognormal, median 512, sigma 0.8, at most 8192".
  std::string Description() const;

 private:
  enum class Kind { kFixed, kUniform, kLognormal, kExponential };

  Kind kind_ = Kind::kFixed;
  double center_ = 1;  // median or mean
  double sigma_ = 0;
  int64_t lo_ = 1;
  int64_t hi_ = 1;
};

}  // namespace fabricast

#endif  // FABRICAST_RUNTIME_WORKLOAD_LENGTHS_H_
