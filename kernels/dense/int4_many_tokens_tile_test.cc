// How many rows are dequantised at a time; needs no GPU.

#include <cstdint>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "gtest/gtest.h"
#include "kernels/dense/int4_many_tokens.h"

namespace fabricast {
namespace {

int64_t TileRows(int64_t outputs, int64_t inputs, int64_t scratch_bytes, int tokens = 1024) {
  const absl::StatusOr<int64_t> rows =
      Int4ManyTokensTileRows(outputs, inputs, tokens, scratch_bytes);
  EXPECT_TRUE(rows.ok()) << rows.status();
  return rows.ok() ? *rows : 0;
}

TEST(Int4ManyTokensTileTest, RowsAreWholeBlocksThatFit) {
  const int64_t row_bytes = 2 * 1024;
  EXPECT_EQ(TileRows(10'000, 1024, 128 * row_bytes), 128);
  EXPECT_EQ(TileRows(10'000, 1024, 256 * row_bytes - 1), 128);
  EXPECT_EQ(TileRows(10'000, 1024, 300 * row_bytes), 256);
}

TEST(Int4ManyTokensTileTest, RowsAreNoMoreThanTheMatrixHas) {
  EXPECT_EQ(TileRows(300, 1024, int64_t{1} << 30), 384);
  EXPECT_EQ(TileRows(1, 1024, int64_t{1} << 30), 128);
}

TEST(Int4ManyTokensTileTest, TheScratchThatIsFastHolds8448RowsOr277MB) {
  EXPECT_EQ(Int4ManyTokensScratchBytes(4096), int64_t{8448} * 4096 * 2);
  EXPECT_EQ(Int4ManyTokensScratchBytes(16384), int64_t{8448} * 16384 * 2);
  EXPECT_EQ(Int4ManyTokensScratchBytes(53248), int64_t{2560} * 53248 * 2);
  EXPECT_EQ(Int4ManyTokensScratchBytes(10'000'000), int64_t{128} * 10'000'000 * 2);
  EXPECT_EQ(TileRows(106'496, 16384, Int4ManyTokensScratchBytes(16384)), 8448);
  EXPECT_EQ(TileRows(16384, 53248, Int4ManyTokensScratchBytes(53248)), 2560);
}

// 132 x 128 x 256 / 2,048 = 2,112.
TEST(Int4ManyTokensTileTest, ManyTokensAreOneWave) {
  const int64_t scratch = Int4ManyTokensScratchBytes(16384);
  EXPECT_EQ(TileRows(106'496, 16384, scratch, 2047), 8448);
  EXPECT_EQ(TileRows(106'496, 16384, scratch, 2048), 2048);
  EXPECT_EQ(TileRows(106'496, 16384, scratch, 4096), 1024);
  EXPECT_EQ(TileRows(106'496, 16384, scratch, 8192), 512);
  EXPECT_EQ(TileRows(106'496, 16384, scratch, 1'000'000), 128);
}

TEST(Int4ManyTokensTileTest, ScratchForLessThanABlockIsRefused) {
  const absl::Status status = Int4ManyTokensTileRows(256, 1024, 64, 128 * 2048 - 1).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(status.message(),
            "scratch of 262143 bytes does not hold 128 rows of 1024 inputs in BF16, which take "
            "262144");
}

}  // namespace
}  // namespace fabricast
