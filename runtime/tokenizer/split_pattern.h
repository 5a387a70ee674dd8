// The regular expression of a pre-tokeniser: cuts text into the pieces that are encoded each for
// itself.
#ifndef FABRICAST_RUNTIME_TOKENIZER_SPLIT_PATTERN_H_
#define FABRICAST_RUNTIME_TOKENIZER_SPLIT_PATTERN_H_

#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace fabricast {

// The reference implementation matches with Oniguruma (Ruby's syntax), we with PCRE2. Accepted is
// what means the same to both, which all published patterns of the GPT-2, Llama 3, Qwen, DeepSeek
// and GPT-4 kind do: literals, ., classes, \s \d \p{general category} and their negations, groups
// (?:) (?i:) (?>) (), look-around, | and greedy, lazy or possessive quantifiers. Characters that
// Unicode 15 added are unassigned here: PCRE2 10.42 knows Unicode 14.
//
// Thread-safe.
class SplitPattern {
 public:
  // kUnimplemented for what the two understand differently, kInvalidArgument if it is no regular
  // expression. Messages are "VALUE: MEND".
  static absl::StatusOr<SplitPattern> Compile(absl::string_view pattern);

  SplitPattern(SplitPattern&&);
  SplitPattern& operator=(SplitPattern&&);
  ~SplitPattern();

  // Appends the matches in `text`, which must be UTF-8, and what lies between them: each a piece,
  // none empty, all together `text`. kResourceExhausted if the pattern backtracks without end.
  absl::Status Split(absl::string_view text, std::vector<absl::string_view>& pieces) const;

 private:
  struct Code;
  explicit SplitPattern(std::unique_ptr<Code> code);

  std::unique_ptr<Code> code_;
};

// ByteLevel's own, for `use_regex`.
extern const absl::string_view kGpt2Pattern;

}  // namespace fabricast

#endif  // FABRICAST_RUNTIME_TOKENIZER_SPLIT_PATTERN_H_
