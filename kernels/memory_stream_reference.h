// What kernels/memory_stream.cu writes and reads, said for the CPU. Compiled for the GPU too.
#ifndef FABRICAST_KERNELS_MEMORY_STREAM_REFERENCE_H_
#define FABRICAST_KERNELS_MEMORY_STREAM_REFERENCE_H_

#include <cstdint>

#include "absl/types/span.h"

namespace fabricast {

// 2^32 / golden ratio, made odd: neighbouring words differ in many bits.
inline constexpr uint32_t kStreamPatternStep = 0x9E3779B1;

// The 32-bit word at `index` of a buffer.
constexpr uint32_t StreamPatternWord(uint64_t index) {
  return static_cast<uint32_t>(index) * kStreamPatternStep;
}

// The sum, modulo 2^32, of the first `words` words: step x (0 + 1 + ... + (words - 1)).
constexpr uint32_t StreamPatternChecksum(uint64_t words) {
  const uint64_t sum_of_indices =
      words % 2 == 0 ? words / 2 * (words - 1) : (words - 1) / 2 * words;
  return static_cast<uint32_t>(sum_of_indices) * kStreamPatternStep;
}

// What the read kernel computes: the sum of all words modulo 2^32.
inline uint32_t StreamChecksum(absl::Span<const uint32_t> words) {
  uint32_t sum = 0;
  for (const uint32_t word : words) sum += word;
  return sum;
}

}  // namespace fabricast

#endif  // FABRICAST_KERNELS_MEMORY_STREAM_REFERENCE_H_
