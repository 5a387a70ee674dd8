#include "runtime/tokenizer/tokenizer.h"

#include <deque>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "runtime/tokenizer/added_tokens.h"
#include "runtime/tokenizer/byte_alphabet.h"
#include "runtime/tokenizer/byte_pair_encoder.h"
#include "runtime/tokenizer/json_part.h"
#include "runtime/tokenizer/nfc.h"
#include "runtime/tokenizer/split_pattern.h"
#include "runtime/tokenizer/tokenizer_file.h"
#include "runtime/tokenizer/utf8.h"

namespace fabricast {
namespace {

// What BytePairEncoder takes, with room for a normalised text that is longer: form C at most
// triples UTF-8 (Unicode's FAQ on normalisation).
constexpr size_t kMaxTextBytes = size_t{1} << 28;

// The bytes of each token, by id, and what ids are there.
struct TokenTable {
  std::vector<std::string> bytes;
  std::vector<bool> exists;
  std::vector<bool> special;
};

TokenTable MakeTable(const TokenizerFile& file) {
  TokenTable table = {.bytes = std::vector<std::string>(file.size),
                      .exists = std::vector<bool>(file.size),
                      .special = std::vector<bool>(file.size)};
  const auto add = [&table](const std::string& token, int32_t id) {
    // A token that has a character outside of the alphabet is itself, as for the reference.
    table.bytes[id] = BytesOfToken(token).value_or(token);
    table.exists[id] = true;
  };
  for (const auto& [token, id] : file.vocabulary) add(token, id);
  for (const AddedToken& token : file.added_tokens) {
    add(token.content, token.id);
    table.special[token.id] = token.special;
  }
  return table;
}

// Of the vocabulary's tokens that are written in the alphabet: no text becomes the others.
absl::flat_hash_map<absl::string_view, int32_t> EncodableTokens(const TokenizerFile& file,
                                                                const TokenTable& table) {
  absl::flat_hash_map<absl::string_view, int32_t> tokens;
  tokens.reserve(file.vocabulary.size());
  for (const auto& [token, id] : file.vocabulary) {
    if (BytesOfToken(token).has_value() && !token.empty()) tokens.emplace(table.bytes[id], id);
  }
  return tokens;
}

AddedTokenFinder MakeFinder(const TokenizerFile& file, bool normalized) {
  std::vector<AddedTokenFinder::Pattern> patterns;
  // Normalising may make two the same; then special ones count first.
  for (const bool special : {true, false}) {
    for (const AddedToken& token : file.added_tokens) {
      if (token.normalized != normalized || token.special != special) continue;
      patterns.push_back({normalized && file.nfc ? ToNfc(token.content) : token.content, token});
    }
  }
  return AddedTokenFinder(std::move(patterns));
}

class ByteLevelTokenizer final : public Tokenizer {
 public:
  ByteLevelTokenizer(TokenizerFile file, SplitPattern gpt2_pattern)
      : nfc_(file.nfc),
        add_prefix_space_(file.add_prefix_space),
        prefix_(file.prefix),
        suffix_(file.suffix),
        table_(MakeTable(file)),
        encoder_(EncodableTokens(file, table_), file.rules, table_.special, file.options),
        finder_(MakeFinder(file, /*normalized=*/false)),
        normalized_finder_(MakeFinder(file, /*normalized=*/true)),
        split_(std::move(file.split)) {
    if (file.split_gpt2) split_gpt2_ = std::move(gpt2_pattern);
    for (const AddedToken& token : file.added_tokens) added_ids_.emplace(token.content, token.id);
    for (const auto& [token, id] : file.vocabulary) {
      if (!BytesOfToken(token).has_value() || token.empty()) added_ids_.emplace(token, id);
    }
  }

  absl::StatusOr<std::vector<int32_t>> Encode(absl::string_view text,
                                              bool add_special_tokens) const override {
    absl::Status status = Check(text);
    std::vector<int32_t> ids;
    if (add_special_tokens) ids = prefix_;
    if (status.ok()) {
      for (const AddedTokenFinder::Span& span : finder_.Find(text)) {
        if (span.id != AddedTokenFinder::kOrdinary) {
          ids.push_back(span.id);
        } else {
          status.Update(EncodeSpan(span.text, ids));
        }
      }
    }
    if (!status.ok()) return status;
    if (add_special_tokens) ids.insert(ids.end(), suffix_.begin(), suffix_.end());
    return ids;
  }

  absl::StatusOr<std::vector<int32_t>> EncodeOrdinary(absl::string_view text) const override {
    absl::Status status = Check(text);
    std::vector<int32_t> ids;
    if (status.ok()) {
      status = nfc_ ? EncodePieces(ToNfc(text), /*may_become_special=*/false, ids)
                    : EncodePieces(text, /*may_become_special=*/false, ids);
    }
    if (!status.ok()) return status;
    return ids;
  }

  std::string Decode(absl::Span<const int32_t> ids, bool skip_special_tokens) const override {
    std::string bytes;
    for (const int32_t id : ids) {
      if (!skip_special_tokens || !IsSpecial(id)) absl::StrAppend(&bytes, Bytes(id));
    }
    std::string text;
    text.reserve(bytes.size());
    AppendLossyUtf8(bytes, text);
    return text;
  }

