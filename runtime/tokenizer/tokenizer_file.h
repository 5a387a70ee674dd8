// What a tokenizer.json says, checked.
#ifndef FABRICAST_RUNTIME_TOKENIZER_TOKENIZER_FILE_H_
#define FABRICAST_RUNTIME_TOKENIZER_TOKENIZER_FILE_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "runtime/tokenizer/added_tokens.h"
#include "runtime/tokenizer/byte_pair_encoder.h"
#include "runtime/tokenizer/split_pattern.h"

namespace fabricast {

// More is no tokenizer.json: Gemma 3's, with 262,144 tokens, has 33 MB.
constexpr size_t kMaxTokenizerBytes = 200'000'000;
// Ids are below this: some 8 times what the largest vocabularies have.
constexpr int32_t kMaxTokens = 1 << 21;

struct TokenizerFile {
  // As written, in the alphabet of byte_alphabet.h; ids may have holes.
  std::vector<std::pair<std::string, int32_t>> vocabulary;
  std::vector<BytePairEncoder::Rule> rules;
  BytePairEncoder::Options options;

  std::vector<AddedToken> added_tokens;  // in the order of the file; no content is empty
  bool nfc = false;                      // text is normalised first

  std::vector<SplitPattern> split;  // cuts the text; each one the pieces of the one before
  bool add_prefix_space = false;    // then, to pieces that begin without a space
  bool split_gpt2 = false;          // and then by kGpt2Pattern

  // What the post-processor adds before and behind.
  std::vector<int32_t> prefix;
  std::vector<int32_t> suffix;

  int32_t size = 0;  // all ids are below
};

// Errors as Tokenizer::Parse's, "FILE: PART: VALUE: MEND".
absl::StatusOr<TokenizerFile> ParseTokenizerFile(absl::string_view file, absl::string_view json);

}  // namespace fabricast

#endif  // FABRICAST_RUNTIME_TOKENIZER_TOKENIZER_FILE_H_
