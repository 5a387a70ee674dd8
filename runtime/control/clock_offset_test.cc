#include "runtime/control/clock_offset.h"

#include <cstdlib>
#include <random>

#include "gtest/gtest.h"

namespace fabricast {
namespace {

TEST(ClockOffsetTest, ASymmetricExchangeGivesTheOffset) {
  ClockOffset offset;
  EXPECT_FALSE(offset.estimate().has_value());
  // Theirs is 1,000,000 ahead; 50 each way, 7 between.
  offset.Add(100, 1'000'150, 1'000'157, 207);
  ASSERT_TRUE(offset.estimate().has_value());
  EXPECT_EQ(offset.estimate()->offset_ns, 1'000'000);
  EXPECT_EQ(offset.estimate()->uncertainty_ns, 50);
}

TEST(ClockOffsetTest, TheFastestExchangeOfTheWindowCounts) {
  ClockOffset offset;
  offset.Add(0, -500 + 90, -500 + 90, 100);  // 90 there, 10 back: off by 40
  offset.Add(200, -500 + 205, -500 + 205, 210);
  offset.Add(300, -500 + 310, -500 + 310, 390);
  EXPECT_EQ(offset.estimate()->offset_ns, -500);
  EXPECT_EQ(offset.estimate()->uncertainty_ns, 5);
  for (int i = 0; i < ClockOffset::kWindow; ++i) {
    const int64_t at = 1000 + i * 100;
    offset.Add(at, -400 + at + 20, -400 + at + 20, at + 40);
  }
  EXPECT_EQ(offset.estimate()->offset_ns, -400);
}

TEST(ClockOffsetTest, WhatContradictsItselfIsIgnored) {
  ClockOffset offset;
  offset.Add(100, 50, 40, 200);
  offset.Add(100, 50, 60, 99);
  offset.Add(100, 0, 500, 200);
  EXPECT_FALSE(offset.estimate().has_value());
}

TEST(ClockOffsetTest, TheTrueOffsetIsWithinTheUncertainty) {
  std::mt19937_64 random(7);
  for (int run = 0; run < 200; ++run) {
    ClockOffset offset;
    const int64_t truth = static_cast<int64_t>(random() % 2'000'000'000) - 1'000'000'000;
    for (int i = 0; i < 40; ++i) {
      const int64_t sent = i * 500'000'000LL;
      const int64_t there = sent + static_cast<int64_t>(random() % 300'000);
      const int64_t answered = there + static_cast<int64_t>(random() % 50'000);
      offset.Add(sent, truth + there, truth + answered,
                 answered + static_cast<int64_t>(random() % 300'000));
      EXPECT_LE(std::llabs(offset.estimate()->offset_ns - truth),
                offset.estimate()->uncertainty_ns + 1);
    }
  }
}

}  // namespace
}  // namespace fabricast
