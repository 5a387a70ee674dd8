#include "runtime/tokenizer/nfc.h"

#include <cstdlib>
#include <random>
#include <string>

#include "gtest/gtest.h"
#include "runtime/tokenizer/utf8.h"
#include "utf8proc.h"

namespace fabricast {
namespace {

TEST(NfcTest, ComposesAndOrders) {
  EXPECT_EQ(ToNfc("caf\u00E9 plain"), "caf\u00E9 plain");
  EXPECT_EQ(ToNfc("e\u0301"), "\u00E9");
  EXPECT_EQ(ToNfc("\u212B"), "\u00C5");               // the sign for angstrom
  EXPECT_EQ(ToNfc("\u1100\u1161\u11A8"), "\uAC01");   // Hangul
  EXPECT_EQ(ToNfc("a\u0301\u0323"), "\u1EA1\u0301");  // the dot below is nearer
  EXPECT_EQ(ToNfc("\u0958"), "\u0915\u093C");         // excluded from composition
  EXPECT_EQ(ToNfc("\uFB01"), "\uFB01");               // a ligature is only compatible
  EXPECT_EQ(ToNfc(std::string("\0e\u0301", 4)), std::string("\0\u00E9", 3));
  EXPECT_EQ(ToNfc(""), "");
}

TEST(NfcTest, IsUtf8procsOwnResult) {
  // Marks, letters with several marks, Hangul and exclusions are dense in these.
  constexpr std::pair<int, int> kRanges[] = {
      {0x41, 0x7A},   {0xC0, 0x17F},    {0x300, 0x36F},   {0x5D0, 0x5EA},   {0x591, 0x5C7},
      {0x915, 0x95F}, {0x1100, 0x11FF}, {0xAC00, 0xAC40}, {0x1E00, 0x1FFF}, {0x1D15E, 0x1D164}};
  std::mt19937 random(1);
  for (int i = 0; i < 20'000; ++i) {
    std::string text;
    for (size_t length = random() % 12; length > 0; --length) {
      const auto [first, last] = kRanges[random() % std::size(kRanges)];
      AppendCharacter(static_cast<char32_t>(first + random() % (last - first + 1)), text);
    }
    utf8proc_uint8_t* expected =
        utf8proc_NFC(reinterpret_cast<const utf8proc_uint8_t*>(text.c_str()));
    ASSERT_NE(expected, nullptr);
    EXPECT_EQ(ToNfc(text), reinterpret_cast<const char*>(expected)) << text;
    std::free(expected);
  }
}

TEST(NfcTest, KeepsTheOrderOfMarksOfOneClass) {
  // More than the 16 that std::sort leaves in order.
  std::string text = "q";
  for (int i = 0; i < 10; ++i) text += "\u0306\u0305\u0302\u0301";  // all of class 230
  EXPECT_EQ(ToNfc(text + "\u0316"), "q\u0316" + text.substr(1));    // class 220
}

TEST(NfcTest, OrdersAMillionMarks) {
  // A loop that moves each mark past the others one by one takes 500,000^2 / 2 = 1.25e11 steps.
  std::string text = "a";
  std::string above;
  std::string below;
  for (int i = 0; i < 500'000; ++i) {
    text += "\u0301\u0316";
    above += "\u0301";
    below += "\u0316";
  }
  EXPECT_EQ(ToNfc(text), "\u00E1" + below + above.substr(2));
}

}  // namespace
}  // namespace fabricast
