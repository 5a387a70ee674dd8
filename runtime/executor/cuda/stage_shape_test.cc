#include "runtime/executor/cuda/stage_shape.h"

#include <algorithm>
#include <bit>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "runtime/executor/cpu/test_weights.h"
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

TEST(TensorParallelShapeTest, HeadsAndWidthAreDivided) {
  const Model model("llama");
  const StageShape whole = Sure(ShapeOfStage(model.config, model.weights));
  const StageShape rank = Sure(ShapeOfStage(model.config, model.weights, {.rank = 1, .ranks = 2}));
  EXPECT_EQ(rank.heads, 2);
  EXPECT_EQ(rank.kv_heads, 1);
  EXPECT_EQ(rank.kv_bytes_per_token(), whole.kv_bytes_per_token() / 2);
  const LayerShape& layer = rank.layers[0];
  EXPECT_THAT(layer.qkv.parts, ElementsAre(64, 32, 32));
  EXPECT_EQ(layer.qkv.inputs, 128);
  EXPECT_EQ(layer.o.outputs(), 128);
  EXPECT_EQ(layer.o.inputs, 64);
  EXPECT_THAT(layer.gate_up.parts, ElementsAre(128, 128));
  EXPECT_EQ(layer.down.inputs, 128);
  EXPECT_EQ(rank.lm_head->outputs(), 160);
  EXPECT_TRUE(rank.vocabulary_divided());
  EXPECT_FALSE(whole.vocabulary_divided());
  // Matrices are there once on both together; the embedding of 320 x 128 BF16 and 7 norms of 128
  // FP32 twice.
  EXPECT_EQ(2 * rank.weight_bytes(), whole.weight_bytes() + 320 * 128 * 2 + 7 * 128 * 4);
}

TEST(TensorParallelShapeTest, RankZeroAddsTheBiases) {
  const Model model("llama_tied");
  for (const int r : {0, 1, 2}) {
    const StageShape rank =
        Sure(ShapeOfStage(model.config, model.weights, {.rank = r, .ranks = 3}));
    EXPECT_TRUE(rank.layers[0].qkv.bias);
    EXPECT_TRUE(rank.layers[0].gate_up.bias);
    EXPECT_EQ(rank.layers[0].o.bias, r == 0);
    EXPECT_EQ(rank.layers[0].down.bias, r == 0);
    // 320 tokens are not divided by 3.
    EXPECT_FALSE(rank.vocabulary_divided());
    EXPECT_EQ(rank.lm_head->outputs(), 320);
  }
}

TEST(TensorParallelShapeTest, WhatCannotBeDividedIsNamed) {
  const auto message = [](DecoderConfig config, int ranks) {
    const absl::Status status =
        ShapeOfSyntheticStage(config, {.num_layers = 1}, {.ranks = ranks}).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    return std::string(status.message());
  };
  DecoderConfig config = Model("llama").config;
  EXPECT_THAT(message(config, 3), HasSubstr("config.json: num_attention_heads: 4 cannot be divided "
                                            "among 3 GPUs: give --tensor-parallel a divisor"));
  EXPECT_THAT(message(config, 4), HasSubstr("num_key_value_heads: 2 cannot be divided among 4"));
  config.ffn = 255;
  EXPECT_THAT(message(config, 2), HasSubstr("intermediate_size: 255 cannot be divided among 2"));
}

TEST(TensorParallelShapeTest, SharesThatTheKernelsDoNotTakeAreDequantised) {
  // Of 4 and 2 heads of 64, and a width of 384.
  const Model model("llama_awq");
  const LayerShape layer =
      Sure(ShapeOfStage(model.config, model.weights, {.rank = 1, .ranks = 2})).layers[0];
  EXPECT_EQ(layer.qkv.format, MatrixFormat::kF16);  // v begins at 128 + 64
  EXPECT_EQ(layer.o.format, MatrixFormat::kInt4);   // 128 inputs
  EXPECT_EQ(layer.gate_up.format, MatrixFormat::kF16);
  EXPECT_EQ(layer.down.format, MatrixFormat::kF16);  // 192 inputs are a group and a half
}

