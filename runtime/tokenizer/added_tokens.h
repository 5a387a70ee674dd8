// Tokens that are found in the text as such, before anything else is done to it.
#ifndef FABRICAST_RUNTIME_TOKENIZER_ADDED_TOKENS_H_
#define FABRICAST_RUNTIME_TOKENIZER_ADDED_TOKENS_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"

namespace fabricast {

// An entry of added_tokens in tokenizer.json.
struct AddedToken {
  int32_t id = 0;
  std::string content;
  bool single_word = false;  // only where no word character is beside it
  bool lstrip = false;       // takes the white space before it
  bool rstrip = false;       // takes the white space after it
  bool normalized = false;   // is looked for, normalised, in the normalised text
  bool special = false;      // can be left out when decoding
};

// Finds added tokens in text. Thread-safe.
class AddedTokenFinder {
 public:
  struct Pattern {
    std::string text;  // what to look for
    AddedToken token;
  };

  // Of patterns with the same text, the first counts.
  explicit AddedTokenFinder(std::vector<Pattern> patterns);

  struct Span {
    int32_t id;  // of an added token; kOrdinary: there is none in `text`
    absl::string_view text;
  };
  static constexpr int32_t kOrdinary = -1;

  // `text`, which must be UTF-8, in order: added tokens and what lies between them, no ordinary
  // span empty. At each place the longest pattern is taken, and the search goes on behind it (even
  // if it was no single word after all): as the reference implementation does.
  std::vector<Span> Find(absl::string_view text) const;

 private:
  struct Node {
    int32_t pattern = -1;  // that ends here
    int32_t first_child = -1;
    int32_t next_sibling = -1;
    char byte = 0;
  };
  int32_t Child(int32_t node, char byte) const;
  void Insert(int32_t pattern);
  // The longest pattern that `text` begins with; -1 if none.
  int32_t LongestPrefix(absl::string_view text) const;

  std::vector<Pattern> patterns_;
  std::vector<Node> nodes_;  // a trie; nodes_[0] is its root
  bool starts_[256] = {};    // whether a pattern begins with this byte
};

}  // namespace fabricast

#endif  // FABRICAST_RUNTIME_TOKENIZER_ADDED_TOKENS_H_
