#include "kernels/int4/int4_gemm_case.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <random>
#include <utility>

#include "absl/status/statusor.h"
#include "gtest/gtest.h"
#include "kernels/int4/int4_gemm_reference.h"
#include "kernels/int4/pack_activations.h"

namespace fabricast {
namespace {

constexpr int kRepeats = 20;

template <typename T>
T Value(absl::StatusOr<T> value) {
  EXPECT_TRUE(value.ok()) << value.status();
  return value.ok() ? *std::move(value) : T();
}

// NaN, or, where the product is added, 0x3f3f3f3f = (2^23 + 0x3f3f3f) 2^-24 = 0.747.
uint8_t Poison(OutputKind kind) { return kind == OutputKind::kAddF32 ? 0x3f : 0xff; }
double Before(OutputKind kind) {
  return kind == OutputKind::kAddF32 ? std::ldexp(0x800000 + 0x3f3f3f, -24) : 0;
}

size_t ElementBytes(OutputKind kind) { return kind == OutputKind::kBf16 ? 2 : 4; }

double Element(const uint8_t* row, int64_t index, OutputKind kind) {
  if (kind == OutputKind::kBf16) {
    uint16_t bits;
    std::memcpy(&bits, row + 2 * index, 2);
    return Bf16ToFloat(bits);
  }
  float value;
  std::memcpy(&value, row + 4 * index, 4);
  return value;
}

}  // namespace

PlainInt4 LargestInt4(int64_t outputs, int64_t inputs) {
  PlainInt4 weights(outputs, inputs);
  std::fill(weights.quants.begin(), weights.quants.end(), 15);
  std::fill(weights.scales.begin(), weights.scales.end(), 0x7bff);  // 65,504
  return weights;
}

PlainInt4 WidelyScaledInt4(int64_t outputs, int64_t inputs) {
  std::mt19937 random(4);
  PlainInt4 weights = SyntheticReference(4, outputs, inputs);
  for (uint16_t& scale : weights.scales) {
    scale =
        F16FromExact(std::ldexp(1024.0 + random() % 1024, -20 - static_cast<int>(random() % 7)));
  }
  return weights;
}

Int4GemmCase::Int4GemmCase(const Int4GemmKernel& kernel, PlainInt4 weights, int most_tokens)
    : kernel_(kernel), weights_(std::move(weights)), most_tokens_(most_tokens) {
  matrix_ = {.outputs = weights_.outputs, .inputs = weights_.inputs};
  const PackedInt4Reference packed(weights_);
  blocks_ = Value(DeviceArray<uint8_t>::CopyOf(packed.blocks));
  row_scale_ = Value(DeviceArray<float>::CopyOf(packed.row_scale));
  matrix_.blocks = blocks_.get();
  matrix_.row_scale = row_scale_.get();

  std::mt19937 random(3);
  std::normal_distribution<float> normal;
  std::vector<uint16_t> rows;
  for (int token = 0; token < most_tokens; ++token) {
    const float size = token == 5 ? 0 : std::ldexp(1.0f, token % 5 * 20 - 40);
    for (int64_t input = 0; input < weights_.inputs; ++input) {
      rows.push_back(Bf16FromFloat(normal(random) * size));
    }
  }
  SetRows(rows);
  workspace_ = Value(DeviceArray<uint8_t>::Allocate(kernel_.workspace_bytes()));
  EXPECT_TRUE(workspace_.FillBytes(0).ok());
}

void Int4GemmCase::SetRows(const std::vector<uint16_t>& rows) {
  rows_ = Value(DeviceArray<uint16_t>::CopyOf(rows));
  std::vector<float> x;
  for (const uint16_t row : rows) x.push_back(Bf16ToFloat(row));
  expected_ = Int4GemmReference(weights_, x, most_tokens_);
  SetBounds(x);
}

void Int4GemmCase::Check(int tokens, OutputKind kind, int64_t padding) {
  SCOPED_TRACE(testing::Message() << weights_.outputs << " outputs x " << weights_.inputs
                                  << " inputs, " << tokens << " tokens, output kind "
                                  << static_cast<int>(kind));
  const std::vector<uint8_t> bytes = Multiply(tokens, kind, padding);
  if (testing::Test::HasFatalFailure()) return;
  const size_t element = ElementBytes(kind);
  const int64_t stride = Stride(padding);
  for (int token = 0; token < tokens; ++token) {
    CheckRow(bytes.data() + static_cast<size_t>(token * stride) * element, token, tokens, kind);
    if (testing::Test::HasFatalFailure()) return;
  }
  const uint8_t poison = Poison(kind);
  for (int token = 0; token <= tokens; ++token) {  // the row after the last is not there
    const int64_t begin = token * stride + (token < tokens ? weights_.outputs : 0);
    for (size_t i = static_cast<size_t>(begin) * element;
         i < static_cast<size_t>((token + 1) * stride) * element; ++i) {
      ASSERT_EQ(bytes[i], poison) << "written beyond the outputs, row " << token << ", byte " << i;
    }
  }
}

void Int4GemmCase::CheckRepeats(int tokens) {
  const std::vector<uint8_t> first = Multiply(tokens, OutputKind::kF32, 0);
  for (int i = 0; i < kRepeats; ++i) {
    ASSERT_EQ(Multiply(tokens, OutputKind::kF32, 0), first) << tokens << " tokens";
  }
}

void Int4GemmCase::CheckOverlappingGraph(int tokens) {
  const int64_t size = weights_.inputs;
  ASSERT_EQ(weights_.outputs, size);
  cudaStream_t stream;
  ASSERT_EQ(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), cudaSuccess);
  const ActivationLayout layout = {.format = kernel_.format, .tokens = tokens, .inputs = size};
  const auto data = Value(DeviceArray<uint8_t>::Allocate(layout.bytes()));
  const auto token_scale = Value(DeviceArray<float>::Allocate(tokens));
  auto output = Value(DeviceArray<uint16_t>::Allocate(tokens * size));
  const Activations input = {layout, data.get(), token_scale.get()};
  const auto enqueue = [&](bool overlap) {
    const LaunchOptions options = {.stream = stream, .overlap_previous = overlap};
    absl::Status status = PackActivations(rows_.get(), input, options);
    for (int i = 0; i < 8; ++i) {
      status.Update(kernel_.multiply(matrix_, input, {OutputKind::kBf16, output.get(), size},
                                     workspace_.get(), options));
      status.Update(PackActivations(output.get(), input, options));
    }
    return status;
  };
  ASSERT_EQ(enqueue(false), absl::OkStatus());
  ASSERT_EQ(cudaStreamSynchronize(stream), cudaSuccess);
  const std::vector<uint16_t> expected = Value(output.ToHost());

