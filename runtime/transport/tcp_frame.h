// What is on the wire between two stages once they have shaken hands. All numbers are
// little-endian.
//
// Each direction of a link numbers its messages from 0. A data stream carries segments: a header,
// then `bytes` of the message from `offset`. Segments begin at multiples of kSegmentBytes, so a
// header says nothing that its reader could not check. The control stream carries nothing until an
// end goes, which then says why.
#ifndef FABRICAST_RUNTIME_TRANSPORT_TCP_FRAME_H_
#define FABRICAST_RUNTIME_TRANSPORT_TCP_FRAME_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"

namespace fabricast {

// All but a message's last segment have this length. A stream takes the next when it has written
// one, so shorter ones share streams better; each costs a header and a system call more.
inline constexpr size_t kSegmentBytes = size_t{512} << 10;

struct SegmentHeader {
  static constexpr size_t kBytes = 32;

  uint64_t message = 0;        // number
  uint64_t message_bytes = 0;  // of all of it
  uint64_t offset = 0;         // of this segment
  uint32_t bytes = 0;          // of this segment

  // Segment `index` of that message; an empty message has one.
  static SegmentHeader Of(uint64_t message, uint64_t message_bytes, uint64_t index);
  static uint64_t Segments(uint64_t message_bytes);
};

void EncodeSegmentHeader(const SegmentHeader& header,
                         absl::Span<std::byte> to);  // of kBytes
// kDataLoss unless it is a segment of a message of `message_bytes`.
absl::StatusOr<SegmentHeader> DecodeSegmentHeader(absl::Span<const std::byte> from);  // of kBytes

// Which segments of one message have begun and ended.
class SegmentTally {
 public:
  explicit SegmentTally(uint64_t message_bytes);
  // False if that one has begun before. `header` is one of a message of `message_bytes`.
  bool Begin(const SegmentHeader& header);
  void End() { ++ended_; }
  bool complete() const { return ended_ == segments_; }

 private:
  uint64_t segments_;
  uint64_t ended_ = 0;
  bool first_begun_ = false;
  std::vector<bool> others_begun_;  // beyond the first; made when one comes
};

// Why an end goes, in its own words.
struct Farewell {
  static constexpr size_t kBytes = 32;
  enum class Reason : uint32_t {
    kClosed = 1,
    kWrongLength = 2,  // `came` bytes where `expected` were posted
    kBroken = 3,       // a stream failed, or what came on it was no segment
  };

  Reason reason = Reason::kClosed;
  uint64_t came = 0;
  uint64_t expected = 0;
};

void EncodeFarewell(const Farewell& farewell, absl::Span<std::byte> to);  // of kBytes
// kDataLoss if it is none.
absl::StatusOr<Farewell> DecodeFarewell(absl::Span<const std::byte> from);  // of kBytes

}  // namespace fabricast

#endif  // FABRICAST_RUNTIME_TRANSPORT_TCP_FRAME_H_
