// Needs a GPU: tools/gpu_tests runs it.

#include "kernels/int4/int4_matrix.h"

#include <cstring>
#include <random>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "gtest/gtest.h"
#include "kernels/int4/int4_matrix_reference.h"
#include "kernels/timing/device_array.h"

namespace fabricast {
namespace {

template <typename T>
T Value(absl::StatusOr<T> value) {
  EXPECT_TRUE(value.ok()) << value.status();
  return value.ok() ? *std::move(value) : T();
}

PlainInt4 Random(int64_t outputs, int64_t inputs, uint32_t seed) {
  std::mt19937 random(seed);
  PlainInt4 plain(outputs, inputs);
  for (uint8_t& quant : plain.quants) quant = random() % 16;
  for (uint8_t& zero : plain.zeros) zero = random() % 16;
  // All finite values, subnormal and negative ones too.
  for (uint16_t& scale : plain.scales) scale = random() % 0x7c00 | (random() % 2 << 15);
  for (int64_t group = 0; group < plain.groups; ++group) plain.scale(outputs / 2, group) = 0;
  return plain;
}

// The memory of an Int4Matrix, poisoned.
struct DeviceMatrix {
  DeviceMatrix(int64_t outputs, int64_t inputs) : matrix{.outputs = outputs, .inputs = inputs} {
    blocks = Value(DeviceArray<uint8_t>::Allocate(matrix.block_bytes()));
    row_scale = Value(DeviceArray<float>::Allocate(matrix.row_scale_bytes() / 4));
    EXPECT_TRUE(blocks.FillBytes(0xff).ok());
    EXPECT_TRUE(row_scale.FillBytes(0xff).ok());
    matrix.blocks = blocks.get();
    matrix.row_scale = row_scale.get();
  }

  DeviceArray<uint8_t> blocks;
  DeviceArray<float> row_scale;
  Int4Matrix matrix;
};

struct DeviceAwq {
  explicit DeviceAwq(const PlainInt4& plain) {
    const AwqReference host(plain);
    qweight = Value(DeviceArray<uint32_t>::CopyOf(host.qweight));
    qzeros = Value(DeviceArray<uint32_t>::CopyOf(host.qzeros));
    scales = Value(DeviceArray<uint16_t>::CopyOf(host.scales));
    tensors = {.outputs = plain.outputs,
               .inputs = plain.inputs,
               .qweight = qweight.get(),
               .qzeros = qzeros.get(),
               .scales = scales.get()};
  }

