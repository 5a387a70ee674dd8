#include "tools/fuzz/mutator.h"

#include <algorithm>
#include <set>

#include "gtest/gtest.h"

namespace fabricast::fuzz {
namespace {

std::vector<std::string> Inputs(std::vector<std::string> corpus, uint64_t seed, int count) {
  Mutator mutator(std::move(corpus), seed);
  std::vector<std::string> inputs;
  for (int i = 0; i < count; ++i) inputs.push_back(mutator.Next());
  return inputs;
}

TEST(MutatorTest, SameSeedGivesTheSameInputs) {
  EXPECT_EQ(Inputs({"{\"a\": 12}"}, 1, 1000), Inputs({"{\"a\": 12}"}, 1, 1000));
  EXPECT_NE(Inputs({"{\"a\": 12}"}, 1, 1000), Inputs({"{\"a\": 12}"}, 2, 1000));
}

TEST(MutatorTest, InputsDifferAndStayBounded) {
  const std::vector<std::string> inputs = Inputs({"{\"a\": 12}", "[1, 2, 3]"}, 1, 10'000);
  size_t longest = 0;
  for (const std::string& input : inputs) longest = std::max(longest, input.size());
  EXPECT_LE(longest, Mutator::kMaxBytes);
  EXPECT_GT(longest, Mutator::kMaxBytes / 2);
  EXPECT_GT(std::set<std::string>(inputs.begin(), inputs.end()).size(), inputs.size() / 2);
}

TEST(MutatorTest, PutsExtremeNumbers) {
  const std::vector<std::string> inputs = Inputs({"{\"a\": 12}"}, 1, 1000);
  EXPECT_NE(std::find(inputs.begin(), inputs.end(), "{\"a\": 1e308}"), inputs.end());
}

TEST(MutatorTest, EmptyCorpusWorks) { EXPECT_EQ(Inputs({}, 1, 100).size(), 100); }

}  // namespace
}  // namespace fabricast::fuzz