TEST(TensorParallelShapeTest, SharesOfThe405BStayFourBits) {
  DecoderConfig config;
  config.hidden = 16384;
  config.heads = 128;
  config.kv_heads = 8;
  config.head_dim = 128;
  config.ffn = 53248;
  config.vocabulary = 128256;
  config.awq.emplace().group_size = 128;
  const StageShare share = {.num_layers = 42, .lm_head = true};
  const StageShape whole = Sure(ShapeOfSyntheticStage(config, share));
  for (const int ranks : {2, 4, 8}) {
    const StageShape rank = Sure(ShapeOfSyntheticStage(config, share, {.ranks = ranks}));
    for (const MatrixShape* matrix :
         {&rank.layers[0].qkv, &rank.layers[0].o, &rank.layers[0].gate_up, &rank.layers[0].down}) {
      EXPECT_EQ(matrix->format, MatrixFormat::kInt4) << ranks;
    }
    // Divided but for the norms, and for a scale of 4 bytes for each of 2 x 16,384 outputs of o and
    // down, which all ranks have: 0.02 % of a layer.
    const double share_of_it = static_cast<double>(rank.weight_bytes() * ranks) /
                               static_cast<double>(whole.weight_bytes());
    EXPECT_GE(share_of_it, 1);
    EXPECT_LE(share_of_it, 1 + ranks * 0.0002) << ranks;
  }
}

std::vector<float> ValuesOf(const ByteRows& rows, DType dtype) {
  std::vector<std::byte> bytes(rows.bytes());
  rows.Copy(0, rows.bytes(), bytes.data());
  return ToFloats({.name = "part",
                   .dtype = dtype,
                   .shape = {rows.bytes() / DTypeBytes(dtype)},
                   .bytes = bytes});
}

std::vector<float> PartOf(const std::vector<float>& values, int64_t in, const LinearPart& part) {
  std::vector<float> expected;
  for (int64_t o = part.first_out; o < part.first_out + part.out; ++o) {
    const float* const row = &values[o * in];
    expected.insert(expected.end(), row + part.first_in, row + part.first_in + part.in);
  }
  return expected;
}

// What ranks are given lies side by side, and together is all of the layer.
std::vector<LinearPart> PartsOf(const LinearWeights& weights, int ranks, bool by_outputs) {
  const int64_t out = by_outputs ? weights.out / ranks : weights.out;
  const int64_t in = by_outputs ? weights.in : weights.in / ranks;
  std::vector<LinearPart> parts;
  int64_t covered = 0;
  for (int rank = 0; rank < ranks; ++rank) {
    parts.push_back(PartOf(weights, out, in, rank));
    EXPECT_EQ(by_outputs ? parts[rank].first_out : parts[rank].first_in, covered);
    covered += by_outputs ? parts[rank].out : parts[rank].in;
  }
  EXPECT_EQ(covered, by_outputs ? weights.out : weights.in);
  return parts;
}

TEST(TensorParallelWeightsTest, PartsOfDenseLayersAreTheRanks) {
  RandomNormal random(1);
  for (int round = 0; round < 60; ++round) {
    TensorStore store;
    const int ranks = static_cast<int>(random.Between(1, 4));
    const bool by_outputs = round % 2 == 0;
    const int64_t out = random.Between(1, 9) * (by_outputs ? ranks : 1);
    const int64_t in = random.Between(1, 9) * (by_outputs ? 1 : ranks);
    for (const DType dtype : {DType::kBf16, DType::kF16, DType::kF32}) {
      const RandomLinear linear = MakeDense(store, random, in, out, dtype);
      const MatrixFormat format = dtype == DType::kF16 ? MatrixFormat::kF16 : MatrixFormat::kBf16;
      for (const LinearPart& part : PartsOf(linear.weights, ranks, by_outputs)) {
        const DenseRows rows(linear.weights, part, format);
        std::vector<float> expected = PartOf(linear.values, in, part);
        if (dtype == DType::kF32) {  // rounded to BF16
          const std::vector<uint16_t> bits = ToHalves(expected, format);
          for (size_t i = 0; i < bits.size(); ++i) {
            expected[i] = std::bit_cast<float>(uint32_t{bits[i]} << 16);
          }
        }
        EXPECT_EQ(ValuesOf(rows.rows(), dtype == DType::kF16 ? DType::kF16 : DType::kBf16),
                  expected)
            << out << " x " << in << " " << DTypeName(dtype) << " of " << ranks;
      }
    }
  }
}

