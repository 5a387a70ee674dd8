// Needs a GPU: tools/gpu_tests runs it.

#include "kernels/memory_stream.h"

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "gtest/gtest.h"

namespace fabricast {
namespace {

constexpr MemoryStreamOptions kShort = {.buffer_bytes = size_t{1} << 30, .seconds = 0.3};

class MemoryStreamTest : public testing::TestWithParam<StreamKind> {};

TEST_P(MemoryStreamTest, RateIsThatOfMemoryAndNotOfACache) {
  const absl::StatusOr<MemoryStreamMeasurement> measured = MeasureMemoryStream(GetParam(), kShort);
  ASSERT_TRUE(measured.ok()) << measured.status();
  EXPECT_GE(measured->seconds, 0.3);
  EXPECT_GT(measured->rates.sustained, 0);
  if (measured->peak_bytes_per_second > 0) {
    EXPECT_LT(measured->rates.burst, measured->peak_bytes_per_second);
  }
}

TEST_P(MemoryStreamTest, BufferThatTheCacheWouldHoldIsRefused) {
  EXPECT_EQ(MeasureMemoryStream(GetParam(), {.buffer_bytes = 1 << 20}).status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST_P(MemoryStreamTest, BufferThatDoesNotFitIsRefused) {
  EXPECT_EQ(MeasureMemoryStream(GetParam(), {.buffer_bytes = size_t{1} << 42}).status().code(),
            absl::StatusCode::kResourceExhausted);
  // And the device still works.
  EXPECT_EQ(MeasureMemoryStream(GetParam(), kShort).status(), absl::OkStatus());
}

TEST_P(MemoryStreamTest, GpuThatIsNotThereIsRefused) {
  EXPECT_EQ(MeasureMemoryStream(GetParam(), {.device = 1000}).status().code(),
            absl::StatusCode::kInvalidArgument);
}

INSTANTIATE_TEST_SUITE_P(Kinds, MemoryStreamTest,
                         testing::Values(StreamKind::kRead, StreamKind::kCopy),
                         [](const testing::TestParamInfo<StreamKind>& info) {
                           return info.param == StreamKind::kRead ? "Read" : "Copy";
                         });

}  // namespace
}  // namespace fabricast
