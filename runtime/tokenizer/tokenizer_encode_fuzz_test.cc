// Any bytes: what is UTF-8 comes back from its tokens, the rest is refused. Taken as ids, they
// decode to the same text at once and one by one.
#include <cstdint>
#include <cstdlib>
#include <iostream>
#include <memory>
#include <string>
#include <vector>

#include "runtime/tokenizer/chat.h"
#include "runtime/tokenizer/fixtures.h"
#include "runtime/tokenizer/nfc.h"
#include "runtime/tokenizer/tokenizer.h"
#include "runtime/tokenizer/utf8.h"

namespace fabricast {
namespace {

void Verify(bool holds, const char* what) {
  if (holds) return;
  std::cerr << what << "\n";
  abort();
}

const Tokenizer& Load(const std::string& fixture) {
  static auto& loaded = *new std::vector<std::shared_ptr<const Tokenizer>>;
  auto tokenizer = Tokenizer::Load(FixtureFolder(fixture));
  Verify(tokenizer.ok(), "the fixture does not load");
  return *loaded.emplace_back(*std::move(tokenizer));
}

void CheckText(const Tokenizer& tokenizer, absl::string_view text, bool nfc) {
  const auto ids = tokenizer.Encode(text, /*add_special_tokens=*/false);
  const auto ordinary = tokenizer.EncodeOrdinary(text);
  const bool is_utf8 = !FindInvalidUtf8(text).has_value();
  Verify(ids.ok() == is_utf8 && ordinary.ok() == is_utf8,
         "refused what is UTF-8, or took the rest");
  if (!is_utf8) return;
  for (const int32_t id : *ordinary) Verify(!tokenizer.IsSpecial(id), "a special token");
  Verify(tokenizer.Decode(*ordinary, false) == (nfc ? ToNfc(text) : std::string(text)),
         "ordinary text does not come back");
  // Normalising stops at added tokens: "<s>" and a mark do not combine.
  const std::string back = tokenizer.Decode(*ids, false);
  Verify(nfc ? ToNfc(back) == ToNfc(text) : back == text, "text does not come back");
}

void CheckIds(const Tokenizer& tokenizer, const uint8_t* data, size_t size) {
  std::vector<int32_t> ids;
  // Some do not exist: the fixtures have less than 3,200 tokens.
  for (size_t i = 0; i + 1 < size; i += 2) ids.push_back((data[i] << 8 | data[i + 1]) % 3300 - 50);
  for (const bool skip : {false, true}) {
    Detokenizer detokenizer(tokenizer, skip);
    std::string text;
    for (const int32_t id : ids) text += detokenizer.Append(id);
    text += detokenizer.Finish();
    Verify(text == tokenizer.Decode(ids, skip), "piece by piece it is another text");
    Verify(!FindInvalidUtf8(text).has_value(), "decoded text is not UTF-8");
  }
}

void CheckChat(ChatFormat format, const Tokenizer& tokenizer, absl::string_view text) {
  const size_t half = text.size() / 2;
  const std::vector<ChatMessage> messages = {{"user", std::string(text.substr(0, half))},
                                             {"assistant", std::string(text.substr(half))}};
  const auto prompt = FormatChat(format, messages);
  const auto ids = EncodeChat(format, messages, tokenizer);
  Verify(prompt.ok() == ids.ok(), "a chat is refused once, and once not");
  if (ids.ok()) Verify(ToNfc(tokenizer.Decode(*ids, false)) == ToNfc(*prompt), "another prompt");
}

}  // namespace
}  // namespace fabricast

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const fabricast::Tokenizer& llama3 = fabricast::Load("llama3");
  static const fabricast::Tokenizer& qwen3 = fabricast::Load("qwen3");
  const absl::string_view text(reinterpret_cast<const char*>(data), size);
  fabricast::CheckText(llama3, text, /*nfc=*/false);
  fabricast::CheckText(qwen3, text, /*nfc=*/true);
  fabricast::CheckIds(llama3, data, size);
  fabricast::CheckIds(qwen3, data, size);
  fabricast::CheckChat(fabricast::ChatFormat::kLlama3, llama3, text);
  fabricast::CheckChat(fabricast::ChatFormat::kQwen3, qwen3, text);
  return 0;
}
