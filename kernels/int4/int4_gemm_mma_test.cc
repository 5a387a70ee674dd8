// Needs a GPU: tools/gpu_tests runs it.

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "gtest/gtest.h"
#include "kernels/int4/int4_gemm.h"
#include "kernels/int4/int4_gemm_reference.h"
#include "kernels/int4/pack_activations.h"
#include "kernels/timing/device_array.h"

namespace fabricast {
namespace {

template <typename T>
T Value(absl::StatusOr<T> value) {
  EXPECT_TRUE(value.ok()) << value.status();
  return value.ok() ? *std::move(value) : T();
}

// A matrix on the GPU, packed by the CPU, and activations of 64 tokens of which tests use some.
class Problem {
 public:
  explicit Problem(PlainInt4 weights) : plain_(std::move(weights)) {
    matrix_ = {.outputs = plain_.outputs, .inputs = plain_.inputs};
    const PackedInt4Reference packed(plain_);
    blocks_ = Value(DeviceArray<uint8_t>::CopyOf(packed.blocks));
    row_scale_ = Value(DeviceArray<float>::CopyOf(packed.row_scale));
    matrix_.blocks = blocks_.get();
    matrix_.row_scale = row_scale_.get();

    std::mt19937 random(3);
    std::normal_distribution<float> normal;
    std::vector<uint16_t> rows;
    for (int token = 0; token < kTokens; ++token) {
      // Tokens of very different sizes: each has a scale of its own. Token 5 is zero.
      const float size = token == 5 ? 0 : std::ldexp(1.0f, token % 5 * 20 - 40);
      for (int64_t input = 0; input < plain_.inputs; ++input) {
        rows.push_back(Bf16FromFloat(normal(random) * size));
      }
    }
    SetRows(rows);
    workspace_ = Value(DeviceArray<uint8_t>::Allocate(Int4GemmMmaWorkspaceBytes()));
    EXPECT_TRUE(workspace_.FillBytes(0).ok());
  }

  // [64, inputs], BF16.
  void SetRows(const std::vector<uint16_t>& rows) {
    rows_ = Value(DeviceArray<uint16_t>::CopyOf(rows));
    std::vector<float> x;
    for (const uint16_t row : rows) x.push_back(Bf16ToFloat(row));
    expected_ = Int4GemmReference(plain_, x, kTokens);
    token_norms_.assign(kTokens, 0);
    for (size_t i = 0; i < x.size(); ++i) {
      double& norm = token_norms_[i / static_cast<size_t>(plain_.inputs)];
      norm = std::hypot(norm, x[i]);
    }
    row_norms_.assign(static_cast<size_t>(plain_.outputs), 0);
    for (int64_t n = 0; n < plain_.outputs; ++n) {
      double& norm = row_norms_[static_cast<size_t>(n)];
      for (int64_t k = 0; k < plain_.inputs; ++k) norm = std::hypot(norm, plain_.Weight(n, k));
    }
  }

  // Multiplies the first `tokens` and checks all that was written and that nothing else was.
  void Check(int tokens, OutputKind kind, int64_t padding = 0) {
    SCOPED_TRACE(testing::Message()
                 << plain_.outputs << " outputs x " << plain_.inputs << " inputs, " << tokens
                 << " tokens, output kind " << static_cast<int>(kind));
    const std::vector<uint8_t> bytes = Multiply(tokens, kind, padding);
    if (testing::Test::HasFatalFailure()) return;
    const size_t element = kind == OutputKind::kBf16 ? 2 : 4;
    const int64_t stride = Stride(padding);
    for (int token = 0; token < tokens; ++token) {
      CheckRow(bytes.data() + static_cast<size_t>(token * stride) * element, token, tokens, kind);
      if (testing::Test::HasFatalFailure()) return;
    }
    const uint8_t poison = Poison(kind);
    for (int token = 0; token <= tokens; ++token) {  // the row after the last is not there
      const int64_t begin = token * stride + (token < tokens ? plain_.outputs : 0);
      for (size_t i = static_cast<size_t>(begin) * element;
           i < static_cast<size_t>((token + 1) * stride) * element; ++i) {
        ASSERT_EQ(bytes[i], poison)
            << "written beyond the outputs, row " << token << ", byte " << i;
      }
    }
  }

  // The bytes of [tokens + 1, stride].
  std::vector<uint8_t> Multiply(int tokens, OutputKind kind, int64_t padding = 0,
                                const LaunchOptions& options = {}) {
    const ActivationLayout layout = {
        .format = ActivationFormat::kMma, .tokens = tokens, .inputs = plain_.inputs};
    auto data = Value(DeviceArray<uint8_t>::Allocate(layout.bytes()));
    auto token_scale = Value(DeviceArray<float>::Allocate(tokens));
    EXPECT_TRUE(data.FillBytes(0xff).ok());
    const Activations input = {layout, data.get(), token_scale.get()};
    EXPECT_EQ(PackActivations(rows_.get(), input, options), absl::OkStatus());
    const int64_t element = kind == OutputKind::kBf16 ? 2 : 4;
    auto output = Value(DeviceArray<uint8_t>::Allocate((tokens + 1) * Stride(padding) * element));
    EXPECT_TRUE(output.FillBytes(Poison(kind)).ok());
    EXPECT_EQ(Int4GemmMma(matrix_, input, {kind, output.get(), Stride(padding)}, workspace_.get(),
                          options),
              absl::OkStatus());
    EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
    return Value(output.ToHost());
  }

