// Random numbers that are a function of a key and a counter, with no state: the n-th is to be had
// without the n - 1 before it, on any device (constexpr: device code may call it, with nvcc's
// --expt-relaxed-constexpr).
#ifndef FABRICAST_KERNELS_SAMPLING_PHILOX_H_
#define FABRICAST_KERNELS_SAMPLING_PHILOX_H_

#include <array>
#include <cstdint>

namespace fabricast {

// Philox4x32-10: Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3",
// SC'11. Also cuRAND's and PyTorch's on GPUs.
constexpr std::array<uint32_t, 4> Philox4x32(std::array<uint32_t, 4> counter,
                                             std::array<uint32_t, 2> key) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t product0 = uint64_t{0xD2511F53} * counter[0];
    const uint64_t product1 = uint64_t{0xCD9E8D57} * counter[2];
    counter = {static_cast<uint32_t>(product1 >> 32) ^ counter[1] ^ key[0],
               static_cast<uint32_t>(product1),
               static_cast<uint32_t>(product0 >> 32) ^ counter[3] ^ key[1],
               static_cast<uint32_t>(product0)};
    key[0] += 0x9E3779B9;
    key[1] += 0xBB67AE85;
  }
  return counter;
}

// Uniform in [0, 1): a multiple of 2^-53, from the first two words for counter `position`.
constexpr double UniformAt(uint64_t seed, uint64_t position) {
  const std::array<uint32_t, 4> words =
      Philox4x32({static_cast<uint32_t>(position), static_cast<uint32_t>(position >> 32), 0, 0},
                 {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)});
  const uint64_t bits = (uint64_t{words[0]} << 32) | words[1];
  return static_cast<double>(bits >> 11) * 0x1p-53;
}

}  // namespace fabricast

#endif  // FABRICAST_KERNELS_SAMPLING_PHILOX_H_
