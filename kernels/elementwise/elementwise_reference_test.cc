#include "kernels/elementwise/elementwise_reference.h"

#include <numeric>

#include "gtest/gtest.h"

namespace fabricast {
namespace {

TEST(ElementwiseReferenceTest, NormBringsTheMeanSquareToTheGains) {
  const std::vector<double> row = {3, -4, 0, 12};  // Mean square 169 / 4.
  const std::vector<float> gain = {1, 1, 1, 2};
  const std::vector<double> result = RmsNormReference(row, gain, 0);
  EXPECT_DOUBLE_EQ(result[0], 3 / 6.5);
  EXPECT_DOUBLE_EQ(result[1], -4 / 6.5);
  EXPECT_DOUBLE_EQ(result[3], 2 * 12 / 6.5);
  // sqrt(42.25 + 57.75) = 10.
  EXPECT_DOUBLE_EQ(RmsNormReference(row, gain, 57.75)[1], -0.4);
}

TEST(ElementwiseReferenceTest, SwiGluPassesLargeGatesAndStopsNegativeOnes) {
  EXPECT_DOUBLE_EQ(SwiGluReference(0, 5), 0);
  EXPECT_DOUBLE_EQ(SwiGluReference(1, 2), 2 / (1 + std::exp(-1)));
  EXPECT_NEAR(SwiGluReference(50, 2), 100, 1e-12);
  EXPECT_NEAR(SwiGluReference(-50, 2), 0, 1e-18);
}

TEST(ElementwiseReferenceTest, RopeLeavesScoresToTheDistanceOfPositions) {
  const std::vector<float> frequencies = {1, 0.25F};
  const std::vector<double> query = {1, -2, 3, 0.5}, key = {-1, 0.25, 2, 4};
  const auto score = [&](int32_t query_position, int32_t key_position) {
    const std::vector<double> q = RopeReference(query, query_position, frequencies);
    const std::vector<double> k = RopeReference(key, key_position, frequencies);
    return std::inner_product(q.begin(), q.end(), k.begin(), 0.);
  };
  EXPECT_NEAR(score(7, 3), score(1004, 1000), 1e-12);
  EXPECT_NEAR(score(5, 5), std::inner_product(query.begin(), query.end(), key.begin(), 0.), 1e-12);
  EXPECT_GT(std::abs(score(7, 3) - score(7, 4)), 0.1);
}

TEST(ElementwiseReferenceTest, RopeTurnsPairsHalfAHeadApart) {
  // Position 1 at 90 degrees: (x, y) -> (-y, x).
  const std::vector<double> turned =
      RopeReference(std::vector<double>{1, 2, 3, 4}, 1, std::vector<float>{1.57079633F, 0});
  EXPECT_NEAR(turned[0], -3, 1e-6);
  EXPECT_NEAR(turned[2], 1, 1e-6);
  EXPECT_DOUBLE_EQ(turned[1], 2);
  EXPECT_DOUBLE_EQ(turned[3], 4);
}

}  // namespace
}  // namespace fabricast
