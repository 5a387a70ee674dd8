#include "runtime/tokenizer/chat.h"

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/types/span.h"
#include "nlohmann/json.hpp"
#include "runtime/tokenizer/json_part.h"
#include "runtime/tokenizer/utf8.h"

namespace fabricast {
namespace {

using Json = nlohmann::json;

// Of tokenizer_config.json and chat_template.jinja; the longest have some 100 kB.
constexpr size_t kMaxConfigBytes = 10'000'000;

// A chat as control tokens and the ordinary text between them.
class Prompt {
 public:
  struct Part {
    bool control;
    std::string text;
  };

  void Control(absl::string_view token) { parts_.push_back({true, std::string(token)}); }

  // Goes on with the text before it, if there is no control token between: the two are encoded as
  // one.
  void Text(absl::string_view text) {
    if (text.empty()) return;
    if (parts_.empty() || parts_.back().control) parts_.push_back({false, ""});
    absl::StrAppend(&parts_.back().text, text);
  }

  const std::vector<Part>& parts() const { return parts_; }

 private:
  std::vector<Part> parts_;
};

// As Python's str.isspace: White_Space and four control characters.
bool IsPythonSpace(char32_t character) {
  return IsWhiteSpace(character) || (0x1C <= character && character <= 0x1F);
}

// As Jinja's trim. `text` must be UTF-8.
absl::string_view Trimmed(absl::string_view text) {
  while (!text.empty() && IsPythonSpace(FirstCharacter(text))) {
    text.remove_prefix(StartOfUtf8(text).bytes);
  }
  while (!text.empty() && IsPythonSpace(FirstCharacter(LastCharacterBytes(text)))) {
    text.remove_suffix(LastCharacterBytes(text).size());
  }
  return text;
}

absl::string_view WithoutLeadingNewlines(absl::string_view text) {
  return text.substr(std::min(text.find_first_not_of('\n'), text.size()));
}

absl::string_view WithoutTrailingNewlines(absl::string_view text) {
  return text.substr(0, text.find_last_not_of('\n') + 1);
}

// --- Llama 3.1 -----------------------------------------------------------------------------------

constexpr absl::string_view kLlama3Tokens[] = {"<|begin_of_text|>", "<|start_header_id|>",
                                               "<|end_header_id|>", "<|eot_id|>"};

void Llama3Head(absl::string_view role, Prompt& prompt) {
  prompt.Control("<|start_header_id|>");
  prompt.Text(role);
  prompt.Control("<|end_header_id|>");
  prompt.Text("\n\n");
}

// The first message, if it is the system's, goes into a system turn that is always there.
Prompt Llama3Prompt(absl::Span<const ChatMessage> messages, const ChatOptions& options) {
  Prompt prompt;
  prompt.Control("<|begin_of_text|>");
  Llama3Head("system", prompt);
  prompt.Text("Cutting Knowledge Date: December 2023\n");
  prompt.Text(absl::StrCat("Today Date: ", options.date, "\n\n"));
  if (messages[0].role == "system") {
    prompt.Text(Trimmed(messages[0].content));
    messages.remove_prefix(1);
  }
  prompt.Control("<|eot_id|>");
  for (const ChatMessage& message : messages) {
    Llama3Head(message.role, prompt);
    prompt.Text(Trimmed(message.content));
    prompt.Control("<|eot_id|>");
  }
  if (options.add_generation_prompt) Llama3Head("assistant", prompt);
  return prompt;
}

// --- Qwen3 ---------------------------------------------------------------------------------------

constexpr absl::string_view kQwen3Tokens[] = {"<|im_start|>", "<|im_end|>", "<think>", "</think>"};

void Qwen3Head(absl::string_view role, Prompt& prompt) {
  prompt.Control("<|im_start|>");
  prompt.Text(absl::StrCat(role, "\n"));
}

void Qwen3End(Prompt& prompt) {
  prompt.Control("<|im_end|>");
  prompt.Text("\n");
}

void Qwen3Thought(absl::string_view thought, Prompt& prompt) {
  prompt.Control("<think>");
  prompt.Text(absl::StrCat("\n", thought, "\n"));
  prompt.Control("</think>");
  prompt.Text("\n\n");
}

// The last question: a message of the user that does not carry what a tool returned. What the
// assistant thought before it is left out.
size_t LastQuestion(absl::Span<const ChatMessage> messages) {
  for (size_t i = messages.size(); i-- > 0;) {
    const ChatMessage& message = messages[i];
    const bool of_tool = absl::StartsWith(message.content, "<tool_response>") &&
                         absl::EndsWith(message.content, "</tool_response>");
    if (message.role == "user" && !of_tool) return i;
  }
  return messages.size() - 1;
}

void Qwen3Answer(absl::string_view content, bool is_last, bool after_question, Prompt& prompt) {
  absl::string_view thought;
  const size_t end = content.find("</think>");
  if (end != absl::string_view::npos) {
    thought = WithoutTrailingNewlines(content.substr(0, end));
    const size_t begin = thought.rfind("<think>");
    if (begin != absl::string_view::npos) thought.remove_prefix(begin + sizeof("<think>") - 1);
    thought = WithoutLeadingNewlines(thought);
    content =
        WithoutLeadingNewlines(content.substr(content.rfind("</think>") + sizeof("</think>") - 1));
  }
  Qwen3Head("assistant", prompt);
  if (after_question && (is_last || !thought.empty())) {
    Qwen3Thought(WithoutTrailingNewlines(thought), prompt);
    content = WithoutLeadingNewlines(content);
  }
  prompt.Text(content);
  Qwen3End(prompt);
}

Prompt Qwen3Prompt(absl::Span<const ChatMessage> messages, const ChatOptions& options) {
  Prompt prompt;
  const size_t question = LastQuestion(messages);
  for (size_t i = 0; i < messages.size(); ++i) {
    const ChatMessage& message = messages[i];
    if (message.role == "assistant") {
      Qwen3Answer(message.content, i + 1 == messages.size(), i > question, prompt);
    } else {
      Qwen3Head(message.role, prompt);
      prompt.Text(message.content);
      Qwen3End(prompt);
    }
  }
  if (options.add_generation_prompt) {
    Qwen3Head("assistant", prompt);
    if (!options.enable_thinking) Qwen3Thought("", prompt);
  }
  return prompt;
}

// --- Both ----------------------------------------------------------------------------------------

absl::Span<const absl::string_view> ControlTokens(ChatFormat format) {
  return format == ChatFormat::kLlama3 ? absl::MakeConstSpan(kLlama3Tokens)
                                       : absl::MakeConstSpan(kQwen3Tokens);
}

absl::string_view Name(ChatFormat format) {
  return format == ChatFormat::kLlama3 ? "Llama 3.1" : "Qwen3";
}

absl::Status Check(absl::Span<const ChatMessage> messages) {
  if (messages.empty()) {
    return absl::InvalidArgumentError("messages: none: give at least one message");
  }
  for (size_t i = 0; i < messages.size(); ++i) {
    const std::string& role = messages[i].role;
    if (role != "system" && role != "user" && role != "assistant") {
      return absl::InvalidArgumentError(
          absl::StrFormat("messages[%d].role: \"%s\": give system, user or assistant", i,
                          absl::CHexEscape(role.substr(0, 80))));
    }
    const std::optional<size_t> bad = FindInvalidUtf8(messages[i].content);
    if (bad.has_value()) {
      return absl::InvalidArgumentError(
          absl::StrFormat("messages[%d].content: byte %d: 0x%02x: not UTF-8: give UTF-8", i, *bad,
                          static_cast<unsigned char>(messages[i].content[*bad])));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<Prompt> MakePrompt(ChatFormat format, absl::Span<const ChatMessage> messages,
                                  const ChatOptions& options) {
  const absl::Status status = Check(messages);
  if (!status.ok()) return status;
  return format == ChatFormat::kLlama3 ? Llama3Prompt(messages, options)
                                       : Qwen3Prompt(messages, options);
}

// --- Which format a checkpoint has ---------------------------------------------------------------

// What tells a template of the two from others, beside blanks and the kind of quotes. Only running
// it would tell for certain; what is known to differ is in `lacks`.
struct Recognition {
  ChatFormat format;
  std::vector<absl::string_view> has;
  std::vector<absl::string_view> lacks;
};

const std::vector<Recognition>& Recognitions() {
  static const auto& recognitions = *new std::vector<Recognition>{
      // Llama 3.1 and 3.3; 3.2 takes today's date where none is given. Llama 3 has no date.
      {.format = ChatFormat::kLlama3,
       .has = {"bos_token", "Cutting Knowledge Date: December 2023\\n",
               "Today Date: ", "'26 Jul 2024'", "'<|start_header_id|>' + message", "| trim",
               "'<|start_header_id|>assistant<|end_header_id|>\\n\\n'"},
       .lacks = {}},
      // Not Qwen2.5 (a system turn of its own), Qwen3 2507 (always or never thinks), Qwen3-VL and
      // Qwen3.5 (contents that are lists, a prompt that opens the thought).
      {.format = ChatFormat::kQwen3,
       .has = {"'<|im_start|>' + message.role + '\\n", "'<|im_start|>assistant\\n'",
               "split('</think>')", "lstrip('\\n')",
               "enable_thinking is defined and enable_thinking is false",
               "'<think>\\n\\n</think>\\n\\n'"},
       .lacks = {"You are a helpful assistant", "You are Qwen", "assistant\\n<think>",
                 "'<think>\\n' }}", "render_content", "| trim"}},
  };
  return recognitions;
}

std::string WithoutBlanks(absl::string_view text) {
  std::string result;
  for (const char c : text) {
    if (!absl::ascii_isspace(c)) result.push_back(c == '"' ? '\'' : c);
  }
  return result;
}

std::optional<ChatFormat> Recognise(absl::string_view chat_template) {
  const std::string text = WithoutBlanks(chat_template);
  const auto has = [&text](absl::string_view mark) {
    return absl::StrContains(text, WithoutBlanks(mark));
  };
  for (const Recognition& known : Recognitions()) {
    if (std::all_of(known.has.begin(), known.has.end(), has) &&
        std::none_of(known.lacks.begin(), known.lacks.end(), has)) {
      return known.format;
    }
  }
  return std::nullopt;
}

// The chat_template of a tokenizer_config.json: a text, or a list of named ones. Empty if none.
std::string TemplateOf(const JsonPart& config) {
  const JsonPart chat_template = config["chat_template"];
  if (!chat_template.json().is_array()) return chat_template.TextOr("");
  for (size_t i = 0; i < chat_template.json().size(); ++i) {
    if (chat_template[i]["name"].json() == "default") return chat_template[i]["template"].Text();
  }
  chat_template.Unimplemented("supported are lists with a template named default");
  return "";
}

struct Template {
  std::string file;
  std::string text;  // empty if there is none
};

// From chat_template.jinja, where newer checkpoints have it, else from tokenizer_config.json.
absl::StatusOr<Template> ReadTemplate(const std::string& folder) {
  Template result = {.file = absl::StrCat(folder, "/chat_template.jinja"), .text = ""};
  absl::StatusOr<std::string> text = ReadJsonFile(result.file, kMaxConfigBytes);
  if (text.ok()) {
    result.text = *std::move(text);
    return result;
  }
  if (!absl::IsNotFound(text.status())) return text.status();
  result.file = absl::StrCat(folder, "/tokenizer_config.json");
  text = ReadJsonFile(result.file, kMaxConfigBytes);
  if (absl::IsNotFound(text.status())) return result;
  if (!text.ok()) return text.status();
  const absl::StatusOr<Json> config = ParseJson(result.file, *text);
  if (!config.ok()) return config.status();
  JsonPart::Document document = {.file = result.file, .status = {}};
  const JsonPart root(document, "", *config);
  if (root.CheckObject("give a tokenizer_config.json of Hugging Face"))
    result.text = TemplateOf(root);
  if (!document.status.ok()) return document.status;
  return result;
}

}  // namespace

absl::StatusOr<std::optional<ChatFormat>> FindChatFormat(const std::string& folder,
                                                         const Tokenizer& tokenizer) {
  const absl::StatusOr<Template> chat_template = ReadTemplate(folder);
  if (!chat_template.ok()) return chat_template.status();
  if (chat_template->text.empty()) return std::nullopt;
  const std::optional<ChatFormat> format = Recognise(chat_template->text);
  if (!format.has_value()) {
    return absl::UnimplementedError(
        absl::StrCat(chat_template->file, ": chat_template: ", chat_template->text.size(),
                     " bytes: neither Llama 3.1's nor Qwen3's: use a checkpoint that has one of "
                     "these, or complete text without a chat"));
  }
  for (const absl::string_view token : ControlTokens(*format)) {
    if (!tokenizer.Find(token).has_value()) {
      return absl::InvalidArgumentError(
          absl::StrCat(chat_template->file, ": chat_template: ", Name(*format), "'s: needs ", token,
                       ", which the tokenizer does not have: use the files of one checkpoint"));
    }
  }
  return format;
}

absl::StatusOr<std::string> FormatChat(ChatFormat format, const std::vector<ChatMessage>& messages,
                                       const ChatOptions& options) {
  const absl::StatusOr<Prompt> prompt = MakePrompt(format, messages, options);
  if (!prompt.ok()) return prompt.status();
  return absl::StrJoin(prompt->parts(), "", [](std::string* out, const Prompt::Part& part) {
    absl::StrAppend(out, part.text);
  });
}

absl::StatusOr<std::vector<int32_t>> EncodeChat(ChatFormat format,
                                                const std::vector<ChatMessage>& messages,
                                                const Tokenizer& tokenizer,
                                                const ChatOptions& options) {
  const absl::StatusOr<Prompt> prompt = MakePrompt(format, messages, options);
  if (!prompt.ok()) return prompt.status();
  std::vector<int32_t> ids;
  for (const Prompt::Part& part : prompt->parts()) {
    if (part.control) {
      const std::optional<int32_t> id = tokenizer.Find(part.text);
      if (!id.has_value()) {
        return absl::InvalidArgumentError(
            absl::StrCat(Name(format), " chats need ", part.text,
                         ", which the tokenizer does not have: use the model's own"));
      }
      ids.push_back(*id);
      continue;
    }
    const absl::StatusOr<std::vector<int32_t>> text = tokenizer.EncodeOrdinary(part.text);
    if (!text.ok()) return text.status();
    ids.insert(ids.end(), text->begin(), text->end());
  }
  return ids;
}

}  // namespace fabricast
