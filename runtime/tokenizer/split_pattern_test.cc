#include "runtime/tokenizer/split_pattern.h"

#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace fabricast {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

using Pieces = std::vector<absl::string_view>;

constexpr absl::string_view kLlama3 =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|)"
    R"( ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

SplitPattern Compiled(absl::string_view pattern) {
  absl::StatusOr<SplitPattern> compiled = SplitPattern::Compile(pattern);
  EXPECT_TRUE(compiled.ok()) << compiled.status();
  return *std::move(compiled);
}

Pieces Split(absl::string_view pattern, absl::string_view text) {
  Pieces pieces;
  const absl::Status status = Compiled(pattern).Split(text, pieces);
  EXPECT_TRUE(status.ok()) << status;
  EXPECT_EQ(absl::StrJoin(pieces, ""), text);
  return pieces;
}

absl::Status Refused(absl::string_view pattern) { return SplitPattern::Compile(pattern).status(); }

TEST(SplitPatternTest, SplitsAsLlama3Does) {
  EXPECT_THAT(
      Split(kLlama3, "I'LL pay 12345 \u20AC!!\n\n  now \t"),
      ElementsAre("I", "'LL", " pay", " ", "123", "45", " \u20AC!!\n\n", " ", " now", " \t"));
  EXPECT_THAT(Split(kLlama3, "a\u017Ft'\u017F"), ElementsAre("a\u017Ft", "'\u017F"));  // long s
}

TEST(SplitPatternTest, SplitsAsGpt2Does) {
  EXPECT_THAT(Split(kGpt2Pattern, "It's 2024,  isn't it? "),
              ElementsAre("It", "'s", " 2024", ",", " ", " isn", "'t", " it", "?", " "));
}

TEST(SplitPatternTest, WhatDoesNotMatchIsAPieceToo) {
  EXPECT_THAT(Split("b+", "abbcb"), ElementsAre("a", "bb", "c", "b"));
  EXPECT_THAT(Split("b+", "xyz"), ElementsAre("xyz"));
  EXPECT_THAT(Split("b+", ""), ElementsAre());
}

TEST(SplitPatternTest, AnEmptyMatchOnlyCuts) {
  EXPECT_THAT(Split("x*", "a\u20ACxb"), ElementsAre("a", "\u20AC", "x", "b"));
  EXPECT_THAT(Split("(?=b)", "abab"), ElementsAre("a", "ba", "b"));
}

TEST(SplitPatternTest, LooksBehindTheLastMatch) {
  EXPECT_THAT(Split("(?<=a)b|a|b", "abb"), ElementsAre("a", "b", "b"));
  EXPECT_THAT(Split("(?<!a)b", "abb"), ElementsAre("ab", "b"));
}

TEST(SplitPatternTest, SpaceIsUnicodesWhiteSpace) {
  EXPECT_THAT(Split(R"(\s+)", "a\u00A0\u3000\u0085b"), ElementsAre("a", "\u00A0\u3000\u0085", "b"));
  // PCRE2's own \s has these two.
  EXPECT_THAT(Split(R"(\s+)", "a\u180Eb\u200Bc"), ElementsAre("a\u180Eb\u200Bc"));
  EXPECT_THAT(Split(R"([\S]+)", "a\u180E b"), ElementsAre("a\u180E", " ", "b"));
  EXPECT_THAT(Split(R"([^\s\p{L}]+)", "a\u180E- b"), ElementsAre("a", "\u180E-", " b"));
}

TEST(SplitPatternTest, DigitsAreThoseOfAllScripts) {
  EXPECT_THAT(Split(R"(\d)", "1\u0665\u00BD"), ElementsAre("1", "\u0665", "\u00BD"));
  EXPECT_THAT(Split(R"(\D+)", "1\u0665\u00BDx"), ElementsAre("1\u0665", "\u00BDx"));
}

TEST(SplitPatternTest, DotStopsAtNewlinesOnly) {
  EXPECT_THAT(Split(".+", "a\rb\nc"), ElementsAre("a\rb", "\n", "c"));
}

TEST(SplitPatternTest, TakesWhatPublishedPatternsAreMadeOf) {
  // GPT-4, GPT-4o and DeepSeek V3.
  EXPECT_THAT(Split(R"('(?i:[sdmt]|ll)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}|\s++)", "ab'D 1234"),
              ElementsAre("ab", "'D", " ", "123", "4"));
  EXPECT_THAT(
      Split(
          R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s)?)",
          "HelloWorld's"),
      ElementsAre("Hello", "World's"));
  EXPECT_THAT(
      Split(
          R"([!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+)",
          "]x y"),
      ElementsAre("]x", " y"));
}

TEST(SplitPatternTest, RefusesWhatOnigurumaUnderstandsDifferently) {
  for (absl::string_view part :
       {R"(\w)",   R"(\W)",      R"(\b)",   R"(\h)",     R"(\v)",  R"(\R)",  R"(\1)",
        R"(\x41)", R"(\p{Han})", R"(\pL)",  R"(\p{^L})", R"(\p{)", "^",      "$",
        "[]a]",    "[^]a]",      "[a[bc]]", "[a&&b]",    "(?i)",   "(?m:a)", "(?<n>a)",
        "(*UTF)",  "{,2}",       "{",       "{2}+",      "{1,2}?", "{1",     R"(\)"}) {
    const std::string pattern = absl::StrCat("ab", part);
    const absl::Status status = Refused(pattern);
    EXPECT_EQ(status.code(), absl::StatusCode::kUnimplemented) << pattern << ": " << status;
    EXPECT_THAT(std::string(status.message()),
                HasSubstr("is not supported: write it with classes"));
  }
  EXPECT_THAT(std::string(Refused(R"(a\wb)").message()),
              HasSubstr(R"("a\\wb": "\\w" at byte 1 is not supported)"));
}

TEST(SplitPatternTest, RefusesWhatIsNoRegularExpression) {
  for (absl::string_view pattern :
       {"(", ")", "[a", "a**b", "*", "[z-a]", R"(\p{Lx})", "\xFF", "(?<=a*)b", "a{70000}"}) {
    const absl::Status status = Refused(pattern);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << pattern << ": " << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr("give a regular expression"));
  }
  EXPECT_EQ(Refused(std::string(10'001, 'a')).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_TRUE(Refused(std::string(10'000, 'a')).ok());
}

TEST(SplitPatternTest, EndlessBacktrackingIsAnError) {
  Pieces pieces;
  // 2^40 ways to share 40 letters among the two loops; the text has a b, or it would not be tried.
  const absl::Status status = Compiled("(?:a+)+b").Split(std::string(40, 'a') + "cb", pieces);
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr(R"("(?:a+)+b": match limit)"));
}

TEST(SplitPatternTest, LongRunsAreFine) {
  for (const char* unit : {" ", "a", "1", "!", "\n", "\u3000", "\u0301"}) {
    std::string text;
    while (text.size() < 1'000'000) text += unit;
    Split(kLlama3, text + "x");
  }
}

TEST(SplitPatternTest, ALoopTooDeepForTheJitIsInterpreted) {
  // Each round of the group keeps some bytes of the JIT's 32 KiB.
  const std::string text(20'000, 'a');
  EXPECT_THAT(Split("(?:(a)|b)+c|a", text + "c"), ElementsAre(text + "c"));
}

}  // namespace
}  // namespace fabricast
