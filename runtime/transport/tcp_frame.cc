#include "runtime/transport/tcp_frame.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "runtime/check.h"
#include "runtime/transport/little_endian.h"

namespace fabricast {
namespace {

// "fseg" and "fbye" in the order of the bytes.
constexpr uint32_t kSegmentMagic = 0x67657366;
constexpr uint32_t kFarewellMagic = 0x65796266;

}  // namespace

uint64_t SegmentHeader::Segments(uint64_t message_bytes) {
  return message_bytes == 0 ? 1 : (message_bytes - 1) / kSegmentBytes + 1;
}

SegmentHeader SegmentHeader::Of(uint64_t message, uint64_t message_bytes, uint64_t index) {
  const uint64_t offset = index * kSegmentBytes;
  return {
      .message = message,
      .message_bytes = message_bytes,
      .offset = offset,
      .bytes = static_cast<uint32_t>(std::min<uint64_t>(kSegmentBytes, message_bytes - offset))};
}

void EncodeSegmentHeader(const SegmentHeader& header, absl::Span<std::byte> to) {
  FABRICAST_CHECK(to.size() == SegmentHeader::kBytes) << to.size();
  StoreLittleEndian(kSegmentMagic, &to[0]);
  StoreLittleEndian(header.bytes, &to[4]);
  StoreLittleEndian(header.message, &to[8]);
  StoreLittleEndian(header.message_bytes, &to[16]);
  StoreLittleEndian(header.offset, &to[24]);
}

absl::StatusOr<SegmentHeader> DecodeSegmentHeader(absl::Span<const std::byte> from) {
  FABRICAST_CHECK(from.size() == SegmentHeader::kBytes) << from.size();
  if (LoadLittleEndian<uint32_t>(&from[0]) != kSegmentMagic) {
    return absl::DataLossError("what came is no segment");
  }
  SegmentHeader header;
  header.bytes = LoadLittleEndian<uint32_t>(&from[4]);
  header.message = LoadLittleEndian<uint64_t>(&from[8]);
  header.message_bytes = LoadLittleEndian<uint64_t>(&from[16]);
  header.offset = LoadLittleEndian<uint64_t>(&from[24]);
  const bool begins_well = header.offset % kSegmentBytes == 0 &&
                           (header.offset < header.message_bytes || header.offset == 0);
  if (!begins_well ||
      header.bytes != std::min<uint64_t>(kSegmentBytes, header.message_bytes - header.offset)) {
    return absl::DataLossError(absl::StrCat("a segment of ", header.bytes, " bytes from ",
                                            header.offset, " in a message of ",
                                            header.message_bytes));
  }
  return header;
}

SegmentTally::SegmentTally(uint64_t message_bytes)
    : segments_(SegmentHeader::Segments(message_bytes)) {}

bool SegmentTally::Begin(const SegmentHeader& header) {
  const uint64_t index = header.offset / kSegmentBytes;
  FABRICAST_CHECK(index < segments_) << index << " of " << segments_;
  if (index == 0) return !std::exchange(first_begun_, true);
  if (others_begun_.empty()) others_begun_.resize(segments_ - 1);
  if (others_begun_[index - 1]) return false;
  others_begun_[index - 1] = true;
  return true;
}

void EncodeFarewell(const Farewell& farewell, absl::Span<std::byte> to) {
  FABRICAST_CHECK(to.size() == Farewell::kBytes) << to.size();
  std::fill(to.begin(), to.end(), std::byte{0});
  StoreLittleEndian(kFarewellMagic, &to[0]);
  StoreLittleEndian(static_cast<uint32_t>(farewell.reason), &to[4]);
  StoreLittleEndian(farewell.came, &to[8]);
  StoreLittleEndian(farewell.expected, &to[16]);
}

absl::StatusOr<Farewell> DecodeFarewell(absl::Span<const std::byte> from) {
  FABRICAST_CHECK(from.size() == Farewell::kBytes) << from.size();
  const uint32_t reason = LoadLittleEndian<uint32_t>(&from[4]);
  if (LoadLittleEndian<uint32_t>(&from[0]) != kFarewellMagic ||
      reason < static_cast<uint32_t>(Farewell::Reason::kClosed) ||
      reason > static_cast<uint32_t>(Farewell::Reason::kBroken)) {
    return absl::DataLossError("what came on the control stream is no farewell");
  }
  return Farewell{.reason = static_cast<Farewell::Reason>(reason),
                  .came = LoadLittleEndian<uint64_t>(&from[8]),
                  .expected = LoadLittleEndian<uint64_t>(&from[16])};
}

}  // namespace fabricast
