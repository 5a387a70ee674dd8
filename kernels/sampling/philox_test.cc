#include "kernels/sampling/philox.h"

#include <array>
#include <cstdint>

#include "gtest/gtest.h"

namespace fabricast {
namespace {

using Words = std::array<uint32_t, 4>;

// kat_vectors of Random123, the authors' library: philox4x32 10.
TEST(PhiloxTest, KnownAnswers) {
  EXPECT_EQ(Philox4x32({0, 0, 0, 0}, {0, 0}),
            (Words{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  constexpr uint32_t kOnes = 0xffffffff;
  EXPECT_EQ(Philox4x32({kOnes, kOnes, kOnes, kOnes}, {kOnes, kOnes}),
            (Words{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(Philox4x32({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}),
            (Words{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(PhiloxTest, UniformUsesAllBitsOfSeedAndPosition) {
  // 0x6627e8d5e169c58d / 2^64, cut to 53 bits.
  EXPECT_EQ(UniformAt(0, 0), static_cast<double>(0x6627e8d5e169c58d >> 11) * 0x1p-53);
  EXPECT_NE(UniformAt(0, 0), UniformAt(uint64_t{1} << 32, 0));
  EXPECT_NE(UniformAt(0, 0), UniformAt(0, uint64_t{1} << 32));
  EXPECT_NE(UniformAt(1, 2), UniformAt(2, 1));
}

// The mean of n uniforms has a standard deviation of 1 / sqrt(12 n): 5 of them are 0.0046 here.
TEST(PhiloxTest, UniformHasTheRightMean) {
  for (const uint64_t seed : {0, 1, 12345}) {
    double sum = 0;
    for (uint64_t position = 0; position < 100'000; ++position) {
      const double u = UniformAt(seed, position);
      ASSERT_GE(u, 0);
      ASSERT_LT(u, 1);
      sum += u;
    }
    EXPECT_NEAR(sum / 100'000, 0.5, 0.0046);
  }
}

}  // namespace
}  // namespace fabricast
