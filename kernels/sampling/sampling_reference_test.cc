#include "kernels/sampling/sampling_reference.h"

#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "gtest/gtest.h"

namespace fabricast {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// Tokens that are drawn for uniform numbers all over [0, 1).
std::vector<int32_t> Drawn(const std::vector<float>& logits, const GpuSamplingRow& row) {
  const SamplingReference reference(logits, row, {});
  std::vector<int32_t> drawn;
  for (int i = 0; i < 1000; ++i) {
    const int32_t token = reference.Draw(i / 1000.);
    if (drawn.empty() || drawn.back() != token) drawn.push_back(token);
  }
  return drawn;
}

TEST(SamplingReferenceTest, GreedyIsTheLowestOfEqualLogits) {
  EXPECT_EQ(SamplingReference(std::vector<float>{1, 3, 2, 3}, {}, {}).greedy(), 1);
}

// 3 / 2 < 2, and -1 x 2 < -1.5.
TEST(SamplingReferenceTest, PenaltyDividesPositiveAndMultipliesNegativeLogitsOfTheHistory) {
  const GpuSamplingRow row = {.repetition_penalty = 2, .history = 0};
  const std::vector<uint32_t> first = {1};
  EXPECT_EQ(SamplingReference(std::vector<float>{3, 2, 0}, row, first).greedy(), 1);
  EXPECT_EQ(SamplingReference(std::vector<float>{-1, -1.5}, row, first).greedy(), 1);
  EXPECT_EQ(SamplingReference(std::vector<float>{3, 2, 0}, row, first).largest(), 3);
}

TEST(SamplingReferenceTest, DrawsInTheOrderOfIdsByProbability) {
  // 1/4, 1/2, 1/4.
  const std::vector<float> logits = {0, std::log(2.0f), 0};
  const SamplingReference reference(logits, {.temperature = 1}, {});
  EXPECT_EQ(reference.Draw(0), 0);
  EXPECT_EQ(reference.Draw(0.2499), 0);
  EXPECT_EQ(reference.Draw(0.2501), 1);
  EXPECT_EQ(reference.Draw(0.7499), 1);
  EXPECT_EQ(reference.Draw(0.7501), 2);
}

TEST(SamplingReferenceTest, TopPKeepsTheFewestAndTheLowIdsOfEquals) {
  // 1/8, 1/2, 1/4, 1/8.
  const std::vector<float> logits = {std::log(2.0f), std::log(8.0f), std::log(4.0f),
                                     std::log(2.0f)};
  EXPECT_EQ(Drawn(logits, {.temperature = 1, .top_p = 0.49f}), (std::vector<int32_t>{1}));
  EXPECT_EQ(Drawn(logits, {.temperature = 1, .top_p = 0.51f}), (std::vector<int32_t>{1, 2}));
  EXPECT_EQ(Drawn(logits, {.temperature = 1, .top_p = 0.76f}), (std::vector<int32_t>{0, 1, 2}));
}

TEST(SamplingReferenceTest, TopKKeepsAllThatEqualTheLast) {
  EXPECT_EQ(Drawn({1, 2, 0, 1, 1}, {.temperature = 1, .top_k = 2}),
            (std::vector<int32_t>{0, 1, 3, 4}));
}

TEST(SamplingReferenceTest, LogitsThatAreNotFiniteAreNotValid) {
  for (const std::vector<float>& logits :
       {std::vector<float>{1, std::nanf(""), 2}, {-kInfinity, -kInfinity}, {1, kInfinity}}) {
    EXPECT_FALSE(SamplingReference(logits, {}, {}).valid());
  }
  EXPECT_TRUE(SamplingReference(std::vector<float>{1, -kInfinity}, {}, {}).valid());
}

}  // namespace
}  // namespace fabricast
