// Chats as the text that Llama 3 and Qwen3 were trained on.
#ifndef FABRICAST_RUNTIME_TOKENIZER_CHAT_H_
#define FABRICAST_RUNTIME_TOKENIZER_CHAT_H_

#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "runtime/tokenizer/tokenizer.h"

namespace fabricast {

struct ChatMessage {
  std::string role;  // "system", "user" or "assistant"
  std::string content;
};

enum class ChatFormat { kLlama3, kQwen3 };

struct ChatOptions {
  bool add_generation_prompt = true;  // ends with the head of the assistant's turn
  bool enable_thinking = true;        // Qwen3: false closes an empty <think> block for it
  std::string date = "26 Jul 2024";   // Llama 3.1's "Today Date"; its template's own default
};

// The format whose control tokens `tokenizer` has and whose chat template `folder` holds, in
// chat_template.jinja or else in tokenizer_config.json; none if there is no template (a base
// model). kUnimplemented if the template is neither of the two, kInvalidArgument if the tokenizer
// lacks its tokens. The template is recognised by what is in it, not run.
absl::StatusOr<std::optional<ChatFormat>> FindChatFormat(const std::string& folder,
                                                         const Tokenizer& tokenizer);

// The same text as the official Jinja template gives. kInvalidArgument for roles that it does not
// know, or in an order that it refuses.
absl::StatusOr<std::string> FormatChat(ChatFormat format, const std::vector<ChatMessage>& messages,
                                       const ChatOptions& options = {});

// Its tokens. Control tokens that users write inside a message stay text, so that nobody can forge
// a turn; so do <think> and the like, but for what the template itself writes. Where messages hold
// none of these it is `tokenizer.Encode(FormatChat(...), false)`. kInvalidArgument also if the
// tokenizer lacks a control token.
absl::StatusOr<std::vector<int32_t>> EncodeChat(ChatFormat format,
                                                const std::vector<ChatMessage>& messages,
                                                const Tokenizer& tokenizer,
                                                const ChatOptions& options = {});

}  // namespace fabricast

#endif  // FABRICAST_RUNTIME_TOKENIZER_CHAT_H_
