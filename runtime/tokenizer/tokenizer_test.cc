#include "runtime/tokenizer/tokenizer.h"

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "runtime/tokenizer/fixtures.h"

namespace fabricast {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

using Json = nlohmann::json;
using Ids = std::vector<int32_t>;

// An entry of added_tokens.
Json Added(int32_t id, const std::string& content, const Json& flags = Json::object()) {
  Json token = {{"id", id},        {"content", content},  {"single_word", false}, {"lstrip", false},
                {"rstrip", false}, {"normalized", false}, {"special", false}};
  token.update(flags);
  return token;
}

absl::StatusOr<std::shared_ptr<const Tokenizer>> Parse(const Json& json) {
  return Tokenizer::Parse("m/tokenizer.json", json.dump());
}

std::shared_ptr<const Tokenizer> Sure(const Json& json) {
  auto tokenizer = Parse(json);
  EXPECT_TRUE(tokenizer.ok()) << tokenizer.status();
  return *std::move(tokenizer);
}

Ids Encode(const Json& json, absl::string_view text, bool add_special_tokens = false) {
  const auto ids = Sure(json)->Encode(text, add_special_tokens);
  EXPECT_TRUE(ids.ok()) << ids.status();
  return *ids;
}

Ids Ordinary(const Json& json, absl::string_view text) {
  const auto ids = Sure(json)->EncodeOrdinary(text);
  EXPECT_TRUE(ids.ok()) << ids.status();
  return *ids;
}

// ByteTokenizer with "ab" as token 256 by a merge, "abc" as 257 without, and some added tokens.
Json Toy() {
  Json json = ByteTokenizer();
  json["model"]["vocab"]["ab"] = 256;
  json["model"]["vocab"]["abc"] = 257;
  json["model"]["merges"] = {"a b"};
  json["added_tokens"] = {Added(260, "<s>", {{"special", true}}), Added(261, "<think>")};
  return json;
}

TEST(TokenizerTest, EncodesBytesMergesAndAddedTokens) {
  EXPECT_THAT(Encode(Toy(), "ab\xC3\xA9<s>c<think>"), ElementsAre(256, 0xC3, 0xA9, 260, 'c', 261));
  EXPECT_THAT(Encode(Toy(), "abc"), ElementsAre(256, 'c'));
  EXPECT_THAT(Encode(Toy(), ""), IsEmpty());
  EXPECT_THAT(Encode(Toy(), absl::string_view("\0", 1)), ElementsAre(0));
}

TEST(TokenizerTest, TakesMergesAsPairsToo) {
  Json json = Toy();
  json["model"]["merges"] = Json::array({Json::array({"a", "b"})});
  EXPECT_THAT(Encode(json, "ab"), ElementsAre(256));
  json["model"]["merges"] = {"#version: 0.2", "a b"};
  EXPECT_THAT(Encode(json, "ab"), ElementsAre(256));
}

TEST(TokenizerTest, IgnoresMergesIfAsked) {
  Json json = Toy();
  json["model"]["ignore_merges"] = true;
  EXPECT_THAT(Encode(json, "abc"), ElementsAre(257));
}

TEST(TokenizerTest, MarksOrLeavesOutUnknownBytes) {
  Json json = Toy();
  json["model"]["vocab"].erase("x");
  EXPECT_THAT(Encode(json, "axx"), ElementsAre('a'));
  json["model"]["unk_token"] = "?";
  EXPECT_THAT(Encode(json, "axx"), ElementsAre('a', '?', '?'));
  json["model"]["fuse_unk"] = true;
  EXPECT_THAT(Encode(json, "axx"), ElementsAre('a', '?'));
}

TEST(TokenizerTest, OrdinaryTextHasNoAddedTokens) {
  EXPECT_THAT(Ordinary(Toy(), "ab<s>"), ElementsAre(256, '<', 's', '>'));
  EXPECT_THAT(Ordinary(Toy(), "<think>"), ElementsAre('<', 't', 'h', 'i', 'n', 'k', '>'));
  // Nor does it become a special token that is in the vocabulary too, ...
  Json json = Toy();
  json["model"]["vocab"]["<s>"] = 260;
  json["model"]["ignore_merges"] = true;
  EXPECT_THAT(Ordinary(json, "<s>"), ElementsAre('<', 's', '>'));
  json["normalizer"] = {{"type", "NFC"}};
  EXPECT_THAT(Ordinary(json, "<s>"), ElementsAre('<', 's', '>'));
  // ... while an ordinary word stays what it is, added or not.
  json["added_tokens"].push_back(Added(256, "ab"));
  EXPECT_THAT(Ordinary(json, "ab"), ElementsAre(256));
}

TEST(TokenizerTest, AddsWhatTheTemplateSays) {
  Json json = Toy();
  json["post_processor"] = {
      {"type", "Sequence"},
      {"processors",
       {{{"type", "ByteLevel"}, {"trim_offsets", false}},
        {{"type", "TemplateProcessing"},
         {"single",
          {{{"SpecialToken", {{"id", "<s>"}, {"type_id", 0}}}},
           {{"Sequence", {{"id", "A"}, {"type_id", 0}}}},
           {{"SpecialToken", {{"id", "end"}, {"type_id", 0}}}}}},
         {"special_tokens",
          {{"<s>", {{"id", "<s>"}, {"ids", {260}}, {"tokens", {"<s>"}}}},
           {"end", {{"id", "end"}, {"ids", {261, 260}}, {"tokens", {"x", "y"}}}}}}}}}};
  EXPECT_THAT(Encode(json, "a", /*add_special_tokens=*/true), ElementsAre(260, 'a', 261, 260));
  EXPECT_THAT(Encode(json, "", /*add_special_tokens=*/true), ElementsAre(260, 261, 260));
  EXPECT_THAT(Encode(json, "a", /*add_special_tokens=*/false), ElementsAre('a'));
  // A second template goes around the first.
  json["post_processor"]["processors"].push_back(
      {{"type", "TemplateProcessing"},
       {"single", {{{"SpecialToken", {{"id", "<t>"}}}}, {{"Sequence", {{"id", "A"}}}}}},
       {"special_tokens", {{"<t>", {{"ids", {'t'}}}}}}});
  EXPECT_THAT(Encode(json, "a", /*add_special_tokens=*/true), ElementsAre('t', 260, 'a', 261, 260));
}

TEST(TokenizerTest, SplitsInOrder) {
  Json json = Toy();
  json["pre_tokenizer"] = {
      {"type", "Sequence"},
      {"pretokenizers",
       {{{"type", "Split"},
         {"pattern", {{"Regex", "a"}}},
         {"behavior", "Isolated"},
         {"invert", false}},
        {{"type", "ByteLevel"}, {"add_prefix_space", true}, {"use_regex", false}}}}};
  EXPECT_THAT(Encode(json, "ab"), ElementsAre(' ', 'a', ' ', 'b'));  // no merge across pieces
  EXPECT_THAT(Encode(json, " ab"), ElementsAre(' ', ' ', 'a', ' ', 'b'));
}

TEST(TokenizerTest, ByteLevelMayPutASpaceInFront) {
  Json json = Toy();
  json["pre_tokenizer"]["add_prefix_space"] = true;
  EXPECT_THAT(Encode(json, "a<s> b<s>"), ElementsAre(' ', 'a', 260, ' ', 'b', 260));
  EXPECT_THAT(Encode(json, ""), IsEmpty());
}

TEST(TokenizerTest, ByteLevelMaySplitAsGpt2Does) {
  Json json = ByteTokenizer();
  for (const char* token : {"b1", "1b", "\u0120b"}) {
    json["model"]["vocab"][token] = static_cast<int>(json["model"]["vocab"].size());
  }
  json["model"]["merges"] = {"b 1", "1 b", "\u0120 b"};
  EXPECT_THAT(Encode(json, "b1 b"), ElementsAre(256, 258));
  json["pre_tokenizer"].erase("use_regex");  // true, if it says nothing
  EXPECT_THAT(Encode(json, "b1 b"), ElementsAre('b', '1', 258));
}

TEST(TokenizerTest, NormalisesAfterLookingForAddedTokens) {
  Json json = Toy();
  json["normalizer"] = {{"type", "NFC"}};
  json["added_tokens"].push_back(Added(262, "e\u0301", {{"normalized", true}}));
  json["added_tokens"].push_back(Added(263, "o\u0301"));
  EXPECT_THAT(Encode(json, "\u00E9e\u0301"), ElementsAre(262, 262));
  EXPECT_THAT(Encode(json, "\u00F3o\u0301"), ElementsAre(0xC3, 0xB3, 263));
  EXPECT_THAT(Encode(json, "u\u0301"), ElementsAre(0xC3, 0xBA));
  EXPECT_THAT(Ordinary(json, "u\u0301o\u0301"), ElementsAre(0xC3, 0xBA, 0xC3, 0xB3));
  json["normalizer"] = {{"type", "Sequence"}, {"normalizers", Json::array()}};
  EXPECT_THAT(Encode(json, "u\u0301"), ElementsAre('u', 0xCC, 0x81));
}

TEST(TokenizerTest, OfTokensThatNormaliseAlikeSpecialOnesCount) {
  Json json = Toy();
  json["normalizer"] = {{"type", "NFC"}};
  json["added_tokens"] = {Added(260, "e\u0301x", {{"normalized", true}}),
                          Added(261, "\u00E9x", {{"normalized", true}, {"special", true}})};
  EXPECT_THAT(Encode(json, "\u00E9x"), ElementsAre(261));
}

TEST(TokenizerTest, RefusesTextThatIsNotUtf8) {
  const auto tokenizer = Sure(Toy());
  for (const bool ordinary : {false, true}) {
    const auto ids =
        ordinary ? tokenizer->EncodeOrdinary("ab\xFFz") : tokenizer->Encode("ab\xFFz", true);
    EXPECT_EQ(ids.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_EQ(ids.status().message(), "text: byte 2: 0xff: not UTF-8: give UTF-8");
  }
}

TEST(TokenizerTest, SaysWhenAPatternBacktracksWithoutEnd) {
  Json json = Toy();
  json["pre_tokenizer"] = {
      {"type", "Sequence"},
      {"pretokenizers",
       {{{"type", "Split"},
         {"pattern", {{"Regex", "(?:a+)+b"}}},
         {"behavior", "Isolated"},
         {"invert", false}},
        {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", false}}}}};
  const std::string text = std::string(40, 'a') + "cb";
  const auto tokenizer = Sure(json);
  EXPECT_EQ(tokenizer->Encode(text, false).status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(tokenizer->EncodeOrdinary(text).status().code(), absl::StatusCode::kResourceExhausted);
}

TEST(TokenizerTest, DecodesBytesAndTokens) {
  const auto tokenizer = Sure(Toy());
  EXPECT_EQ(tokenizer->Decode({{257, 260, 0xC3, 0xA9, 261}}, false), "abc<s>\u00E9<think>");
  EXPECT_EQ(tokenizer->Decode({{257, 260, 0xC3, 0xA9, 261}}, true), "abc\u00E9<think>");
  EXPECT_EQ(tokenizer->Decode({{0xC3, 'a', 0xE2, 0x82}}, false), "\uFFFDa\uFFFD");
  EXPECT_EQ(tokenizer->Decode({{0xC3, 260, 0xA9}}, true), "\u00E9");         // the bytes meet
  EXPECT_EQ(tokenizer->Decode({{-1, 258, 262, 1 << 30, 'a'}}, false), "a");  // no such ids
  EXPECT_EQ(tokenizer->Decode({}, false), "");
}

TEST(TokenizerTest, DecodesAddedTokensByTheAlphabetIfTheyAreInIt) {
  Json json = Toy();  // as the reference implementation's decoder does
  json["added_tokens"] = {Added(260, "\u0120x"), Added(261, "\u00E9x"),
                          Added(262, "\u0120 \u00E9")};
  const auto tokenizer = Sure(json);
  EXPECT_EQ(tokenizer->Decode({{260}}, false), " x");
  EXPECT_EQ(tokenizer->Decode({{261}}, false), "\uFFFDx");
  EXPECT_EQ(tokenizer->Decode({{262}}, false), "\u0120 \u00E9");
}

TEST(TokenizerTest, KnowsItsTokens) {
  Json json = Toy();
  json["model"]["vocab"]["a b"] = 263;  // outside of the alphabet
  const auto tokenizer = Sure(json);
  EXPECT_EQ(tokenizer->size(), 264);
  EXPECT_EQ(tokenizer->Find("<s>"), 260);
  EXPECT_EQ(tokenizer->Find("\u0120"), ' ');  // as tokenizer.json writes it
  EXPECT_EQ(tokenizer->Find("ab"), 256);
  EXPECT_EQ(tokenizer->Find("a b"), 263);
  EXPECT_EQ(tokenizer->Find(" "), std::nullopt);
  EXPECT_EQ(tokenizer->Find(""), std::nullopt);
  EXPECT_EQ(tokenizer->Bytes(0xC3), "\xC3");
  EXPECT_EQ(tokenizer->Bytes(260), "<s>");
  EXPECT_EQ(tokenizer->Bytes(263), "a b");
  for (const int32_t id : {-1, 258, 264}) EXPECT_EQ(tokenizer->Bytes(id), "");
  EXPECT_TRUE(tokenizer->IsSpecial(260));
  for (const int32_t id : {-1, 97, 258, 261, 264}) EXPECT_FALSE(tokenizer->IsSpecial(id)) << id;
}

TEST(TokenizerTest, IgnoresAddedTokensWithoutContent) {
  Json json = Toy();
  json["added_tokens"].push_back(Added(270, ""));
  EXPECT_THAT(Encode(json, "ab"), ElementsAre(256));
  EXPECT_EQ(Sure(json)->size(), 262);
}

TEST(TokenizerTest, ServesManyThreads) {
  const auto tokenizer = Tokenizer::Load(FixtureFolder("qwen3"));
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  const std::string text = "Threads share e\u0301 one tokenizer, 123 times.<|im_end|>";
  const Ids expected = *(*tokenizer)->Encode(text, true);
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&] {
      for (int round = 0; round < 50; ++round) {
        EXPECT_EQ(*(*tokenizer)->Encode(text, true), expected);
        EXPECT_EQ((*tokenizer)->Decode(expected, true),
                  "Threads share \u00E9 one tokenizer, 123 times.");
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

// --- Detokenizer ---------------------------------------------------------------------------------

TEST(DetokenizerTest, NeverGivesHalfACharacter) {
  const auto tokenizer = Sure(Toy());
  Detokenizer detokenizer(*tokenizer, /*skip_special_tokens=*/true);
  EXPECT_EQ(detokenizer.Append(256), "ab");
  EXPECT_EQ(detokenizer.Append(0xF0), "");
  EXPECT_EQ(detokenizer.Append(0x9F), "");
  EXPECT_EQ(detokenizer.Append(260), "");  // special, left out
  EXPECT_EQ(detokenizer.Append(0x98), "");
  EXPECT_EQ(detokenizer.Append(0x80), "\U0001F600");
  EXPECT_EQ(detokenizer.Append(0xE2), "");
  EXPECT_EQ(detokenizer.Append('x'), "\uFFFDx");
  EXPECT_EQ(detokenizer.Append(0xFF), "\uFFFD");
  EXPECT_EQ(detokenizer.Append(0xE2), "");
  EXPECT_EQ(detokenizer.Finish(), "\uFFFD");
  EXPECT_EQ(detokenizer.Finish(), "");
  EXPECT_EQ(detokenizer.Append('y'), "y");  // as new
}

TEST(DetokenizerTest, GivesInPiecesWhatDecodeGivesAtOnce) {
  const auto tokenizer = Sure(Toy());
  std::mt19937 random(1);
  // Mostly bytes of characters with several.
  const std::vector<int32_t> likely = {'a',  0x80, 0xA0, 0xBF, 0xC3, 0xE2, 0xED, 0xF0,
                                       0x9F, 0xF4, 0xFF, 256,  260,  261,  258,  -1};
  for (int round = 0; round < 20'000; ++round) {
    Ids ids;
    for (size_t length = random() % 10; length > 0; --length) {
      ids.push_back(random() % 4 == 0 ? static_cast<int32_t>(random() % 270)
                                      : likely[random() % likely.size()]);
    }
    for (const bool skip : {false, true}) {
      Detokenizer detokenizer(*tokenizer, skip);
      std::string text;
      for (const int32_t id : ids) {
        const std::string piece = detokenizer.Append(id);
        ASSERT_TRUE(tokenizer->EncodeOrdinary(piece).ok()) << "not UTF-8";
        text += piece;
      }
      text += detokenizer.Finish();
      ASSERT_EQ(text, tokenizer->Decode(ids, skip)) << testing::PrintToString(ids);
    }
  }
}

// --- Files that are not sound --------------------------------------------------------------------

struct BadFile {
  std::string place;  // JSON pointer of what is replaced in Toy(), or the text of a whole file
  Json value;         // discarded: taken away
  absl::StatusCode code;
  std::string message;  // part of it
};

constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
constexpr auto kUnimplemented = absl::StatusCode::kUnimplemented;

const Json& Missing() {
  static const Json& missing = *new Json(Json::value_t::discarded);
  return missing;
}

class BadFileTest : public testing::TestWithParam<BadFile> {};

TEST_P(BadFileTest, IsRefusedWithItsPlaceAndTheMend) {
  const BadFile& bad = GetParam();
  Json json = Toy();
  const Json::json_pointer place(bad.place);
  if (bad.value.is_discarded()) {
    json[place.parent_pointer()].erase(place.back());
  } else {
    json[place] = bad.value;
  }
  const absl::Status status = Parse(json).status();
  EXPECT_EQ(status.code(), bad.code) << status;
  EXPECT_EQ(std::string(status.message()), "m/tokenizer.json: " + bad.message);
}

Json Split(const Json& fields) {
  Json split = {{"type", "Split"},
                {"pattern", {{"Regex", "a"}}},
                {"behavior", "Isolated"},
                {"invert", false}};
  split.update(fields);
  return {{"type", "Sequence"},
          {"pretokenizers", {split, {{"type", "ByteLevel"}, {"add_prefix_space", false}}}}};
}

Json Template(const Json& single, const Json& special_tokens = Json::object()) {
  return {{"type", "TemplateProcessing"}, {"single", single}, {"special_tokens", special_tokens}};
}
const Json kText = {{"Sequence", {{"id", "A"}}}};
const Json kSpecial = {{"SpecialToken", {{"id", "<s>"}}}};

INSTANTIATE_TEST_SUITE_P(
    All, BadFileTest,
    testing::Values(
        BadFile{"", Json::array(), kInvalid,
                "an array of 0: give a tokenizer.json of Hugging Face"},
        BadFile{"", nullptr, kInvalid, "null: give a tokenizer.json of Hugging Face"},
        BadFile{"/version", "2.0", kUnimplemented, "version: \"2.0\": supported is version 1.0"},
        BadFile{"/version", 1, kInvalid, "version: 1: give a string"},
        BadFile{"/truncation",
                {{"max_length", 5}},
                kUnimplemented,
                "truncation: an object of 1: not supported: set it to null"},
        BadFile{"/padding",
                {{"pad_id", 5}},
                kUnimplemented,
                "padding: an object of 1: not supported: set it to null"},
        // The model.
        BadFile{"/model", Missing(), kInvalid, "model: null: give a model of type BPE"},
        BadFile{
            "/model/type", "Unigram", kUnimplemented,
            "model.type: \"Unigram\": supported is byte-level BPE: use a tokenizer of that kind"},
        BadFile{"/model/dropout", 0.1, kUnimplemented,
                "model.dropout: 0.1: encoding at random is not supported: set it to null"},
        BadFile{"/model/continuing_subword_prefix", "##", kUnimplemented,
                "model.continuing_subword_prefix: \"##\": supported is byte-level BPE, which has "
                "none: set it to null"},
        BadFile{"/model/end_of_word_suffix", "</w>", kUnimplemented,
                "model.end_of_word_suffix: \"</w>\": supported is byte-level BPE, which has none: "
                "set it to null"},
        BadFile{"/model/byte_fallback", true, kUnimplemented,
                "model.byte_fallback: true: supported is byte-level BPE, which needs none"},
        BadFile{"/model/ignore_merges", 1, kInvalid, "model.ignore_merges: 1: give true or false"},
        BadFile{"/model/fuse_unk", "no", kInvalid, "model.fuse_unk: \"no\": give true or false"},
        BadFile{"/model/unk_token", "<unk>", kInvalid,
                "model.unk_token: \"<unk>\": not in model.vocab: add it there, or set it to null"},
        // The vocabulary.
        BadFile{"/model/vocab", Missing(), kInvalid,
                "model.vocab: null: give an object of tokens and their ids"},
        BadFile{"/model/vocab",
                {"a", "b"},
                kInvalid,
                "model.vocab: an array of 2: give an object of tokens and their ids"},
        BadFile{"/model/vocab", Json::object(), kInvalid,
                "model.vocab: an object of 0: give at least one token"},
        BadFile{"/model/vocab/ab", -1, kInvalid,
                "model.vocab[\"ab\"]: -1: give a whole number from 0 to 2097151"},
        BadFile{"/model/vocab/ab", 2097152, kInvalid,
                "model.vocab[\"ab\"]: 2097152: give a whole number from 0 to 2097151"},
        BadFile{"/model/vocab/ab", 18446744073709551615u, kInvalid,
                "model.vocab[\"ab\"]: 18446744073709551615: give a whole number from 0 to 2097151"},
        BadFile{"/model/vocab/ab", 1e30, kInvalid,
                "model.vocab[\"ab\"]: 1e+30: give a whole number from 0 to 2097151"},
        BadFile{"/model/vocab/ab", 1.5, kInvalid,
                "model.vocab[\"ab\"]: 1.5: give a whole number from 0 to 2097151"},
        BadFile{"/model/vocab/ab", "1", kInvalid,
                "model.vocab[\"ab\"]: \"1\": give a whole number from 0 to 2097151"},
        BadFile{"/model/vocab/abc", 256, kInvalid,
                "model.vocab[\"abc\"]: 256: the id of another token too: give each its own"},
        // Merges.
        BadFile{"/model/merges", Missing(), kInvalid, "model.merges: null: give a list of merges"},
        BadFile{
            "/model/merges/0", "a", kInvalid,
            "model.merges[0]: \"a\": give two tokens with a space between them, or a list of two"},
        BadFile{
            "/model/merges/0", "a b c", kInvalid,
            "model.merges[0]: \"a b c\": give two tokens with a space between them, or a list of "
            "two"},
        BadFile{"/model/merges/0",
                {"a"},
                kInvalid,
                "model.merges[0]: an array of 1: give two tokens with a space between them, or a "
                "list of two"},
        BadFile{"/model/merges/0",
                {"a", 1},
                kInvalid,
                "model.merges[0]: an array of 2: give two tokens with a space between them, or a "
                "list of two"},
        BadFile{
            "/model/merges/0", "ax b", kInvalid,
            "model.merges[0]: \"ax b\": \"ax\" is not in model.vocab: add it there, or take the "
            "merge out"},
        BadFile{
            "/model/merges/0", "a bx", kInvalid,
            "model.merges[0]: \"a bx\": \"bx\" is not in model.vocab: add it there, or take the "
            "merge out"},
        BadFile{"/model/merges/0", "b a", kInvalid,
                "model.merges[0]: \"b a\": \"ba\" is not in model.vocab: add it there, or take the "
                "merge out"},
        // Added tokens.
        BadFile{"/added_tokens", "none", kInvalid,
                "added_tokens: \"none\": give a list of added tokens"},
        BadFile{"/added_tokens/0", 1, kInvalid,
                "added_tokens[0]: 1: give an object with id, content and flags"},
        BadFile{"/added_tokens/0/id", -1, kInvalid,
                "added_tokens[0].id: -1: give a whole number from 0 to 2097151"},
        BadFile{"/added_tokens/0/id", Missing(), kInvalid,
                "added_tokens[0].id: null: give a whole number from 0 to 2097151"},
        BadFile{"/added_tokens/0/content", Missing(), kInvalid,
                "added_tokens[0].content: null: give a string"},
        BadFile{"/added_tokens/0/special", Missing(), kInvalid,
                "added_tokens[0].special: null: give true or false"},
        BadFile{"/added_tokens/0/lstrip", 0, kInvalid,
                "added_tokens[0].lstrip: 0: give true or false"},
        BadFile{"/added_tokens/1/content", "<s>", kInvalid,
                "added_tokens[1].content: \"<s>\": added twice: add it once"},
        BadFile{"/added_tokens/1/id", 260, kInvalid,
                "added_tokens[1].id: 260: the id of another token too: give each its own"},
        BadFile{"/added_tokens/1/id", 256, kInvalid,
                "added_tokens[1].id: 256: the id of another token too: give each its own"},
        BadFile{"/added_tokens/1/content", "abc", kInvalid,
                "added_tokens[1].id: 261: model.vocab gives \"abc\" the id 257: give the same"},
        BadFile{"/added_tokens/1/content", std::string(1025, 'x'), kInvalid,
                "added_tokens[1].content: \"" + std::string(80, 'x') +
                    "...\": 1025 bytes: give at most 1024"},
        // The normaliser.
        BadFile{"/normalizer", "NFC", kInvalid, "normalizer: \"NFC\": give an object with a type"},
        BadFile{"/normalizer",
                {{"type", "NFKC"}},
                kUnimplemented,
                "normalizer.type: \"NFKC\": supported is NFC, or null for none"},
        BadFile{"/normalizer",
                {{"type", "Sequence"}, {"normalizers", {{{"type", "Strip"}}}}},
                kUnimplemented,
                "normalizer.normalizers[0].type: \"Strip\": supported is NFC, or null for none"},
        BadFile{"/normalizer",
                {{"type", "Sequence"}},
                kInvalid,
                "normalizer.normalizers: null: give a list of parts"},
        BadFile{"/normalizer",
                {{"type", ""}},
                kInvalid,
                "normalizer.type: \"\": give the name of a type"},
        // The pre-tokeniser.
        BadFile{"/pre_tokenizer", Missing(), kUnimplemented,
                "pre_tokenizer: null: supported are Split (a regular expression) and, as the last, "
                "ByteLevel"},
        BadFile{
            "/pre_tokenizer/type", "Whitespace", kUnimplemented,
            "pre_tokenizer.type: \"Whitespace\": supported are Split (a regular expression) and, "
            "as the last, ByteLevel"},
        BadFile{"/pre_tokenizer",
                {{"type", "Sequence"}, {"pretokenizers", Json::array()}},
                kUnimplemented,
                "pre_tokenizer: an object of 2: supported are Split (a regular expression) and, as "
                "the last, ByteLevel"},
        BadFile{"/pre_tokenizer",
                {{"type", "Sequence"},
                 {"pretokenizers",
                  {{{"type", "ByteLevel"}, {"add_prefix_space", false}}, {{"type", "Split"}}}}},
                kUnimplemented,
                "pre_tokenizer.pretokenizers[1].type: \"Split\": supported are Split (a regular "
                "expression) and, as the last, ByteLevel"},
        BadFile{"/pre_tokenizer/add_prefix_space", Missing(), kInvalid,
                "pre_tokenizer.add_prefix_space: null: give true or false"},
        BadFile{"/pre_tokenizer", Split({{"behavior", "Removed"}}), kUnimplemented,
                "pre_tokenizer.pretokenizers[0].behavior: \"Removed\": supported is Isolated"},
        BadFile{"/pre_tokenizer", Split({{"invert", true}}), kUnimplemented,
                "pre_tokenizer.pretokenizers[0].invert: true: supported is false"},
        BadFile{"/pre_tokenizer", Split({{"pattern", "a"}}), kInvalid,
                "pre_tokenizer.pretokenizers[0].pattern: \"a\": give {\"Regex\": ...}"},
        BadFile{"/pre_tokenizer", Split({{"pattern", {{"String", " "}}}}), kUnimplemented,
                "pre_tokenizer.pretokenizers[0].pattern: an object of 1: supported is {\"Regex\": "
                "...}"},
        BadFile{
            "/pre_tokenizer", Split({{"pattern", {{"Regex", "(a"}}}}), kInvalid,
            "pre_tokenizer.pretokenizers[0].pattern.Regex: \"(a\": missing closing parenthesis: "
            "give a regular expression of Oniguruma"},
        // The post-processor and the decoder.
        BadFile{"/post_processor",
                {{"type", "BertProcessing"}},
                kUnimplemented,
                "post_processor.type: \"BertProcessing\": supported are TemplateProcessing and "
                "ByteLevel"},
        BadFile{"/post_processor", Template("$A"), kInvalid,
                "post_processor.single: \"$A\": give a list of SpecialToken and Sequence"},
        BadFile{"/post_processor", Template(Json::array({kSpecial}), {{"<s>", {{"ids", {260}}}}}),
                kUnimplemented,
                "post_processor.single: an array of 1: supported are templates with Sequence A"},
        BadFile{"/post_processor", Template({kText, kText}), kUnimplemented,
                "post_processor.single[1]: an object of 1: supported are SpecialToken and, once, "
                "Sequence A"},
        BadFile{"/post_processor", Template({kText, kSpecial}), kInvalid,
                "post_processor.single[1].SpecialToken.id: \"<s>\": not in special_tokens: add it "
                "there, with its ids"},
        BadFile{"/post_processor", Template({kSpecial, kText}, {{"<s>", {{"ids", {258}}}}}),
                kInvalid,
                "post_processor.special_tokens.<s>.ids[0]: 258: no such token: give one's id"},
        BadFile{"/post_processor", Template({kSpecial, kText}, {{"<s>", {{"ids", {262}}}}}),
                kInvalid,
                "post_processor.special_tokens.<s>.ids[0]: 262: no such token: give one's id"},
        BadFile{"/decoder", Missing(), kUnimplemented, "decoder: null: supported is ByteLevel"},
        BadFile{"/decoder/type", "Metaspace", kUnimplemented,
                "decoder: an object of 1: supported is ByteLevel"}));

TEST(TokenizerParseTest, RefusesWhatIsNotJson) {
  for (const char* text : {"", "{", "nothing", "{\"model\": \"\\ud800\"}", "\xFF", "[1,]"}) {
    const absl::Status status = Tokenizer::Parse("t.json", text).status();
    EXPECT_EQ(status.code(), kInvalid) << status;
    EXPECT_TRUE(absl::StartsWith(status.message(), "t.json: not JSON: ")) << status;
    EXPECT_TRUE(absl::EndsWith(status.message(), ": give a file of Hugging Face")) << status;
  }
}

TEST(TokenizerParseTest, RefusesDeepNesting) {
  for (const char* bracket : {"[", "{\"a\":"}) {
    std::string text;
    for (int i = 0; i < 1'000'000; ++i) text += bracket;
    const absl::Status status = Tokenizer::Parse("t.json", text).status();
    EXPECT_EQ(status.code(), kInvalid);
    EXPECT_THAT(std::string(status.message()), HasSubstr("nested more than 64 deep"));
  }
  // Brackets in strings count nothing.
  Json json = Toy();
  json["comment"] = std::string(100, '[') + "\"" + std::string(100, '{');
  EXPECT_TRUE(Parse(json).ok());
}

TEST(TokenizerParseTest, RefusesMoreThan200Megabytes) {
  const absl::Status status = Tokenizer::Parse("t.json", std::string(200'000'001, ' ')).status();
  EXPECT_EQ(status.code(), kInvalid);
  EXPECT_EQ(status.message(),
            "t.json: 200000001 bytes: give a tokenizer.json of Hugging Face, at most 200000000");
}

TEST(TokenizerLoadTest, ReadsTheFolderOfACheckpoint) {
  const std::filesystem::path folder = std::filesystem::path(testing::TempDir()) / "a_checkpoint";
  std::filesystem::create_directories(folder);
  const absl::Status missing = Tokenizer::Load(folder.string()).status();
  EXPECT_EQ(missing.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(
      std::string(missing.message()),
      HasSubstr("a_checkpoint/tokenizer.json: no such file: give the folder of a checkpoint"));
  EXPECT_EQ(Tokenizer::Load((folder / "tokenizer.json").string()).status().code(),
            absl::StatusCode::kNotFound);

  std::ofstream(folder / "tokenizer.json") << Toy().dump();
  const auto tokenizer = Tokenizer::Load(folder.string());
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_EQ((*tokenizer)->size(), 262);

  std::ofstream(folder / "tokenizer.json") << "{}";
  EXPECT_THAT(std::string(Tokenizer::Load(folder.string()).status().message()),
              HasSubstr("a_checkpoint/tokenizer.json: model: null: give a model of type BPE"));

  std::filesystem::remove(folder / "tokenizer.json");
  std::filesystem::create_directories(folder / "tokenizer.json");
  EXPECT_EQ(Tokenizer::Load(folder.string()).status().code(), kInvalid);
  std::filesystem::remove_all(folder);
}

}  // namespace
}  // namespace fabricast
