// Activations as their header describes them, read on the CPU.
#ifndef FABRICAST_KERNELS_ELEMENTWISE_ACTIVATIONS_REFERENCE_H_
#define FABRICAST_KERNELS_ELEMENTWISE_ACTIVATIONS_REFERENCE_H_

#include <cmath>
#include <cstdint>
#include <cstring>

#include "absl/types/span.h"
#include "kernels/int4/activations.h"

namespace fabricast {

inline double DoubleOfBf16(uint16_t bits) {
  const uint32_t word = uint32_t{bits} << 16;
  float value;
  std::memcpy(&value, &word, sizeof(value));
  return value;
}

inline double DoubleOfF16(uint16_t bits) {
  const int exponent = bits >> 10 & 31, mantissa = bits & 1023;
  const double sign = bits >> 15 != 0 ? -1 : 1;
  if (exponent == 31) return mantissa != 0 ? NAN : sign * INFINITY;
  if (exponent == 0) return sign * std::ldexp(mantissa, -24);
  return sign * std::ldexp(1024 + mantissa, exponent - 25);
}

// In bytes from the start, of the value of input k, counted to the end of the last group, of a slot
// that holds values.
inline int64_t ActivationOffset(const ActivationLayout& layout, int slot, int64_t k) {
  if (!layout.packed()) return 2 * (slot * layout.inputs + k);
  const int64_t record = k / 128 * layout.record_bytes();
  const int within = static_cast<int>(k % 128);
  if (layout.format == ActivationFormat::kMma) {
    const int half = within / 32 % 2 ^ slot % 2;  // Which 64 bytes of 128.
    return record + slot * 256 + within / 64 * 128 + half * 64 + within % 32 * 2;
  }
  // int4_matrix.h: input 32 (s / 2) + 8 t + 4 (s % 2) + e of step s, lane quad t, value e. In an A
  // fragment e = 0, 1 are columns 2 t, 2 t + 1, and e = 2, 3 columns 2 t + 8, 2 t + 9.
  const int step = within / 32 * 2 + within % 8 / 4, quad = within % 32 / 8, value = within % 4;
  const int column = step % 4 * 16 + value / 2 * 8 + 2 * quad + value % 2;  // Of the half's 64.
  const int chunk = column / 8 ^ slot % 8;
  return record + (step / 4 * layout.slots() + slot) * 128 + chunk * 16 + column % 8 * 2;
}

// Of the two sums of a slot and group; kMma only.
inline int64_t ActivationSumsOffset(const ActivationLayout& layout, int slot, int64_t group) {
  return group * layout.record_bytes() + layout.rows() * 256 + slot * 8;
}

// A copy of Activations in the CPU's memory; does not own it.
struct ActivationsCopy {
  ActivationLayout layout;
  absl::Span<const char> data;               // layout.bytes()
  absl::Span<const float> token_scale = {};  // [tokens]; packed formats only

  // Slots that hold values: with those that are zero and fill tiles.
  int slots_with_values() const {
    return layout.format == ActivationFormat::kMma ? layout.rows() : layout.slots();
  }
  // Inputs with those that are zero and fill the last group.
  int64_t inputs_with_values() const {
    return layout.packed() ? layout.groups() * 128 : layout.inputs;
  }

  // As it is stored.
  double stored(int slot, int64_t k) const {
    const uint16_t bits = Read<uint16_t>(ActivationOffset(layout, slot, k));
    return layout.format == ActivationFormat::kBf16Rows ? DoubleOfBf16(bits) : DoubleOfF16(bits);
  }
  double value(int slot, int64_t k) const {
    const bool scaled = layout.packed() && slot < layout.tokens;
    return stored(slot, k) * (scaled ? double{token_scale[static_cast<size_t>(slot)]} : 1);
  }
  // kMma: {-sum of bias(k) x, -2^24 sum of x} of the stored x.
  float sum(int slot, int64_t group, int which) const {
    return Read<float>(ActivationSumsOffset(layout, slot, group) + 4 * which);
  }

 private:
  template <typename T>
  T Read(int64_t offset) const {
    T read;
    std::memcpy(&read, data.subspan(static_cast<size_t>(offset), sizeof(T)).data(), sizeof(T));
    return read;
  }
};

}  // namespace fabricast

#endif  // FABRICAST_KERNELS_ELEMENTWISE_ACTIVATIONS_REFERENCE_H_
