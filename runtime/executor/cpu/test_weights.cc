#include "runtime/executor/cpu/test_weights.h"

#include <bit>
#include <cmath>
#include <cstring>
#include <numbers>
#include <utility>

#include "runtime/check.h"
#include "runtime/executor/cpu/linear.h"

namespace fabricast {
namespace {

// Truncated to a value that the format has; of F16 only normal ones are made.
uint16_t Bits16(float value, DType dtype) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  if (dtype == DType::kBf16) return static_cast<uint16_t>(bits >> 16);
  const int exponent = static_cast<int>((bits >> 23) & 255) - 127 + 15;
  const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000);
  if (exponent <= 0) return sign;
  FABRICAST_CHECK(exponent < 31) << value;
  return static_cast<uint16_t>(sign | (exponent << 10) | ((bits >> 13) & 1023));
}

}  // namespace

float RandomNormal::operator()() {
  const double u = (generator_() + 1.0) / 4294967296.0;  // Box and Muller
  const double v = generator_() / 4294967296.0;
  return static_cast<float>(std::sqrt(-2 * std::log(u)) * std::cos(2 * std::numbers::pi * v));
}

int64_t RandomNormal::Between(int64_t low, int64_t high) {
  return low + static_cast<int64_t>(generator_() % static_cast<uint64_t>(high - low + 1));
}

Tensor TensorStore::Add(const std::string& name, DType dtype, std::vector<int64_t> shape,
                        const void* elements) {
  Tensor tensor{.name = name, .dtype = dtype, .shape = std::move(shape), .bytes = {}};
  size_t bytes = static_cast<size_t>(DTypeBytes(dtype));
  for (const int64_t dimension : tensor.shape) bytes *= static_cast<size_t>(dimension);
  bytes_.push_back(std::make_unique<std::byte[]>(bytes + 1));
  std::memcpy(bytes_.back().get() + 1, elements, bytes);
  tensor.bytes = {bytes_.back().get() + 1, bytes};
  return tensor;
}

Tensor TensorStore::AddFloats(const std::string& name, DType dtype, std::vector<int64_t> shape,
                              const std::vector<float>& values) {
  if (dtype == DType::kF32) return Add(name, dtype, std::move(shape), values.data());
  std::vector<uint16_t> bits;
  for (const float value : values) bits.push_back(Bits16(value, dtype));
  return Add(name, dtype, std::move(shape), bits.data());
}

RandomLinear MakeDense(TensorStore& store, RandomNormal& random, int64_t in, int64_t out,
                       DType dtype, bool bias) {
  RandomLinear linear;
  linear.weights.in = in;
  linear.weights.out = out;
  std::vector<float> values(in * out);
  const float scale = 1 / std::sqrt(static_cast<float>(in));
  for (float& value : values) value = random() * scale;
  linear.weights.dense = store.AddFloats("weight", dtype, {out, in}, values);
  linear.values.resize(values.size());
  ConvertToFloat(*linear.weights.dense, 0, in * out, linear.values.data());
  if (bias) {
    for (int64_t i = 0; i < out; ++i) linear.bias.push_back(random());
    linear.weights.bias = store.AddFloats("bias", dtype, {out}, linear.bias);
    ConvertToFloat(*linear.weights.bias, 0, out, linear.bias.data());
  }
  return linear;
}

RandomLinear MakeAwq(TensorStore& store, RandomNormal& random, int64_t in, int64_t out,
                     int64_t group_size, DType scale_dtype) {
  // AutoAWQ's order, as its documentation gives it: output 8 c + i is at nibble kNibble[i].
  constexpr int kNibble[8] = {0, 4, 1, 5, 2, 6, 3, 7};
  const int64_t groups = in / group_size;
  std::vector<uint32_t> words(in * out / 8, 0);
  std::vector<uint32_t> zero_words(groups * out / 8, 0);
  std::vector<float> scales(groups * out);
  std::vector<int> zeros(groups * out);
  for (int64_t i = 0; i < groups * out; ++i) {
    scales[i] = (std::abs(random()) + 0.1f) / (4 * std::sqrt(static_cast<float>(in)));
    zeros[i] = static_cast<int>(random.Between(0, 15));
    zero_words[i / 8] |= static_cast<uint32_t>(zeros[i]) << (4 * kNibble[i % 8]);
  }
  RandomLinear linear;
  linear.weights.in = in;
  linear.weights.out = out;
  AwqWeights& awq = linear.weights.awq.emplace();
  awq.group_size = group_size;
  awq.scales = store.AddFloats("scales", scale_dtype, {groups, out}, scales);
  ConvertToFloat(awq.scales, 0, groups * out, scales.data());
  linear.values.resize(in * out);
  for (int64_t k = 0; k < in; ++k) {
    for (int64_t n = 0; n < out; ++n) {
      const int q = static_cast<int>(random.Between(0, 15));
      words[(k * out + n) / 8] |= static_cast<uint32_t>(q) << (4 * kNibble[n % 8]);
      const int64_t group = k / group_size * out + n;
      linear.values[n * in + k] = static_cast<float>(q - zeros[group]) * scales[group];
    }
  }
  awq.qweight = store.Add("qweight", DType::kI32, {in, out / 8}, words.data());
  awq.qzeros = store.Add("qzeros", DType::kI32, {groups, out / 8}, zero_words.data());
  return linear;
}

}  // namespace fabricast
