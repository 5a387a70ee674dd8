#include "runtime/tokenizer/byte_alphabet.h"

#include <set>
#include <string>

#include "gtest/gtest.h"

namespace fabricast {
namespace {

TEST(ByteAlphabetTest, WritesBytesAsGpt2Does) {
  EXPECT_EQ(TokenOfBytes(" the\n"), "\u0120the\u010A");
  EXPECT_EQ(TokenOfBytes(std::string(1, '\0')), "\u0100");
  EXPECT_EQ(TokenOfBytes("\x7F\x80\xA0\xA1\xAD\xFF"), "\u0121\u0122\u0142\u00A1\u0143\u00FF");
}

TEST(ByteAlphabetTest, EveryByteHasACharacterOfItsOwn) {
  std::set<std::string> tokens;
  for (int byte = 0; byte < 256; ++byte) {
    const std::string bytes(1, static_cast<char>(byte));
    const std::string token = TokenOfBytes(bytes);
    EXPECT_EQ(BytesOfToken(token), bytes);
    tokens.insert(token);
  }
  EXPECT_EQ(tokens.size(), 256u);
}

TEST(ByteAlphabetTest, OtherCharactersStandForNoByte) {
  for (const char* token : {" ", "a b", "\n", "\u00A0", "\u00AD", "\u0144", "\u2581", "\xFF"}) {
    EXPECT_EQ(BytesOfToken(token), std::nullopt) << token;
  }
  EXPECT_EQ(BytesOfToken(""), "");
}

}  // namespace
}  // namespace fabricast
