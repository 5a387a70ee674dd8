#include "kernels/attention/attention_reference.h"

#include <cmath>
#include <vector>

#include "gtest/gtest.h"

namespace fabricast {
namespace {

TEST(AttentionReferenceTest, OneTokenIsItsValue) {
  const AttentionReferenceOutput out =
      AttentionReference({3, -4}, {100, 200}, {-5, 7}, /*scale=*/0.5);
  EXPECT_EQ(out.output, (std::vector<double>{-5, 7}));
  EXPECT_EQ(out.absolute, (std::vector<double>{5, 7}));
  EXPECT_EQ(out.max_score, (3 * 100 + 4 * 200) * 0.5);
}

TEST(AttentionReferenceTest, TokensOfEqualScoresAreAveraged) {
  const AttentionReferenceOutput out =
      AttentionReference({1, 1}, {1, 2, 2, 1, 3, 0}, {1, 0, 2, 0, 6, 3}, /*scale=*/1);
  EXPECT_DOUBLE_EQ(out.output[0], 3);
  EXPECT_DOUBLE_EQ(out.output[1], 1);
}

// Weights e^(0.5 x 2) : e^0 = e : 1.
TEST(AttentionReferenceTest, WeightsAreExponentialsOfScaledScores) {
  const AttentionReferenceOutput out = AttentionReference({2}, {1, 0}, {1, 0}, /*scale=*/0.5);
  EXPECT_DOUBLE_EQ(out.output[0], std::exp(1) / (std::exp(1) + 1));
}

TEST(AttentionReferenceTest, ScoresBeyondTheExponentialsRangeAreSafe) {
  const AttentionReferenceOutput out =
      AttentionReference({1}, {1e6f, 1e6f - 1, -1e6f}, {1, 2, 1e9f}, /*scale=*/1);
  EXPECT_NEAR(out.output[0], (std::exp(1) + 2) / (std::exp(1) + 1), 1e-12);
}

}  // namespace
}  // namespace fabricast
