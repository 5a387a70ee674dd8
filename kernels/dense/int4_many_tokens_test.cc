// Needs a GPU and cuBLASLt: tools/gpu_tests runs it.

#include "kernels/dense/int4_many_tokens.h"

#include <cuda_bf16.h>
#include <cuda_runtime_api.h>

#include <cstdint>
#include <memory>
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
  int64_t padding;
  int64_t scratch_rows;
};

// Whole blocks and parts of one; scratch for one block of rows, some of them and all.
constexpr Shape kShapes[] = {
    {128, 128, 1, 0, 128},     {384, 256, 65, 8, 128},  {640, 512, 33, 0, 300},
    {1000, 384, 128, 24, 256}, {96, 640, 200, 4, 4096}, {1408, 128, 300, 0, 100'000},
};

template <typename T>
DeviceArray<T> AllocateOrDie(int64_t size) {
  absl::StatusOr<DeviceArray<T>> array = DeviceArray<T>::Allocate(size);
  EXPECT_TRUE(array.ok()) << array.status();
  EXPECT_TRUE(array->FillBytes(0xff).ok());
  return *std::move(array);
}

TEST(Int4ManyTokensTest, ProductsAreThoseOfTheDequantisedWeights) {
  const absl::StatusOr<std::unique_ptr<CublasLt>> cublas = CublasLt::Load();
  ASSERT_TRUE(cublas.ok()) << cublas.status();
  const DeviceArray<uint8_t> workspace = AllocateOrDie<uint8_t>((*cublas)->workspace_bytes());
  for (const Shape& shape : kShapes) {
    Int4Matrix weights = {.outputs = shape.outputs, .inputs = shape.inputs};
    const DeviceArray<uint8_t> blocks = AllocateOrDie<uint8_t>(weights.block_bytes());
    const DeviceArray<float> row_scale =
        AllocateOrDie<float>(weights.block_rows() * kInt4BlockRows);
    weights.blocks = blocks.get();
    weights.row_scale = row_scale.get();
    ASSERT_TRUE(FillSyntheticInt4(7, weights, {}).ok());

    const int64_t all_rows = weights.block_rows() * kInt4BlockRows;
    const DeviceArray<__nv_bfloat16> dense = AllocateOrDie<__nv_bfloat16>(all_rows * shape.inputs);
    ASSERT_TRUE(DequantizeInt4(weights, 0, all_rows, dense.get(), {}).ok());
    absl::StatusOr<std::vector<__nv_bfloat16>> w = dense.ToHost();
    ASSERT_TRUE(w.ok()) << w.status();
    w->resize(static_cast<size_t>(shape.outputs * shape.inputs));
    const std::vector<__nv_bfloat16> x =
        RandomValues<__nv_bfloat16>(2, shape.tokens * shape.inputs, 4);
    const ProductReference reference =
        MultiplyReference(ToFloats(x), ToFloats(*w), static_cast<size_t>(shape.inputs));
    absl::StatusOr<DeviceArray<__nv_bfloat16>> input_array = DeviceArray<__nv_bfloat16>::CopyOf(x);
    ASSERT_TRUE(input_array.ok());
    const Activations input = {.layout = {.format = ActivationFormat::kBf16Rows,
                                          .tokens = shape.tokens,
                                          .inputs = shape.inputs},
                               .data = input_array->get()};

    for (const OutputKind kind : {OutputKind::kBf16, OutputKind::kF32, OutputKind::kAddF32}) {
      SCOPED_TRACE(testing::Message()
                   << shape.outputs << " outputs, " << shape.inputs << " inputs, " << shape.tokens
                   << " tokens, scratch for " << shape.scratch_rows << " rows, kind "
                   << static_cast<int>(kind));
      const int64_t scratch_bytes = shape.scratch_rows * shape.inputs * 2;
      const DeviceArray<uint8_t> scratch = AllocateOrDie<uint8_t>(scratch_bytes + 256);
      const CheckedOutput output(kind, shape.tokens, shape.outputs, shape.padding);
      const absl::Status status = Int4ManyTokens(**cublas, weights, input, output.output(),
                                                 scratch.get(), scratch_bytes, workspace.get(), {});
      ASSERT_TRUE(status.ok()) << status;
      ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
      output.Check(reference, shape.inputs);
      const absl::StatusOr<std::vector<uint8_t>> written = scratch.ToHost();
      ASSERT_TRUE(written.ok());
      for (size_t i = static_cast<size_t>(scratch_bytes); i < written->size(); ++i) {
        ASSERT_EQ((*written)[i], 0xff) << "written behind the scratch";
      }
    }
  }
}

TEST(Int4ManyTokensTest, ScratchForLessThanABlockOfRowsIsRefused) {
  const absl::StatusOr<std::unique_ptr<CublasLt>> cublas = CublasLt::Load();
  ASSERT_TRUE(cublas.ok()) << cublas.status();
  const Int4Matrix weights = {.outputs = 256, .inputs = 256};
  Activations input;
  input.layout = {.format = ActivationFormat::kBf16Rows, .tokens = 4, .inputs = 256};
  EXPECT_EQ(
      Int4ManyTokens(**cublas, weights, input, {}, nullptr, 128 * 256 * 2 - 1, nullptr, {}).code(),
      absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace fabricast