  int64_t Stride(int64_t padding) const { return (plain_.outputs + 3) / 4 * 4 + padding; }
  const Int4Matrix& matrix() const { return matrix_; }
  void* rows() const { return rows_.get(); }
  void* workspace() const { return workspace_.get(); }

  static constexpr int kTokens = 64;

 private:
  // NaN, or, where the product is added, 0x3f3f3f3f = 0.747.
  static uint8_t Poison(OutputKind kind) { return kind == OutputKind::kAddF32 ? 0x3f : 0xff; }

  void CheckRow(const uint8_t* row, int token, int tokens, OutputKind kind) const {
    // BF16 activations are exact in FP16. What is rounded, relative to |x| |w| of an output:
    // - up to 16 tokens, sums in FP32: with their bias, a group's are about sqrt(64) 1024 |x| s, in
    //   8 steps that lose 2^-24 of that each, all in one direction at worst: 2^-8 |x| s, against
    //   sqrt(128) 6.5 s |x| of the result. That is 5e-5; other rounding is smaller.
    // - beyond, z s and (q - z) s are rounded to FP16, 2^-11 / sqrt(3) of up to 15 s against
    // weights
    //   of 6.5 s: 4e-4 in the mean.
    // - the output, to BF16: half a step is 2^-8 of its value at most, to FP32 2^-24.
    const double typical = tokens <= 16 ? 5e-5 : 4e-4;
    const double* const expected = expected_.data() + token * plain_.outputs;
    double square = 0, error_square = 0;
    for (int64_t n = 0; n < plain_.outputs; ++n) {
      double actual = 0;
      if (kind == OutputKind::kBf16) {
        uint16_t bits;
        std::memcpy(&bits, row + 2 * n, 2);
        actual = Bf16ToFloat(bits);
      } else {
        float value;
        std::memcpy(&value, row + 4 * n, 4);
        actual = value;
      }
      double before = 0;
      if (kind == OutputKind::kAddF32) before = std::ldexp(0xbf3f3f, -24);  // the poison
      const double norm =
          token_norms_[static_cast<size_t>(token)] * row_norms_[static_cast<size_t>(n)];
      const double error = actual - (expected[n] + before);
      const double bound = 6 * typical * norm +
                           (kind == OutputKind::kBf16 ? 0x1.02p-8 * std::fabs(expected[n]) : 0) +
                           0x1p-23 * (std::fabs(expected[n]) + before);
      ASSERT_LE(std::fabs(error), bound) << "token " << token << ", output " << n << ": " << actual
                                         << " instead of " << expected[n] + before;
      square += norm * norm;
      error_square += error * error;
    }
    if (kind == OutputKind::kF32) {
      // Twice what is typical: few outputs may be unlucky together.
      ASSERT_LE(std::sqrt(error_square), 2 * typical * std::sqrt(square)) << "token " << token;
    }
  }

