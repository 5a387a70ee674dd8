#include "runtime/executor/cuda/stage_shape.h"

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "runtime/executor/cuda/cuda_executor.h"
#include "runtime/executor/cuda/host_tensors.h"
#include "runtime/model/decoder_config.h"
#include "runtime/weights/checkpoint.h"

namespace fabricast {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

template <typename T>
T Sure(absl::StatusOr<T> value) {
  EXPECT_TRUE(value.ok()) << value.status();
  return *std::move(value);
}

struct Model {
  explicit Model(const std::string& name)
      : config(Sure(LoadDecoderConfig(absl::StrCat("runtime/executor/testdata/", name)))),
        weights(Sure(FindStageWeights(
            Sure(Checkpoint::Open(absl::StrCat("runtime/executor/testdata/", name))), config,
            {.first_layer = 0, .num_layers = config.layers, .embedding = true, .lm_head = true}))) {
  }
  DecoderConfig config;
  StageWeights weights;
};

TEST(StageShapeTest, DenseWeightsKeepTheirSixteenBits) {
  const Model bf16("llama");
  const StageShape shape = Sure(ShapeOfStage(bf16.config, bf16.weights));
  ASSERT_EQ(shape.layers.size(), 3);
  EXPECT_EQ(shape.layers[0].qkv.format, MatrixFormat::kBf16);
  EXPECT_THAT(shape.layers[0].qkv.parts, ElementsAre(128, 64, 64));
  EXPECT_EQ(shape.layers[0].gate_up.outputs(), 512);
  EXPECT_FALSE(shape.tied);
  // Norms are FP32 on the GPU: (2 x 3 + 1) x 128 of 4 bytes instead of 2.
  EXPECT_EQ(shape.weight_bytes(), bf16.weights.bytes() + 7 * 128 * 2);
  // 3 layers x 2 KV heads x (key, value) x 32 x BF16.
  EXPECT_EQ(shape.kv_bytes_per_token(), 3 * 2 * 2 * 32 * 2);

  const Model f16("llama_tied");
  const StageShape tied = Sure(ShapeOfStage(f16.config, f16.weights));
  EXPECT_EQ(tied.layers[0].down.format, MatrixFormat::kF16);
  EXPECT_TRUE(tied.layers[0].down.bias);
  EXPECT_TRUE(tied.tied);
}

TEST(StageShapeTest, AwqStaysFourBits) {
  const Model awq("llama_awq");
  const StageShape shape = Sure(ShapeOfStage(awq.config, awq.weights));
  for (const MatrixShape* matrix : {&shape.layers[0].qkv, &shape.layers[0].o,
                                    &shape.layers[0].gate_up, &shape.layers[0].down}) {
    EXPECT_EQ(matrix->format, MatrixFormat::kInt4);
  }
  EXPECT_EQ(shape.lm_head->format, MatrixFormat::kF16);
  // 512 outputs of 256 inputs: 4 x 2 blocks of 8,576 bytes, and a scale of 4 bytes a row.
  EXPECT_EQ(shape.layers[0].qkv.bytes(), 8 * 8576 + 512 * 4);
}

TEST(StageShapeTest, AwqThatTheKernelsDoNotTakeIsDequantised) {
  Model model("llama_awq");
  for (const int64_t group_size : {64, 32}) {
    model.weights.layers[1].feed_forward->down.awq->group_size = group_size;
    const StageShape shape = Sure(ShapeOfStage(model.config, model.weights));
    EXPECT_EQ(shape.layers[0].down.format, MatrixFormat::kInt4);
    EXPECT_EQ(shape.layers[1].down.format, MatrixFormat::kF16);
  }
  // A part that begins within a block of rows.
  LinearWeights& q = model.weights.layers[0].q;
  q.out = 200;
  EXPECT_EQ(Sure(ShapeOfStage(model.config, model.weights)).layers[0].qkv.format,
            MatrixFormat::kF16);
}

TEST(StageShapeTest, MixturesOfExpertsAreRefusedByTheirField) {
  const Model moe("qwen3_moe");
  const absl::Status status = ShapeOfStage(moe.config, moe.weights).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnimplemented);
  EXPECT_THAT(std::string(status.message()), HasSubstr("config.json: num_experts: 6: "));
}

