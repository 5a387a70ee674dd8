#include "runtime/executor/cuda/gpu_clock.h"

#include <chrono>

#include "gtest/gtest.h"

namespace fabricast {
namespace {

using std::chrono::microseconds;
using std::chrono::milliseconds;

constexpr GpuClock::Host::time_point kStart{std::chrono::hours(1)};

TEST(GpuClockTest, CountsFromTheAnchor) {
  GpuClock clock;
  clock.Advance(GpuClock::Seconds(5));
  clock.Anchor(kStart);
  clock.Advance(milliseconds(20));
  EXPECT_EQ(clock.At(), kStart + milliseconds(20));
  EXPECT_EQ(clock.At(milliseconds(3)), kStart + milliseconds(17));
}

TEST(GpuClockTest, NothingIsSeenBeforeItHappened) {
  GpuClock clock;
  clock.Anchor(kStart);
  clock.Advance(milliseconds(20));
  // Seen 2 us before it would have happened: the anchor was 2 us late.
  clock.Seen(kStart + milliseconds(20) - microseconds(2));
  EXPECT_EQ(clock.At(), kStart + milliseconds(20) - microseconds(2));
  clock.Advance(milliseconds(1));
  EXPECT_EQ(clock.At(), kStart + milliseconds(21) - microseconds(2));
}

TEST(GpuClockTest, ADelayIsNotTakenForDrift) {
  GpuClock clock;
  clock.Anchor(kStart);
  for (int i = 1; i <= 10'000; ++i) {
    clock.Advance(milliseconds(1));
    // 30 us, and now and then much more.
    clock.Seen(kStart + milliseconds(i) + microseconds(i % 7 == 0 ? 900 : 30));
  }
  EXPECT_EQ(clock.At(), kStart + milliseconds(10'000));
}

TEST(GpuClockTest, AClockThatIsSlowIsCorrected) {
  GpuClock clock;
  clock.Anchor(kStart);
  // 20 ppm: what the GPU takes for 1 ms takes 1 ms + 20 ns; seen 30 us later.
  GpuClock::Host::time_point now = kStart;
  for (int i = 0; i < 100'000; ++i) {
    clock.Advance(milliseconds(1));
    now += milliseconds(1) + std::chrono::nanoseconds(20);
    clock.Seen(now + microseconds(30));
  }
  // Uncorrected it would be 2 ms behind. A window of 256 steps drifts 5 us apart.
  EXPECT_LT(now - clock.At(), microseconds(11));
  EXPECT_GE(now - clock.At(), microseconds(-1));
}

TEST(GpuClockTest, AClockThatIsFastIsCorrected) {
  GpuClock clock;
  clock.Anchor(kStart);
  GpuClock::Host::time_point now = kStart;
  for (int i = 0; i < 100'000; ++i) {
    clock.Advance(milliseconds(1));
    now += milliseconds(1) - std::chrono::nanoseconds(20);
    clock.Seen(now + microseconds(30));
  }
  // Events are seen 30 us late, so it may be ahead by that.
  EXPECT_LE(clock.At() - now, microseconds(31));
  EXPECT_GE(clock.At() - now, microseconds(-1));
}

TEST(GpuClockTest, APauseIsNotDrift) {
  GpuClock clock;
  clock.Anchor(kStart);
  for (int i = 1; i <= 256; ++i) {
    clock.Advance(milliseconds(1));
    clock.Seen(kStart + milliseconds(i) + microseconds(30));
  }
  // A minute at 20 ppm.
  const GpuClock::Host::time_point now = kStart + milliseconds(256) + std::chrono::minutes(1);
  clock.Advance(std::chrono::minutes(1) - microseconds(1200));
  clock.Seen(now + microseconds(30));
  EXPECT_EQ(clock.At(), now);
}

}  // namespace
}  // namespace fabricast
