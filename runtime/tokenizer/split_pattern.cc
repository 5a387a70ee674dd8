#include "runtime/tokenizer/split_pattern.h"

#include <algorithm>
#include <cstdint>
#include <string>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/strip.h"
#include "pcre2.h"
#include "runtime/check.h"
#include "runtime/tokenizer/utf8.h"

namespace fabricast {
namespace {

constexpr size_t kMaxPatternBytes = 10'000;  // published ones have some hundred
constexpr size_t kMaxShown = 200;

// A pattern that backtracks over a run of n characters takes n steps: a run as long as the text is
// fine, its square is not.
constexpr uint32_t kMinMatchSteps = 10'000'000;
constexpr size_t kStepsPerByte = 8;
constexpr uint32_t kMaxDepth = 1'000'000;
constexpr uint32_t kMaxHeapKibibytes = 256 * 1024;

std::string Message(absl::string_view pattern, absl::string_view mend) {
  return absl::StrCat("\"", absl::CHexEscape(pattern.substr(0, kMaxShown)),
                      pattern.size() > kMaxShown ? "...\": " : "\": ", mend);
}

// Copies a pattern of Oniguruma as one of PCRE2, or refuses it.
class Translator {
 public:
  explicit Translator(absl::string_view pattern) : pattern_(pattern), rest_(pattern) {}

  absl::StatusOr<std::string> Run() {
    while (!rest_.empty() && status_.ok()) {
      if (in_class_) {
        InClass();
      } else {
        OutsideClass();
      }
    }
    if (!status_.ok()) return status_;
    return std::move(translated_);
  }

 private:
  void Take(size_t bytes) {
    translated_.append(rest_.data(), bytes);
    rest_.remove_prefix(bytes);
  }

  void Refuse(size_t bytes) {
    const size_t at = pattern_.size() - rest_.size();
    status_ = absl::UnimplementedError(Message(
        pattern_, absl::StrFormat("\"%s\" at byte %d is not supported: write it with classes, "
                                  "\\s, \\d, \\p{L} and other general categories, (?:), (?i:), "
                                  "look-around and quantifiers",
                                  absl::CHexEscape(rest_.substr(0, bytes)), at)));
  }

  void OutsideClass() {
    switch (rest_[0]) {
      case '\\':
        return Escape();
      case '[':
        in_class_ = true;
        Take(absl::StartsWith(rest_, "[^") ? 2 : 1);
        // "[]...": a literal, or an empty class.
        if (absl::StartsWith(rest_, "]")) Refuse(1);
        return;
      case '(':
        return Group();
      case '{':
        return Interval();
      case '^':  // Oniguruma's match at each line
      case '$':
        return Refuse(1);
      default:
        return Take(1);
    }
  }

  void InClass() {
    // Oniguruma nests classes, "[a[bc]]", and intersects them, "[a&&b]".
    if (rest_[0] == '[' || absl::StartsWith(rest_, "&&")) return Refuse(2);
    if (rest_[0] == '\\') return Escape();
    if (rest_[0] == ']') in_class_ = false;
    Take(1);
  }

  void Escape() {
    const char escaped = rest_.size() > 1 ? rest_[1] : '\0';
    if (escaped == 's' || escaped == 'S') {
      // PCRE2's \s has U+180E too.
      absl::StrAppend(&translated_, escaped == 's' ? "\\p" : "\\P", "{White_Space}");
      rest_.remove_prefix(2);
    } else if (escaped == 'p' || escaped == 'P') {
      Property();
    } else if (absl::StrContains("rntfdD", escaped) || absl::ascii_ispunct(escaped) ||
               escaped == ' ') {
      Take(2);
    } else {
      // \w, \b: not the same characters. \h, \v, \R, \1, ...: another thing altogether.
      Refuse(2);
    }
  }

  // \p{L} or \p{Lu}. Scripts differ: PCRE2's \p{Han} are script extensions.
  void Property() {
    absl::string_view name = rest_.substr(2);
    const bool braced = absl::ConsumePrefix(&name, "{");
    const size_t end = name.find('}');
    if (!braced || end == absl::string_view::npos) return Refuse(2);
    name = name.substr(0, end);
    const bool category = !name.empty() && name.size() <= 2 &&
                          absl::StrContains("LMNPSZC", name[0]) &&
                          (name.size() == 1 || absl::ascii_islower(name[1]));
    const size_t bytes = 2 + 1 + end + 1;
    if (category) {
      Take(bytes);
    } else {
      Refuse(bytes);
    }
  }

  void Group() {
    for (absl::string_view open : {"(?:", "(?i:", "(?=", "(?!", "(?<=", "(?<!", "(?>"}) {
      if (absl::StartsWith(rest_, open)) return Take(open.size());
    }
    if (absl::StartsWith(rest_, "(?") || absl::StartsWith(rest_, "(*")) return Refuse(3);
    Take(1);
  }

  // {n}, {n,} or {n,m}, alone: {,m} and what + and ? mean behind one differ.
  void Interval() {
    size_t end = 1;
    const auto digits = [&] {
      const size_t start = end;
      while (end < rest_.size() && absl::ascii_isdigit(rest_[end])) ++end;
      return end > start;
    };
    const bool has_low = digits();
    if (end < rest_.size() && rest_[end] == ',') {
      ++end;
      digits();
    }
    if (!has_low || end >= rest_.size() || rest_[end] != '}') return Refuse(1);
    ++end;
    if (end < rest_.size() && (rest_[end] == '+' || rest_[end] == '?')) return Refuse(end + 1);
    Take(end);
  }

