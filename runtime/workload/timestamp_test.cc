#include "runtime/workload/timestamp.h"

#include <cstdint>

#include "gtest/gtest.h"

namespace fabricast {
namespace {

constexpr int64_t kSecond = 1'000'000'000;

TEST(TimestampTest, KeepsEveryDigit) {
  EXPECT_EQ(ParseTimestampNs("1970-01-01 00:00:00"), 0);
  EXPECT_EQ(ParseTimestampNs("1970-01-01 00:00:00.0000001"), 100);
  EXPECT_EQ(ParseTimestampNs("1970-01-02 00:00:01.5"), 86'401 * kSecond + 500'000'000);
  // `date -u -d '2023-11-16 18:15:46' +%s` prints 1700158546.
  EXPECT_EQ(ParseTimestampNs("2023-11-16 18:15:46.6805900"), 1'700'158'546 * kSecond + 680'590'000);
  EXPECT_EQ(ParseTimestampNs("2023-11-16 18:15:46.123456789"),
            1'700'158'546 * kSecond + 123'456'789);
}

TEST(TimestampTest, KnowsLeapYears) {
  // 2000-02-29 is day 11,016 after 1970-01-01.
  EXPECT_EQ(ParseTimestampNs("2000-02-29 00:00:00"), 11'016 * 86'400 * kSecond);
  EXPECT_EQ(ParseTimestampNs("2100-02-29 00:00:00"), std::nullopt);
}

TEST(TimestampTest, AppliesOffsets) {
  const int64_t noon = 43'200 * kSecond;
  EXPECT_EQ(ParseTimestampNs("1970-01-01T12:00:00Z"), noon);
  EXPECT_EQ(ParseTimestampNs("1970-01-01 12:00:00.0+00:00"), noon);
  EXPECT_EQ(ParseTimestampNs("1970-01-01 13:30:00+01:30"), noon);
  EXPECT_EQ(ParseTimestampNs("1970-01-01 10:30:00-01:30"), noon);
}

TEST(TimestampTest, CoversTheYearsThatFit) {
  EXPECT_TRUE(ParseTimestampNs("2261-12-31 23:59:59.999999999-23:59"));
  EXPECT_FALSE(ParseTimestampNs("2262-01-01 00:00:00"));
  EXPECT_FALSE(ParseTimestampNs("1969-12-31 23:59:59"));
}

TEST(TimestampTest, RefusesWhatIsNoTime) {
  for (const char* text : {"",
                           "2023",
                           "2023-11-16",
                           "2023-11-16 18:15",
                           "2023-11-16 18:15:4",
                           "2023-11-16 18:15:46.",
                           "2023-11-16 18:15:46.1234567890",
                           "2023-11-16 18:15:46 ",
                           " 2023-11-16 18:15:46",
                           "2023-11-16  18:15:46",
                           "2023-13-16 18:15:46",
                           "2023-00-16 18:15:46",
                           "2023-11-31 18:15:46",
                           "2023-11-00 18:15:46",
                           "2023-11-16 24:15:46",
                           "2023-11-16 18:60:46",
                           "2023-11-16 18:15:60",
                           "2023-11-16 18:15:-1",
                           "2023/11/16 18:15:46",
                           "2023-11-16 18:15:46+1",
                           "2023-11-16 18:15:46z",
                           "2023-11-16 18:15:46+24:00",
                           "2023-11-16 18:15:46+00:60",
                           "2023-11-16 18:15:46+0000",
                           "-2023-11-16 18:15:46",
                           "20x3-11-16 18:15:46",
                           "1700158546"}) {
    EXPECT_EQ(ParseTimestampNs(text), std::nullopt) << text;
  }
}

}  // namespace
}  // namespace fabricast
