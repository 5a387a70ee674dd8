// Percentiles as numpy.percentile computes them, with and without multiplicities.
#include "runtime/metrics/distribution.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <random>
#include <vector>

#include "gtest/gtest.h"

namespace fabricast {
namespace {

Distribution Summary(const std::vector<double>& values) {
  Samples samples;
  for (double value : values) samples.Add(value);
  return samples.Summarize();
}

// numpy.percentile's definition, word for word: position q (n - 1), linear between neighbours.
double Percentile(std::vector<double> values, double q) {
  std::sort(values.begin(), values.end());
  const double position = q * static_cast<double>(values.size() - 1);
  const size_t below = static_cast<size_t>(position);
  const size_t above = std::min(below + 1, values.size() - 1);
  return values[below] + (position - std::floor(position)) * (values[above] - values[below]);
}

TEST(DistributionTest, PercentilesInterpolateBetweenNeighbours) {
  const Distribution tens = Summary({7, 3, 9, 1, 10, 5, 2, 8, 6, 4});
  EXPECT_EQ(tens.count(), 10);
  EXPECT_DOUBLE_EQ(tens.mean(), 5.5);
  // Positions 0.5 x 9 = 4.5, 8.1 and 8.91 of 1 ... 10.
  EXPECT_DOUBLE_EQ(tens.p50(), 5.5);
  EXPECT_DOUBLE_EQ(tens.p90(), 9.1);
  EXPECT_DOUBLE_EQ(tens.p99(), 9.91);
  EXPECT_EQ(tens.max(), 10);
}

TEST(DistributionTest, APositionOnASampleIsThatSample) {
  // n = 11: positions 5, 9 and 9.9 of 0, 10 ... 100.
  const Distribution d = Summary({0, 10, 20, 30, 40, 50, 60, 70, 80, 90, 100});
  EXPECT_DOUBLE_EQ(d.p50(), 50);
  EXPECT_DOUBLE_EQ(d.p90(), 90);
  EXPECT_DOUBLE_EQ(d.p99(), 99);
}

TEST(DistributionTest, TwoSamplesShareTheWayBetweenThem) {
  const Distribution d = Summary({4, 2});
  EXPECT_DOUBLE_EQ(d.p50(), 3);
  EXPECT_DOUBLE_EQ(d.p90(), 3.8);
  EXPECT_DOUBLE_EQ(d.p99(), 3.98);
}

TEST(DistributionTest, OneSampleIsAllOfThem) {
  const Distribution d = Summary({-1.5});
  EXPECT_EQ(d.count(), 1);
  for (double value : {d.mean(), d.p50(), d.p90(), d.p99(), d.max()}) EXPECT_EQ(value, -1.5);
}

TEST(DistributionTest, NoSamplesAreAllZero) {
  Samples samples;
  EXPECT_EQ(samples.count(), 0);
  EXPECT_EQ(samples.Summarize().SerializeAsString(), "");
  // A multiplicity of 0 is no sample, the largest of all neither.
  samples.Add(1e9, 0);
  EXPECT_EQ(samples.Summarize().SerializeAsString(), "");
  samples.Add(1, 2);
  samples.Add(1e9, 0);
  EXPECT_EQ(samples.Summarize().max(), 1);
  EXPECT_EQ(samples.Summarize().p99(), 1);
}

TEST(DistributionTest, CountsStandForThatManySamples) {
  Samples samples;
  samples.Add(5);
  samples.Add(1, 3);
  EXPECT_EQ(samples.count(), 4);
  const Distribution d = samples.Summarize();
  // Of 1, 1, 1, 5: positions 1.5, 2.7 and 2.97.
  EXPECT_EQ(d.count(), 4);
  EXPECT_DOUBLE_EQ(d.mean(), 2);
  EXPECT_DOUBLE_EQ(d.p50(), 1);
  EXPECT_DOUBLE_EQ(d.p90(), 1 + 0.7 * 4);
  EXPECT_DOUBLE_EQ(d.p99(), 1 + 0.97 * 4);
  EXPECT_EQ(d.max(), 5);
}

TEST(DistributionTest, CountsMayBeLargerThanMemory) {
  Samples samples;
  samples.Add(2, 10);
  samples.Add(1, int64_t{1} << 50);
  const Distribution d = samples.Summarize();
  EXPECT_EQ(d.count(), (int64_t{1} << 50) + 10);
  EXPECT_EQ(d.p99(), 1);
  EXPECT_EQ(d.max(), 2);
}

TEST(DistributionTest, MoreSamplesMayFollowASummary) {
  Samples samples;
  samples.Add(3);
  EXPECT_EQ(samples.Summarize().p50(), 3);
  samples.Add(1);
  samples.Add(2);
  EXPECT_EQ(samples.Summarize().p50(), 2);
  EXPECT_EQ(samples.Summarize().p50(), 2);
}

TEST(DistributionTest, RandomSamplesWithCountsAreThoseSamplesOneByOne) {
  std::mt19937 random(1);
  for (int round = 0; round < 2000; ++round) {
    Samples samples;
    std::vector<double> expanded;
    const int entries = 1 + static_cast<int>(random() % 12);
    for (int i = 0; i < entries; ++i) {
      // Few values, so that equal ones come apart and together; counts of 0 to 5.
      const double value = static_cast<double>(random() % 8) / 4 - 1;
      const int64_t count = random() % 6;
      samples.Add(value, count);
      expanded.insert(expanded.end(), count, value);
    }
    const Distribution d = samples.Summarize();
    ASSERT_EQ(d.count(), static_cast<int64_t>(expanded.size()));
    if (expanded.empty()) continue;
    EXPECT_NEAR(d.mean(), std::accumulate(expanded.begin(), expanded.end(), 0.0) / d.count(),
                1e-12);
    EXPECT_NEAR(d.p50(), Percentile(expanded, 0.50), 1e-12);
    EXPECT_NEAR(d.p90(), Percentile(expanded, 0.90), 1e-12);
    EXPECT_NEAR(d.p99(), Percentile(expanded, 0.99), 1e-12);
    EXPECT_EQ(d.max(), *std::max_element(expanded.begin(), expanded.end()));
  }
}

TEST(DistributionTest, WhatIsRemovedWasNeverThere) {
  std::mt19937 random(3);
  for (int round = 0; round < 200; ++round) {
    Samples samples, kept;
    std::vector<double> present;
    for (int i = 0; i < 60; ++i) {
      if (present.empty() || random() % 3 > 0) {
        present.push_back(static_cast<double>(random() % 8) / 8);
        samples.Add(present.back());
      } else {
        std::swap(present[random() % present.size()], present.back());
        samples.Remove(present.back());
        present.pop_back();
      }
    }
    for (const double value : present) kept.Add(value);
    EXPECT_EQ(samples.count(), static_cast<int64_t>(present.size()));
    EXPECT_EQ(samples.Summarize().SerializeAsString(), kept.Summarize().SerializeAsString());
  }
}

TEST(DistributionTest, AllMayBeRemoved) {
  Samples samples;
  samples.Add(2, 2);
  samples.Remove(2);
  samples.Remove(2);
  EXPECT_EQ(samples.Summarize().SerializeAsString(), Distribution().SerializeAsString());
}

TEST(DistributionDeathTest, OnlyWhatWasAddedCanBeRemoved) {
  Samples samples;
  EXPECT_DEATH(samples.Remove(1), "check failed");
  samples.Add(2);
  samples.Add(2);
  samples.Remove(1);
  EXPECT_DEATH(samples.Summarize(), "1 was removed but never added");
}

}  // namespace
}  // namespace fabricast
