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

// 10 x major + minor.
int ComputeCapability() {
  int major = 0, minor = 0;
  cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0);
  cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, 0);
  return 10 * major + minor;
}

// A matrix on the GPU, packed by the CPU, and activations of which tests use the first tokens.
class Problem {
 public:
  Problem(PlainInt4 weights, int max_tokens) : plain_(std::move(weights)), max_tokens_(max_tokens) {
    matrix_ = {.outputs = plain_.outputs, .inputs = plain_.inputs};
    const PackedInt4Reference packed(plain_);
    blocks_ = Value(DeviceArray<uint8_t>::CopyOf(packed.blocks));
    row_scale_ = Value(DeviceArray<float>::CopyOf(packed.row_scale));
    matrix_.blocks = blocks_.get();
    matrix_.row_scale = row_scale_.get();

    std::mt19937 random(3);
    std::normal_distribution<float> normal;
    std::vector<uint16_t> rows;
    for (int token = 0; token < max_tokens; ++token) {
      // Tokens of very different sizes: each has a scale of its own. Token 5 is zero.
      const float size = token == 5 ? 0 : std::ldexp(1.0f, token % 5 * 20 - 40);
      for (int64_t input = 0; input < plain_.inputs; ++input) {
        rows.push_back(Bf16FromFloat(normal(random) * size));
      }
    }
    SetRows(rows);
    workspace_ = Value(DeviceArray<uint8_t>::Allocate(Int4GemmWgmmaWorkspaceBytes()));
    EXPECT_TRUE(workspace_.FillBytes(0).ok());
  }

  // [max_tokens, inputs], BF16.
  void SetRows(const std::vector<uint16_t>& rows) {
    rows_ = Value(DeviceArray<uint16_t>::CopyOf(rows));
    std::vector<float> x;
    for (const uint16_t row : rows) x.push_back(Bf16ToFloat(row));
    expected_ = Int4GemmReference(plain_, x, max_tokens_);
    SetBounds(x);
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
      CheckRow(bytes.data() + static_cast<size_t>(token * stride) * element, token, kind);
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
        .format = ActivationFormat::kWgmma, .tokens = tokens, .inputs = plain_.inputs};
    auto data = Value(DeviceArray<uint8_t>::Allocate(layout.bytes()));
    auto token_scale = Value(DeviceArray<float>::Allocate(tokens));
    EXPECT_TRUE(data.FillBytes(0xff).ok());
    const Activations input = {layout, data.get(), token_scale.get()};
    EXPECT_EQ(PackActivations(rows_.get(), input, options), absl::OkStatus());
    const int64_t element = kind == OutputKind::kBf16 ? 2 : 4;
    auto output = Value(DeviceArray<uint8_t>::Allocate((tokens + 1) * Stride(padding) * element));
    EXPECT_TRUE(output.FillBytes(Poison(kind)).ok());
    EXPECT_EQ(Int4GemmWgmma(matrix_, input, {kind, output.get(), Stride(padding)}, workspace_.get(),
                            options),
              absl::OkStatus());
    EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
    return Value(output.ToHost());
  }

  int64_t Stride(int64_t padding) const { return (plain_.outputs + 3) / 4 * 4 + padding; }
  const Int4Matrix& matrix() const { return matrix_; }
  void* rows() const { return rows_.get(); }
  void* workspace() const { return workspace_.get(); }

 private:
  // NaN, or, where the product is added, 0x3f3f3f3f = 0.747.
  static uint8_t Poison(OutputKind kind) { return kind == OutputKind::kAddF32 ? 0x3f : 0xff; }

  void CheckRow(const uint8_t* row, int token, OutputKind kind) const {
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
      // 0x3f3f3f3f is (2^23 + 0x3f3f3f) 2^-24.
      const double before = kind == OutputKind::kAddF32 ? std::ldexp(0x800000 + 0x3f3f3f, -24) : 0;
      const size_t at = static_cast<size_t>(token * plain_.outputs + n);
      const double expected = expected_[at];
      // Half a step of BF16 is 2^-8 of its value at most.
      const double bound = bound_[at] +
                           (kind == OutputKind::kBf16 ? 0x1.02p-8 * std::fabs(expected) : 0) +
                           0x1p-23 * (std::fabs(expected) + before);
      ASSERT_LE(std::fabs(actual - (expected + before)), bound)
          << "token " << token << ", output " << n << ": " << actual << " instead of "
          << expected + before;
    }
  }

  // Of the sums before they are stored. BF16 activations are exact in FP16; z s and (q - z) s are
  // rounded to FP16, to 2^-11 of them at most. In a group the first is the same for all inputs and
  // the second has a mean over q, of at most 2^-11 times that of |q - z|, 15 s: both meet the sum
  // of x. About the mean, an error of (q - z) s is 2^-12 of at most 8.8 s in the mean, and meets x
  // at random: six standard deviations. FP32 sums: 2^-16 of their size.
  void SetBounds(const std::vector<float>& x) {
    bound_.assign(expected_.size(), 0);
    std::vector<double> sums(static_cast<size_t>(plain_.groups)), squares(sums.size());
    for (int64_t token = 0; token < max_tokens_; ++token) {
      std::fill(sums.begin(), sums.end(), 0);
      std::fill(squares.begin(), squares.end(), 0);
      for (int64_t k = 0; k < plain_.inputs; ++k) {
        const double value = x[static_cast<size_t>(token * plain_.inputs + k)];
        sums[static_cast<size_t>(k / 128)] += value;
        squares[static_cast<size_t>(k / 128)] += value * value;
      }
      for (int64_t n = 0; n < plain_.outputs; ++n) {
        double certain = 0, variance = 0;
        for (int64_t group = 0; group < plain_.groups; ++group) {
          const size_t i = static_cast<size_t>(group);
          const double scale = F16ToDouble(plain_.scale(n, group));
          certain += 0x1p-11 * scale * (plain_.zero(n, group) + 15) * std::fabs(sums[i]);
          variance += scale * scale * squares[i];
        }
        bound_[static_cast<size_t>(token * plain_.outputs + n)] =
            certain + 8.8 * (6 * 0x1p-12 + 0x1p-16) * std::sqrt(variance);
      }
    }
  }

  PlainInt4 plain_;
  int max_tokens_;
  Int4Matrix matrix_;
  DeviceArray<uint8_t> blocks_, workspace_;
  DeviceArray<float> row_scale_;
  DeviceArray<uint16_t> rows_;
  std::vector<double> expected_, bound_;  // [max_tokens, outputs]
};

