#include "runtime/executor/cpu/elementwise.h"

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "gtest/gtest.h"
#include "runtime/executor/cpu/each_target.h"
#include "runtime/executor/cpu/test_weights.h"

namespace fabricast {
namespace {

std::vector<float> RandomVector(uint32_t seed, size_t count, float scale = 1) {
  RandomNormal random(seed);
  std::vector<float> values;
  for (size_t i = 0; i < count; ++i) values.push_back(scale * random());
  return values;
}

// The sum of squares rounds n / 16 + 5 times (or twice that), root, division and products 6 times.
TEST(ElementwiseTest, RmsNorm) {
  for (const size_t n : {1, 3, 16, 50, 128, 1000}) {
    const std::vector<float> x = RandomVector(n, n, 3);
    const std::vector<float> gain = RandomVector(n + 1, n);
    double squares = 0;
    for (const float value : x) squares += static_cast<double>(value) * value;
    // An epsilon that matters: 1 beside a mean square of 9.
    const double scale = 1 / std::sqrt(squares / static_cast<double>(n) + 1);
    std::vector<float> expected;
    ForEachTarget([&](bool fuses) {
      std::vector<float> y = x;
      RmsNorm(y.data(), gain, 1, y.data());
      for (size_t i = 0; i < n; ++i) {
        const double value = gain[i] * x[i] * scale;
        EXPECT_NEAR(y[i], value, std::abs(value) * (static_cast<double>(n) / 8 + 16) * 0x1p-24);
      }
      if (fuses && expected.empty()) expected = y;
      if (fuses) {
        EXPECT_EQ(y, expected);
      }
    });
  }
}

// Highway's exp is within 2 units in the last place, whatever is added: 8 u.
TEST(ElementwiseTest, SiluMultiply) {
  std::vector<float> x = RandomVector(1, 1000, 10);
  for (const float value : {0.0f, -0.0f, 1e30f, -1e30f, 88.0f, -88.0f, -104.0f, 1e-30f}) {
    x.push_back(value);
  }
  const std::vector<float> up = RandomVector(2, x.size());
  std::vector<float> expected;
  ForEachTarget([&](bool fuses) {
    std::vector<float> y = x;
    SiluMultiply(static_cast<int64_t>(x.size()), up.data(), y.data());
    for (size_t i = 0; i < x.size(); ++i) {
      const double value = x[i] / (1 + std::exp(-static_cast<double>(x[i]))) * up[i];
      // Below the least normal number's neighbourhood exp flushes to 0.
      EXPECT_NEAR(y[i], value, std::abs(value) * 8 * 0x1p-24 + 1e-35) << x[i];
    }
    // In parts, too.
    std::vector<float> parts = x;
    for (size_t i = 0; i < x.size(); i += 13) {
      SiluMultiply(static_cast<int64_t>(std::min<size_t>(13, x.size() - i)), up.data() + i,
                   parts.data() + i);
    }
    EXPECT_EQ(parts, y);
    if (fuses && expected.empty()) expected = y;
    if (fuses) {
      EXPECT_EQ(y, expected);
    }
  });
  float nan = std::nanf("");
  SiluMultiply(1, up.data(), &nan);
  EXPECT_TRUE(std::isnan(nan));
}

TEST(ElementwiseTest, SumsOfRows) {
  for (const int64_t n : {1, 16, 37}) {
    const std::vector<float> x = RandomVector(1, n);
    const std::vector<float> before = RandomVector(2, n);
    ForEachTarget([&](bool fuses) {
      std::vector<float> sum = before;
      AddWeighted(n, 0.3f, x.data(), sum.data());
      for (int64_t i = 0; i < n; ++i) {
        EXPECT_EQ(sum[i], fuses ? std::fma(0.3f, x[i], before[i]) : 0.3f * x[i] + before[i]);
      }
    });
    std::vector<float> sum = before;
    AddTo(n, x.data(), sum.data());
    for (int64_t i = 0; i < n; ++i) EXPECT_EQ(sum[i], before[i] + x[i]);
  }
}

TEST(ElementwiseTest, AllFiniteFindsOneAnywhere) {
  ForEachTarget([](bool) {
    std::vector<float> x = RandomVector(1, 53);
    x[7] = std::numeric_limits<float>::max();
    x[8] = -std::numeric_limits<float>::max();
    EXPECT_TRUE(AllFinite(53, x.data()));
    for (size_t i = 0; i < x.size(); ++i) {
      for (const float bad : {std::nanf(""), INFINITY, -INFINITY}) {
        std::vector<float> y = x;
        y[i] = bad;
        EXPECT_FALSE(AllFinite(53, y.data())) << i;
      }
    }
  });
}

TEST(ElementwiseTest, RopeFrequenciesAreAGeometricSeries) {
  DecoderConfig config;
  config.head_dim = 8;
  config.rope_theta = 10000;
  const std::vector<float> frequencies = RopeFrequencies(config);
  ASSERT_EQ(frequencies.size(), 4);
  EXPECT_EQ(frequencies[0], 1);
  EXPECT_NEAR(frequencies[1], 0.1, 1e-8);
  EXPECT_NEAR(frequencies[2], 0.01, 1e-9);
  EXPECT_NEAR(frequencies[3], 0.001, 1e-10);
}

// Wavelengths 2 pi / frequency: 6.3, 199, 6283, 198692. Of 8,192 / 4 = 2,048 and less none is
// changed, of more than 8,192 / 1 all by 8; 6,283 lies between: 8,192 / 6,283 = 1.303798, less 1,
// by 4 - 1: 0.101266 of the way from an eighth to all.
TEST(ElementwiseTest, Llama3StretchesLongWavelengths) {
  DecoderConfig config;
  config.head_dim = 8;
  config.rope_theta = 1e6;
  config.rope_scaling = Llama3RopeScaling{
      .factor = 8, .low_freq_factor = 1, .high_freq_factor = 4, .original_context = 8192};
  const std::vector<float> frequencies = RopeFrequencies(config);
  EXPECT_EQ(frequencies[0], 1);
  EXPECT_NEAR(frequencies[1], std::pow(1e6, -0.25), 4e-9);
  EXPECT_NEAR(frequencies[2], 1e-3 * (0.101266 + (1 - 0.101266) / 8), 1e-9);
  EXPECT_NEAR(frequencies[3], std::pow(1e6, -0.75) / 8, 1e-12);
}

// A quarter turn takes (a, b) to (-b, a): element i is turned with element i + 2.
TEST(ElementwiseTest, RotateTurnsHalvesAgainstEachOther) {
  std::vector<float> head = {1, 2, 3, 4};
  const std::vector<float> cosines = {0, 1};
  const std::vector<float> sines = {1, 0};
  Rotate(2, cosines.data(), sines.data(), head.data());
  EXPECT_EQ(head, (std::vector<float>{-3, 2, 1, 4}));
}

TEST(ElementwiseTest, RopeAnglesAreOfThePosition) {
  float cosine;
  float sine;
  const std::vector<float> frequency = {0.25f};
  RopeAngles(frequency, 6, &cosine, &sine);
  EXPECT_FLOAT_EQ(cosine, std::cos(1.5f));
  EXPECT_FLOAT_EQ(sine, std::sin(1.5f));
}

}  // namespace
}  // namespace fabricast
