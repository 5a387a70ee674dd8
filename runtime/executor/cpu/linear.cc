#include "runtime/executor/cpu/linear.h"

#include <array>
#include <bit>
#include <cstring>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "runtime/check.h"
#include "runtime/executor/cpu/float_matrix.h"

namespace fabricast {
namespace {

// Nibble i of a word is output 8 c + kOutputOfNibble[i] (runtime/weights/stage_weights.h).
constexpr std::array<int, 8> kOutputOfNibble = {0, 2, 4, 6, 1, 3, 5, 7};

uint32_t LoadWord(const std::byte* words, int64_t index) {
  uint32_t word;
  std::memcpy(&word, words + index * 4, 4);
  return word;
}

// Eight words, whose nibble i is input j's for output i, become eight whose nibble j is that:
// the transpose of an 8 x 8 matrix of nibbles, by halves.
void TransposeNibbles(std::array<uint32_t, 8>& words) {
  constexpr std::array<uint32_t, 3> kMask = {0x0000FFFF, 0x00FF00FF, 0x0F0F0F0F};
  for (int step = 0; step < 3; ++step) {
    const int distance = 4 >> step;
    const int shift = 16 >> step;
    for (int i = 0; i < 8; ++i) {
      if ((i & distance) != 0) continue;
      const uint32_t low = words[i];
      const uint32_t high = words[i + distance];
      words[i] = (low & kMask[step]) | ((high & kMask[step]) << shift);
      words[i + distance] = ((low >> shift) & kMask[step]) | (high & ~kMask[step]);
    }
  }
}

// Fills the blocks `block` of all outputs.
void RepackBlock(const LinearWeights& weights, int64_t block, AwqBlocks& blocks) {
  const std::byte* source = weights.awq->qweight.bytes.data();
  const int64_t columns = weights.out / 8;
  for (int64_t column = 0; column < columns; ++column) {
    uint32_t* of_output[8];
    for (int i = 0; i < 8; ++i) {
      const int64_t output = 8 * column + kOutputOfNibble[i];
      of_output[i] = blocks.words.get() + (output * blocks.blocks + block) * AwqBlocks::kWords;
    }
    for (int64_t l = 0; l < AwqBlocks::kWords; ++l) {
      std::array<uint32_t, 8> words;
      for (int64_t j = 0; j < 8; ++j) {
        const int64_t input = block * AwqBlocks::kInputs + 16 * j + l;
        words[j] = input < weights.in ? LoadWord(source, input * columns + column) : 0;
      }
      TransposeNibbles(words);
      for (int i = 0; i < 8; ++i) of_output[i][l] = words[i];
    }
  }
}

absl::Status LoadAwq(const LinearWeights& weights, ThreadPool& pool, AwqBlocks& blocks) {
  const AwqWeights& awq = *weights.awq;
  if (awq.group_size <= 0 || awq.group_size % kLanes != 0) {
    return absl::UnimplementedError(absl::StrCat(awq.qweight.name, ": groups of ", awq.group_size,
                                                 " inputs; the CPU executor takes multiples of ",
                                                 kLanes));
  }
  FABRICAST_CHECK(weights.in % awq.group_size == 0)
      << "in=" << weights.in << " group_size=" << awq.group_size;
  FABRICAST_CHECK(weights.out % 8 == 0) << "out=" << weights.out;
  const absl::StatusOr<WeightFormat> scale_format = FormatOf(awq.scales);
  if (!scale_format.ok()) return scale_format.status();

  blocks.group_size = awq.group_size;
  blocks.groups = weights.in / awq.group_size;
  blocks.blocks = (weights.in + AwqBlocks::kInputs - 1) / AwqBlocks::kInputs;
  blocks.scale_format = *scale_format;
  FABRICAST_CHECK(static_cast<int64_t>(awq.qweight.bytes.size()) == weights.in * weights.out / 2);
  FABRICAST_CHECK(static_cast<int64_t>(awq.qzeros.bytes.size()) == blocks.groups * weights.out / 2);

  blocks.words = hwy::AllocateAligned<uint32_t>(
      static_cast<size_t>(weights.out * blocks.blocks * AwqBlocks::kWords));
  pool.Run(blocks.blocks, [&](int64_t block, int) { RepackBlock(weights, block, blocks); });

  const int64_t scale_bytes = DTypeBytes(awq.scales.dtype);
  blocks.scales.resize((weights.out * blocks.groups + 16) * scale_bytes);
  blocks.zeros.resize(weights.out * blocks.groups + 16);
  for (int64_t group = 0; group < blocks.groups; ++group) {
    for (int64_t output = 0; output < weights.out; ++output) {
      std::memcpy(&blocks.scales[(output * blocks.groups + group) * scale_bytes],
                  &awq.scales.bytes[(group * weights.out + output) * scale_bytes], scale_bytes);
    }
    for (int64_t column = 0; column < weights.out / 8; ++column) {
      const uint32_t word = LoadWord(awq.qzeros.bytes.data(), group * (weights.out / 8) + column);
      for (int i = 0; i < 8; ++i) {
        const int64_t output = 8 * column + kOutputOfNibble[i];
        blocks.zeros[output * blocks.groups + group] = (word >> (4 * i)) & 15;
      }
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<WeightFormat> FormatOf(const Tensor& tensor) {
  switch (tensor.dtype) {
    case DType::kBf16:
      return WeightFormat::kBf16;
    case DType::kF16:
      return WeightFormat::kF16;
    case DType::kF32:
      return WeightFormat::kF32;
    default:
      return absl::UnimplementedError(absl::StrCat(
          tensor.name, ": is ", DTypeName(tensor.dtype),
          "; the CPU executor computes with BF16, F16 and F32 weights and with AWQ's"));
  }
}

void ConvertToFloat(const Tensor& tensor, int64_t first, int64_t count, float* floats) {
  const int64_t size = DTypeBytes(tensor.dtype);
  FABRICAST_CHECK(first >= 0 && (first + count) * size <= int64_t(tensor.bytes.size()))
      << tensor.name << " first=" << first << " count=" << count;
  const std::byte* source = tensor.bytes.data() + first * size;
  if (tensor.dtype == DType::kF32) {
    std::memcpy(floats, source, count * size);
    return;
  }
  FABRICAST_CHECK(tensor.dtype == DType::kBf16 || tensor.dtype == DType::kF16)
      << tensor.name << " is " << std::string(DTypeName(tensor.dtype));
  for (int64_t i = 0; i < count; ++i) {
    uint16_t bits;
    std::memcpy(&bits, source + 2 * i, 2);
    floats[i] = tensor.dtype == DType::kBf16
                    ? std::bit_cast<float>(static_cast<uint32_t>(bits) << 16)
                    : FloatFromF16(bits);
  }
}

absl::StatusOr<Linear> Linear::Load(const LinearWeights& weights, const Checkpoint* checkpoint,
                                    ThreadPool& pool) {
  FABRICAST_CHECK(weights.dense.has_value() != weights.awq.has_value());
  Linear linear;
  linear.in = weights.in;
  linear.out = weights.out;
  if (weights.dense) {
    const absl::StatusOr<WeightFormat> format = FormatOf(*weights.dense);
    if (!format.ok()) return format.status();
    FABRICAST_CHECK(static_cast<int64_t>(weights.dense->bytes.size()) ==
                    weights.in * weights.out * DTypeBytes(weights.dense->dtype))
        << weights.dense->name << " in=" << weights.in << " out=" << weights.out;
    linear.format = *format;
    linear.dense = weights.dense->bytes.data();
  } else {
    linear.format = WeightFormat::kAwq;
    if (absl::Status status = LoadAwq(weights, pool, linear.awq); !status.ok()) return status;
    if (checkpoint != nullptr) {
      for (const Tensor* tensor :
           {&weights.awq->qweight, &weights.awq->qzeros, &weights.awq->scales}) {
        checkpoint->Release(*tensor);
      }
    }
  }
  if (weights.bias) {
    if (absl::Status status = FormatOf(*weights.bias).status(); !status.ok()) return status;
    linear.bias.resize(weights.out);
    ConvertToFloat(*weights.bias, 0, weights.out, linear.bias.data());
  }
  return linear;
}

}  // namespace fabricast
