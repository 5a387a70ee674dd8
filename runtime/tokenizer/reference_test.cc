// The same ids and texts as the reference implementation recorded in testdata/.
#include <memory>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "runtime/tokenizer/chat.h"
#include "runtime/tokenizer/fixtures.h"
#include "runtime/tokenizer/tokenizer.h"

namespace fabricast {
namespace {

using Json = nlohmann::json;
using Ids = std::vector<int32_t>;

class ReferenceTest : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    const auto loaded = Tokenizer::Load(FixtureFolder(GetParam()));
    ASSERT_TRUE(loaded.ok()) << loaded.status();
    tokenizer_ = *loaded;
    reference_ = ReadReference(GetParam());
    ASSERT_GE(reference_["texts"].size(), 60u);
  }

  std::shared_ptr<const Tokenizer> tokenizer_;
  Json reference_;
};

TEST_P(ReferenceTest, EncodesAsRecorded) {
  for (const Json& row : reference_["texts"]) {
    const auto text = row["text"].get<std::string>();
    const auto ids = tokenizer_->Encode(text, /*add_special_tokens=*/false);
    ASSERT_TRUE(ids.ok()) << ids.status();
    EXPECT_EQ(*ids, row["ids"].get<Ids>()) << row["text"];
    const auto with_special = tokenizer_->Encode(text, /*add_special_tokens=*/true);
    ASSERT_TRUE(with_special.ok()) << with_special.status();
    EXPECT_EQ(*with_special, row["ids_with_special"].get<Ids>()) << row["text"];
  }
}

TEST_P(ReferenceTest, DecodesAsRecorded) {
  for (const Json& row : reference_["texts"]) {
    const auto ids = row["ids"].get<Ids>();
    EXPECT_EQ(tokenizer_->Decode(ids, /*skip_special_tokens=*/false), row["decoded"]);
    EXPECT_EQ(tokenizer_->Decode(ids, /*skip_special_tokens=*/true),
              row["decoded_skipping_special"]);
    ASSERT_EQ(ids.size(), row["pieces"].size());
    for (size_t i = 0; i < ids.size(); ++i) {
      EXPECT_EQ(tokenizer_->Decode({&ids[i], 1}, /*skip_special_tokens=*/false), row["pieces"][i])
          << ids[i] << " in " << row["text"];
    }
  }
}

TEST_P(ReferenceTest, GrowsToWhatIsRecorded) {
  for (const Json& row : reference_["texts"]) {
    for (const bool skip : {false, true}) {
      Detokenizer detokenizer(*tokenizer_, skip);
      std::string text;
      for (const int32_t id : row["ids"].get<Ids>()) text += detokenizer.Append(id);
      text += detokenizer.Finish();
      EXPECT_EQ(text, row[skip ? "decoded_skipping_special" : "decoded"]);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, ReferenceTest, testing::Values("llama3", "qwen3", "added_tokens"),
                         [](const auto& info) { return info.param; });

class ReferenceChatTest : public ReferenceTest {
 protected:
  struct Chat {
    std::vector<ChatMessage> messages;
    ChatOptions options;
    std::string text;
  };

  std::vector<Chat> Chats() const {
    std::vector<Chat> chats;
    for (const Json& row : reference_["chats"]) {
      Chat& chat = chats.emplace_back();
      for (const Json& message : row["messages"]) {
        chat.messages.push_back({message["role"], message["content"]});
      }
      chat.options.add_generation_prompt = row["add_generation_prompt"];
      chat.options.enable_thinking = row.value("enable_thinking", true);
      chat.text = row["text"];
    }
    return chats;
  }

  ChatFormat Format() const {
    const auto format = FindChatFormat(FixtureFolder(GetParam()), *tokenizer_);
    EXPECT_TRUE(format.ok() && format->has_value()) << format.status();
    return format.value().value();
  }
};

TEST_P(ReferenceChatTest, FindsTheFormat) {
  EXPECT_EQ(Format(), GetParam() == "llama3" ? ChatFormat::kLlama3 : ChatFormat::kQwen3);
}

TEST_P(ReferenceChatTest, FormatsChatsAsRecorded) {
  ASSERT_GE(Chats().size(), 40u);
  for (const Chat& chat : Chats()) {
    const auto text = FormatChat(Format(), chat.messages, chat.options);
    ASSERT_TRUE(text.ok()) << text.status();
    EXPECT_EQ(*text, chat.text);
  }
}

bool HasControlToken(const Tokenizer& tokenizer, const ChatMessage& message) {
  for (int32_t id = 0; id < tokenizer.size(); ++id) {
    const absl::string_view token = tokenizer.Bytes(id);
    // Of these fixtures, added tokens are those in angle brackets.
    if (token.size() > 2 && token[0] == '<' && token.back() == '>' &&
        message.content.find(std::string(token)) != std::string::npos) {
      return true;
    }
  }
  return false;
}

TEST_P(ReferenceChatTest, EncodesChatsAsTheirText) {
  int compared = 0;
  for (const Chat& chat : Chats()) {
    bool control = false;
    for (const ChatMessage& message : chat.messages)
      control |= HasControlToken(*tokenizer_, message);
    if (control) continue;
    const auto ids = EncodeChat(Format(), chat.messages, *tokenizer_, chat.options);
    ASSERT_TRUE(ids.ok()) << ids.status();
    EXPECT_EQ(*ids, *tokenizer_->Encode(chat.text, /*add_special_tokens=*/false)) << chat.text;
    ++compared;
  }
  EXPECT_GE(compared, 20);
}

INSTANTIATE_TEST_SUITE_P(All, ReferenceChatTest, testing::Values("llama3", "qwen3"),
                         [](const auto& info) { return info.param; });

}  // namespace
}  // namespace fabricast