constexpr OutputKind kKinds[] = {OutputKind::kBf16, OutputKind::kF32, OutputKind::kAddF32};

class Int4GemmWgmmaTest : public testing::Test {
 protected:
  void SetUp() override {
    if (ComputeCapability() != 90) GTEST_SKIP() << "needs compute capability 9.0";
  }
};

TEST_F(Int4GemmWgmmaTest, AnyNumberOfTokensIsRightWhenManyBlocksShareATile) {
  // 2,500 tokens are two launches of 8 token tiles and one of 4.
  Problem problem(SyntheticReference(1, 640, 1024), 2500);
  int i = 0;
  for (const int tokens :
       {1,   8,   15,  16,  17,  23,  32,  33,  48,  49,  63,  64,   65,   80,   96,  97,
        100, 128, 129, 192, 193, 200, 256, 300, 512, 777, 896, 1000, 1024, 1025, 2500}) {
    problem.Check(tokens, kKinds[i++ % 3]);
    if (HasFatalFailure()) return;
  }
}

TEST_F(Int4GemmWgmmaTest, OddShapesAreRightAndNothingBeyondIsWritten) {
  for (const auto& [outputs, inputs] : {std::pair{8, 128},
                                        {128, 128},
                                        {136, 256},
                                        {300, 200},
                                        {77, 1000},
                                        {384, 4096},
                                        {640, 384},
                                        {2050, 131}}) {
    Problem problem(SyntheticReference(2, outputs, inputs), 200);
    for (const int tokens : {1, 23, 32, 41, 64, 77, 128, 200}) {
      for (const OutputKind kind : kKinds) problem.Check(tokens, kind, 8 * (tokens % 3));
      if (HasFatalFailure()) return;
    }
  }
}

TEST_F(Int4GemmWgmmaTest, ManyTilesABlockAreRight) {
  // 70,144 outputs are 137 tiles of 512, or 274 of 256; an H200 has 132 multiprocessors.
  Problem problem(SyntheticReference(3, 70144, 256), 66);
  for (const int tokens : {17, 48, 64, 66}) {
    problem.Check(tokens, OutputKind::kBf16);
    if (HasFatalFailure()) return;
  }
}

