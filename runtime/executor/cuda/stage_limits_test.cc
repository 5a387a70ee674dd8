#include "runtime/executor/cuda/stage_limits.h"

#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace fabricast {
namespace {

using ::testing::HasSubstr;

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

TEST(CheckOptionsTest, NamesTheFlagAndItsRange) {
  const GpuStageOptions good = {
      .kv_block_tokens = 16, .kv_blocks = 1, .max_batch_tokens = 1, .max_running = 1};
  EXPECT_TRUE(CheckOptions(good).ok());
  const auto message = [&](int64_t GpuStageOptions::*field, int64_t value) {
    GpuStageOptions options = good;
    options.*field = value;
    const absl::Status status = CheckOptions(options);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    return std::string(status.message());
  };
  EXPECT_THAT(message(&GpuStageOptions::kv_block_tokens, 24),
              HasSubstr("--kv-block-tokens is 24; give a multiple of 16"));
  EXPECT_THAT(message(&GpuStageOptions::kv_blocks, 0), HasSubstr("kv_blocks is 0"));
  EXPECT_THAT(message(&GpuStageOptions::max_batch_tokens, 0), HasSubstr("--max-batch-tokens is 0"));
  EXPECT_THAT(message(&GpuStageOptions::max_running, 1 << 20),
              HasSubstr("--max-running is 1048576; give 1 to "));
}

}  // namespace
}  // namespace fabricast
