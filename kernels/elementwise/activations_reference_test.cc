#include "kernels/elementwise/activations_reference.h"

#include <algorithm>
#include <string>
#include <vector>

#include "gtest/gtest.h"

namespace fabricast {
namespace {

constexpr ActivationFormat kFormats[] = {ActivationFormat::kBf16Rows, ActivationFormat::kF16Rows,
                                         ActivationFormat::kMma, ActivationFormat::kWgmma};

TEST(ActivationsReferenceTest, EveryValueHasBytesOfItsOwnInsideTheArray) {
  for (const ActivationFormat format : kFormats) {
    for (const int tokens : {1, 3, 8, 9, 16, 17, 33, 64}) {
      for (const int64_t inputs : {int64_t{100}, int64_t{128}, int64_t{384}}) {
        const ActivationLayout layout = {format, tokens, inputs};
        const ActivationsCopy copy = {layout, {}};
        std::vector<int> uses(static_cast<size_t>(layout.bytes()));
        const auto use = [&uses](int64_t begin, int bytes) {
          for (int64_t i = begin; i < begin + bytes; ++i) ++uses.at(static_cast<size_t>(i));
        };
        for (int slot = 0; slot < copy.slots_with_values(); ++slot) {
          for (int64_t k = 0; k < copy.inputs_with_values(); ++k) {
            use(ActivationOffset(layout, slot, k), 2);
          }
        }
        if (format == ActivationFormat::kMma) {
          for (int slot = 0; slot < layout.slots(); ++slot) {
            for (int64_t group = 0; group < layout.groups(); ++group) {
              use(ActivationSumsOffset(layout, slot, group), 8);
            }
          }
        }
        EXPECT_EQ(*std::max_element(uses.begin(), uses.end()), 1)
            << static_cast<int>(format) << ", " << tokens << " tokens, " << inputs << " inputs";
        // Only kMma pads, to lines of 128 bytes.
        const auto unused = std::count(uses.begin(), uses.end(), 0);
        if (format == ActivationFormat::kMma) {
          EXPECT_LT(unused, 128 * layout.groups());
          EXPECT_EQ(layout.record_bytes() % 128, 0);
        } else {
          EXPECT_EQ(unused, 0);
        }
      }
    }
  }
}

TEST(ActivationsReferenceTest, MmaSwapsTheHalvesOf128BytesOfOddTokens) {
  const ActivationLayout layout = {ActivationFormat::kMma, 2, 256};
  EXPECT_EQ(ActivationOffset(layout, 0, 0), 0);
  EXPECT_EQ(ActivationOffset(layout, 0, 33), 66);
  EXPECT_EQ(ActivationOffset(layout, 1, 0), 256 + 64);
  EXPECT_EQ(ActivationOffset(layout, 1, 33), 256 + 2);
  EXPECT_EQ(ActivationOffset(layout, 1, 64), 256 + 128 + 64);
  // A record: 2 rows of 256 bytes, 8 slots' sums of 8 bytes = 576, padded to 640.
  EXPECT_EQ(ActivationSumsOffset(layout, 0, 0), 512);
  EXPECT_EQ(ActivationOffset(layout, 0, 128), 640);
}

TEST(ActivationsReferenceTest, WgmmaPutsALanesInputsWhereItsFragmentHoldsThem) {
  // One slot 0 of 16: chunks are where they are counted. Lane quad 1 of step 1 has inputs 8 + 4
  // ...: columns 2, 3, 10, 11 of the second 16.
  const ActivationLayout layout = {ActivationFormat::kWgmma, 1, 128};
  EXPECT_EQ(ActivationOffset(layout, 0, 12), 2 * (16 + 2));
  EXPECT_EQ(ActivationOffset(layout, 0, 13), 2 * (16 + 3));
  EXPECT_EQ(ActivationOffset(layout, 0, 14), 2 * (16 + 10));
  EXPECT_EQ(ActivationOffset(layout, 0, 15), 2 * (16 + 11));
  // The second half of 64 inputs follows 16 slots of 128 bytes.
  EXPECT_EQ(ActivationOffset(layout, 0, 64), 16 * 128);
  // Slot 3: chunk 2 of column 18 becomes chunk 2 ^ 3.
  EXPECT_EQ(ActivationOffset(layout, 3, 12), 3 * 128 + 16 + 4);
}

TEST(ActivationsReferenceTest, HalfPrecisionIsReadAsIeeeSays) {
  EXPECT_EQ(DoubleOfF16(0x3c00), 1);
  EXPECT_EQ(DoubleOfF16(0xc000), -2);
  EXPECT_EQ(DoubleOfF16(0x7bff), 65504);
  EXPECT_EQ(DoubleOfF16(0x0001), std::ldexp(1, -24));
  EXPECT_EQ(DoubleOfF16(0x0400), std::ldexp(1, -14));
  EXPECT_EQ(DoubleOfF16(0xfc00), -INFINITY);
  EXPECT_TRUE(std::isnan(DoubleOfF16(0x7e00)));
  EXPECT_EQ(DoubleOfBf16(0x3f80), 1);
}

}  // namespace
}  // namespace fabricast