  absl::string_view Bytes(int32_t id) const override {
    return 0 <= id && id < size() ? absl::string_view(table_.bytes[id]) : absl::string_view();
  }
  bool IsSpecial(int32_t id) const override { return 0 <= id && id < size() && table_.special[id]; }
  std::optional<int32_t> Find(absl::string_view token) const override {
    const auto it = added_ids_.find(token);
    if (it != added_ids_.end()) return it->second;
    const std::optional<std::string> bytes = BytesOfToken(token);
    return bytes.has_value() ? encoder_.Find(*bytes) : std::nullopt;
  }
  int32_t size() const override { return static_cast<int32_t>(table_.bytes.size()); }

 private:
  static absl::Status Check(absl::string_view text) {
    if (text.size() > kMaxTextBytes) {
      return absl::InvalidArgumentError(absl::StrFormat(
          "text of %d bytes: give at most %d at a time", text.size(), kMaxTextBytes));
    }
    const std::optional<size_t> bad = FindInvalidUtf8(text);
    if (!bad.has_value()) return absl::OkStatus();
    return absl::InvalidArgumentError(
        absl::StrFormat("text: byte %d: 0x%02x: not UTF-8: give UTF-8", *bad,
                        static_cast<unsigned char>(text[*bad])));
  }

  // Text that has no added token but normalised ones.
  absl::Status EncodeSpan(absl::string_view text, std::vector<int32_t>& ids) const {
    std::string normalised;
    if (nfc_) {
      normalised = ToNfc(text);
      text = normalised;
    }
    absl::Status status;
    for (const AddedTokenFinder::Span& span : normalized_finder_.Find(text)) {
      if (span.id != AddedTokenFinder::kOrdinary) {
        ids.push_back(span.id);
      } else {
        status.Update(EncodePieces(span.text, /*may_become_special=*/true, ids));
      }
    }
    return status;
  }

  // Normalised text without added tokens.
  absl::Status EncodePieces(absl::string_view text, bool may_become_special,
                            std::vector<int32_t>& ids) const {
    std::vector<absl::string_view> pieces;
    if (!text.empty()) pieces.push_back(text);
    for (const SplitPattern& pattern : split_) {
      const absl::Status status = SplitAll(pattern, pieces);
      if (!status.ok()) return status;
    }
    std::deque<std::string> spaced;  // what `pieces` points to where it is not `text`
    if (add_prefix_space_) {
      for (absl::string_view& piece : pieces) {
        if (piece[0] != ' ') piece = spaced.emplace_back(absl::StrCat(" ", piece));
      }
    }
    if (split_gpt2_.has_value()) {
      const absl::Status status = SplitAll(*split_gpt2_, pieces);
      if (!status.ok()) return status;
    }
    for (const absl::string_view piece : pieces) encoder_.Encode(piece, may_become_special, ids);
    return absl::OkStatus();
  }

  static absl::Status SplitAll(const SplitPattern& pattern,
                               std::vector<absl::string_view>& pieces) {
    std::vector<absl::string_view> split;
    for (const absl::string_view piece : pieces) {
      const absl::Status status = pattern.Split(piece, split);
      if (!status.ok()) return status;
    }
    pieces = std::move(split);
    return absl::OkStatus();
  }

  const bool nfc_;
  const bool add_prefix_space_;
  const std::vector<int32_t> prefix_;
  const std::vector<int32_t> suffix_;
  const TokenTable table_;
  const BytePairEncoder encoder_;
  const AddedTokenFinder finder_;
  const AddedTokenFinder normalized_finder_;
  const std::vector<SplitPattern> split_;
  std::optional<SplitPattern> split_gpt2_;
  // Of added tokens, and of those of the vocabulary that the encoder does not know.
  absl::flat_hash_map<std::string, int32_t> added_ids_;
};

}  // namespace

absl::StatusOr<std::shared_ptr<const Tokenizer>> Tokenizer::Load(const std::string& folder) {
  const std::string path = absl::StrCat(folder, "/tokenizer.json");
  const absl::StatusOr<std::string> json = ReadJsonFile(path, kMaxTokenizerBytes);
  if (!json.ok()) return json.status();
  return Parse(path, *json);
}

absl::StatusOr<std::shared_ptr<const Tokenizer>> Tokenizer::Parse(absl::string_view file,
                                                                  absl::string_view json) {
  absl::StatusOr<TokenizerFile> parsed = ParseTokenizerFile(file, json);
  if (!parsed.ok()) return parsed.status();
  absl::StatusOr<SplitPattern> gpt2_pattern = SplitPattern::Compile(kGpt2Pattern);
  if (!gpt2_pattern.ok()) return gpt2_pattern.status();
  return std::make_shared<const ByteLevelTokenizer>(*std::move(parsed), *std::move(gpt2_pattern));
}

std::string Detokenizer::Append(int32_t id) {
  std::string text;
  if (skip_special_tokens_ && tokenizer_.IsSpecial(id)) return text;
  absl::StrAppend(&pending_, tokenizer_.Bytes(id));
  pending_ = std::string(AppendCertainUtf8(pending_, text));
  return text;
}

std::string Detokenizer::Finish() {
  std::string text;
  AppendLossyUtf8(pending_, text);
  pending_.clear();
  return text;
}

}  // namespace fabricast
