// Needs a GPU and cuBLASLt: tools/gpu_tests runs it.

#include "kernels/dense/cublaslt.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>

#include <cstdint>
#include <initializer_list>
#include <memory>
#include <type_traits>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "gtest/gtest.h"
#include "kernels/dense/dense_reference.h"
#include "kernels/dense/product_test_util.h"
#include "kernels/timing/device_array.h"

namespace fabricast {
namespace {

struct Shape {
  int64_t outputs, inputs;
  int tokens;
  int64_t padding;  // of the output's rows
};

// One, a few, odd numbers; inputs that are multiples of 8 alone; more than one tile of any kernel.
constexpr Shape kShapes[] = {
    {8, 8, 1, 0},       {4, 40, 3, 4},      {136, 264, 7, 0},   {1000, 512, 17, 8},
    {320, 4096, 1, 0},  {264, 1032, 2, 12}, {128, 16384, 8, 0}, {520, 640, 64, 120},
    {776, 128, 129, 4}, {384, 256, 520, 0},
};

class CublasLtTest : public testing::Test {
 protected:
  void SetUp() override {
    absl::StatusOr<std::unique_ptr<CublasLt>> cublas = CublasLt::Load();
    ASSERT_TRUE(cublas.ok()) << cublas.status();
    cublas_ = *std::move(cublas);
    absl::StatusOr<DeviceArray<uint8_t>> workspace =
        DeviceArray<uint8_t>::Allocate(cublas_->workspace_bytes());
    ASSERT_TRUE(workspace.ok()) << workspace.status();
    workspace_ = *std::move(workspace);
    ASSERT_TRUE(workspace_.FillBytes(0xff).ok());
  }

  std::unique_ptr<CublasLt> cublas_;
  DeviceArray<uint8_t> workspace_;
};

// A product's operands, on the GPU and as floats.
template <typename T>
struct Operands {
  explicit Operands(const Shape& shape) {
    const std::vector<T> w = RandomValues<T>(1, shape.outputs * shape.inputs, 0.5);
    const std::vector<T> x = RandomValues<T>(2, shape.tokens * shape.inputs, 4);
    reference = MultiplyReference(ToFloats(x), ToFloats(w), static_cast<size_t>(shape.inputs));
    absl::StatusOr<DeviceArray<T>> weights_copy = DeviceArray<T>::CopyOf(w);
    absl::StatusOr<DeviceArray<T>> input_copy = DeviceArray<T>::CopyOf(x);
    EXPECT_TRUE(weights_copy.ok() && input_copy.ok());
    weights_array = *std::move(weights_copy);
    input_array = *std::move(input_copy);
    constexpr bool kBf16 = std::is_same_v<T, __nv_bfloat16>;
    weights = {.type = kBf16 ? DenseType::kBf16 : DenseType::kF16,
               .outputs = shape.outputs,
               .inputs = shape.inputs,
               .data = weights_array.get()};
    input = {.layout = {.format = kBf16 ? ActivationFormat::kBf16Rows : ActivationFormat::kF16Rows,
                        .tokens = shape.tokens,
                        .inputs = shape.inputs},
             .data = input_array.get()};
  }

