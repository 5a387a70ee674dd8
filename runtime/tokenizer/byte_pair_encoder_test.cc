#include "runtime/tokenizer/byte_pair_encoder.h"

#include <algorithm>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace fabricast {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

using Ids = std::vector<int32_t>;

// Tokens by their place in the list, and rules by the tokens that they join.
class Vocabulary {
 public:
  Vocabulary(std::vector<std::string> tokens,
             const std::vector<std::pair<std::string, std::string>>& rules,
             BytePairEncoder::Options options = {}, std::vector<std::string> special = {})
      : tokens_(std::move(tokens)) {
    std::vector<bool> is_special(tokens_.size());
    for (const std::string& token : special) is_special[Id(token)] = true;
    absl::flat_hash_map<absl::string_view, int32_t> ids;
    for (const std::string& token : tokens_) ids[token] = Id(token);
    for (const auto& [left, right] : rules) {
      rules_.push_back({Id(left), Id(right), Id(left + right)});
    }
    encoder_ = std::make_unique<BytePairEncoder>(ids, rules_, is_special, options);
  }

  Ids Encode(absl::string_view piece, bool may_become_special = true) const {
    Ids ids = {-7};  // what was there before stays
    encoder_->Encode(piece, may_become_special, ids);
    EXPECT_EQ(ids[0], -7);
    return Ids(ids.begin() + 1, ids.end());
  }

  // The definition: the earliest rule that applies, at its leftmost place, until none does.
  Ids EncodeSlowly(absl::string_view piece) const {
    Ids ids;
    for (const char byte : piece) ids.push_back(Id(std::string(1, byte)));
    for (;;) {
      size_t best_rank = rules_.size();
      size_t best = 0;
      for (size_t i = 0; i + 1 < ids.size(); ++i) {
        // Of rules for the same pair the last counts.
        for (size_t rank = rules_.size(); rank-- > 0;) {
          if (rules_[rank].left != ids[i] || rules_[rank].right != ids[i + 1]) continue;
          if (rank < best_rank) {
            best_rank = rank;
            best = i;
          }
          break;
        }
      }
      if (best_rank == rules_.size()) return ids;
      ids[best] = rules_[best_rank].joined;
      ids.erase(ids.begin() + static_cast<ptrdiff_t>(best) + 1);
    }
  }

  int32_t Id(const std::string& token) const {
    const auto it = std::find(tokens_.begin(), tokens_.end(), token);
    EXPECT_NE(it, tokens_.end()) << token;
    return static_cast<int32_t>(it - tokens_.begin());
  }

 private:
  std::vector<std::string> tokens_;
  std::vector<BytePairEncoder::Rule> rules_;
  std::unique_ptr<BytePairEncoder> encoder_;
};

TEST(BytePairEncoderTest, TheEarliestRuleJoinsFirst) {
  const Vocabulary v({"a", "b", "c", "ab", "bc", "abc"}, {{"b", "c"}, {"a", "b"}, {"ab", "c"}});
  EXPECT_THAT(v.Encode("abc"), ElementsAre(v.Id("a"), v.Id("bc")));
  EXPECT_THAT(v.Encode("ab"), ElementsAre(v.Id("ab")));
  EXPECT_THAT(v.Encode(""), IsEmpty());
  EXPECT_THAT(v.Encode("b"), ElementsAre(v.Id("b")));
}

TEST(BytePairEncoderTest, OneRuleJoinsFromTheLeft) {
  const Vocabulary v({"a", "aa"}, {{"a", "a"}});
  EXPECT_THAT(v.Encode("aaaaa"), ElementsAre(1, 1, 0));
}

TEST(BytePairEncoderTest, WithIgnoreMergesAWholePieceIsItsToken) {
  const std::vector<std::string> tokens = {"a", "b", "c", "ab", "abc"};
  EXPECT_THAT(Vocabulary(tokens, {{"a", "b"}}).Encode("abc"), ElementsAre(3, 2));
  const Vocabulary ignoring(tokens, {{"a", "b"}}, {.ignore_merges = true});
  EXPECT_THAT(ignoring.Encode("abc"), ElementsAre(4));
  EXPECT_THAT(ignoring.Encode("abcc"), ElementsAre(3, 2, 2));
}

TEST(BytePairEncoderTest, UnknownBytesAreLeftOutOrMarked) {
  EXPECT_THAT(Vocabulary({"a", "?"}, {}).Encode("xaxxa"), ElementsAre(0, 0));
  EXPECT_THAT(Vocabulary({"a", "?"}, {}, {.unknown = 1}).Encode("xaxxa"),
              ElementsAre(1, 0, 1, 1, 0));
  EXPECT_THAT(Vocabulary({"a", "?"}, {}, {.unknown = 1, .fuse_unknown = true}).Encode("xaxxa"),
              ElementsAre(1, 0, 1, 0));
}

TEST(BytePairEncoderTest, OrdinaryTextBecomesNoSpecialToken) {
  const Vocabulary joined({"a", "b", "ab"}, {{"a", "b"}}, {}, {"ab"});
  EXPECT_THAT(joined.Encode("ab"), ElementsAre(2));
  EXPECT_THAT(joined.Encode("ab", /*may_become_special=*/false), ElementsAre(0, 1));
  const Vocabulary whole({"a", "b", "ab"}, {}, {.ignore_merges = true}, {"ab"});
  EXPECT_THAT(whole.Encode("ab"), ElementsAre(2));
  EXPECT_THAT(whole.Encode("ab", /*may_become_special=*/false), ElementsAre(0, 1));
  EXPECT_THAT(whole.Encode("a", /*may_become_special=*/false), ElementsAre(0));
}

TEST(BytePairEncoderTest, FollowsTheDefinition) {
  std::mt19937 random(1);
  for (int round = 0; round < 100; ++round) {
    std::vector<std::string> tokens = {"a", "b", "c"};
    std::vector<std::pair<std::string, std::string>> rules;
    for (int i = 0; i < 12; ++i) {
      const std::string left = tokens[random() % tokens.size()];
      const std::string right = tokens[random() % tokens.size()];
      rules.emplace_back(left, right);
      if (std::find(tokens.begin(), tokens.end(), left + right) == tokens.end()) {
        tokens.push_back(left + right);
      }
    }
    std::shuffle(rules.begin(), rules.end(), random);
    const Vocabulary vocabulary(tokens, rules);
    for (int i = 0; i < 20; ++i) {
      std::string piece;
      for (size_t length = random() % 40; length > 0; --length) {
        piece += static_cast<char>('a' + random() % 3);
      }
      ASSERT_EQ(vocabulary.Encode(piece), vocabulary.EncodeSlowly(piece)) << piece;
    }
  }
}

TEST(BytePairEncoderTest, AMillionLettersTakeNoTime) {
  // Joins one by one over the whole piece would be 10^6 * 10^6 / 4 steps.
  std::vector<std::string> tokens = {"a"};
  std::vector<std::pair<std::string, std::string>> rules;
  for (int i = 0; i < 10; ++i) {
    rules.emplace_back(tokens.back(), tokens.back());
    tokens.push_back(tokens.back() + tokens.back());
  }
  const Vocabulary vocabulary(tokens, rules);
  // 1,000,000 = 976 * 1024 + 512 + 64.
  Ids expected(976, 10);
  expected.push_back(9);
  expected.push_back(6);
  EXPECT_EQ(vocabulary.Encode(std::string(1'000'000, 'a')), expected);
}

}  // namespace
}  // namespace fabricast