  const absl::string_view pattern_;
  absl::string_view rest_;
  bool in_class_ = false;
  std::string translated_;
  absl::Status status_;
};

std::string ErrorText(int error) {
  PCRE2_UCHAR text[256];
  pcre2_get_error_message(error, text, sizeof(text));
  return reinterpret_cast<const char*>(text);
}

PCRE2_SPTR Units(absl::string_view text) { return reinterpret_cast<PCRE2_SPTR>(text.data()); }

template <auto Free>
struct Freer {
  template <typename T>
  void operator()(T* p) const {
    Free(p);
  }
};
using CodePointer = std::unique_ptr<pcre2_code, Freer<pcre2_code_free>>;
using CompileContext = std::unique_ptr<pcre2_compile_context, Freer<pcre2_compile_context_free>>;
using MatchContext = std::unique_ptr<pcre2_match_context, Freer<pcre2_match_context_free>>;
using MatchData = std::unique_ptr<pcre2_match_data, Freer<pcre2_match_data_free>>;

MatchContext MakeMatchContext(size_t text_bytes) {
  MatchContext context(pcre2_match_context_create(nullptr));
  FABRICAST_CHECK(context != nullptr);
  const size_t steps = std::min<size_t>(UINT32_MAX, kStepsPerByte * text_bytes);
  pcre2_set_match_limit(context.get(), std::max(kMinMatchSteps, static_cast<uint32_t>(steps)));
  pcre2_set_depth_limit(context.get(), kMaxDepth);
  pcre2_set_heap_limit(context.get(), kMaxHeapKibibytes);
  return context;
}

}  // namespace

const absl::string_view kGpt2Pattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

struct SplitPattern::Code {
  std::string pattern;
  CodePointer code;
};

SplitPattern::SplitPattern(std::unique_ptr<Code> code) : code_(std::move(code)) {}
SplitPattern::SplitPattern(SplitPattern&&) = default;
SplitPattern& SplitPattern::operator=(SplitPattern&&) = default;
SplitPattern::~SplitPattern() = default;

absl::StatusOr<SplitPattern> SplitPattern::Compile(absl::string_view pattern) {
  if (pattern.size() > kMaxPatternBytes) {
    return absl::InvalidArgumentError(
        Message(pattern, absl::StrFormat("%d bytes: give a pattern of at most %d", pattern.size(),
                                         kMaxPatternBytes)));
  }
  const absl::StatusOr<std::string> translated = Translator(pattern).Run();
  if (!translated.ok()) return translated.status();
  const CompileContext context(pcre2_compile_context_create(nullptr));
  FABRICAST_CHECK(context != nullptr);
  pcre2_set_newline(context.get(), PCRE2_NEWLINE_LF);  // what . does not match
  int error = 0;
  PCRE2_SIZE at = 0;
  CodePointer compiled(pcre2_compile(Units(*translated), translated->size(),
                                     PCRE2_UTF | PCRE2_UCP | PCRE2_NEVER_BACKSLASH_C, &error, &at,
                                     context.get()));
  if (compiled == nullptr) {
    return absl::InvalidArgumentError(Message(
        pattern, absl::StrCat(ErrorText(error), ": give a regular expression of Oniguruma")));
  }
  // Some ten times faster where there is one; else pcre2_match interprets.
  pcre2_jit_compile(compiled.get(), PCRE2_JIT_COMPLETE);
  auto code = std::make_unique<Code>();
  code->pattern = std::string(pattern);
  code->code = std::move(compiled);
  return SplitPattern(std::move(code));
}

absl::Status SplitPattern::Split(absl::string_view text,
                                 std::vector<absl::string_view>& pieces) const {
  if (text.empty()) return absl::OkStatus();
  const MatchContext context = MakeMatchContext(text.size());
  const MatchData match(pcre2_match_data_create(1, nullptr));
  FABRICAST_CHECK(match != nullptr);
  const PCRE2_SIZE* const bounds = pcre2_get_ovector_pointer(match.get());
  size_t done = 0;  // pieces up to here
  const auto add_until = [&](size_t end) {
    if (end > done) pieces.push_back(text.substr(done, end - done));
    done = std::max(done, end);
  };
  for (size_t from = 0; from <= text.size();) {
    const auto run = [&](uint32_t options) {
      return pcre2_match(code_->code.get(), Units(text), text.size(), from,
                         options | PCRE2_NO_UTF_CHECK, match.get(), context.get());
    };
    int result = run(0);
    // The JIT's stack is 32 KiB; the interpreter takes the heap.
    if (result == PCRE2_ERROR_JIT_STACKLIMIT) result = run(PCRE2_NO_JIT);
    if (result == PCRE2_ERROR_NOMATCH) break;
    if (result < 0) {
      return absl::ResourceExhaustedError(
          Message(code_->pattern, absl::StrFormat("%s at byte %d of the text: give a pattern that "
                                                  "backtracks less, or a shorter text",
                                                  ErrorText(result), from)));
    }
    const size_t start = bounds[0];
    const size_t end = bounds[1];
    add_until(start);
    add_until(end);
    from = end;
    if (start == end) {  // empty: a cut, and on from the next character
      if (end == text.size()) break;
      from = end + StartOfUtf8(text.substr(end)).bytes;
    }
  }
  add_until(text.size());
  return absl::OkStatus();
}

}  // namespace fabricast
