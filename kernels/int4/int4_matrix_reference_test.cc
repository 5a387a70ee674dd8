#include "kernels/int4/int4_matrix_reference.h"

#include <cmath>
#include <random>
#include <set>
#include <utility>
#include <vector>

#include "gtest/gtest.h"

namespace fabricast {
namespace {

TEST(Int4BlockTest, EveryWeightHasANibbleOfItsOwnInTheFirst8192Bytes) {
  std::set<std::pair<int, int>> taken;
  for (int row = 0; row < 128; ++row) {
    for (int input = 0; input < 128; ++input) {
      const Int4Nibble nibble = Int4QuantAt(row, input);
      EXPECT_TRUE(nibble.at >= 0 && nibble.at < kInt4ScalesAt && nibble.at % 4 == 0);
      EXPECT_TRUE(nibble.shift >= 0 && nibble.shift < 32 && nibble.shift % 4 == 0);
      EXPECT_TRUE(taken.insert({nibble.at, nibble.shift}).second) << row << " " << input;
    }
  }
  EXPECT_EQ(taken.size(), 8192u * 2);
}

TEST(Int4BlockTest, EveryRowHasAScaleAndAZeroOfItsOwn) {
  std::set<int> scales;
  std::set<std::pair<int, int>> zeros;
  for (int row = 0; row < 128; ++row) {
    scales.insert(Int4ScaleAt(row));
    const Int4Nibble zero = Int4ZeroAt(row);
    EXPECT_TRUE(zero.at >= kInt4ZerosAt && zero.at < kInt4UnusedAt && zero.at % 4 == 0);
    zeros.insert({zero.at, zero.shift});
  }
  EXPECT_EQ(scales.size(), 128u);
  EXPECT_EQ(*scales.begin(), kInt4ScalesAt);
  EXPECT_EQ(*scales.rbegin(), kInt4ZerosAt - 2);
  EXPECT_EQ(zeros.size(), 128u);  // 64 bytes of nibbles
}

TEST(Int4BlockTest, RowsAndInputsOfFragmentsAreUndoneByTheirPlaces) {
  for (int tile = 0; tile < 8; ++tile) {
    for (int row = 0; row < 16; ++row) {
      for (int step = 0; step < 8; ++step) {
        for (int quad = 0; quad < 4; ++quad) {
          for (int value = 0; value < 4; ++value) {
            const Int4FragmentPlace place =
                Int4PlaceOf(Int4Row(tile, row), Int4Input(step, quad, value));
            EXPECT_EQ(place.tile, tile);
            EXPECT_EQ(place.fragment_row, row);
            EXPECT_EQ(place.step, step);
            EXPECT_EQ(place.quad, quad);
            EXPECT_EQ(place.value, value);
          }
        }
      }
    }
  }
}

TEST(Int4BlockTest, NibblesOfALaneAreThoseOfItsMmaRegisters) {
  // m16n8k16's A: a0 is row g, a1 row g + 8 of columns 2 t, 2 t + 1; a2 and a3 of those + 8. In
  // each half of a word: a0, a2, a1, a3. Lane 13 is g = 3, t = 1; step 6 is word 2 of half 1;
  // tile 5.
  const int word = (5 * 2 + 1) * 512 + 13 * 16 + 2 * 4;
  for (int half = 0; half < 2; ++half) {
    for (int i = 0; i < 4; ++i) {
      const int fragment_row = 3 + 8 * (i / 2), value = 2 * (i % 2) + half;
      const Int4Nibble nibble = Int4QuantAt(Int4Row(5, fragment_row), Int4Input(6, 1, value));
      EXPECT_EQ(nibble.at, word);
      EXPECT_EQ(nibble.shift, 16 * half + 4 * i);
    }
  }
}

TEST(Int4BlockTest, AThreadOwnsFourAdjacentOutputsOfATilePair) {
  for (int g = 0; g < 8; ++g) {
    EXPECT_EQ(Int4Row(6, g), 96 + 4 * g);
    EXPECT_EQ(Int4Row(6, g + 8), 96 + 4 * g + 1);
    EXPECT_EQ(Int4Row(7, g), 96 + 4 * g + 2);
    EXPECT_EQ(Int4Row(7, g + 8), 96 + 4 * g + 3);
  }
}

TEST(Int4MatrixReferenceTest, F16SurvivesConversion) {
  for (int bits = 0; bits < 0x7c00; ++bits) {
    EXPECT_EQ(F16FromExact(F16ToDouble(static_cast<uint16_t>(bits))), bits);
    EXPECT_EQ(F16FromExact(F16ToDouble(static_cast<uint16_t>(bits | 0x8000))), bits | 0x8000);
  }
  EXPECT_EQ(F16ToDouble(0x3c00), 1);
  EXPECT_EQ(F16ToDouble(0x7bff), 65504);
  EXPECT_EQ(F16ToDouble(0x0001), 0x1p-24);
}

// All quants, zeros and finite scales, subnormal ones too, and a row of zeros.
PlainInt4 Anything(int64_t outputs, int64_t inputs) {
  std::mt19937 random(1);
  PlainInt4 plain(outputs, inputs);
  for (uint8_t& quant : plain.quants) quant = random() % 16;
  for (uint8_t& zero : plain.zeros) zero = random() % 16;
  for (uint16_t& scale : plain.scales) scale = random() % 0x7c00 | (random() % 2 << 15);
  for (int64_t group = 0; group < plain.groups; ++group) plain.scale(0, group) = 0;
  return plain;
}

TEST(Int4MatrixReferenceTest, PackedWeightsAreTheSameToTheLastBit) {
  for (const auto& [outputs, inputs] : {std::pair{8, 128}, {128, 256}, {264, 384}, {300, 200}}) {
    const PlainInt4 plain = Anything(outputs, inputs);
    const PackedInt4Reference packed(plain);
    for (int64_t row = 0; row < outputs; ++row) {
      for (int64_t input = 0; input < inputs; ++input) {
        ASSERT_EQ(UnpackWeight(packed, plain.groups, row, input), plain.Weight(row, input))
            << "row " << row << ", input " << input << " of " << outputs << " x " << inputs;
      }
    }
  }
}

TEST(Int4MatrixReferenceTest, WeightsBeyondTheMatrixAreZero) {
  const PackedInt4Reference packed(Anything(130, 200));
  for (int64_t row = 0; row < 256; ++row) {
    for (int64_t input = row < 130 ? 200 : 0; input < 256; ++input) {
      ASSERT_EQ(UnpackWeight(packed, 2, row, input), 0) << row << " " << input;
    }
  }
}

TEST(SyntheticWeightsTest, ScaleIsAnF16OfTheRangeThatIsPromised) {
  for (const int64_t inputs : {64, 4096, 53248}) {
    const SyntheticWeights weights(5, inputs);
    const double unit = 1 / std::sqrt(46.0 * static_cast<double>(inputs));
    for (int64_t row = 0; row < 1000; ++row) {
      const double scale = weights.Scale(row, 0);
      EXPECT_EQ(F16ToDouble(F16FromExact(scale)), scale);
      // One rounding of FP16: 2^-11.
      EXPECT_GT(scale, 0.5 * unit * (1 - 0x1p-11));
      EXPECT_LT(scale, 1.5 * unit * (1 + 0x1p-11));
    }
  }
}

TEST(SyntheticWeightsTest, OutputsOfNormalInputsHaveAVarianceOfOne) {
  // Given independent inputs of variance 1, that of an output is the sum of its squared weights.
  constexpr int64_t kRows = 200, kInputs = 8192;
  const SyntheticWeights weights(9, kInputs);
  double sum = 0;
  for (int64_t row = 0; row < kRows; ++row) {
    for (int64_t input = 0; input < kInputs; ++input) {
      sum += weights.Weight(row, input) * weights.Weight(row, input);
    }
  }
  // A group of 128 has one scale and one zero: its sum of squares varies by about its mean, and
  // 200 x 64 groups average that to 1 %; 5 standard deviations.
  EXPECT_NEAR(sum / kRows, 1, 0.05);
}

TEST(SyntheticWeightsTest, SeedsRowsAndInputsDiffer) {
  const SyntheticWeights weights(1, 1024), other(2, 1024);
  int by_seed = 0, by_row = 0, by_input = 0;
  for (int64_t input = 0; input < 1023; ++input) {
    by_seed += weights.Quant(7, input) == other.Quant(7, input);
    by_row += weights.Quant(7, input) == weights.Quant(8, input);
    by_input += weights.Quant(7, input) == weights.Quant(7, input + 1);
  }
  // Of 1,023 pairs 64 +- 8 are equal by chance.
  for (const int equal : {by_seed, by_row, by_input}) EXPECT_NEAR(equal, 64, 40);
}

}  // namespace
}  // namespace fabricast
