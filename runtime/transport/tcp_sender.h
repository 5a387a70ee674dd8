// One direction of a link, at the stage that sends: cuts messages into segments and deals them to
// the streams.
#ifndef FABRICAST_RUNTIME_TRANSPORT_TCP_SENDER_H_
#define FABRICAST_RUNTIME_TRANSPORT_TCP_SENDER_H_

#include <array>
#include <deque>
#include <functional>
#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "runtime/transport/stage_transport.h"
#include "runtime/transport/tcp_frame.h"

namespace fabricast {

// Whoever comes first writes, one thread at a time, and runs the `done`s; others leave their
// messages to it. A caller writes one short segment at most, which saves waking the I/O thread; the
// rest is the I/O thread's.
class TcpSender {
 public:
  // `sockets` are connected and non-blocking, and outlive this. Callbacks run in a CallbackScope of
  // `owner`. `wake` makes the I/O thread call Turn soon.
  TcpSender(const std::vector<int>& sockets, const void* owner, std::function<void()> wake);

  // As StageTransport's. Any thread.
  absl::Status Send(absl::Span<const std::byte> bytes, StageTransport::Done done);
  // Takes no more, and gives back what is pending with that status, in the next Turn or before.
  // The sockets must let go of what they hold (TcpLink resets them). Any thread, once.
  void End(absl::Status status);

  // The I/O thread's. A stream may take more; the kernel may have let go of some pages.
  void StreamWritable(size_t stream);
  void StreamReleased(size_t stream);
  void Turn();

  // Ended, and every `done` has run.
  bool over() const;
  // Why a stream takes no more, if one does. Its segments are lost.
  std::optional<std::string> failure() const;

 private:
  struct Message {
    uint64_t number;
    absl::Span<const std::byte> bytes;
    StageTransport::Done done;
    uint64_t segments;
    uint64_t dealt = 0;    // segments
    uint64_t written = 0;  // segments
    int held = 0;          // calls whose pages the kernel still reads
  };
  struct Stream {
    int socket;
    bool failed = false;
    bool writable = true;
    uint64_t times_writable = 0;
    // What is being written, and how much of header and payload has been.
    Message* message = nullptr;
    std::array<std::byte, SegmentHeader::kBytes> header;
    absl::Span<const std::byte> payload;
    size_t written = 0;
    // MSG_ZEROCOPY: whether it pays, the number that the kernel gives to the next call, and whose
    // pages it holds.
    bool zero_copy;
    bool copy_next = false;
    uint32_t next_call = 0;
    std::map<uint32_t, Message*> held;
  };

  // Writes up to `segments` new ones, unless another thread does.
  void Pump(int segments);
  // These are of Pump, hold mutex_ and leave it meanwhile.
  bool GiveBackFirst(std::unique_lock<std::mutex>& lock);
  void Write(Stream& stream, std::unique_lock<std::mutex>& lock);

  Stream* NextStream(int& segments);
  void Deal(Stream& stream);
  bool CanWrite() const;

  const void* const owner_;
  const std::function<void()> wake_;

  mutable std::mutex mutex_;
  bool pumping_ = false;
  absl::Status ended_;
  std::optional<std::string> failure_;
  std::vector<Stream> streams_;
  // Pointers to messages stay valid: they come at the end and go at the front.
  std::deque<Message> messages_;
  size_t dealt_ = 0;  // messages at the front that have no undealt segment
  uint64_t next_number_ = 0;
};

}  // namespace fabricast

#endif  // FABRICAST_RUNTIME_TRANSPORT_TCP_SENDER_H_
