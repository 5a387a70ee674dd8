#include "runtime/executor/cpu/routing.h"

#include <cmath>
#include <vector>

#include "gtest/gtest.h"

namespace fabricast {
namespace {

std::vector<ExpertChoice> Choose(const ExpertsConfig& config, std::vector<float> logits) {
  std::vector<ExpertChoice> choices(config.per_token);
  ChooseExperts(config, absl::MakeSpan(logits), absl::MakeSpan(choices));
  return choices;
}

// Probabilities 1/8, 1/2, 1/8, 1/4.
const std::vector<float>& Logits() {
  static const auto& logits = *new std::vector<float>{0, std::log(4.0f), 0, std::log(2.0f)};
  return logits;
}

TEST(RoutingTest, TakesTheLargestWithTheirSharesOfAllExperts) {
  const std::vector<ExpertChoice> choices =
      Choose({.experts = 4, .per_token = 2, .normalize = false}, Logits());
  EXPECT_EQ(choices[0].expert, 1);
  EXPECT_NEAR(choices[0].weight, 0.5, 1e-6);
  EXPECT_EQ(choices[1].expert, 3);
  EXPECT_NEAR(choices[1].weight, 0.25, 1e-6);
}

TEST(RoutingTest, NormalisesTheSharesOfTheChosen) {
  const std::vector<ExpertChoice> choices =
      Choose({.experts = 4, .per_token = 2, .normalize = true}, Logits());
  EXPECT_NEAR(choices[0].weight, 2.0 / 3, 1e-6);
  EXPECT_NEAR(choices[1].weight, 1.0 / 3, 1e-6);
}

TEST(RoutingTest, OfEqualExpertsTheLowerIndexAndAscending) {
  const std::vector<ExpertChoice> choices =
      Choose({.experts = 4, .per_token = 3, .normalize = false}, Logits());
  EXPECT_EQ(choices[0].expert, 0);
  EXPECT_EQ(choices[1].expert, 1);
  EXPECT_EQ(choices[2].expert, 3);
  EXPECT_EQ(Choose({.experts = 3, .per_token = 1}, {5, 5, 5})[0].expert, 0);
}

TEST(RoutingTest, LargeLogitsDoNotOverflow) {
  EXPECT_NEAR(Choose({.experts = 2, .per_token = 1}, {1000, 999})[0].weight, 1, 1e-6);
  EXPECT_NEAR(Choose({.experts = 2, .per_token = 1, .normalize = false}, {-1000, -1000})[0].weight,
              0.5, 1e-6);
}

// Tokens 0 and 2 go to expert 2, and so on.
TEST(RoutingTest, GathersRowsByExpertInOrder) {
  ExpertRows rows;
  const std::vector<ExpertChoice> choices = {{0, 1}, {2, 1}, {0, 1}, {1, 1}, {1, 1}, {2, 1}};
  GatherByExpert({.experts = 4, .per_token = 2}, choices, rows);
  EXPECT_EQ(rows.first_row, (std::vector<int64_t>{0, 2, 4, 6, 6}));
  EXPECT_EQ(rows.source, (std::vector<int64_t>{0, 1, 1, 2, 0, 2}));
  EXPECT_EQ(rows.gathered, (std::vector<int64_t>{0, 4, 1, 2, 3, 5}));
}

}  // namespace
}  // namespace fabricast
