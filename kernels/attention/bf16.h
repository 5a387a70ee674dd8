// BF16 on the CPU, as its bits.
#ifndef FABRICAST_KERNELS_ATTENTION_BF16_H_
#define FABRICAST_KERNELS_ATTENTION_BF16_H_

#include <bit>
#include <cstdint>

namespace fabricast {

// To the nearest, ties to even; not for NaN.
inline uint16_t ToBf16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

inline float FromBf16(uint16_t bits) { return std::bit_cast<float>(uint32_t{bits} << 16); }

}  // namespace fabricast

#endif  // FABRICAST_KERNELS_ATTENTION_BF16_H_