  ASSERT_EQ(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), cudaSuccess);
  EXPECT_EQ(enqueue(true), absl::OkStatus());
  cudaGraph_t graph;
  ASSERT_EQ(cudaStreamEndCapture(stream, &graph), cudaSuccess);
  cudaGraphExec_t executable;
  ASSERT_EQ(cudaGraphInstantiate(&executable, graph, 0), cudaSuccess);
  for (int i = 0; i < kRepeats; ++i) {
    ASSERT_TRUE(output.FillBytes(0xff).ok());
    ASSERT_EQ(cudaGraphLaunch(executable, stream), cudaSuccess);
    ASSERT_EQ(cudaStreamSynchronize(stream), cudaSuccess);
    ASSERT_EQ(Value(output.ToHost()), expected) << tokens << " tokens, replay " << i;
  }
  cudaGraphExecDestroy(executable);
  cudaGraphDestroy(graph);
  cudaStreamDestroy(stream);
}

std::vector<uint8_t> Int4GemmCase::Multiply(int tokens, OutputKind kind, int64_t padding) {
  const ActivationLayout layout = {
      .format = kernel_.format, .tokens = tokens, .inputs = weights_.inputs};
  auto data = Value(DeviceArray<uint8_t>::Allocate(layout.bytes()));
  auto token_scale = Value(DeviceArray<float>::Allocate(tokens));
  EXPECT_TRUE(data.FillBytes(0xff).ok());
  const Activations input = {layout, data.get(), token_scale.get()};
  EXPECT_EQ(PackActivations(rows_.get(), input, {}), absl::OkStatus());
  const int64_t stride = Stride(padding);
  auto output = Value(DeviceArray<uint8_t>::Allocate((tokens + 1) * stride *
                                                     static_cast<int64_t>(ElementBytes(kind))));
  EXPECT_TRUE(output.FillBytes(Poison(kind)).ok());
  EXPECT_EQ(kernel_.multiply(matrix_, input, {kind, output.get(), stride}, workspace_.get(), {}),
            absl::OkStatus());
  EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  return Value(output.ToHost());
}

