#include "runtime/tokenizer/added_tokens.h"

#include <algorithm>
#include <utility>

#include "runtime/tokenizer/utf8.h"
#include "utf8proc.h"

namespace fabricast {
namespace {

// Unicode's word characters (UTS #18): Alphabetic, marks, decimal digits, connecting punctuation
// and the two joiners. Alphabetic are, beside marks, letters, letter numbers and the circled and
// squared Latin letters (PropList.txt, Other_Alphabetic that is not a mark).
bool IsWordCharacter(char32_t c) {
  switch (utf8proc_category(static_cast<utf8proc_int32_t>(c))) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_MC:
    case UTF8PROC_CATEGORY_ME:
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_PC:
      return true;
    default:
      return (0x24B6 <= c && c <= 0x24E9) || (0x1F130 <= c && c <= 0x1F149) ||
             (0x1F150 <= c && c <= 0x1F169) || (0x1F170 <= c && c <= 0x1F189) || c == 0x200C ||
             c == 0x200D;
  }
}

bool IsSingleWord(absl::string_view before, absl::string_view after) {
  return (before.empty() || !IsWordCharacter(FirstCharacter(LastCharacterBytes(before)))) &&
         (after.empty() || !IsWordCharacter(FirstCharacter(after)));
}

}  // namespace

AddedTokenFinder::AddedTokenFinder(std::vector<Pattern> patterns)
    : patterns_(std::move(patterns)), nodes_(1) {
  for (size_t i = 0; i < patterns_.size(); ++i) Insert(static_cast<int32_t>(i));
}

void AddedTokenFinder::Insert(int32_t pattern) {
  const std::string& text = patterns_[pattern].text;
  if (text.empty()) return;
  starts_[static_cast<uint8_t>(text[0])] = true;
  int32_t node = 0;
  for (const char byte : text) {
    int32_t child = Child(node, byte);
    if (child < 0) {
      child = static_cast<int32_t>(nodes_.size());
      nodes_.push_back({.next_sibling = nodes_[node].first_child, .byte = byte});
      nodes_[node].first_child = child;
    }
    node = child;
  }
  if (nodes_[node].pattern < 0) nodes_[node].pattern = pattern;
}

int32_t AddedTokenFinder::Child(int32_t node, char byte) const {
  int32_t child = nodes_[node].first_child;
  while (child >= 0 && nodes_[child].byte != byte) child = nodes_[child].next_sibling;
  return child;
}

int32_t AddedTokenFinder::LongestPrefix(absl::string_view text) const {
  int32_t longest = -1;
  int32_t node = 0;
  for (const char byte : text) {
    node = Child(node, byte);
    if (node < 0) break;
    if (nodes_[node].pattern >= 0) longest = nodes_[node].pattern;
  }
  return longest;
}

std::vector<AddedTokenFinder::Span> AddedTokenFinder::Find(absl::string_view text) const {
  std::vector<Span> spans;
  size_t done = 0;  // spans up to here
  for (size_t i = 0; i < text.size();) {
    const int32_t found =
        starts_[static_cast<uint8_t>(text[i])] ? LongestPrefix(text.substr(i)) : -1;
    if (found < 0) {
      ++i;
      continue;
    }
    const AddedToken& token = patterns_[found].token;
    size_t start = i;
    i += patterns_[found].text.size();
    size_t end = i;
    if (token.single_word && !IsSingleWord(text.substr(0, start), text.substr(end))) continue;
    if (token.lstrip) {
      start = std::max(done, WithoutTrailingWhiteSpace(text.substr(0, start)).size());
    }
    if (token.rstrip) end = text.size() - WithoutLeadingWhiteSpace(text.substr(end)).size();
    if (done < start) spans.push_back({kOrdinary, text.substr(done, start - done)});
    spans.push_back({token.id, text.substr(start, end - start)});
    // Not max: a token that begins inside white space that another took gives back what follows it.
    done = end;
  }
  if (done < text.size()) spans.push_back({kOrdinary, text.substr(done)});
  return spans;
}

}  // namespace fabricast
