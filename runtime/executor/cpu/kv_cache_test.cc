#include "runtime/executor/cpu/kv_cache.h"

#include <set>

#include "absl/status/status.h"
#include "gtest/gtest.h"

namespace fabricast {
namespace {

constexpr KvShape kShape = {.layers = 2, .kv_heads = 2, .head_dim = 24, .block_tokens = 20};

TEST(KvCacheTest, TakesABlockWhenATokenNeedsIt) {
  KvCache cache(kShape, 3);
  EXPECT_EQ(cache.bytes(), 0);
  EXPECT_TRUE(cache.Extend(1, 0, 20).ok());
  EXPECT_EQ(cache.blocks_used(), 1);
  // Keys in groups of 16: 2 x 24 x 16 floats; values 20 x 32; of 2 heads in 2 layers.
  EXPECT_EQ(cache.bytes(), (2 * 24 * 16 + 20 * 32) * 2 * 2 * 4);
  EXPECT_TRUE(cache.Extend(1, 20, 1).ok());
  EXPECT_EQ(cache.blocks_used(), 2);
  EXPECT_TRUE(cache.Extend(2, 0, 5).ok());
  EXPECT_EQ(cache.blocks_used(), 3);
}

TEST(KvCacheTest, SaysWhoFoundNoBlock) {
  KvCache cache(kShape, 3);
  EXPECT_TRUE(cache.Extend(1, 0, 41).ok());
  const absl::Status status = cache.Extend(2, 0, 1);
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(status.message(),
            "request 2 needs 1 KV blocks of 20 tokens, has 0, and all 3 of this stage are taken: "
            "give the scheduler no more blocks");
}

TEST(KvCacheTest, ReusesReleasedBlocks) {
  KvCache cache(kShape, 3);
  EXPECT_TRUE(cache.Extend(1, 0, 60).ok());
  cache.Release(1);
  cache.Release(1);
  cache.Release(77);
  EXPECT_EQ(cache.blocks_used(), 0);
  const int64_t bytes = cache.bytes();
  EXPECT_TRUE(cache.Extend(1, 0, 10).ok());  // again from its first token
  EXPECT_TRUE(cache.Extend(2, 0, 40).ok());
  EXPECT_EQ(cache.blocks_used(), 3);
  EXPECT_EQ(cache.bytes(), bytes);
}

// A request that found too few blocks has taken some.
TEST(KvCacheTest, ClearFreesAllAndKeepsTheMemory) {
  KvCache cache(kShape, 3);
  EXPECT_TRUE(cache.Extend(1, 0, 30).ok());
  EXPECT_FALSE(cache.Extend(2, 0, 41).ok());
  EXPECT_EQ(cache.blocks_used(), 3);
  const int64_t bytes = cache.bytes();
  cache.Clear();
  EXPECT_EQ(cache.blocks_used(), 0);
  EXPECT_EQ(cache.bytes(), bytes);
  EXPECT_TRUE(cache.Extend(2, 0, 60).ok());  // from its first token
  EXPECT_EQ(cache.blocks_used(), 3);
  EXPECT_EQ(cache.bytes(), bytes);
  const KvSequence sequence = cache.Sequence(2, 0);
  const std::set<const float*> blocks = {sequence.Value(0, 0), sequence.Value(0, 20),
                                         sequence.Value(0, 40)};
  EXPECT_EQ(blocks.size(), 3u);
}

TEST(KvCacheTest, GivesEachTokenHeadAndLayerItsOwnPlace) {
  KvCache cache(kShape, 9);
  ASSERT_TRUE(cache.Extend(1, 0, 45).ok());
  ASSERT_TRUE(cache.Extend(2, 0, 45).ok());
  std::set<const float*> places;
  for (const RequestId request : {1, 2}) {
    for (int64_t layer = 0; layer < 2; ++layer) {
      const KvSequence sequence = cache.Sequence(request, layer);
      for (int64_t head = 0; head < 2; ++head) {
        for (int64_t position = 0; position < 45; ++position) {
          for (int64_t d = 0; d < 24; ++d) {
            EXPECT_TRUE(places.insert(sequence.Key(head, position) + d * kLanes).second);
          }
          for (int64_t d = 0; d < 32; ++d) {
            EXPECT_TRUE(places.insert(sequence.Value(head, position) + d).second);
          }
        }
      }
    }
  }
}

TEST(KvCacheDeathTest, AChunkMustContinueTheContext) {
  KvCache cache(kShape, 3);
  ASSERT_TRUE(cache.Extend(4, 0, 7).ok());
  EXPECT_DEATH((void)cache.Extend(4, 8, 1),
               "request 4 continues at token 8, but its context is 7 tokens long");
  EXPECT_DEATH((void)cache.Extend(5, 1, 1), "its context is 0 tokens long");
}

}  // namespace
}  // namespace fabricast
