#include "runtime/tokenizer/added_tokens.h"

#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"

namespace fabricast {
namespace {

// "1:<a>" for token 1 and "text" for what is none, with | between.
std::string Found(const std::vector<AddedToken>& tokens, absl::string_view text) {
  std::vector<AddedTokenFinder::Pattern> patterns;
  for (const AddedToken& token : tokens) patterns.push_back({token.content, token});
  std::string result;
  for (const AddedTokenFinder::Span& span : AddedTokenFinder(patterns).Find(text)) {
    absl::StrAppend(&result, result.empty() ? "" : "|",
                    span.id == AddedTokenFinder::kOrdinary ? "" : absl::StrCat(span.id, ":"),
                    span.text);
  }
  return result;
}

TEST(AddedTokensTest, FindsTokensInOrder) {
  const std::vector<AddedToken> tokens = {{.id = 1, .content = "<a>"}, {.id = 2, .content = "b"}};
  EXPECT_EQ(Found(tokens, "x<a>y b<a>"), "x|1:<a>|y |2:b|1:<a>");
  EXPECT_EQ(Found(tokens, ""), "");
  EXPECT_EQ(Found(tokens, "<a"), "<a");
  EXPECT_EQ(Found({}, "text"), "text");
}

TEST(AddedTokensTest, TakesTheLongestAtTheLeftmostPlace) {
  const std::vector<AddedToken> tokens = {
      {.id = 1, .content = "<a>"}, {.id = 2, .content = "<a><b>"}, {.id = 3, .content = "><b"}};
  EXPECT_EQ(Found(tokens, "<a><b>"), "2:<a><b>");
  EXPECT_EQ(Found(tokens, "<a><b"), "1:<a>|<b");  // not 3, which begins inside
  EXPECT_EQ(Found(tokens, "a><b"), "a|3:><b");
}

TEST(AddedTokensTest, OfTheSameTextTheFirstCounts) {
  EXPECT_EQ(Found({{.id = 1, .content = "x"}, {.id = 2, .content = "x"}}, "x"), "1:x");
}

TEST(AddedTokensTest, LstripTakesTheSpaceBefore) {
  const std::vector<AddedToken> tokens = {{.id = 1, .content = "<a>", .lstrip = true},
                                          {.id = 2, .content = "<s> "}};
  EXPECT_EQ(Found(tokens, "x \t\u3000<a> y"), "x|1: \t\u3000<a>| y");
  EXPECT_EQ(Found(tokens, " <a> <a>"), "1: <a>|1: <a>");
  EXPECT_EQ(Found(tokens, "<s>  <a>"), "2:<s> |1: <a>");  // but not what another token has
}

TEST(AddedTokensTest, RstripTakesTheSpaceBehind) {
  const std::vector<AddedToken> tokens = {{.id = 1, .content = "<a>", .rstrip = true}};
  EXPECT_EQ(Found(tokens, "x <a>\n\u00A0y"), "x |1:<a>\n\u00A0|y");
  EXPECT_EQ(Found(tokens, "<a> "), "1:<a> ");
}

TEST(AddedTokensTest, ATokenInsideStrippedSpaceIsFoundAllTheSame) {
  // As in the reference implementation, whose search goes on behind the pattern, not the space.
  EXPECT_EQ(
      Found({{.id = 1, .content = "<a>", .rstrip = true}, {.id = 2, .content = "\n"}}, "<a> \n x"),
      "1:<a> \n |2:\n| x");
}

TEST(AddedTokensTest, SingleWordHasNoWordCharacterBesideIt) {
  const std::vector<AddedToken> tokens = {{.id = 1, .content = "word", .single_word = true}};
  EXPECT_EQ(Found(tokens, "word"), "1:word");
  EXPECT_EQ(Found(tokens, "a word."), "a |1:word|.");
  EXPECT_EQ(Found(tokens, "-word-"), "-|1:word|-");
  EXPECT_EQ(Found(tokens, "words"), "words");
  EXPECT_EQ(Found(tokens, "sword"), "sword");
  // Letters, marks, digits, connectors, letter numbers, joiners and circled letters are; other
  // numbers, symbols and punctuation are not.
  for (const char* beside : {"\u00E9", "\u0301", "\u0665", "_", "\u203F", "\u2167", "\u200D",
                             "\u24B6", "\U0001F130", "\u4E2D"}) {
    EXPECT_EQ(Found(tokens, absl::StrCat("word", beside)), absl::StrCat("word", beside));
    EXPECT_EQ(Found(tokens, absl::StrCat(beside, "word")), absl::StrCat(beside, "word"));
  }
  for (const char* beside : {"\u00B2", "\u20AC", "\u3001", "\u2460", "\u00AD"}) {
    EXPECT_EQ(Found(tokens, absl::StrCat("word", beside)), absl::StrCat("1:word|", beside));
    EXPECT_EQ(Found(tokens, absl::StrCat(beside, "word")), absl::StrCat(beside, "|1:word"));
  }
}

TEST(AddedTokensTest, TheSearchGoesOnBehindWhatWasNoSingleWord) {
  EXPECT_EQ(
      Found({{.id = 1, .content = "aba", .single_word = true}, {.id = 2, .content = "ac"}}, "abac"),
      "abac");  // "ac" begins inside "aba"
}

}  // namespace
}  // namespace fabricast
