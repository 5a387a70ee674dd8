// A linear layer's weights as the kernels read them.
#ifndef FABRICAST_RUNTIME_EXECUTOR_CPU_LINEAR_H_
#define FABRICAST_RUNTIME_EXECUTOR_CPU_LINEAR_H_

#include <bit>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "hwy/aligned_allocator.h"
#include "runtime/executor/cpu/thread_pool.h"
#include "runtime/weights/checkpoint.h"
#include "runtime/weights/stage_weights.h"
#include "runtime/weights/tensor.h"

namespace fabricast {

enum class WeightFormat { kBf16, kF16, kF32, kAwq };

// AutoAWQ's layout keeps the outputs of one input together; a sum over inputs reads it in strides.
// So it is repacked at load: 128 inputs of an output are 16 words, a cache line, in which nibble j
// of word l is input 16 j + l. A vector of words, shifted by 4 j, then is 16 neighbouring inputs.
struct AwqBlocks {
  static constexpr int64_t kInputs = 128;  // of a block
  static constexpr int64_t kWords = 16;

  int64_t group_size = 0;  // a multiple of 16
  int64_t groups = 0;      // of an output
  int64_t blocks = 0;      // of an output; the last may be used in part
  WeightFormat scale_format = WeightFormat::kF16;
  hwy::AlignedFreeUniquePtr<uint32_t[]> words;  // [out, blocks, 16]
  // [out, groups], and 16 more elements that are read but not used.
  std::vector<std::byte> scales;
  std::vector<uint8_t> zeros;
};

// Dense weights stay where they are, in the checkpoint's mapping; AWQ's are copied, and their
// mapping released: what is resident is the 4 bits, the scales, and a byte instead of a nibble for
// each group's zero (0.75 % more than the file at groups of 128).
struct Linear {
  int64_t in = 0;
  int64_t out = 0;
  WeightFormat format = WeightFormat::kBf16;
  const std::byte* dense = nullptr;  // [out, in], at any address
  AwqBlocks awq;                     // if format is kAwq
  std::vector<float> bias;           // empty: none

  // `checkpoint`: whose pages to release; null: none's.
  //
  // kUnimplemented for weights of another type, and for AWQ groups that are no multiple of 16.
  static absl::StatusOr<Linear> Load(const LinearWeights& weights, const Checkpoint* checkpoint,
                                     ThreadPool& pool);
};

// kUnimplemented if `tensor` is not BF16, F16 or F32.
absl::StatusOr<WeightFormat> FormatOf(const Tensor& tensor);

inline float FloatFromF16(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000) << 16;
  const uint32_t exponent = (half >> 10) & 31;
  const uint32_t mantissa = half & 1023;
  if (exponent == 31) return std::bit_cast<float>(sign | 0x7F800000 | (mantissa << 13));
  if (exponent == 0) {
    const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
    return sign != 0 ? -magnitude : magnitude;
  }
  return std::bit_cast<float>(sign | ((exponent + 127 - 15) << 23) | (mantissa << 13));
}

// Elements [first, first + count) of `tensor`, which is BF16, F16 or F32, exactly.
void ConvertToFloat(const Tensor& tensor, int64_t first, int64_t count, float* floats);

}  // namespace fabricast

#endif  // FABRICAST_RUNTIME_EXECUTOR_CPU_LINEAR_H_
