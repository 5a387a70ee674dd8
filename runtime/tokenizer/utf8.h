// UTF-8, strictly: no overlong forms, no surrogates, nothing above U+10FFFF.
#ifndef FABRICAST_RUNTIME_TOKENIZER_UTF8_H_
#define FABRICAST_RUNTIME_TOKENIZER_UTF8_H_

#include <cstddef>
#include <optional>
#include <string>

#include "absl/strings/string_view.h"

namespace fabricast {

// What a text begins with.
struct Utf8Start {
  enum class Kind {
    kCharacter,
    kBad,         // bytes that begin no character, whatever follows
    kIncomplete,  // the text ends inside a character
  };
  Kind kind;
  // Of kBad and kIncomplete: the longest run that a character could begin with, at least one byte.
  // Unicode calls it a maximal subpart (section 3.9) and has each become one U+FFFD.
  size_t bytes;
};

// `text` must not be empty.
Utf8Start StartOfUtf8(absl::string_view text);

// The offset of the first byte that is not part of a character; none if all are.
std::optional<size_t> FindInvalidUtf8(absl::string_view text);

// Appends `text`, each bad run of it as one U+FFFD; returns what it leaves: an incomplete character
// at the end.
absl::string_view AppendCertainUtf8(absl::string_view text, std::string& out);

// Appends all of `text`, each bad or incomplete run as one U+FFFD.
void AppendLossyUtf8(absl::string_view text, std::string& out);

// The first character of `text`, which must begin with one.
char32_t FirstCharacter(absl::string_view text);

// The last character of `text`, which must end with one, as bytes.
absl::string_view LastCharacterBytes(absl::string_view text);

void AppendCharacter(char32_t character, std::string& out);

// Unicode's property White_Space.
bool IsWhiteSpace(char32_t character);

// Without the white space that it begins or ends with. `text` must be UTF-8.
absl::string_view WithoutLeadingWhiteSpace(absl::string_view text);
absl::string_view WithoutTrailingWhiteSpace(absl::string_view text);

}  // namespace fabricast

#endif  // FABRICAST_RUNTIME_TOKENIZER_UTF8_H_
