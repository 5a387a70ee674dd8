#include "runtime/executor/cuda/host_tensors.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <bit>
#include <cstring>

#include "runtime/check.h"

namespace fabricast {
namespace {

// Elements are not aligned.
template <typename T>
T Element(const Tensor& tensor, int64_t i) {
  T element;
  std::memcpy(&element, tensor.bytes.data() + i * static_cast<int64_t>(sizeof(T)), sizeof(T));
  return element;
}

}  // namespace

std::vector<float> ToFloats(const Tensor& tensor) {
  std::vector<float> floats(tensor.elements());
  const int64_t count = tensor.elements();
  switch (tensor.dtype) {
    case DType::kF32:
      std::memcpy(floats.data(), tensor.bytes.data(), tensor.bytes.size());
      break;
    case DType::kF16:
      for (int64_t i = 0; i < count; ++i) floats[i] = __half2float(Element<__half>(tensor, i));
      break;
    default:
      FABRICAST_CHECK(tensor.dtype == DType::kBf16) << tensor.name;
      for (int64_t i = 0; i < count; ++i) {
        floats[i] = std::bit_cast<float>(uint32_t{Element<uint16_t>(tensor, i)} << 16);
      }
  }
  return floats;
}

std::vector<uint16_t> ToHalves(absl::Span<const float> floats, MatrixFormat format) {
  FABRICAST_CHECK(format != MatrixFormat::kInt4);
  std::vector<uint16_t> halves(floats.size());
  for (size_t i = 0; i < floats.size(); ++i) {
    if (format == MatrixFormat::kF16) {
      halves[i] = __half_raw(__float2half_rn(floats[i])).x;
    } else {
      halves[i] = __nv_bfloat16_raw(__float2bfloat16_rn(floats[i])).x;
    }
  }
  return halves;
}

std::vector<float> Dequantize(const AwqWeights& weights, int64_t in, int64_t out) {
  // Where output 8 c + j is in the word of 8 outputs c: AutoAWQ's order, inverted.
  static constexpr int kNibble[] = {0, 4, 1, 5, 2, 6, 3, 7};
  const std::vector<float> scales = ToFloats(weights.scales);
  std::vector<float> values(in * out);
  for (int64_t i = 0; i < in; ++i) {
    const int64_t group = i / weights.group_size;
    for (int64_t word = 0; word < out / 8; ++word) {
      const uint32_t q = Element<uint32_t>(weights.qweight, i * (out / 8) + word);
      const uint32_t z = Element<uint32_t>(weights.qzeros, group * (out / 8) + word);
      for (int j = 0; j < 8; ++j) {
        const int64_t o = 8 * word + j;
        const int difference = static_cast<int>(q >> (4 * kNibble[j]) & 15) -
                               static_cast<int>(z >> (4 * kNibble[j]) & 15);
        values[o * in + i] = static_cast<float>(difference) * scales[group * out + o];
      }
    }
  }
  return values;
}

}  // namespace fabricast
