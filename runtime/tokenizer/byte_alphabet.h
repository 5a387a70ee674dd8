// The printable characters that byte-level tokenizers write bytes as: "Ġthe" is " the".
#ifndef FABRICAST_RUNTIME_TOKENIZER_BYTE_ALPHABET_H_
#define FABRICAST_RUNTIME_TOKENIZER_BYTE_ALPHABET_H_

#include <optional>
#include <string>

#include "absl/strings/string_view.h"

namespace fabricast {

// The bytes that `token` stands for; none if one of its characters is not of the alphabet, or if it
// is not UTF-8.
//
// GPT-2's table: ! to ~, U+00A1 to U+00AC and U+00AE to U+00FF are the bytes of their number, and
// U+0100, U+0101, ... U+0143 the 68 bytes that are left, in order.
std::optional<std::string> BytesOfToken(absl::string_view token);

// The other way.
std::string TokenOfBytes(absl::string_view bytes);

}  // namespace fabricast

#endif  // FABRICAST_RUNTIME_TOKENIZER_BYTE_ALPHABET_H_
