// Any bytes are segments that each cover their own part of a message, or are refused.
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <vector>

#include "runtime/transport/tcp_frame.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using fabricast::DecodeFarewell;
  using fabricast::DecodeSegmentHeader;
  using fabricast::SegmentHeader;
  constexpr size_t kBytes = SegmentHeader::kBytes;
  static_assert(fabricast::Farewell::kBytes == kBytes);
  const absl::Span<const std::byte> input(reinterpret_cast<const std::byte*>(data), size);

  // A buffer of two segments and a little, as the corpus has it.
  constexpr uint64_t kMessageBytes = 2 * fabricast::kSegmentBytes + 100;
  fabricast::SegmentTally tally(kMessageBytes);
  std::vector<uint64_t> taken;
  for (size_t at = 0; at + kBytes <= size; at += kBytes) {
    const auto farewell = DecodeFarewell(input.subspan(at, kBytes));
    const auto header = DecodeSegmentHeader(input.subspan(at, kBytes));
    if (farewell.ok() && header.ok()) abort();
    if (!header.ok()) continue;
    if (header->offset > header->message_bytes ||
        header->bytes > header->message_bytes - header->offset ||
        header->bytes > fabricast::kSegmentBytes) {
      abort();
    }
    if (header->message_bytes != kMessageBytes || tally.complete()) continue;
    const bool again = std::find(taken.begin(), taken.end(), header->offset) != taken.end();
    if (tally.Begin(*header) == again) abort();
    if (again) continue;
    taken.push_back(header->offset);
    tally.End();
    if (tally.complete() != (taken.size() == 3)) abort();
  }
  return 0;
}
