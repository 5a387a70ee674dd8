#ifndef FABRICAST_RUNTIME_TOKENIZER_NFC_H_
#define FABRICAST_RUNTIME_TOKENIZER_NFC_H_

#include <string>

#include "absl/strings/string_view.h"

namespace fabricast {

// `text`, which must be UTF-8, in Unicode's normalisation form C (of Unicode 14, utf8proc 2.8's).
// In O(n log n), also for a million combining marks in a row.
std::string ToNfc(absl::string_view text);

}  // namespace fabricast

#endif  // FABRICAST_RUNTIME_TOKENIZER_NFC_H_