  DeviceArray<uint32_t> qweight, qzeros;
  DeviceArray<uint16_t> scales;
  AwqTensors tensors;
};

void ExpectSame(const DeviceMatrix& actual, const PackedInt4Reference& expected) {
  const std::vector<uint8_t> blocks = Value(actual.blocks.ToHost());
  ASSERT_EQ(blocks.size(), expected.blocks.size());
  for (size_t i = 0; i < blocks.size(); ++i) {
    ASSERT_EQ(blocks[i], expected.blocks[i])
        << "byte " << i % kInt4BlockBytes << " of block " << i / kInt4BlockBytes;
  }
  EXPECT_EQ(Value(actual.row_scale.ToHost()), expected.row_scale);
}

TEST(Int4MatrixTest, PackingGivesTheBytesOfTheReference) {
  for (const auto& [outputs, inputs] :
       {std::pair{8, 128}, {128, 128}, {136, 256}, {264, 640}, {1024, 384}}) {
    SCOPED_TRACE(testing::Message() << outputs << " x " << inputs);
    const PlainInt4 plain = Random(outputs, inputs, 1);
    const DeviceAwq awq(plain);
    const DeviceMatrix packed(outputs, inputs);
    ASSERT_EQ(PackInt4(awq.tensors, 0, packed.matrix, {}), absl::OkStatus());
    ExpectSame(packed, PackedInt4Reference(plain));
  }
}

TEST(Int4MatrixTest, PartsBecomeOneMatrix) {
  // As q, k and v do.
  constexpr int64_t kInputs = 256;
  const DeviceMatrix packed(256 + 128 + 72, kInputs);
  PlainInt4 whole(packed.matrix.outputs, kInputs);
  int64_t first = 0;
  for (const int64_t outputs : {256, 128, 72}) {
    const PlainInt4 part = Random(outputs, kInputs, static_cast<uint32_t>(outputs));
    ASSERT_EQ(PackInt4(DeviceAwq(part).tensors, first, packed.matrix, {}), absl::OkStatus());
    std::copy(part.quants.begin(), part.quants.end(), whole.quants.begin() + first * kInputs);
    std::copy(part.zeros.begin(), part.zeros.end(), whole.zeros.begin() + first * part.groups);
    std::copy(part.scales.begin(), part.scales.end(), whole.scales.begin() + first * part.groups);
    first += outputs;
  }
  ExpectSame(packed, PackedInt4Reference(whole));
}

TEST(Int4MatrixTest, PartsThatDoNotFitAreRefused) {
  const DeviceMatrix packed(512, 256);
  const auto pack = [&](int64_t outputs, int64_t inputs, int64_t first_row) {
    return PackInt4({.outputs = outputs, .inputs = inputs}, first_row, packed.matrix, {}).code();
  };
  EXPECT_EQ(pack(128, 128, 0), absl::StatusCode::kInvalidArgument);    // other inputs
  EXPECT_EQ(pack(128, 256, 64), absl::StatusCode::kInvalidArgument);   // begins inside a block
  EXPECT_EQ(pack(136, 256, 0), absl::StatusCode::kInvalidArgument);    // ends inside a block
  EXPECT_EQ(pack(512, 256, 128), absl::StatusCode::kInvalidArgument);  // ends beyond
  EXPECT_EQ(pack(4, 256, 0), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(PackInt4({.outputs = 8, .inputs = 256}, 0, {}, {}).code(),
            absl::StatusCode::kInvalidArgument);
}

TEST(Int4MatrixTest, SyntheticWeightsAreThoseOfTheReference) {
  for (const auto& [outputs, inputs] : {std::pair{128, 128}, {300, 200}, {77, 1024}}) {
    SCOPED_TRACE(testing::Message() << outputs << " x " << inputs);
    const DeviceMatrix packed(outputs, inputs);
    ASSERT_EQ(FillSyntheticInt4(42, packed.matrix, {}), absl::OkStatus());
    ExpectSame(packed, PackedInt4Reference(SyntheticReference(42, outputs, inputs)));
  }
}

// Packs `plain` without the GPU's help and dequantises rows [first_row, first_row + rows).
void ExpectDequantised(const PlainInt4& plain, int64_t first_row, int64_t rows) {
  const PackedInt4Reference host(plain);
  DeviceMatrix packed(plain.outputs, plain.inputs);
  ASSERT_TRUE(packed.blocks.CopyFrom(host.blocks).ok());
  ASSERT_TRUE(packed.row_scale.CopyFrom(host.row_scale).ok());
  constexpr int64_t kGuard = 1000;
  auto to = Value(DeviceArray<uint16_t>::Allocate(rows * plain.inputs + kGuard));
  ASSERT_TRUE(to.FillBytes(0xff).ok());
  ASSERT_EQ(DequantizeInt4(packed.matrix, first_row, rows, to.get(), {}), absl::OkStatus());
  const std::vector<uint16_t> actual = Value(to.ToHost());
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t input = 0; input < plain.inputs; ++input) {
      // q - z has 5 bits, s 11: the product is exact in FP32, and rounded once.
      const float weight = first_row + row < plain.outputs
                               ? static_cast<float>(plain.Weight(first_row + row, input))
                               : 0;
      ASSERT_EQ(Bf16ToFloat(actual[static_cast<size_t>(row * plain.inputs + input)]),
                Bf16ToFloat(Bf16FromFloat(weight)))
          << "row " << row << ", input " << input;
    }
  }
  for (int64_t i = 0; i < kGuard; ++i) {
    ASSERT_EQ(actual[static_cast<size_t>(rows * plain.inputs + i)], 0xffff) << i << " beyond";
  }
}

TEST(Int4MatrixTest, DequantisedWeightsAreRoundedOnce) {
  ExpectDequantised(Random(128, 128, 1), 0, 128);
  ExpectDequantised(Random(640, 384, 2), 0, 640);
  ExpectDequantised(Random(640, 384, 3), 256, 128);
}

TEST(Int4MatrixTest, DequantisedRowsAndInputsBeyondTheMatrixAreZeroOrLeftOut) {
  ExpectDequantised(Random(136, 256, 4), 0, 256);
  ExpectDequantised(Random(300, 200, 5), 128, 256);
  ExpectDequantised(Random(130, 131, 6), 0, 256);
}

TEST(Int4MatrixTest, RowsThatAreNotThereAreNotDequantised) {
  const DeviceMatrix packed(300, 128);
  for (const auto& [first_row, rows] :
       {std::pair{0, 100}, {64, 128}, {0, 512}, {384, 128}, {-128, 128}, {0, 0}}) {
    EXPECT_EQ(DequantizeInt4(packed.matrix, first_row, rows, nullptr, {}).code(),
              absl::StatusCode::kInvalidArgument)
        << first_row << " " << rows;
  }
}

}  // namespace
}  // namespace fabricast
