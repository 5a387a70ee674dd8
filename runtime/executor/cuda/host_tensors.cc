#include "runtime/executor/cuda/host_tensors.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>
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

absl::Span<const std::byte> BytesOf(const auto& values) {
  return {reinterpret_cast<const std::byte*>(values.data()), values.size() * sizeof(values[0])};
}

}  // namespace

void ByteRows::Copy(int64_t first, int64_t count, std::byte* to) const {
  while (count > 0) {
    const int64_t row = first / row_bytes;
    const int64_t at = first % row_bytes;
    const int64_t length = std::min(count, row_bytes - at);
    std::memcpy(to, data + row * stride + at, length);
    first += length;
    to += length;
    count -= length;
  }
}

ByteRows RowsOf(absl::Span<const std::byte> bytes) {
  const int64_t size = static_cast<int64_t>(bytes.size());
  return {.data = bytes.data(), .rows = 1, .row_bytes = size, .stride = size};
}

ByteRows RowsOf(const Tensor& tensor, int64_t first_row, int64_t rows, int64_t first_column,
                int64_t columns) {
  FABRICAST_CHECK(tensor.shape.size() == 2 && first_row + rows <= tensor.shape[0] &&
                  first_column + columns <= tensor.shape[1])
      << tensor.name << ": rows=" << first_row << "+" << rows << " columns=" << first_column << "+"
      << columns;
  const int64_t element = DTypeBytes(tensor.dtype);
  const int64_t stride = tensor.shape[1] * element;
  const std::byte* const data = tensor.bytes.data() + first_row * stride + first_column * element;
  if (columns == tensor.shape[1]) return RowsOf(absl::MakeSpan(data, rows * stride));
  return {.data = data, .rows = rows, .row_bytes = columns * element, .stride = stride};
}

LinearPart PartOf(const LinearWeights& weights, int64_t out, int64_t in, int rank) {
  return {.first_out = out == weights.out ? 0 : rank * out,
          .out = out,
          .first_in = in == weights.in ? 0 : rank * in,
          .in = in};
}

AwqRows RowsOf(const AwqWeights& weights, const LinearPart& part) {
  const int64_t group = weights.group_size;
  FABRICAST_CHECK(part.first_out % 8 == 0 && part.out % 8 == 0 && part.first_in % group == 0 &&
                  part.in % group == 0)
      << part.first_out << "+" << part.out << " " << part.first_in << "+" << part.in;
  const int64_t first_group = part.first_in / group;
  const int64_t groups = part.in / group;
  const int64_t first_word = part.first_out / 8;
  const int64_t words = part.out / 8;
  return {.qweight = RowsOf(weights.qweight, part.first_in, part.in, first_word, words),
          .qzeros = RowsOf(weights.qzeros, first_group, groups, first_word, words),
          .scales = RowsOf(weights.scales, first_group, groups, part.first_out, part.out)};
}

DenseRows::DenseRows(const LinearWeights& weights, const LinearPart& part, MatrixFormat format) {
  std::vector<float> floats;
  Tensor dense;
  if (weights.awq) {
    floats = Dequantize(*weights.awq, weights.in, weights.out);
    dense = {.name = weights.awq->qweight.name,
             .dtype = DType::kF32,
             .shape = {weights.out, weights.in},
             .bytes = BytesOf(floats)};
  } else {
    dense = *weights.dense;
  }
  rows_ = RowsOf(dense, part.first_out, part.out, part.first_in, part.in);
  if (dense.dtype == (format == MatrixFormat::kF16 ? DType::kF16 : DType::kBf16)) return;
  std::vector<std::byte> bytes(rows_.bytes());
  rows_.Copy(0, rows_.bytes(), bytes.data());
  dense.shape = {part.out, part.in};
  dense.bytes = bytes;
  halves_ = ToHalves(ToFloats(dense), format);
  rows_ = RowsOf(BytesOf(halves_));
}

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