  DeviceArray<T> weights_array, input_array;
  DenseMatrix weights;
  Activations input;
  ProductReference reference;
};

template <typename T>
void ExpectProducts(CublasLt& cublas, void* workspace, std::initializer_list<OutputKind> kinds) {
  for (const Shape& shape : kShapes) {
    const Operands<T> operands(shape);
    for (const OutputKind kind : kinds) {
      SCOPED_TRACE(testing::Message()
                   << shape.outputs << " outputs, " << shape.inputs << " inputs, " << shape.tokens
                   << " tokens, padding " << shape.padding << ", kind " << static_cast<int>(kind));
      const CheckedOutput output(kind, shape.tokens, shape.outputs, shape.padding);
      const absl::Status status =
          cublas.Multiply(operands.weights, operands.input, output.output(), workspace, nullptr);
      ASSERT_TRUE(status.ok()) << status;
      ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
      output.Check(operands.reference, shape.inputs);
    }
  }
}

TEST_F(CublasLtTest, ProductsOfBf16AreTheReferences) {
  ExpectProducts<__nv_bfloat16>(*cublas_, workspace_.get(),
                                {OutputKind::kBf16, OutputKind::kF32, OutputKind::kAddF32});
}

TEST_F(CublasLtTest, ProductsOfF16AreTheReferences) {
  ExpectProducts<__half>(*cublas_, workspace_.get(), {OutputKind::kF32, OutputKind::kAddF32});
}

TEST_F(CublasLtTest, TheSameProductHasTheSameBits) {
  const Shape shape = {.outputs = 1000, .inputs = 8192, .tokens = 5, .padding = 0};
  const Operands<__nv_bfloat16> operands(shape);
  std::vector<uint8_t> first;
  for (int run = 0; run < 4; ++run) {
    const CheckedOutput output(OutputKind::kF32, shape.tokens, shape.outputs, 0);
    ASSERT_TRUE(
        cublas_
            ->Multiply(operands.weights, operands.input, output.output(), workspace_.get(), nullptr)
            .ok());
    ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
    if (run == 0) first = output.Bytes();
    EXPECT_EQ(output.Bytes(), first);
  }
}

// Of shapes that were prepared, but never run, and of one that was not even prepared.
TEST_F(CublasLtTest, ProductsCanBeCaptured) {
  cudaStream_t stream = nullptr;
  ASSERT_EQ(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), cudaSuccess);
  for (const bool prepared : {true, false}) {
    const Shape shape = {
        .outputs = prepared ? 520 : 1032, .inputs = 768, .tokens = prepared ? 9 : 33, .padding = 0};
    const Operands<__nv_bfloat16> operands(shape);
    const CheckedOutput output(OutputKind::kBf16, shape.tokens, shape.outputs, 0);
    if (prepared) {
      ASSERT_TRUE(cublas_->Prepare(operands.weights, shape.tokens, OutputKind::kBf16).ok());
    }
    ASSERT_EQ(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), cudaSuccess);
    const absl::Status status = cublas_->Multiply(operands.weights, operands.input, output.output(),
                                                  workspace_.get(), stream);
    cudaGraph_t graph = nullptr;
    EXPECT_EQ(cudaStreamEndCapture(stream, &graph), cudaSuccess);
    ASSERT_TRUE(status.ok()) << status;
    cudaGraphExec_t executable = nullptr;
    ASSERT_EQ(cudaGraphInstantiate(&executable, graph, 0), cudaSuccess);
    ASSERT_EQ(cudaGraphLaunch(executable, stream), cudaSuccess);
    ASSERT_EQ(cudaStreamSynchronize(stream), cudaSuccess);
    output.Check(operands.reference, shape.inputs);
    cudaGraphExecDestroy(executable);
    cudaGraphDestroy(graph);
  }
  cudaStreamDestroy(stream);
}

TEST_F(CublasLtTest, FormatsThatDoNotFitTogetherAreRefused) {
  const Shape shape = {.outputs = 8, .inputs = 16, .tokens = 2, .padding = 0};
  const Operands<__nv_bfloat16> operands(shape);
  const CheckedOutput output(OutputKind::kBf16, shape.tokens, shape.outputs, 0);
  Activations input = operands.input;
  input.layout.format = ActivationFormat::kF16Rows;
  EXPECT_EQ(
      cublas_->Multiply(operands.weights, input, output.output(), workspace_.get(), nullptr).code(),
      absl::StatusCode::kInvalidArgument);
  input = operands.input;
  input.layout.inputs = 8;
  EXPECT_EQ(
      cublas_->Multiply(operands.weights, input, output.output(), workspace_.get(), nullptr).code(),
      absl::StatusCode::kInvalidArgument);
}

TEST_F(CublasLtTest, ProductsOfF16InBf16AreNotThere) {
  const Shape shape = {.outputs = 8, .inputs = 16, .tokens = 2, .padding = 0};
  const Operands<__half> operands(shape);
  const CheckedOutput output(OutputKind::kBf16, shape.tokens, shape.outputs, 0);
  EXPECT_EQ(
      cublas_
          ->Multiply(operands.weights, operands.input, output.output(), workspace_.get(), nullptr)
          .code(),
      absl::StatusCode::kUnimplemented);
}

TEST_F(CublasLtTest, NoTokensAreNoProduct) {
  Activations input;
  input.layout.inputs = 16;
  EXPECT_TRUE(
      cublas_->Multiply({.outputs = 8, .inputs = 16}, input, {}, workspace_.get(), nullptr).ok());
}

}  // namespace
}  // namespace fabricast
