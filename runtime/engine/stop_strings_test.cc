#include "runtime/engine/stop_strings.h"

#include <random>

#include "gtest/gtest.h"

namespace fabricast {
namespace {

// What is shown of `pieces` until the match or the end.
std::string Shown(StopStrings& stops, const std::vector<std::string>& pieces) {
  std::string shown;
  for (const std::string& piece : pieces) shown += stops.Append(piece);
  return shown + stops.Finish();
}

TEST(StopStringsTest, TextWithoutStopStringsPassesAtOnce) {
  StopStrings none({});
  EXPECT_EQ(none.Append("abc"), "abc");
  StopStrings other({"xyz", ""});
  EXPECT_EQ(other.Append("abc"), "abc");
  EXPECT_FALSE(other.matched());
}

TEST(StopStringsTest, AStopStringAcrossTokensEndsTheTextBeforeIt) {
  StopStrings stops({"\n\nUser:"});
  EXPECT_EQ(stops.Append("Yes.\n"), "Yes.");
  EXPECT_EQ(stops.Append("\nUs"), "");
  EXPECT_EQ(stops.Append("er: and"), "");
  EXPECT_TRUE(stops.matched());
  EXPECT_EQ(stops.match(), "\n\nUser:");
  EXPECT_EQ(stops.Append("more"), "");
  EXPECT_EQ(stops.Finish(), "");
}

TEST(StopStringsTest, WhatOnlyLookedLikeAStopStringIsShownLater) {
  StopStrings stops({"abcd"});
  EXPECT_EQ(stops.Append("xabc"), "x");
  EXPECT_EQ(stops.Append("abc"), "abc");
  EXPECT_EQ(stops.Finish(), "abc");
  EXPECT_FALSE(stops.matched());
}

TEST(StopStringsTest, TheMatchThatIsCompleteFirstWinsAndThenTheLongest) {
  StopStrings earlier({"bcd", "abcde"});
  EXPECT_EQ(Shown(earlier, {"xabcd", "ef"}), "xa");
  EXPECT_EQ(earlier.match(), "bcd");
  StopStrings longest({"bc", "abc"});
  EXPECT_EQ(Shown(longest, {"xabc"}), "x");
  EXPECT_EQ(longest.match(), "abc");
}

TEST(StopStringsTest, ALongerStopStringThatMightStillComeDoesNotDelayOneThatIsThere) {
  StopStrings stops({"ab", "abc"});
  EXPECT_EQ(stops.Append("xab"), "x");
  EXPECT_TRUE(stops.matched());
}

// Against a search in the whole text, cut at random.
TEST(StopStringsTest, TheCutIntoTokensDoesNotMatter) {
  std::mt19937 random(7);
  int matches = 0;
  for (int round = 0; round < 5000; ++round) {
    std::vector<std::string> stop_list(1 + random() % 3);
    for (std::string& stop : stop_list) {
      for (size_t n = 1 + random() % 4; n > 0; --n) stop += static_cast<char>('a' + random() % 2);
    }
    std::string text;
    for (size_t n = random() % 12; n > 0; --n) text += static_cast<char>('a' + random() % 3);
    size_t first_end = std::string::npos;
    size_t start = std::string::npos;
    for (const std::string& stop : stop_list) {
      const size_t at = text.find(stop);
      if (at == std::string::npos) continue;
      const size_t end = at + stop.size();
      if (end < first_end || (end == first_end && at < start)) {
        first_end = end;
        start = at;
      }
    }
    std::vector<std::string> pieces;
    for (size_t at = 0; at < text.size();) {
      const size_t length = 1 + random() % 3;
      pieces.push_back(text.substr(at, length));
      at += length;
    }
    StopStrings stops(stop_list);
    EXPECT_EQ(Shown(stops, pieces), text.substr(0, start)) << text << " | " << stop_list[0];
    EXPECT_EQ(stops.matched(), start != std::string::npos);
    matches += stops.matched();
  }
  EXPECT_GT(matches, 1000);
}

}  // namespace
}  // namespace fabricast
