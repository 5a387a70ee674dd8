#include "runtime/transport/tcp_frame.h"

#include <array>

#include "absl/strings/escaping.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace fabricast {
namespace {

using ::testing::HasSubstr;

using HeaderBytes = std::array<std::byte, SegmentHeader::kBytes>;

HeaderBytes Encoded(const SegmentHeader& header) {
  HeaderBytes bytes;
  EncodeSegmentHeader(header, absl::MakeSpan(bytes));
  return bytes;
}

std::string Hex(absl::Span<const std::byte> bytes) {
  return absl::BytesToHexString(
      absl::string_view(reinterpret_cast<const char*>(bytes.data()), bytes.size()));
}

TEST(SegmentHeaderTest, IsThoseBytesOnTheWire) {
  // "fseg", 1 byte, message 258, of 512 KiB + 1 bytes, from 512 KiB.
  EXPECT_EQ(Hex(Encoded(SegmentHeader::Of(258, 524'289, 1))),
            "66736567"
            "01000000"
            "0201000000000000"
            "0100080000000000"
            "0000080000000000");
}

TEST(SegmentHeaderTest, SegmentsCoverAMessageWithoutGapOrOverlap) {
  for (const uint64_t bytes :
       {uint64_t{0}, uint64_t{1}, uint64_t{kSegmentBytes - 1}, uint64_t{kSegmentBytes},
        uint64_t{kSegmentBytes + 1}, 3 * uint64_t{kSegmentBytes}, uint64_t{1} << 40}) {
    const uint64_t segments = SegmentHeader::Segments(bytes);
    uint64_t end = 0;
    for (uint64_t i = 0; i < std::min<uint64_t>(segments, 5); ++i) {
      const SegmentHeader header = SegmentHeader::Of(7, bytes, i);
      EXPECT_EQ(header.offset, end);
      end += header.bytes;
      const absl::StatusOr<SegmentHeader> decoded = DecodeSegmentHeader(Encoded(header));
      ASSERT_TRUE(decoded.ok()) << decoded.status();
      EXPECT_EQ(decoded->message, 7u);
      EXPECT_EQ(decoded->message_bytes, bytes);
      EXPECT_EQ(decoded->offset, header.offset);
      EXPECT_EQ(decoded->bytes, header.bytes);
    }
    const SegmentHeader last = SegmentHeader::Of(7, bytes, segments - 1);
    EXPECT_EQ(last.offset + last.bytes, bytes);
  }
}

TEST(SegmentHeaderTest, AnythingElseIsRefused) {
  const SegmentHeader good = SegmentHeader::Of(1, 3 * kSegmentBytes + 5, 3);
  ASSERT_TRUE(DecodeSegmentHeader(Encoded(good)).ok());
  SegmentHeader header = good;
  header.bytes = 6;  // beyond the end
  EXPECT_FALSE(DecodeSegmentHeader(Encoded(header)).ok());
  header.bytes = 4;
  EXPECT_FALSE(DecodeSegmentHeader(Encoded(header)).ok());
  header = good;
  header.offset += kSegmentBytes;  // begins beyond the end
  EXPECT_FALSE(DecodeSegmentHeader(Encoded(header)).ok());
  header = SegmentHeader::Of(1, 2 * kSegmentBytes, 1);
  header.offset = 2 * kSegmentBytes;  // at the end
  header.bytes = 0;
  EXPECT_FALSE(DecodeSegmentHeader(Encoded(header)).ok());
  header = good;
  header.offset = 1;
  header.bytes = kSegmentBytes;  // in the midst of a segment
  EXPECT_FALSE(DecodeSegmentHeader(Encoded(header)).ok());
  header = good;
  header.offset = uint64_t{0} - kSegmentBytes;
  EXPECT_FALSE(DecodeSegmentHeader(Encoded(header)).ok());
  HeaderBytes bytes = Encoded(good);
  bytes[0] ^= std::byte{1};
  EXPECT_THAT(std::string(DecodeSegmentHeader(bytes).status().message()),
              HasSubstr("is no segment"));
}

TEST(SegmentTallyTest, TakesEachSegmentOnce) {
  const uint64_t bytes = 2 * kSegmentBytes + 1;
  SegmentTally tally(bytes);
  for (const uint64_t index : {2, 0, 1}) {
    EXPECT_FALSE(tally.complete());
    EXPECT_TRUE(tally.Begin(SegmentHeader::Of(0, bytes, index)));
    EXPECT_FALSE(tally.Begin(SegmentHeader::Of(0, bytes, index)));
    tally.End();
  }
  EXPECT_TRUE(tally.complete());
}

TEST(SegmentTallyTest, AnEmptyMessageHasOneSegment) {
  SegmentTally tally(0);
  EXPECT_FALSE(tally.complete());
  EXPECT_TRUE(tally.Begin(SegmentHeader::Of(0, 0, 0)));
  EXPECT_FALSE(tally.complete());
  tally.End();
  EXPECT_TRUE(tally.complete());
}

TEST(FarewellTest, ArrivesAsItWasSaid) {
  std::array<std::byte, Farewell::kBytes> bytes;
  EncodeFarewell({.reason = Farewell::Reason::kWrongLength, .came = 10, .expected = 259},
                 absl::MakeSpan(bytes));
  EXPECT_EQ(Hex(bytes),
            "66627965"
            "02000000"
            "0a00000000000000"
            "0301000000000000"
            "0000000000000000");
  const absl::StatusOr<Farewell> farewell = DecodeFarewell(bytes);
  ASSERT_TRUE(farewell.ok()) << farewell.status();
  EXPECT_EQ(farewell->reason, Farewell::Reason::kWrongLength);
  EXPECT_EQ(farewell->came, 10u);
  EXPECT_EQ(farewell->expected, 259u);
  for (const int reason : {0, 4}) {
    bytes[4] = static_cast<std::byte>(reason);
    EXPECT_FALSE(DecodeFarewell(bytes).ok()) << reason;
  }
  bytes[4] = std::byte{1};
  EXPECT_TRUE(DecodeFarewell(bytes).ok());
  bytes[3] = std::byte{0};
  EXPECT_FALSE(DecodeFarewell(bytes).ok());
}

}  // namespace
}  // namespace fabricast
