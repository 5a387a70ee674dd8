// How far another host's monotonic clock is from ours, from the times of messages there and back
// (as NTP, RFC 5905 section 8).
#ifndef FABRICAST_RUNTIME_CONTROL_CLOCK_OFFSET_H_
#define FABRICAST_RUNTIME_CONTROL_CLOCK_OFFSET_H_

#include <cstdint>
#include <deque>
#include <optional>

namespace fabricast {

class ClockOffset {
 public:
  struct Estimate {
    int64_t offset_ns = 0;       // theirs - ours
    int64_t uncertainty_ns = 0;  // the true offset is no further from it, if clocks do not drift
  };

  // We sent at `sent`, they received and answered at `their_received` and `their_sent`, and we had
  // the answer at `received`. Answers that contradict themselves are ignored.
  void Add(int64_t sent, int64_t their_received, int64_t their_sent, int64_t received);

  // From the exchange that took the least time of the last kWindow: what it took beyond its floor
  // was spent in queues, on one way more than on the other.
  std::optional<Estimate> estimate() const;

  static constexpr int kWindow = 16;

 private:
  std::deque<Estimate> recent_;
};

}  // namespace fabricast

#endif  // FABRICAST_RUNTIME_CONTROL_CLOCK_OFFSET_H_
