// The weights that FillSyntheticInt4 makes, one at a time. For the CPU and, in .cu files, the GPU.
#ifndef FABRICAST_KERNELS_INT4_SYNTHETIC_WEIGHTS_H_
#define FABRICAST_KERNELS_INT4_SYNTHETIC_WEIGHTS_H_

#include <bit>
#include <cmath>
#include <cstdint>

namespace fabricast {

// The finaliser of SplitMix64: each bit of the result depends on all of `x`.
constexpr uint64_t MixBits(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
  x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
  return x ^ (x >> 31);
}

// Nearest FP16, ties to even, as a float. For normal FP16 magnitudes: [2^-14, 65,520).
constexpr float RoundToF16(float value) {
  uint32_t bits = std::bit_cast<uint32_t>(value);
  bits += 0xfff + ((bits >> 13) & 1);
  return std::bit_cast<float>(bits & 0xffffe000);
}

// A matrix of `inputs` inputs.
struct SyntheticWeights {
  SyntheticWeights(uint64_t seed, int64_t inputs)
      : key(MixBits(seed)),
        inputs(inputs),
        // q - z has the variance 2 (16^2 - 1) / 12 = 42.5, and the square of a factor in
        // [0.5, 1.5) the mean 13/12: their product is 46.04.
        unit(static_cast<float>(1 / std::sqrt(46.0 * static_cast<double>(inputs)))) {}

  uint64_t key;
  int64_t inputs;
  float unit;

  constexpr int Quant(int64_t row, int64_t input) const {
    // A word holds 8 neighbours. Beyond the inputs the weight is 0.
    if (input >= inputs) return Zero(row, input / 128);
    return static_cast<int>(Word(0, row, input / 8) >> (4 * (input % 8)) & 15);
  }
  constexpr int Zero(int64_t row, int64_t group) const {
    return static_cast<int>(Word(1, row, group) & 15);
  }
  // An FP16 value.
  constexpr float Scale(int64_t row, int64_t group) const {
    const float fraction = static_cast<float>(Word(1, row, group) >> 8) * 0x1p-24f;
    return RoundToF16((0.5f + fraction) * unit);
  }
  // s (q - z), exactly: 11 and 5 bits.
  constexpr float Weight(int64_t row, int64_t input) const {
    return Scale(row, input / 128) * static_cast<float>(Quant(row, input) - Zero(row, input / 128));
  }

 private:
  constexpr uint32_t Word(uint64_t kind, int64_t row, int64_t index) const {
    const uint64_t place =
        kind << 63 | static_cast<uint64_t>(row) << 32 | static_cast<uint64_t>(index);
    return static_cast<uint32_t>(MixBits(key ^ place) >> 32);
  }
};

}  // namespace fabricast

#endif  // FABRICAST_KERNELS_INT4_SYNTHETIC_WEIGHTS_H_
