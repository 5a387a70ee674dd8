#include "kernels/stream_rates.h"

#include <vector>

#include "absl/status/status.h"
#include "gtest/gtest.h"

namespace fabricast {
namespace {

TEST(StreamRatesTest, SteadyStreamHasOneRate) {
  // 100 samples of 4 GB in 1 ms.
  const std::vector<StreamSample> samples(100, {.bytes = 4e9, .seconds = 1e-3});
  const absl::StatusOr<StreamRates> rates = SummarizeStream(samples);
  ASSERT_TRUE(rates.ok()) << rates.status();
  EXPECT_NEAR(rates->burst, 4e12, 1);
  EXPECT_NEAR(rates->sustained, 4e12, 1);
  EXPECT_NEAR(rates->median, 4e12, 1);
  EXPECT_NEAR(rates->p99, 4e12, 1);
}

TEST(StreamRatesTest, BurstIsTheBeginningAndSustainedTheSecondHalf) {
  // 0.2 s at 4 TB/s, then 0.8 s at 2 TB/s, in samples of 20 ms.
  std::vector<StreamSample> samples(10, {.bytes = 80e9, .seconds = 0.02});
  samples.insert(samples.end(), 40, {.bytes = 40e9, .seconds = 0.02});
  const absl::StatusOr<StreamRates> rates = SummarizeStream(samples);
  ASSERT_TRUE(rates.ok()) << rates.status();
  EXPECT_NEAR(rates->burst, 4e12, 1);
  EXPECT_NEAR(rates->sustained, 2e12, 1);
  EXPECT_NEAR(rates->median, 2e12, 1);
}

TEST(StreamRatesTest, P99IsTheRateThatAllButOnePercentReach) {
  // 1 of 100 samples takes ten times as long; the 99th of 100 sorted by time is still a fast one.
  std::vector<StreamSample> samples(99, {.bytes = 1e9, .seconds = 1e-3});
  samples.push_back({.bytes = 1e9, .seconds = 10e-3});
  EXPECT_NEAR(SummarizeStream(samples)->p99, 1e12, 1);
  // With 2 of 101 slow, the 100th is a slow one: 1 GB / 10 ms.
  samples.push_back({.bytes = 1e9, .seconds = 10e-3});
  EXPECT_NEAR(SummarizeStream(samples)->p99, 1e11, 1);
}

TEST(StreamRatesTest, OneSampleIsEnough) {
  const absl::StatusOr<StreamRates> rates = SummarizeStream({{.bytes = 3e9, .seconds = 2}});
  ASSERT_TRUE(rates.ok()) << rates.status();
  EXPECT_DOUBLE_EQ(rates->burst, 1.5e9);
  EXPECT_DOUBLE_EQ(rates->sustained, 1.5e9);
}

TEST(StreamRatesTest, NothingMeasuredIsAnError) {
  EXPECT_EQ(SummarizeStream({}).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(SummarizeStream({{.bytes = 1, .seconds = 0}}).status().code(),
            absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace fabricast
