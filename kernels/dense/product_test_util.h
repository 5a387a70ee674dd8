// What the tests of matrix products share.
#ifndef FABRICAST_KERNELS_DENSE_PRODUCT_TEST_UTIL_H_
#define FABRICAST_KERNELS_DENSE_PRODUCT_TEST_UTIL_H_

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <random>
#include <vector>

#include "absl/status/statusor.h"
#include "gtest/gtest.h"
#include "kernels/dense/dense_reference.h"
#include "kernels/int4/gemm_output.h"
#include "kernels/timing/device_array.h"

namespace fabricast {

inline void Store(float value, __nv_bfloat16& to) { to = __float2bfloat16(value); }
inline void Store(float value, __half& to) { to = __float2half(value); }
inline float Load(__nv_bfloat16 value) { return __bfloat162float(value); }
inline float Load(__half value) { return __half2float(value); }

// Uniform in [-1, 1) times `scale`, as T has it.
template <typename T>
std::vector<T> RandomValues(uint32_t seed, int64_t count, float scale) {
  std::mt19937 generator(seed);
  std::vector<T> values(static_cast<size_t>(count));
  for (T& value : values) {
    Store(scale * static_cast<float>(static_cast<int32_t>(generator())) * 0x1p-31f, value);
  }
  return values;
}

template <typename T>
std::vector<float> ToFloats(const std::vector<T>& values) {
  std::vector<float> floats;
  floats.reserve(values.size());
  for (const T& value : values) floats.push_back(Load(value));
  return floats;
}

// Memory of the GPU for a product's output, `padding` elements a row and a guard behind it: all
// 0xff bytes, or, for kAddF32, the residuals in the elements of the output.
class CheckedOutput {
 public:
  CheckedOutput(OutputKind kind, int64_t tokens, int64_t outputs, int64_t padding)
      : kind_(kind), tokens_(tokens), outputs_(outputs), stride_(outputs + padding) {
    absl::StatusOr<DeviceArray<uint8_t>> bytes =
        DeviceArray<uint8_t>::Allocate(tokens * stride_ * size() + kGuardBytes);
    EXPECT_TRUE(bytes.ok()) << bytes.status();
    device_ = *std::move(bytes);
    std::vector<uint8_t> initial(static_cast<size_t>(device_.size()), 0xff);
    if (kind == OutputKind::kAddF32) {
      for (int64_t token = 0; token < tokens; ++token) {
        for (int64_t output = 0; output < outputs; ++output) {
          const float residual = Residual(token, output);
          std::memcpy(&initial[Offset(token, output)], &residual, 4);
        }
      }
    }
    EXPECT_TRUE(device_.CopyFrom(initial).ok());
  }

  GemmOutput output() const { return {.kind = kind_, .data = device_.get(), .stride = stride_}; }

  // All elements against the reference, and that nothing else was written.
  void Check(const ProductReference& reference, int64_t inputs) const {
    const absl::StatusOr<std::vector<uint8_t>> bytes = device_.ToHost();
    ASSERT_TRUE(bytes.ok()) << bytes.status();
    int failures = 0;
    for (int64_t token = 0; token < tokens_; ++token) {
      for (int64_t output = 0; output < stride_; ++output) {
        const uint8_t* const at = &(*bytes)[Offset(token, output)];
        if (output >= outputs_) {
          for (int64_t i = 0; i < size(); ++i) {
            ASSERT_EQ(at[i], 0xff)
                << "padding of token " << token << " was written, element " << output;
          }
          continue;
        }
        const size_t i = static_cast<size_t>(token * outputs_ + output);
        double expected = reference.values[i];
        double tolerance = SumTolerance(reference.magnitudes[i], static_cast<size_t>(inputs));
        float got;
        if (kind_ == OutputKind::kBf16) {
          __nv_bfloat16 value;
          std::memcpy(&value, at, 2);
          got = __bfloat162float(value);
          tolerance +=
              0x1p-8 * std::abs(expected);  // half a unit of 8 bits, and more if the sum is off
        } else {
          std::memcpy(&got, at, 4);
          if (kind_ == OutputKind::kAddF32) expected += Residual(token, output);
          tolerance += 0x1p-23 * std::abs(expected);
        }
        if (!(std::abs(got - expected) <= tolerance)) {
          ADD_FAILURE() << "token " << token << " of " << tokens_ << ", output " << output << " of "
                        << outputs_ << ": " << got << " is not " << expected << " within "
                        << tolerance;
          ASSERT_LT(++failures, 5);
        }
      }
    }
    for (size_t i = static_cast<size_t>(tokens_ * stride_ * size()); i < bytes->size(); ++i) {
      ASSERT_EQ((*bytes)[i], 0xff) << "written behind the output";
    }
  }

  std::vector<uint8_t> Bytes() const {
    absl::StatusOr<std::vector<uint8_t>> bytes = device_.ToHost();
    EXPECT_TRUE(bytes.ok()) << bytes.status();
    return *std::move(bytes);
  }

 private:
  static constexpr int64_t kGuardBytes = 4096;

  int64_t size() const { return kind_ == OutputKind::kBf16 ? 2 : 4; }
  size_t Offset(int64_t token, int64_t output) const {
    return static_cast<size_t>((token * stride_ + output) * size());
  }
  static float Residual(int64_t token, int64_t output) {
    return static_cast<float>((token * 31 + output * 7) % 101 - 50) / 8;
  }

  OutputKind kind_;
  int64_t tokens_, outputs_, stride_;
  DeviceArray<uint8_t> device_;
};

}  // namespace fabricast

#endif  // FABRICAST_KERNELS_DENSE_PRODUCT_TEST_UTIL_H_