void Int4GemmCase::CheckRow(const uint8_t* row, int token, int tokens, OutputKind kind) const {
  const std::vector<double>& bounds =
      tokens <= kernel_.most_biased_tokens ? biased_bound_ : scaled_bound_;
  const double before = Before(kind);
  for (int64_t n = 0; n < weights_.outputs; ++n) {
    const size_t at = static_cast<size_t>(token * weights_.outputs + n);
    const double actual = Element(row, n, kind);
    // Half a step of BF16 is 2^-8 of its value at most, one of FP32 2^-24.
    const double bound = bounds[at] +
                         (kind == OutputKind::kBf16 ? 0x1.02p-8 * std::fabs(expected_[at]) : 0) +
                         0x1p-23 * (std::fabs(expected_[at]) + before);
    ASSERT_LE(std::fabs(actual - (expected_[at] + before)), bound)
        << "token " << token << ", output " << n << ": " << actual << " instead of "
        << expected_[at] + before;
  }
}

// BF16 activations are exact in FP16. |x|: the norm of a group's inputs; s: the group's scale.
//
// Biased: half of the inputs are multiplied by 1024 + q, so that sums of a group have some
// sqrt(64) 1024 |x| / sqrt(128) s = 724 |x| s, and 512 times the sum of x where that is not small.
// A group's 8 steps lose 2^-24 of that each, all in one direction at worst: 3.5e-4 |x| s and
// 2.4e-4 s times the sum. Ten and four times as much is allowed.
//
// Scaled: z s and (q - z) s are rounded to FP16, to 2^-11 of them at most. In a group the first is
// the same for all inputs and the second has a mean over q, of at most 2^-11 times that of |q - z|,
// 15 s: both meet the sum of x. About the mean, an error of (q - z) s is 2^-12 of at most 8.8 s in
// the mean, and meets x at random: six standard deviations. FP32 sums: 2^-16 of their size.
void Int4GemmCase::SetBounds(const std::vector<float>& x) {
  biased_bound_.assign(expected_.size(), 0);
  scaled_bound_.assign(expected_.size(), 0);
  std::vector<double> sums(static_cast<size_t>(weights_.groups)), squares(sums.size());
  for (int64_t token = 0; token < most_tokens_; ++token) {
    std::fill(sums.begin(), sums.end(), 0);
    std::fill(squares.begin(), squares.end(), 0);
    for (int64_t k = 0; k < weights_.inputs; ++k) {
      const double value = x[static_cast<size_t>(token * weights_.inputs + k)];
      sums[static_cast<size_t>(k / 128)] += value;
      squares[static_cast<size_t>(k / 128)] += value * value;
    }
    for (int64_t n = 0; n < weights_.outputs; ++n) {
      double biased = 0, certain = 0, variance = 0;
      for (int64_t group = 0; group < weights_.groups; ++group) {
        const size_t i = static_cast<size_t>(group);
        const double scale = F16ToDouble(weights_.scale(n, group));
        biased += scale * (3.5e-3 * std::sqrt(squares[i]) + 1e-3 * std::fabs(sums[i]));
        certain += 0x1p-11 * scale * (weights_.zero(n, group) + 15) * std::fabs(sums[i]);
        variance += scale * scale * squares[i];
      }
      const size_t at = static_cast<size_t>(token * weights_.outputs + n);
      biased_bound_[at] = biased;
      scaled_bound_[at] = certain + 8.8 * (6 * 0x1p-12 + 0x1p-16) * std::sqrt(variance);
    }
  }
}

}  // namespace fabricast
