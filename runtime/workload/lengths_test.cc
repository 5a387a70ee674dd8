#include "runtime/workload/lengths.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace fabricast {
namespace {

using ::testing::HasSubstr;

constexpr int kDraws = 100'000;

std::vector<int64_t> Draws(const std::string& text) {
  const absl::StatusOr<LengthDistribution> lengths = LengthDistribution::Parse(text);
  if (!lengths.ok()) {
    ADD_FAILURE() << lengths.status();
    return {1};
  }
  boost::random::mt19937_64 random(1);
  std::vector<int64_t> draws(kDraws);
  for (int64_t& draw : draws) draw = lengths->Draw(random);
  return draws;
}

double Mean(const std::vector<int64_t>& values) {
  double sum = 0;
  for (int64_t value : values) sum += value;
  return sum / values.size();
}

TEST(LengthsTest, ANumberIsFixed) {
  EXPECT_THAT(Draws("512"), ::testing::Each(512));
  EXPECT_EQ(LengthDistribution::Parse("512")->Description(), "512");
}

// Tolerances are four standard errors of the mean, sd / sqrt(100,000).

TEST(LengthsTest, UniformReachesBothEnds) {
  const std::vector<int64_t> draws = Draws("uniform(10;20)");
  const auto [least, most] = std::minmax_element(draws.begin(), draws.end());
  EXPECT_EQ(*least, 10);
  EXPECT_EQ(*most, 20);
  // sd of 11 equal values: sqrt((11^2 - 1) / 12) = 3.16; 4 x 3.16 / 316 = 0.04.
  EXPECT_NEAR(Mean(draws), 15, 0.04);
}

TEST(LengthsTest, LognormalHasItsMedianAndMean) {
  std::vector<int64_t> draws = Draws("lognormal(512;0.8;10000000)");
  // mean = 512 exp(0.8^2 / 2) = 705.1; sd = mean sqrt(exp(0.8^2) - 1) = 667.6; 4 x 667.6 / 316
  // = 8.4.
  EXPECT_NEAR(Mean(draws), 705.1, 8.4);
  std::nth_element(draws.begin(), draws.begin() + kDraws / 2, draws.end());
  // The median's standard error is sqrt(pi / 2) sigma median / sqrt(n) = 1.25 x 0.8 x 512 / 316
  // = 1.6.
  EXPECT_NEAR(draws[kDraws / 2], 512, 6.5);
}

TEST(LengthsTest, ExponentialHasItsMean) {
  // sd = mean = 500; 4 x 500 / 316 = 6.3.
  EXPECT_NEAR(Mean(Draws("exponential(500;10000000)")), 500, 6.3);
}

TEST(LengthsTest, DrawsStayWithinOneAndTheMaximum) {
  for (const char* text : {"exponential(1;3)", "lognormal(2;3;5)"}) {
    const std::vector<int64_t> draws = Draws(text);
    const auto [least, most] = std::minmax_element(draws.begin(), draws.end());
    EXPECT_EQ(*least, 1) << text;
    EXPECT_EQ(*most, text[0] == 'e' ? 3 : 5) << text;
  }
}

TEST(LengthsTest, SigmaZeroIsTheMedian) {
  EXPECT_THAT(Draws("lognormal(300;0;400)"), ::testing::Each(300));
}

TEST(LengthsTest, EverythingElseIsRefusedWithTheForms) {
  for (const char* text : {"",
                           "0",
                           "-1",
                           "1.5",
                           "+5",
                           " 5",
                           "10000001",
                           "99999999999999999999",
                           "nan",
                           "five",
                           "uniform",
                           "uniform()",
                           "uniform(1)",
                           "uniform(5;2)",
                           "uniform(0;2)",
                           "uniform(1;2;3)",
                           "uniform(1;2",
                           "uniform 1;2)",
                           "Uniform(1;2)",
                           "lognormal(512;0.8)",
                           "lognormal(512;-1;600)",
                           "lognormal(512;nan;600)",
                           "lognormal(512;11;600)",
                           "lognormal(512;0.8;100)",
                           "lognormal(0.5;0.8;100)",
                           "exponential(0;10)",
                           "exponential(5)",
                           "exponential(50;10)",
                           "exponential(inf;10)",
                           "zipf(1;10)",
                           "(1;10)",
                           "uniform(1;2))"}) {
    const absl::Status status = LengthDistribution::Parse(text).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << text;
    EXPECT_THAT(std::string(status.message()), HasSubstr("give a whole number from 1 to 10000000"));
  }
}

}  // namespace
}  // namespace fabricast