  PlainInt4 plain_;
  Int4Matrix matrix_;
  DeviceArray<uint8_t> blocks_, workspace_;
  DeviceArray<float> row_scale_;
  DeviceArray<uint16_t> rows_;
  std::vector<double> expected_, token_norms_, row_norms_;
};

constexpr OutputKind kKinds[] = {OutputKind::kBf16, OutputKind::kF32, OutputKind::kAddF32};

TEST(Int4GemmMmaTest, EveryNumberOfTokensIsRightWhenManyCtasShareATile) {
  // 8 tiles x 16 groups on 108 or more multiprocessors.
  Problem problem(SyntheticReference(1, 1024, 2048));
  for (int tokens = 1; tokens <= 64; ++tokens) {
    problem.Check(tokens, kKinds[tokens % 3]);
    if (HasFatalFailure()) return;
  }
}

TEST(Int4GemmMmaTest, OddShapesAreRightAndNothingBeyondIsWritten) {
  for (const auto& [outputs, inputs] : {std::pair{8, 128},
                                        {128, 128},
                                        {136, 256},
                                        {300, 200},
                                        {77, 1000},
                                        {384, 4096},
                                        {640, 384},
                                        {2050, 131}}) {
    Problem problem(SyntheticReference(2, outputs, inputs));
    for (const int tokens : {1, 5, 8, 9, 16, 23, 32, 33, 64}) {
      for (const OutputKind kind : kKinds) problem.Check(tokens, kind, 8 * (tokens % 3));
      if (HasFatalFailure()) return;
    }
  }
}

TEST(Int4GemmMmaTest, ManyTilesACtaAreRight) {
  // 34,048 rows are 266 tiles of 128, 2 a CTA of an H200, and 133 of 256: one more than CTAs.
  Problem problem(SyntheticReference(3, 34048, 384));
  for (const int tokens : {1, 16, 32, 64}) {
    problem.Check(tokens, OutputKind::kBf16);
    if (HasFatalFailure()) return;
  }
}

TEST(Int4GemmMmaTest, LargestQuantsAndInputsOfOneSignDoNotOverflow) {
  PlainInt4 weights(256, 1024);
  std::fill(weights.quants.begin(), weights.quants.end(), 15);
  std::fill(weights.scales.begin(), weights.scales.end(), 0x7bff);  // 65,504
  Problem problem(weights);
  problem.SetRows(std::vector<uint16_t>(64 * 1024, Bf16FromFloat(255)));
  for (const int tokens : {1, 16, 32, 64}) problem.Check(tokens, OutputKind::kF32);
}

TEST(Int4GemmMmaTest, ScalesOfARowMayDifferWidely) {
  std::mt19937 random(4);
  PlainInt4 weights = SyntheticReference(4, 384, 2048);
  for (uint16_t& scale : weights.scales) {
    scale =
        F16FromExact(std::ldexp(1024.0 + random() % 1024, -20 - static_cast<int>(random() % 7)));
  }
  Problem problem(weights);
  for (const int tokens : {1, 16, 32, 64}) problem.Check(tokens, OutputKind::kF32);
}

TEST(Int4GemmMmaTest, ResultsAreTheSameBitsEachTime) {
  Problem problem(SyntheticReference(5, 1024, 2048));
  for (const int tokens : {1, 13, 32, 64}) {
    const std::vector<uint8_t> first = problem.Multiply(tokens, OutputKind::kF32);
    for (int i = 0; i < 20; ++i) {
      ASSERT_EQ(problem.Multiply(tokens, OutputKind::kF32), first) << tokens << " tokens";
    }
  }
}

TEST(Int4GemmMmaTest, OverlappingLaunchesInAGraphGiveTheSameBits) {
  // Each product takes the one before as its input: packing overlaps the product before, and the
  // product the packing. One workspace serves all.
  constexpr int64_t kSize = 1024;
  Problem problem(SyntheticReference(6, kSize, kSize));
  cudaStream_t stream;
  ASSERT_EQ(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), cudaSuccess);
  for (const int tokens : {1, 8, 16, 32, 64}) {
    const ActivationLayout layout = {
        .format = ActivationFormat::kMma, .tokens = tokens, .inputs = kSize};
    const auto data = Value(DeviceArray<uint8_t>::Allocate(layout.bytes()));
    const auto token_scale = Value(DeviceArray<float>::Allocate(tokens));
    auto output = Value(DeviceArray<uint16_t>::Allocate(tokens * kSize));
    const Activations input = {layout, data.get(), token_scale.get()};
    const auto enqueue = [&](bool overlap) {
      const LaunchOptions options = {.stream = stream, .overlap_previous = overlap};
      absl::Status status = PackActivations(problem.rows(), input, options);
      for (int i = 0; i < 8; ++i) {
        status.Update(Int4GemmMma(problem.matrix(), input, {OutputKind::kBf16, output.get(), kSize},
                                  problem.workspace(), options));
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
    for (int i = 0; i < 20; ++i) {
      ASSERT_TRUE(output.FillBytes(0xff).ok());
      ASSERT_EQ(cudaGraphLaunch(executable, stream), cudaSuccess);
      ASSERT_EQ(cudaStreamSynchronize(stream), cudaSuccess);
      ASSERT_EQ(Value(output.ToHost()), expected) << tokens << " tokens, replay " << i;
    }
    cudaGraphExecDestroy(executable);
    cudaGraphDestroy(graph);
  }
  cudaStreamDestroy(stream);
}

TEST(Int4GemmMmaTest, InputsAndOutputsThatDoNotFitAreRefused) {
  const Int4Matrix weights = {.outputs = 256, .inputs = 256};
  const auto multiply = [&](ActivationFormat format, int tokens, int64_t inputs, int64_t stride) {
    const Activations input = {.layout = {.format = format, .tokens = tokens, .inputs = inputs}};
    return Int4GemmMma(weights, input, {.stride = stride}, nullptr, {}).code();
  };
  constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
  EXPECT_EQ(multiply(ActivationFormat::kWgmma, 1, 256, 256), kInvalid);
  EXPECT_EQ(multiply(ActivationFormat::kMma, 0, 256, 256), kInvalid);
  EXPECT_EQ(multiply(ActivationFormat::kMma, 65, 256, 256), kInvalid);
  EXPECT_EQ(multiply(ActivationFormat::kMma, 1, 128, 256), kInvalid);
  EXPECT_EQ(multiply(ActivationFormat::kMma, 1, 256, 255), kInvalid);
  EXPECT_EQ(multiply(ActivationFormat::kMma, 1, 256, 252), kInvalid);
}

}  // namespace
}  // namespace fabricast