TEST(TensorParallelWeightsTest, PartsOfAwqLayersAreTheRanks) {
  RandomNormal random(2);
  for (int round = 0; round < 60; ++round) {
    TensorStore store;
    const int ranks = static_cast<int>(random.Between(1, 4));
    const bool by_outputs = round % 2 == 0;
    const int64_t group = 8 << random.Between(0, 2);
    const int64_t out = 8 * random.Between(1, 5) * (by_outputs ? ranks : 1);
    const int64_t in = group * random.Between(1, 5) * (by_outputs ? 1 : ranks);
    const RandomLinear linear = MakeAwq(store, random, in, out, group);
    for (const LinearPart& part : PartsOf(linear.weights, ranks, by_outputs)) {
      // In AWQ's own layout.
      const AwqRows rows = RowsOf(*linear.weights.awq, part);
      std::vector<std::byte> bytes[3];
      const auto tensor = [&](int i, const ByteRows& from, const Tensor& like, int64_t columns) {
        bytes[i].resize(from.bytes());
        from.Copy(0, from.bytes(), bytes[i].data());
        const int64_t elements = from.bytes() / DTypeBytes(like.dtype);
        return Tensor{.name = "part",
                      .dtype = like.dtype,
                      .shape = {elements / columns, columns},
                      .bytes = bytes[i]};
      };
      const AwqWeights& whole = *linear.weights.awq;
      const AwqWeights awq = {.qweight = tensor(0, rows.qweight, whole.qweight, part.out / 8),
                              .qzeros = tensor(1, rows.qzeros, whole.qzeros, part.out / 8),
                              .scales = tensor(2, rows.scales, whole.scales, part.out),
                              .group_size = group};
      const std::vector<float> expected = PartOf(linear.values, in, part);
      EXPECT_EQ(Dequantize(awq, part.in, part.out), expected) << out << " x " << in;
      // Dequantised: F16 has fewer digits than q - z times a scale.
      const DenseRows dense(linear.weights, part, MatrixFormat::kF16);
      const std::vector<uint16_t> bits = ToHalves(expected, MatrixFormat::kF16);
      std::vector<uint16_t> actual(bits.size());
      ASSERT_EQ(dense.rows().bytes(), static_cast<int64_t>(2 * bits.size()));
      dense.rows().Copy(0, dense.rows().bytes(), reinterpret_cast<std::byte*>(actual.data()));
      EXPECT_EQ(actual, bits) << out << " x " << in << " of " << ranks;
    }
  }
}

TEST(TensorParallelWeightsTest, RowsAreCopiedInPiecesOfAnySize) {
  std::vector<std::byte> matrix(7 * 13);
  for (size_t i = 0; i < matrix.size(); ++i) matrix[i] = static_cast<std::byte>(i);
  const Tensor tensor = {.name = "t", .dtype = DType::kU8, .shape = {7, 13}, .bytes = matrix};
  const ByteRows rows = RowsOf(tensor, 2, 4, 3, 5);
  std::vector<std::byte> whole(rows.bytes());
  rows.Copy(0, rows.bytes(), whole.data());
  // Row 2, columns 3 to 7, are elements 29 to 33.
  EXPECT_THAT(std::vector(whole.begin(), whole.begin() + 6),
              ElementsAre(std::byte{29}, std::byte{30}, std::byte{31}, std::byte{32}, std::byte{33},
                          std::byte{42}));
  for (int64_t piece = 1; piece <= rows.bytes(); ++piece) {
    std::vector<std::byte> copied(rows.bytes());
    for (int64_t at = 0; at < rows.bytes(); at += piece) {
      rows.Copy(at, std::min(piece, rows.bytes() - at), copied.data() + at);
    }
    EXPECT_EQ(copied, whole) << piece;
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

}  // namespace
}  // namespace fabricast
