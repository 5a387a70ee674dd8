#include "kernels/memory_stream_reference.h"

#include <set>
#include <vector>

#include "gtest/gtest.h"

namespace fabricast {
namespace {

std::vector<uint32_t> Pattern(uint64_t words) {
  std::vector<uint32_t> pattern;
  for (uint64_t i = 0; i < words; ++i) pattern.push_back(StreamPatternWord(i));
  return pattern;
}

TEST(MemoryStreamReferenceTest, ChecksumIsTheSumOfThePattern) {
  for (const uint64_t words : {0, 1, 2, 3, 4, 1000, 1001, 1'000'000}) {
    EXPECT_EQ(StreamChecksum(Pattern(words)), StreamPatternChecksum(words)) << words;
  }
}

TEST(MemoryStreamReferenceTest, ChecksumOfMoreWordsThanThirtyTwoBitsCountIsRight) {
  // All indices modulo 2^32 once: step x 2^32 (2^32 - 1) / 2 = step x 2^31 x odd = 2^31 (mod 2^32),
  // step being odd.
  EXPECT_EQ(StreamPatternChecksum(uint64_t{1} << 32), 0x80000000);
  // The indices past 2^32 begin again at 0.
  const uint64_t extra = 12345;
  EXPECT_EQ(StreamPatternChecksum((uint64_t{1} << 32) + extra),
            0x80000000 + StreamPatternChecksum(extra));
}

TEST(MemoryStreamReferenceTest, ChecksumSeesAWordThatIsMissingTwiceOrWrong) {
  std::vector<uint32_t> words = Pattern(1000);
  words[500] = words[499];
  EXPECT_NE(StreamChecksum(words), StreamPatternChecksum(1000));
  words[500] = 0;
  EXPECT_NE(StreamChecksum(words), StreamPatternChecksum(1000));
}

TEST(MemoryStreamReferenceTest, WordsDoNotRepeat) {
  const std::vector<uint32_t> words = Pattern(100'000);
  EXPECT_EQ(std::set<uint32_t>(words.begin(), words.end()).size(), words.size());
}

}  // namespace
}  // namespace fabricast
