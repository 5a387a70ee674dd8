#include "runtime/tokenizer/byte_alphabet.h"

#include <array>
#include <cstdint>

#include "runtime/tokenizer/utf8.h"

namespace fabricast {
namespace {

constexpr char32_t kFirstMoved = 0x100;
constexpr int kMoved = 68;

constexpr bool StandsForItself(int byte) {
  return ('!' <= byte && byte <= '~') || (0xA1 <= byte && byte <= 0xAC) || byte >= 0xAE;
}

struct Alphabet {
  std::array<char32_t, 256> character;
  std::array<uint8_t, kMoved> moved;
};

constexpr Alphabet MakeAlphabet() {
  Alphabet alphabet = {};
  int moved = 0;
  for (int byte = 0; byte < 256; ++byte) {
    if (StandsForItself(byte)) {
      alphabet.character[byte] = static_cast<char32_t>(byte);
    } else {
      alphabet.character[byte] = kFirstMoved + moved;
      alphabet.moved[moved++] = static_cast<uint8_t>(byte);
    }
  }
  return alphabet;
}

constexpr Alphabet kAlphabet = MakeAlphabet();

}  // namespace

std::optional<std::string> BytesOfToken(absl::string_view token) {
  std::string bytes;
  bytes.reserve(token.size());
  while (!token.empty()) {
    const Utf8Start start = StartOfUtf8(token);
    if (start.kind != Utf8Start::Kind::kCharacter) return std::nullopt;
    const char32_t character = FirstCharacter(token);
    if (character < kFirstMoved && StandsForItself(static_cast<int>(character))) {
      bytes.push_back(static_cast<char>(character));
    } else if (kFirstMoved <= character && character < kFirstMoved + kMoved) {
      bytes.push_back(static_cast<char>(kAlphabet.moved[character - kFirstMoved]));
    } else {
      return std::nullopt;
    }
    token.remove_prefix(start.bytes);
  }
  return bytes;
}

std::string TokenOfBytes(absl::string_view bytes) {
  std::string token;
  for (const char byte : bytes) {
    AppendCharacter(kAlphabet.character[static_cast<uint8_t>(byte)], token);
  }
  return token;
}

}  // namespace fabricast
