// For tests: linear layers of random weights.
#ifndef FABRICAST_RUNTIME_EXECUTOR_CPU_TEST_WEIGHTS_H_
#define FABRICAST_RUNTIME_EXECUTOR_CPU_TEST_WEIGHTS_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "runtime/weights/stage_weights.h"
#include "runtime/weights/tensor.h"

namespace fabricast {

// Standard normal numbers; the standard fixes std::mt19937's output, but not its distributions'.
class RandomNormal {
 public:
  explicit RandomNormal(uint32_t seed) : generator_(seed) {}
  float operator()();
  // In [low, high].
  int64_t Between(int64_t low, int64_t high);

 private:
  std::mt19937 generator_;
};

// Owns the bytes of tensors, each at an odd address.
class TensorStore {
 public:
  Tensor Add(const std::string& name, DType dtype, std::vector<int64_t> shape,
             const void* elements);
  // Rounded to `dtype`: BF16, F16 or F32.
  Tensor AddFloats(const std::string& name, DType dtype, std::vector<int64_t> shape,
                   const std::vector<float>& values);

 private:
  std::vector<std::unique_ptr<std::byte[]>> bytes_;
};

struct RandomLinear {
  LinearWeights weights;
  std::vector<float> values;  // [out, in]: what they stand for
  std::vector<float> bias;    // empty: none
};

// Weights of about in^-0.5. `dtype`: of dense weights, or of AWQ's scales.
RandomLinear MakeDense(TensorStore& store, RandomNormal& random, int64_t in, int64_t out,
                       DType dtype, bool bias = false);
RandomLinear MakeAwq(TensorStore& store, RandomNormal& random, int64_t in, int64_t out,
                     int64_t group_size, DType scales = DType::kF16);

}  // namespace fabricast

#endif  // FABRICAST_RUNTIME_EXECUTOR_CPU_TEST_WEIGHTS_H_
