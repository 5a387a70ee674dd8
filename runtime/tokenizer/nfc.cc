#include "runtime/tokenizer/nfc.h"

#include <algorithm>
#include <vector>

#include "runtime/check.h"
#include "runtime/tokenizer/utf8.h"
#include "utf8proc.h"

namespace fabricast {
namespace {

// All characters below U+0300, the first combining mark, are as they are in form C, and none of
// them combines with another. Their first bytes are below this.
constexpr unsigned char kFirstByteOf0300 = 0xCC;

// The most that one character decomposes into is 4 (U+1F82 and others).
constexpr int kMaxDecomposed = 18;

bool BelowCombiningMarks(absl::string_view text) {
  return std::all_of(text.begin(), text.end(),
                     [](char byte) { return static_cast<unsigned char>(byte) < kFirstByteOf0300; });
}

int CombiningClass(utf8proc_int32_t character) {
  return utf8proc_get_property(character)->combining_class;
}

// Puts each run of combining marks into the canonical order. utf8proc's own loop moves a mark past
// one other at a time, which takes O(n^2) on a long run.
void OrderMarks(std::vector<utf8proc_int32_t>& characters) {
  for (auto it = characters.begin(); it != characters.end();) {
    if (CombiningClass(*it) == 0) {
      ++it;
      continue;
    }
    const auto end = std::find_if(it, characters.end(),
                                  [](utf8proc_int32_t c) { return CombiningClass(c) == 0; });
    std::stable_sort(it, end, [](utf8proc_int32_t a, utf8proc_int32_t b) {
      return CombiningClass(a) < CombiningClass(b);
    });
    it = end;
  }
}

}  // namespace

std::string ToNfc(absl::string_view text) {
  if (BelowCombiningMarks(text)) return std::string(text);
  std::vector<utf8proc_int32_t> characters;
  characters.reserve(text.size());
  while (!text.empty()) {
    const Utf8Start start = StartOfUtf8(text);
    FABRICAST_CHECK(start.kind == Utf8Start::Kind::kCharacter) << "not UTF-8";
    utf8proc_int32_t decomposed[kMaxDecomposed];
    int boundary_class = 0;
    const utf8proc_ssize_t count = utf8proc_decompose_char(
        static_cast<utf8proc_int32_t>(FirstCharacter(text)), decomposed, kMaxDecomposed,
        static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_DECOMPOSE), &boundary_class);
    FABRICAST_CHECK(0 <= count && count <= kMaxDecomposed) << "count=" << count;
    characters.insert(characters.end(), decomposed, decomposed + count);
    text.remove_prefix(start.bytes);
  }
  OrderMarks(characters);
  const utf8proc_ssize_t count =
      utf8proc_normalize_utf32(characters.data(), static_cast<utf8proc_ssize_t>(characters.size()),
                               static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE));
  FABRICAST_CHECK(count >= 0) << utf8proc_errmsg(count);
  std::string normalised;
  normalised.reserve(static_cast<size_t>(count));
  for (utf8proc_ssize_t i = 0; i < count; ++i) {
    AppendCharacter(static_cast<char32_t>(characters[static_cast<size_t>(i)]), normalised);
  }
  return normalised;
}

}  // namespace fabricast
