#include "runtime/control/clock_offset.h"

#include <algorithm>

namespace fabricast {

void ClockOffset::Add(int64_t sent, int64_t their_received, int64_t their_sent, int64_t received) {
  const int64_t round_trip = (received - sent) - (their_sent - their_received);
  if (received < sent || their_sent < their_received || round_trip < 0) return;
  const int64_t there = their_received - sent;
  const int64_t back = their_sent - received;
  recent_.push_back(
      {.offset_ns = there + (back - there) / 2, .uncertainty_ns = (round_trip + 1) / 2});
  if (recent_.size() > kWindow) recent_.pop_front();
}

std::optional<ClockOffset::Estimate> ClockOffset::estimate() const {
  if (recent_.empty()) return std::nullopt;
  return *std::min_element(
      recent_.begin(), recent_.end(),
      [](const Estimate& a, const Estimate& b) { return a.uncertainty_ns < b.uncertainty_ns; });
}

}  // namespace fabricast
