// One direction of a link, at the stage that receives: puts segments where they belong.
#ifndef FABRICAST_RUNTIME_TRANSPORT_TCP_RECEIVER_H_
#define FABRICAST_RUNTIME_TRANSPORT_TCP_RECEIVER_H_

#include <array>
#include <atomic>
#include <deque>
#include <functional>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "runtime/transport/stage_transport.h"
#include "runtime/transport/tcp_frame.h"

namespace fabricast {

// Only the I/O thread reads, into the posted buffers themselves but for a stream's first bytes.
// Nothing is believed before it is checked, and nothing allocated by a length that was sent. A
// stream whose next segment has no buffer yet is left alone, so that its sender stops.
class TcpReceiver {
 public:
  // What the sender must not do; ends the link.
  struct Offence {
    absl::Status status;  // names the peer
    Farewell farewell;    // tells it
  };

  // As TcpSender's. `peer` is how errors call it.
  TcpReceiver(const std::vector<int>& sockets, std::string peer, const void* owner,
              std::function<void()> wake);

  // As StageTransport's. Any thread.
  absl::Status Receive(absl::Span<std::byte> buffer, StageTransport::Done done);
  // Takes no more. The next GiveBack ends what is pending. Any thread, once.
  void End(absl::Status status);

  // The I/O thread's. A stream has something; `hung_up`: its end or an error among that.
  void StreamReadable(size_t stream, bool hung_up);
  // Reads what there is, but not for ever.
  std::optional<Offence> Turn();
  // Ends what is pending if this has ended.
  void GiveBack();
  // Why a stream gives no more, if one does not.
  const std::optional<std::string>& failure() const { return failure_; }

  // Ended, and every `done` has run.
  bool over() const;

 private:
  // Headers, and short messages with them, come in one call; a long message's first bytes are
  // copied twice.
  static constexpr size_t kStagedBytes = size_t{8} << 10;

  struct Posted {
    absl::Span<std::byte> buffer;
    StageTransport::Done done;
    SegmentTally tally;
  };
  struct Stream {
    int socket;
    bool readable = false;
    bool hung_up = false;
    bool failed = false;
    // Read, but not used: [begin, end) of staged.
    std::vector<std::byte> staged = std::vector<std::byte>(kStagedBytes);
    size_t begin = 0;
    size_t end = 0;
    // The segment that is being read, and what is missing of it.
    Posted* into = nullptr;
    absl::Span<std::byte> missing;
  };

  std::optional<Offence> ReadStream(Stream& stream);
  // Takes what is staged as far as it goes. `waits`: the next segment has no buffer.
  std::optional<Offence> UseStaged(Stream& stream, bool& waits);
  std::optional<Offence> Place(Stream& stream, const SegmentHeader& header, bool& waits);
  // As much as a call gives.
  void ReadSome(Stream& stream, size_t& budget);
  void GiveFinished();
  void Fail(Stream& stream, std::string why);
  Offence Broken(const std::string& why) const;

  const std::string peer_;
  const void* const owner_;
  const std::function<void()> wake_;
  std::vector<Stream> streams_;
  std::optional<std::string> failure_;
  std::atomic<bool> stop_ = false;

  mutable std::mutex mutex_;
  absl::Status ended_;
  bool waiting_ = false;  // a stream has a segment that has no buffer
  bool giving_ = false;   // a `done` is running
  // Pointers to them stay valid: they come at the end and go at the front.
  std::deque<Posted> posted_;
  uint64_t first_ = 0;  // number of the front's message
};

}  // namespace fabricast

#endif  // FABRICAST_RUNTIME_TRANSPORT_TCP_RECEIVER_H_
