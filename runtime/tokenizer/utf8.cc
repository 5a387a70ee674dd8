#include "runtime/tokenizer/utf8.h"

#include <cstdint>
#include <cstring>

#include "runtime/check.h"

namespace fabricast {
namespace {

constexpr absl::string_view kReplacement = "\xEF\xBF\xBD";  // U+FFFD

uint8_t Byte(absl::string_view text, size_t i) { return static_cast<uint8_t>(text[i]); }

bool IsContinuation(uint8_t byte) { return (byte & 0xC0) == 0x80; }

// The length of the longest prefix that is ASCII, in words of eight bytes.
size_t AsciiWords(absl::string_view text) {
  size_t i = 0;
  for (; i + 8 <= text.size(); i += 8) {
    uint64_t word;
    std::memcpy(&word, text.data() + i, 8);
    if ((word & 0x8080808080808080u) != 0) break;
  }
  return i;
}

// The second byte's range tells overlong forms (E0, F0), surrogates (ED) and what is above U+10FFFF
// (F4): table 3-7 of the Unicode standard.
bool MayFollow(uint8_t first, uint8_t second) {
  switch (first) {
    case 0xE0:
      return 0xA0 <= second && second <= 0xBF;
    case 0xED:
      return 0x80 <= second && second <= 0x9F;
    case 0xF0:
      return 0x90 <= second && second <= 0xBF;
    case 0xF4:
      return 0x80 <= second && second <= 0x8F;
    default:
      return IsContinuation(second);
  }
}

// Of a character that begins with this byte; 0 if none does.
size_t LengthOf(uint8_t first) {
  if (first < 0x80) return 1;
  if (first < 0xC2) return 0;
  if (first < 0xE0) return 2;
  if (first < 0xF0) return 3;
  return first < 0xF5 ? 4 : 0;
}

}  // namespace

Utf8Start StartOfUtf8(absl::string_view text) {
  const uint8_t first = Byte(text, 0);
  const size_t length = LengthOf(first);
  if (length == 0) return {Utf8Start::Kind::kBad, 1};
  for (size_t i = 1; i < length; ++i) {
    if (i == text.size()) return {Utf8Start::Kind::kIncomplete, i};
    const uint8_t byte = Byte(text, i);
    if (i == 1 ? !MayFollow(first, byte) : !IsContinuation(byte)) {
      return {Utf8Start::Kind::kBad, i};
    }
  }
  return {Utf8Start::Kind::kCharacter, length};
}

std::optional<size_t> FindInvalidUtf8(absl::string_view text) {
  size_t i = 0;
  while (i < text.size()) {
    i += AsciiWords(text.substr(i));
    for (size_t end = i + 8; i < text.size() && i < end;) {
      const Utf8Start start = StartOfUtf8(text.substr(i));
      if (start.kind != Utf8Start::Kind::kCharacter) return i;
      i += start.bytes;
    }
  }
  return std::nullopt;
}

absl::string_view AppendCertainUtf8(absl::string_view text, std::string& out) {
  size_t good = 0;  // bytes of `text` that are characters
  while (good < text.size()) {
    good += AsciiWords(text.substr(good));
    if (good == text.size()) break;
    const Utf8Start start = StartOfUtf8(text.substr(good));
    if (start.kind == Utf8Start::Kind::kCharacter) {
      good += start.bytes;
      continue;
    }
    out.append(text.data(), good);
    if (start.kind == Utf8Start::Kind::kIncomplete) return text.substr(good);
    out.append(kReplacement.data(), kReplacement.size());
    text.remove_prefix(good + start.bytes);
    good = 0;
  }
  out.append(text.data(), good);
  return {};
}

void AppendLossyUtf8(absl::string_view text, std::string& out) {
  if (!AppendCertainUtf8(text, out).empty()) out.append(kReplacement.data(), kReplacement.size());
}

char32_t FirstCharacter(absl::string_view text) {
  const uint8_t first = Byte(text, 0);
  const size_t length = LengthOf(first);
  FABRICAST_CHECK(length > 0 && length <= text.size()) << "no character: length=" << length;
  if (length == 1) return first;
  char32_t character = first & (0x7Fu >> length);
  for (size_t i = 1; i < length; ++i) character = character << 6 | (Byte(text, i) & 0x3Fu);
  return character;
}

absl::string_view LastCharacterBytes(absl::string_view text) {
  size_t start = text.size() - 1;
  while (start > 0 && IsContinuation(Byte(text, start))) --start;
  return text.substr(start);
}

void AppendCharacter(char32_t character, std::string& out) {
  const auto put = [&out](char32_t byte) { out.push_back(static_cast<char>(byte)); };
  const auto put_continuation = [&](int shift) { put(0x80 | ((character >> shift) & 0x3F)); };
  if (character < 0x80) {
    put(character);
  } else if (character < 0x800) {
    put(0xC0 | character >> 6);
    put_continuation(0);
  } else if (character < 0x10000) {
    put(0xE0 | character >> 12);
    put_continuation(6);
    put_continuation(0);
  } else {
    put(0xF0 | character >> 18);
    put_continuation(12);
    put_continuation(6);
    put_continuation(0);
  }
}

// PropList.txt of Unicode; unchanged since 6.3.
bool IsWhiteSpace(char32_t c) {
  return (0x09 <= c && c <= 0x0D) || c == 0x20 || c == 0x85 || c == 0xA0 || c == 0x1680 ||
         (0x2000 <= c && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F ||
         c == 0x3000;
}

absl::string_view WithoutLeadingWhiteSpace(absl::string_view text) {
  while (!text.empty() && IsWhiteSpace(FirstCharacter(text))) {
    text.remove_prefix(LengthOf(Byte(text, 0)));
  }
  return text;
}

absl::string_view WithoutTrailingWhiteSpace(absl::string_view text) {
  while (!text.empty()) {
    const absl::string_view last = LastCharacterBytes(text);
    if (!IsWhiteSpace(FirstCharacter(last))) break;
    text.remove_suffix(last.size());
  }
  return text;
}

}  // namespace fabricast
