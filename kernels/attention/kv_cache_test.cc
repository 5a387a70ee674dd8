#include "kernels/attention/kv_cache.h"

#include <set>
#include <vector>

#include "gtest/gtest.h"

namespace fabricast {
namespace {

TEST(KvCacheTest, EveryElementHasItsOwnPlaceAndNoneIsLeftOver) {
  for (const int head_dim : {2, 16, 32, 64, 80, 96, 128, 192, 256}) {
    for (const int kv_heads : {1, 3}) {
      const KvCacheView cache = {.blocks = 2, .kv_heads = kv_heads, .head_dim = head_dim};
      std::vector<bool> taken(cache.bytes() / 2);
      for (int64_t block = 0; block < cache.blocks; ++block) {
        for (int part = 0; part < 2 * kv_heads; ++part) {
          for (int i = 0; i < kKvBlockTokens * head_dim; ++i) {
            const int64_t at =
                cache.tile(block, part / 2, part % 2) + cache.in_tile(i / head_dim, i % head_dim);
            ASSERT_GE(at, 0);
            ASSERT_LT(at, static_cast<int64_t>(taken.size()));
            ASSERT_FALSE(taken[at]) << "head_dim " << head_dim << " block " << block << " part "
                                    << part << " element " << i;
            taken[at] = true;
          }
        }
      }
      // As many places as elements, so all are taken.
      EXPECT_EQ(taken.size(), size_t(2 * 2 * kv_heads * kKvBlockTokens * head_dim));
    }
  }
}

TEST(KvCacheTest, BlocksOf405BAre64KiBAndAHeadsKeysAndValuesLieTogether) {
  const KvCacheView cache = {.blocks = 10, .kv_heads = 8, .head_dim = 128};
  // 16 tokens x 8 heads x 2 x 128 x 2 bytes.
  EXPECT_EQ(cache.block_elements() * 2, 64 << 10);
  EXPECT_EQ(cache.tile(3, 5, 1) - cache.tile(3, 5, 0), 16 * 128);
  EXPECT_EQ(cache.tile(3, 6, 0) - cache.tile(3, 5, 1), 16 * 128);
}

TEST(KvCacheTest, DimsOfAChunkStandTogether) {
  const KvCacheView cache = {.blocks = 1, .kv_heads = 1, .head_dim = 128};
  for (int token = 0; token < kKvBlockTokens; ++token) {
    for (int dim = 0; dim < 128; ++dim) {
      EXPECT_EQ(cache.in_tile(token, dim), cache.in_tile(token, dim / 8 * 8) + dim % 8);
    }
  }
}

// ldmatrix reads 8 rows of 16 bytes: they must lie in 8 different groups of 4 of the 32 banks.
TEST(KvCacheTest, EightTokensOfAChunkMeetNoBankTwice) {
  const KvCacheView cache = {.blocks = 1, .kv_heads = 1, .head_dim = 128};
  for (int first_token : {0, 8}) {
    for (int dim = 0; dim < 128; dim += 8) {
      std::set<int> groups;
      for (int token = first_token; token < first_token + 8; ++token) {
        groups.insert(cache.in_tile(token, dim) * 2 / 16 % 8);
      }
      EXPECT_EQ(groups.size(), 8u) << "dim " << dim;
    }
  }
}

// wgmma's and the bulk tensor copies' 128-byte swizzle: address bits 4 ... 6 ^= bits 7 ... 9.
TEST(KvCacheTest, SlabsOf64DimsAreSwizzledAsWgmmaReadsThem) {
  const KvCacheView cache = {.blocks = 1, .kv_heads = 1, .head_dim = 128};
  for (int token = 0; token < kKvBlockTokens; ++token) {
    for (int dim = 0; dim < 128; ++dim) {
      const int plain = dim / 64 * (kKvBlockTokens * 128) + token * 128 + dim % 64 * 2;
      EXPECT_EQ(cache.in_tile(token, dim) * 2, plain ^ (plain >> 7 & 7) << 4);
    }
  }
}

TEST(KvCacheTest, OtherSizesAreRowMajor) {
  const KvCacheView cache = {.blocks = 1, .kv_heads = 1, .head_dim = 80};
  EXPECT_EQ(cache.in_tile(3, 70), 3 * 80 + 70);
}

}  // namespace
}  // namespace fabricast
