#include "benchmarks/simulator_speed/measure.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <cstring>
#include <memory>

#include "absl/status/status.h"

namespace fabricast {
namespace {

TEST(MeasureTest, ReportsTheTimeAndMemoryOfTheWorkAlone) {
  const auto work = [](size_t bytes) {
    return [bytes](Stopwatch& watch, Measurement& measurement) {
      const auto memory = std::make_unique<char[]>(bytes);
      watch.Start();
      memset(memory.get(), 1, bytes);
      watch.Stop();
      measurement.fingerprint = memory[bytes - 1];
      return absl::OkStatus();
    };
  };
  const absl::StatusOr<Measurement> large = Measure(work(100'000'000));
  ASSERT_TRUE(large.ok()) << large.status();
  EXPECT_GT(large->cpu_s, 0);
  EXPECT_GT(large->peak_rss_bytes, 100'000'000);
  // A later child does not inherit an earlier one's peak.
  const absl::StatusOr<Measurement> small = Measure(work(1));
  ASSERT_TRUE(small.ok()) << small.status();
  EXPECT_LT(small->peak_rss_bytes, large->peak_rss_bytes - 90'000'000);
}

TEST(MeasureTest, RefusesRunsThatDiffer) {
  const auto work = [](Stopwatch& watch, Measurement& measurement) {
    watch.Start();
    watch.Stop();
    measurement.fingerprint = static_cast<uint64_t>(measurement.wall_s * 1e12) + getpid();
    return absl::OkStatus();
  };
  EXPECT_EQ(MeasureRepeatedly(work, 2).status().code(), absl::StatusCode::kInternal);
}

TEST(MeasureTest, PassesErrorsOn) {
  const auto work = [](Stopwatch&, Measurement&) { return absl::NotFoundError("no such trace"); };
  EXPECT_EQ(Measure(work).status(), absl::NotFoundError("no such trace"));
}

TEST(MedianTest, IsTheRunWithTheMedianCpuTime) {
  EXPECT_EQ(Median({{.cpu_s = 3, .events = 30}, {.cpu_s = 1}, {.cpu_s = 9}}).events, 30);
}

TEST(GrowthExponentTest, RecoversAPowerLaw) {
  // y = 5 x^2
  EXPECT_NEAR(GrowthExponent({1, 2, 4, 8}, {5, 20, 80, 320}), 2, 1e-12);
  EXPECT_NEAR(GrowthExponent({10, 100, 1000}, {7, 7, 7}), 0, 1e-12);
}

}  // namespace
}  // namespace fabricast
