#include "runtime/tokenizer/utf8.h"

#include <cstdint>
#include <string>

#include "gtest/gtest.h"

namespace fabricast {
namespace {

std::string Lossy(absl::string_view text) {
  std::string out;
  AppendLossyUtf8(text, out);
  return out;
}

TEST(Utf8Test, EachMaximalSubpartBecomesOneReplacement) {
  // The Unicode standard's example, table 3-11: F1 80 80, E1 80, C2, 80, 80 and BF.
  EXPECT_EQ(Lossy("\x61\xF1\x80\x80\xE1\x80\xC2\x62\x80\x63\x80\xBF\x64"),
            "a\uFFFD\uFFFD\uFFFDb\uFFFDc\uFFFD\uFFFDd");
  // Tables 3-8 to 3-10: overlong forms, surrogates and other bytes that begin nothing, one each.
  EXPECT_EQ(Lossy("\xC0\xAF\xE0\x80\xBF\xF0\x81\x82\x41"),
            "\uFFFD\uFFFD\uFFFD\uFFFD\uFFFD\uFFFD\uFFFD\uFFFDA");
  EXPECT_EQ(Lossy("\xED\xA0\x80\xED\xBF\xBF\xED\xAF\x41"),
            "\uFFFD\uFFFD\uFFFD\uFFFD\uFFFD\uFFFD\uFFFD\uFFFDA");
  EXPECT_EQ(Lossy("\xF4\x91\x92\x93\xFF\x41\x80\xBF\x42"),
            "\uFFFD\uFFFD\uFFFD\uFFFD\uFFFDA\uFFFD\uFFFDB");
  EXPECT_EQ(Lossy("\xF5\x80\x80\x80"), "\uFFFD\uFFFD\uFFFD\uFFFD");
  EXPECT_EQ(Lossy("\xF0\x9F\x98"), "\uFFFD");  // the end, inside a character
  EXPECT_EQ(Lossy("12345678\xFF"
                  "12345678"),
            "12345678\uFFFD12345678");
}

TEST(Utf8Test, KeepsWhatMayBecomeACharacter) {
  std::string out;
  EXPECT_EQ(AppendCertainUtf8("12345678x\xE2\x82", out), "\xE2\x82");
  EXPECT_EQ(out, "12345678x");
  out.clear();
  EXPECT_EQ(AppendCertainUtf8("\xE2\x28\xF0", out), "\xF0");
  EXPECT_EQ(out, "\uFFFD(");
}

TEST(Utf8Test, FindsTheFirstBadByte) {
  EXPECT_EQ(FindInvalidUtf8(""), std::nullopt);
  EXPECT_EQ(FindInvalidUtf8("12345678901234567 \u20AC \U0001F600"), std::nullopt);
  EXPECT_EQ(FindInvalidUtf8("12345678\xFF"), 8u);
  EXPECT_EQ(FindInvalidUtf8("\u20AC\xE2\x82"), 3u);
  EXPECT_EQ(FindInvalidUtf8("a\xE2\x82"
                            "b"),
            1u);
}

TEST(Utf8Test, WritesAndReadsEveryCharacter) {
  int white = 0;
  for (char32_t c = 0; c <= 0x10FFFF; ++c) {
    if (0xD800 <= c && c <= 0xDFFF) continue;
    std::string text = "\u20AC";
    AppendCharacter(c, text);
    ASSERT_EQ(FindInvalidUtf8(text), std::nullopt) << static_cast<uint32_t>(c);
    ASSERT_EQ(FirstCharacter(LastCharacterBytes(text)), c);
    white += IsWhiteSpace(c);
  }
  EXPECT_EQ(white, 25);  // PropList.txt: Total code points: 25
}

TEST(Utf8Test, KnowsWhiteSpace) {
  for (const char32_t c : {0x09, 0x0A, 0x0B, 0x0C, 0x0D, 0x20, 0x85, 0xA0, 0x1680, 0x2000, 0x200A,
                           0x2028, 0x2029, 0x202F, 0x205F, 0x3000}) {
    EXPECT_TRUE(IsWhiteSpace(c)) << static_cast<uint32_t>(c);
  }
}

TEST(Utf8Test, SurrogatesAndWhatIsTooHighAreNoCharacters) {
  for (const char32_t c : {0xD800, 0xDBFF, 0xDC00, 0xDFFF, 0x110000}) {
    std::string text;
    AppendCharacter(c, text);
    EXPECT_EQ(FindInvalidUtf8(text), 0u) << static_cast<uint32_t>(c);
  }
}

TEST(Utf8Test, StripsWhiteSpace) {
  EXPECT_EQ(WithoutLeadingWhiteSpace(" \t\u3000a \u00A0"), "a \u00A0");
  EXPECT_EQ(WithoutTrailingWhiteSpace(" \t\u3000a \u00A0"), " \t\u3000a");
  EXPECT_EQ(WithoutLeadingWhiteSpace("\u2003"), "");
  EXPECT_EQ(WithoutTrailingWhiteSpace("\u2003"), "");
  EXPECT_EQ(WithoutTrailingWhiteSpace("\u200B"), "\u200B");  // zero width, but no White_Space
}

}  // namespace
}  // namespace fabricast