TEST_F(Int4GemmWgmmaTest, LargestQuantsAndInputsOfOneSignDoNotOverflow) {
  PlainInt4 weights(256, 1024);
  std::fill(weights.quants.begin(), weights.quants.end(), 15);
  std::fill(weights.scales.begin(), weights.scales.end(), 0x7bff);  // 65,504
  Problem problem(weights, 130);
  problem.SetRows(std::vector<uint16_t>(130 * 1024, Bf16FromFloat(255)));
  for (const int tokens : {1, 33, 64, 96, 130}) problem.Check(tokens, OutputKind::kF32);
}

TEST_F(Int4GemmWgmmaTest, ScalesOfARowMayDifferWidely) {
  std::mt19937 random(4);
  PlainInt4 weights = SyntheticReference(4, 384, 2048);
  for (uint16_t& scale : weights.scales) {
    scale =
        F16FromExact(std::ldexp(1024.0 + random() % 1024, -20 - static_cast<int>(random() % 7)));
  }
  Problem problem(weights, 130);
  for (const int tokens : {1, 33, 64, 96, 130}) problem.Check(tokens, OutputKind::kF32);
}

TEST_F(Int4GemmWgmmaTest, ResultsAreTheSameBitsEachTime) {
  Problem problem(SyntheticReference(5, 1024, 2048), 300);
  for (const int tokens : {17, 48, 64, 96, 300}) {
    const std::vector<uint8_t> first = problem.Multiply(tokens, OutputKind::kF32);
    for (int i = 0; i < 20; ++i) {
      ASSERT_EQ(problem.Multiply(tokens, OutputKind::kF32), first) << tokens << " tokens";
    }
  }
}

TEST_F(Int4GemmWgmmaTest, OverlappingLaunchesInAGraphGiveTheSameBits) {
  // Each product takes the one before as its input: packing overlaps the product before, and the
  // product the packing. One workspace serves all.
  constexpr int64_t kSize = 1024;
  Problem problem(SyntheticReference(6, kSize, kSize), 1100);
  cudaStream_t stream;
  ASSERT_EQ(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), cudaSuccess);
  for (const int tokens : {17, 48, 64, 96, 300, 1100}) {
    const ActivationLayout layout = {
        .format = ActivationFormat::kWgmma, .tokens = tokens, .inputs = kSize};
    const auto data = Value(DeviceArray<uint8_t>::Allocate(layout.bytes()));
    const auto token_scale = Value(DeviceArray<float>::Allocate(tokens));
    auto output = Value(DeviceArray<uint16_t>::Allocate(tokens * kSize));
    const Activations input = {layout, data.get(), token_scale.get()};
    const auto enqueue = [&](bool overlap) {
      const LaunchOptions options = {.stream = stream, .overlap_previous = overlap};
      absl::Status status = PackActivations(problem.rows(), input, options);
      for (int i = 0; i < 8; ++i) {
        status.Update(Int4GemmWgmma(problem.matrix(), input,
                                    {OutputKind::kBf16, output.get(), kSize}, problem.workspace(),
                                    options));
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

absl::StatusCode MultiplyNothing(ActivationFormat format, int tokens, int64_t inputs,
                                 int64_t stride) {
  const Int4Matrix weights = {.outputs = 256, .inputs = 256};
  const Activations input = {.layout = {.format = format, .tokens = tokens, .inputs = inputs}};
  return Int4GemmWgmma(weights, input, {.stride = stride}, nullptr, {}).code();
}

TEST(Int4GemmWgmmaRefusalTest, InputsAndOutputsThatDoNotFitAreRefused) {
  constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
  EXPECT_EQ(MultiplyNothing(ActivationFormat::kMma, 1, 256, 256), kInvalid);
  EXPECT_EQ(MultiplyNothing(ActivationFormat::kWgmma, 0, 256, 256), kInvalid);
  EXPECT_EQ(MultiplyNothing(ActivationFormat::kWgmma, 1, 128, 256), kInvalid);
  EXPECT_EQ(MultiplyNothing(ActivationFormat::kWgmma, 1, 256, 255), kInvalid);
  EXPECT_EQ(MultiplyNothing(ActivationFormat::kWgmma, 1, 256, 252), kInvalid);
}

TEST(Int4GemmWgmmaRefusalTest, GpuWithoutWgmmaIsRefused) {
  if (ComputeCapability() == 90) GTEST_SKIP() << "this one has it";
  EXPECT_EQ(MultiplyNothing(ActivationFormat::kWgmma, 1, 256, 256),
            absl::StatusCode::kUnimplemented);
}

}  // namespace
}  // namespace fabricast
