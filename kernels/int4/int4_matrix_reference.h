// INT4 weights and their packing on the CPU, one weight at a time.
#ifndef FABRICAST_KERNELS_INT4_INT4_MATRIX_REFERENCE_H_
#define FABRICAST_KERNELS_INT4_INT4_MATRIX_REFERENCE_H_

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "kernels/int4/int4_block.h"
#include "kernels/int4/int4_matrix.h"
#include "kernels/int4/synthetic_weights.h"

namespace fabricast {

inline double F16ToDouble(uint16_t bits) {
  const int exponent = bits >> 10 & 31, fraction = bits & 1023;
  const double magnitude =
      exponent == 0 ? std::ldexp(fraction, -24) : std::ldexp(1024 + fraction, exponent - 25);
  return bits >> 15 ? -magnitude : magnitude;
}

// Of a value that FP16 has.
inline uint16_t F16FromExact(double value) {
  const uint16_t sign = std::signbit(value) ? 0x8000 : 0;
  int exponent;
  const double fraction = std::frexp(std::fabs(value), &exponent);  // [0.5, 1)
  if (value == 0 || exponent < -13)
    return sign | static_cast<uint16_t>(std::ldexp(std::fabs(value), 24));
  return sign | static_cast<uint16_t>(static_cast<int>(std::ldexp(fraction, 11)) - 1024 +
                                      ((exponent + 14) << 10));
}

// Nearest BF16, ties to even.
inline uint16_t Bf16FromFloat(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
inline float Bf16ToFloat(uint16_t bits) {
  const uint32_t word = uint32_t{bits} << 16;
  float value;
  std::memcpy(&value, &word, 4);
  return value;
}

// w[n][k] = (q - z) s, in the order of a row-major matrix.
struct PlainInt4 {
  PlainInt4(int64_t outputs, int64_t inputs)
      : outputs(outputs),
        inputs(inputs),
        groups((inputs + 127) / 128),
        quants(static_cast<size_t>(outputs * inputs)),
        zeros(static_cast<size_t>(outputs * groups)),
        scales(static_cast<size_t>(outputs * groups)) {}

  int64_t outputs, inputs, groups;
  std::vector<uint8_t> quants;   // [outputs, inputs]
  std::vector<uint8_t> zeros;    // [outputs, groups]
  std::vector<uint16_t> scales;  // [outputs, groups], FP16

  uint8_t& quant(int64_t row, int64_t input) { return quants[Index(row, input, inputs)]; }
  uint8_t& zero(int64_t row, int64_t group) { return zeros[Index(row, group, groups)]; }
  uint16_t& scale(int64_t row, int64_t group) { return scales[Index(row, group, groups)]; }

  double Weight(int64_t row, int64_t input) const {
    const size_t group = Index(row, input / 128, groups);
    return (quants[Index(row, input, inputs)] - zeros[group]) * F16ToDouble(scales[group]);
  }

 private:
  static size_t Index(int64_t row, int64_t column, int64_t columns) {
    return static_cast<size_t>(row * columns + column);
  }
};

inline PlainInt4 SyntheticReference(uint64_t seed, int64_t outputs, int64_t inputs) {
  const SyntheticWeights weights(seed, inputs);
  PlainInt4 plain(outputs, inputs);
  for (int64_t row = 0; row < outputs; ++row) {
    for (int64_t input = 0; input < inputs; ++input) {
      plain.quant(row, input) = static_cast<uint8_t>(weights.Quant(row, input));
    }
    for (int64_t group = 0; group < plain.groups; ++group) {
      plain.zero(row, group) = static_cast<uint8_t>(weights.Zero(row, group));
      plain.scale(row, group) = F16FromExact(weights.Scale(row, group));
    }
  }
  return plain;
}

// AutoAWQ's tensors on the CPU: nibble i of a word of 8 outputs is output [0, 2, 4, 6, 1, 3, 5,
// 7][i].
struct AwqReference {
  explicit AwqReference(PlainInt4 plain)
      : qweight(static_cast<size_t>(plain.inputs * plain.outputs / 8)),
        qzeros(static_cast<size_t>(plain.groups * plain.outputs / 8)),
        scales(static_cast<size_t>(plain.groups * plain.outputs)) {
    constexpr int kOrder[8] = {0, 2, 4, 6, 1, 3, 5, 7};
    const int64_t words = plain.outputs / 8;
    for (int64_t word = 0; word < words; ++word) {
      for (int i = 0; i < 8; ++i) {
        const int64_t row = 8 * word + kOrder[i];
        for (int64_t input = 0; input < plain.inputs; ++input) {
          qweight[static_cast<size_t>(input * words + word)] |= uint32_t{plain.quant(row, input)}
                                                                << (4 * i);
        }
        for (int64_t group = 0; group < plain.groups; ++group) {
          qzeros[static_cast<size_t>(group * words + word)] |= uint32_t{plain.zero(row, group)}
                                                               << (4 * i);
          scales[static_cast<size_t>(group * plain.outputs + row)] = plain.scale(row, group);
        }
      }
    }
  }

  std::vector<uint32_t> qweight, qzeros;
  std::vector<uint16_t> scales;
};

// The bytes of an Int4Matrix.
struct PackedInt4Reference {
  explicit PackedInt4Reference(PlainInt4 plain) {
    const Int4Matrix shape = {.outputs = plain.outputs, .inputs = plain.inputs};
    blocks.resize(static_cast<size_t>(shape.block_bytes()));
    row_scale.resize(static_cast<size_t>(shape.block_rows() * kInt4BlockRows), 1);
    for (int64_t row = 0; row < plain.outputs; ++row) {
      double largest = 0;
      for (int64_t group = 0; group < plain.groups; ++group) {
        largest = std::max(largest, std::fabs(F16ToDouble(plain.scale(row, group))));
      }
      int exponent = 16;
      if (largest > 0) std::frexp(largest, &exponent);
      row_scale[static_cast<size_t>(row)] = std::ldexp(1.0f, exponent - 16);

      for (int64_t group = 0; group < plain.groups; ++group) {
        uint8_t* const block =
            blocks.data() + (row / kInt4BlockRows * plain.groups + group) * kInt4BlockBytes;
        const int block_row = static_cast<int>(row % kInt4BlockRows);
        const uint16_t scale =
            F16FromExact(std::ldexp(F16ToDouble(plain.scale(row, group)), 16 - exponent));
        std::memcpy(block + Int4ScaleAt(block_row), &scale, 2);
        SetNibble(block, Int4ZeroAt(block_row), plain.zero(row, group));
        for (int64_t i = 0; i < kInt4GroupInputs; ++i) {
          const int64_t input = group * kInt4GroupInputs + i;
          // Beyond the inputs weights are 0: q = z.
          SetNibble(block, Int4QuantAt(block_row, static_cast<int>(i)),
                    input < plain.inputs ? plain.quant(row, input) : plain.zero(row, group));
        }
      }
    }
  }

  std::vector<uint8_t> blocks;
  std::vector<float> row_scale;

 private:
  static void SetNibble(uint8_t* block, Int4Nibble at, uint8_t value) {
    uint32_t word;
    std::memcpy(&word, block + at.at, 4);
    word |= uint32_t{value} << at.shift;
    std::memcpy(block + at.at, &word, 4);
  }
};

// Of a matrix of `groups` groups; any row and input of its blocks.
inline double UnpackWeight(const PackedInt4Reference& packed, int64_t groups, int64_t row,
                           int64_t input) {
  const uint8_t* const block =
      packed.blocks.data() + (row / kInt4BlockRows * groups + input / 128) * kInt4BlockBytes;
  const auto nibble = [block](Int4Nibble at) {
    uint32_t word;
    std::memcpy(&word, block + at.at, 4);
    return static_cast<int>(word >> at.shift & 15);
  };
  const int block_row = static_cast<int>(row % kInt4BlockRows);
  uint16_t scale;
  std::memcpy(&scale, block + Int4ScaleAt(block_row), 2);
  return (nibble(Int4QuantAt(block_row, static_cast<int>(input % 128))) -
          nibble(Int4ZeroAt(block_row))) *
         F16ToDouble(scale) * packed.row_scale[static_cast<size_t>(row)];
}

}  // namespace fabricast

#endif  // FABRICAST_KERNELS_INT4_INT4_MATRIX_REFERENCE_H_