TEST(StageShapeTest, SyntheticWeightsHaveTheShapesOfACheckpoint) {
  for (const char* name : {"llama", "llama_awq", "qwen3", "qwen3_awq"}) {
    const Model model(name);
    const StageShape real = Sure(ShapeOfStage(model.config, model.weights));
    const StageShape synthetic = Sure(ShapeOfSyntheticStage(
        model.config,
        {.first_layer = 0, .num_layers = model.config.layers, .embedding = true, .lm_head = true}));
    EXPECT_EQ(synthetic.weight_bytes(), real.weight_bytes()) << name;
    EXPECT_EQ(synthetic.tied, real.tied) << name;
  }
}

TEST(HostTensorsTest, AwqIsDequantisedAsAutoAwqDoes) {
  // One word of 8 outputs, two inputs in one group: nibble i is output [0, 2, 4, 6, 1, 3, 5, 7][i].
  const uint32_t q[] = {0x76543210, 0xFFFFFFFF};
  const uint32_t z[] = {0x11111111};
  const float scales[] = {1, 1, 1, 1, 1, 1, 1, 2};
  const auto tensor = [](DType dtype, std::vector<int64_t> shape, const void* data, size_t bytes) {
    return Tensor{.name = "t",
                  .dtype = dtype,
                  .shape = std::move(shape),
                  .bytes = {static_cast<const std::byte*>(data), bytes}};
  };
  AwqWeights weights;
  weights.qweight = tensor(DType::kI32, {2, 1}, q, sizeof(q));
  weights.qzeros = tensor(DType::kI32, {1, 1}, z, sizeof(z));
  weights.scales = tensor(DType::kF32, {1, 8}, scales, sizeof(scales));
  weights.group_size = 2;
  EXPECT_THAT(Dequantize(weights, 2, 8),
              ElementsAre(-1, 14, 3, 14, 0, 14, 4, 14, 1, 14, 5, 14, 2, 14, 12, 28));
}

TEST(HostTensorsTest, SixteenBitsRoundToNearest) {
  // 1 + 2^-8 is halfway between 1 and 1 + 2^-7 in BF16: to the even one.
  EXPECT_THAT(ToHalves({1.0f, 1.00390625f, 1.01171875f}, MatrixFormat::kBf16),
              ElementsAre(0x3F80, 0x3F80, 0x3F82));
  EXPECT_THAT(ToHalves({1.0f, 65504.0f}, MatrixFormat::kF16), ElementsAre(0x3C00, 0x7BFF));
}

// A model of 10 layers of 1 GB each, so that sums are in view.
StageShape TenGigabytes() {
  StageShape shape;
  shape.kv_heads = 1;
  shape.head_dim = 25;  // 10 layers x 2 x 25 x 2 B = 1,000 B a token
  const MatrixShape quarter = {.format = MatrixFormat::kBf16, .parts = {125'000}, .inputs = 1000};
  shape.layers.assign(10, {.qkv = quarter, .o = quarter, .gate_up = quarter, .down = quarter});
  return shape;
}

TEST(CheckFitsTest, SaysHowMuchIsMissingAndWhatWouldFit) {
  constexpr int64_t kGb = 1'000'000'000;
  const StageShape shape = TenGigabytes();
  ASSERT_EQ(shape.weight_bytes(), 10 * kGb);
  const GpuStageOptions options = {.kv_block_tokens = 16};
  const CudaDecoder::Bytes needed = {.kv_cache = 4 * kGb, .buffers = 1 * kGb};
  const auto message = [&](int64_t free) {
    const absl::Status status = CheckFits(shape, needed, options, free, 20 * kGb, "GPU 0");
    EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
    return std::string(status.message());
  };
  EXPECT_TRUE(CheckFits(shape, needed, options, 15 * kGb, 20 * kGb, "GPU 0").ok());
  // 13 GB less 11 of weights and buffers hold 2e9 / 16,000 blocks.
  EXPECT_EQ(message(13 * kGb),
            "GPU 0: 10 layers need 15.0 GB (weights 10.0, KV cache 4.0, buffers 1.0), and 13.0 of "
            "its 20.0 GB are free: 2.0 GB short. --kv-blocks 125000 fits");
  EXPECT_THAT(message(8 * kGb), HasSubstr("7.0 GB short. At most 6 layers fit"));
  EXPECT_THAT(message(kGb), HasSubstr("Not one layer fits"));
}

}  // namespace
}  // namespace fabricast
