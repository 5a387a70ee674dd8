#include "runtime/workload/synthetic_trace.h"

#include <cmath>
#include <cstdint>
#include <numbers>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "boost/random/exponential_distribution.hpp"
#include "boost/random/mersenne_twister.hpp"
#include "boost/random/uniform_01.hpp"
#include "runtime/workload/lengths.h"

namespace fabricast {
namespace {

constexpr double kDurationS = 3600;
// The mean over the hour is kBaseRate * (1 + (kBurstFactor - 1) * 5 bursts * 40 s / 3600 s) = 0.125
// * 1.11 = 0.139/s: 500 requests.
constexpr double kBaseRate = 0.125;
constexpr double kSwell = 0.5;
constexpr double kBurstFactor = 3;
constexpr double kBurstS = 40;
constexpr double kBurstStartsS[] = {410, 1130, 1490, 2350, 3070};

double RateAt(double time_s) {
  double rate = kBaseRate * (1 + kSwell * std::sin(2 * std::numbers::pi * time_s / kDurationS));
  for (double start_s : kBurstStartsS) {
    if (start_s <= time_s && time_s < start_s + kBurstS) rate *= kBurstFactor;
  }
  return rate;
}

}  // namespace

std::string SyntheticHourCsv() {
  boost::random::mt19937_64 random(20'260'101);
  const LengthDistribution input = LengthDistribution::Parse("lognormal(700;1;8192)").value();
  const LengthDistribution output = LengthDistribution::Parse("lognormal(150;0.7;1024)").value();
  // Thinning (Lewis and Shedler, 1979): draw at the highest rate, keep each arrival with
  // probability rate / highest.
  constexpr double kHighestRate = kBaseRate * (1 + kSwell) * kBurstFactor;
  boost::random::exponential_distribution<double> gap(kHighestRate);
  boost::random::uniform_01<double> uniform;
  std::string csv = "TIMESTAMP,ContextTokens,GeneratedTokens\n";
  for (double time_s = gap(random); time_s < kDurationS; time_s += gap(random)) {
    if (uniform(random) * kHighestRate >= RateAt(time_s)) continue;
    const int64_t prompt_tokens = input.Draw(random);
    const int64_t output_tokens = output.Draw(random);
    // The day begins at midnight, so only minutes and seconds need working out. Azure writes seven
    // digits; we draw milliseconds.
    const int64_t ms = static_cast<int64_t>(time_s * 1e3);
    absl::StrAppendFormat(&csv, "2026-01-01 00:%02d:%02d.%03d0000,%d,%d\n", ms / 60'000,
                          ms / 1'000 % 60, ms % 1'000, prompt_tokens, output_tokens);
  }
  return csv;
}

}  // namespace fabricast
