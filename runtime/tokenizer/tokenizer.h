// Text to tokens and back, as the tokenizer.json of a checkpoint says.
//
// Supported is what Llama 3 and Qwen use: byte-level BPE (with or without ignore_merges), added
// tokens with all their flags, normaliser NFC or none, pre-tokenisers Split (a regular expression)
// and ByteLevel, post-processors ByteLevel and TemplateProcessing, decoder ByteLevel.
#ifndef FABRICAST_RUNTIME_TOKENIZER_TOKENIZER_H_
#define FABRICAST_RUNTIME_TOKENIZER_TOKENIZER_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace fabricast {

// Thread-safe once loaded (immutable).
class Tokenizer {
 public:
  // `folder`: a checkpoint's, holding tokenizer.json. kNotFound if it does not; kUnimplemented,
  // naming the part and what is supported, for other kinds; kInvalidArgument if it contradicts
  // itself.
  static absl::StatusOr<std::shared_ptr<const Tokenizer>> Load(const std::string& folder);
  // From the text of a tokenizer.json; `file` is for messages.
  static absl::StatusOr<std::shared_ptr<const Tokenizer>> Parse(absl::string_view file,
                                                                absl::string_view json);
  virtual ~Tokenizer() = default;

  // Special tokens in `text` ("<|eot_id|>") become their ids, as the reference implementation's do.
  // `add_special_tokens`: what the post-processor adds, such as <|begin_of_text|>.
  // kInvalidArgument, with the offset of the first bad byte, if `text` is not UTF-8, or if it is
  // longer than 256 MiB; kResourceExhausted if the checkpoint's regular expression backtracks on it
  // without end.
  virtual absl::StatusOr<std::vector<int32_t>> Encode(absl::string_view text,
                                                      bool add_special_tokens) const = 0;
  // Ordinary text only: "<|eot_id|>" in it stays text. For what users write inside a chat. No added
  // token is looked for, special or not: Qwen3's <think> and <tool_response> are not special, but
  // whoever writes one must not begin a thought or forge what a tool returned. Errors as Encode's.
  virtual absl::StatusOr<std::vector<int32_t>> EncodeOrdinary(absl::string_view text) const = 0;

  // Bytes that are no UTF-8 become U+FFFD, as in the reference implementation. Ids that do not
  // exist are left out.
  virtual std::string Decode(absl::Span<const int32_t> ids, bool skip_special_tokens) const = 0;

  // The bytes of one token, part of a character perhaps; empty if there is no such id.
  virtual absl::string_view Bytes(int32_t id) const = 0;
  virtual bool IsSpecial(int32_t id) const = 0;
  // Of a token of the vocabulary or an added token, as tokenizer.json writes it: "<|eot_id|>", and
  // "Ġthe" for " the".
  virtual std::optional<int32_t> Find(absl::string_view token) const = 0;
  virtual int32_t size() const = 0;  // ids are 0 ... size() - 1
};

// Text as it grows, token by token: never half a character.
class Detokenizer {
 public:
  // Leaves special tokens out if asked. `tokenizer` must outlive this.
  Detokenizer(const Tokenizer& tokenizer, bool skip_special_tokens)
      : tokenizer_(tokenizer), skip_special_tokens_(skip_special_tokens) {}

  // The text that is certain with `id`: valid UTF-8, empty while a character is incomplete. What
  // all calls and Finish return, one after the other, is Decode of all ids.
  std::string Append(int32_t id);
  // The rest: U+FFFD for what never became a character. Afterwards as new.
  std::string Finish();

 private:
  const Tokenizer& tokenizer_;
  const bool skip_special_tokens_;
  std::string pending_;  // bytes of an incomplete character
};

}  // namespace fabricast

#endif  // FABRICAST_RUNTIME_TOKENIZER_TOKENIZER_H_
