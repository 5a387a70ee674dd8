#include "runtime/transport/tcp_sender.h"

#include <linux/errqueue.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "absl/strings/str_cat.h"
#include "runtime/transport/callback_scope.h"
#include "runtime/transport/tcp_socket.h"

namespace fabricast {
namespace {

// A caller of Send copies that much to the kernel at most: some 20 us, about what it takes to wake
// the I/O thread instead.
constexpr size_t kCallersBytes = size_t{64} << 10;
// Segments in a turn of the I/O thread, which has other streams to serve.
constexpr int kSegmentsInTurn = 16;
// Below that the kernel copies faster than it pins pages and reports them
// (Documentation/networking/msg_zerocopy.rst gives 10 KB), and shorter ones are often sent by
// callers.
constexpr size_t kZeroCopyBytes = size_t{128} << 10;

}  // namespace

TcpSender::TcpSender(const std::vector<int>& sockets, const void* owner, std::function<void()> wake)
    : owner_(owner), wake_(std::move(wake)) {
  for (const int socket : sockets) {
    const int on = 1;
    const bool zero_copy = setsockopt(socket, SOL_SOCKET, SO_ZEROCOPY, &on, sizeof(on)) == 0;
    streams_.push_back(
        {.socket = socket, .header = {}, .payload = {}, .zero_copy = zero_copy, .held = {}});
  }
}

absl::Status TcpSender::Send(absl::Span<const std::byte> bytes, StageTransport::Done done) {
  bool mine = false;
  bool wake = false;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!ended_.ok()) return ended_;
    const bool first = dealt_ == messages_.size();
    messages_.push_back({.number = next_number_++,
                         .bytes = bytes,
                         .done = std::move(done),
                         .segments = SegmentHeader::Segments(bytes.size())});
    mine = first && !pumping_ && bytes.size() <= kCallersBytes;
    wake = !mine && !pumping_ && CanWrite();
  }
  if (mine) {
    Pump(1);
    const std::lock_guard<std::mutex> lock(mutex_);
    wake = !pumping_ && (CanWrite() || !ended_.ok() || failure_.has_value());
  }
  if (wake) wake_();
  return absl::OkStatus();
}

void TcpSender::End(absl::Status status) {
  const std::lock_guard<std::mutex> lock(mutex_);
  ended_ = std::move(status);
}

void TcpSender::StreamWritable(size_t stream) {
  const std::lock_guard<std::mutex> lock(mutex_);
  streams_[stream].writable = true;
  ++streams_[stream].times_writable;
}

void TcpSender::StreamReleased(size_t stream) {
  while (true) {
    alignas(cmsghdr) char control[128];
    msghdr message = {};
    message.msg_control = control;
    message.msg_controllen = sizeof(control);
    if (recvmsg(streams_[stream].socket, &message, MSG_ERRQUEUE | MSG_DONTWAIT) < 0) {
      if (errno == EINTR) continue;
      return;
    }
    for (cmsghdr* part = CMSG_FIRSTHDR(&message); part != nullptr;
         part = CMSG_NXTHDR(&message, part)) {
      const bool is_error = (part->cmsg_level == SOL_IP && part->cmsg_type == IP_RECVERR) ||
                            (part->cmsg_level == SOL_IPV6 && part->cmsg_type == IPV6_RECVERR);
      if (!is_error) continue;
      sock_extended_err released;
      std::copy_n(CMSG_DATA(part), sizeof(released), reinterpret_cast<unsigned char*>(&released));
      if (released.ee_errno != 0 || released.ee_origin != SO_EE_ORIGIN_ZEROCOPY) continue;
      const std::lock_guard<std::mutex> lock(mutex_);
      Stream& of = streams_[stream];
      // As on loopback, where the receiver would read the sender's pages: asking costs more.
      if ((released.ee_code & SO_EE_CODE_ZEROCOPY_COPIED) != 0) of.zero_copy = false;
      // Calls ee_info to ee_data, which may pass 2^32.
      const uint32_t calls = released.ee_data - released.ee_info;
      for (auto it = of.held.begin(); it != of.held.end();) {
        if (it->first - released.ee_info > calls) {
          ++it;
          continue;
        }
        --it->second->held;
        it = of.held.erase(it);
      }
    }
  }
}

void TcpSender::Turn() {
  Pump(kSegmentsInTurn);
  const std::lock_guard<std::mutex> lock(mutex_);
  if (!pumping_ && CanWrite()) wake_();
}

bool TcpSender::over() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return !ended_.ok() && messages_.empty() && !pumping_;
}

std::optional<std::string> TcpSender::failure() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return failure_;
}

void TcpSender::Pump(int segments) {
  std::unique_lock<std::mutex> lock(mutex_);
  if (pumping_) return;
  pumping_ = true;
  while (true) {
    if (GiveBackFirst(lock)) continue;
    if (!ended_.ok()) break;
    Stream* const stream = NextStream(segments);
    if (stream == nullptr) break;
    Write(*stream, lock);
  }
  pumping_ = false;
}

bool TcpSender::GiveBackFirst(std::unique_lock<std::mutex>& lock) {
  if (messages_.empty()) return false;
  Message& first = messages_.front();
  const bool written = first.written == first.segments;
  if (first.held > 0 || (!written && ended_.ok())) return false;
  for (Stream& stream : streams_) {
    if (stream.message == &first) stream.message = nullptr;
  }
  const absl::Status status = written ? absl::OkStatus() : ended_;
  if (dealt_ > 0) --dealt_;
  StageTransport::Done done = std::move(first.done);
  messages_.pop_front();
  lock.unlock();
  {
    const CallbackScope scope(owner_);
    std::move(done)(status);
    done = nullptr;
  }
  lock.lock();
  return true;
}

TcpSender::Stream* TcpSender::NextStream(int& segments) {
  for (Stream& stream : streams_) {
    if (stream.failed || !stream.writable) continue;
    if (stream.message != nullptr) return &stream;
    if (segments == 0 || dealt_ == messages_.size()) continue;
    --segments;
    Deal(stream);
    return &stream;
  }
  return nullptr;
}

void TcpSender::Deal(Stream& stream) {
  Message& message = messages_[dealt_];
  const SegmentHeader header =
      SegmentHeader::Of(message.number, message.bytes.size(), message.dealt);
  EncodeSegmentHeader(header, absl::MakeSpan(stream.header));
  stream.message = &message;
  stream.payload = message.bytes.subspan(header.offset, header.bytes);
  stream.written = 0;
  if (++message.dealt == message.segments) ++dealt_;
}

bool TcpSender::CanWrite() const {
  return std::any_of(streams_.begin(), streams_.end(), [this](const Stream& stream) {
    return !stream.failed && stream.writable &&
           (stream.message != nullptr || dealt_ < messages_.size());
  });
}

void TcpSender::Write(Stream& stream, std::unique_lock<std::mutex>& lock) {
  const size_t of_header = std::min(stream.written, stream.header.size());
  const absl::Span<const std::byte> payload = stream.payload.subspan(stream.written - of_header);
  const bool zero_copy =
      stream.zero_copy && !stream.copy_next && stream.payload.size() >= kZeroCopyBytes;
  const bool header_left = of_header < stream.header.size();

  // The kernel would hold on to the header too, so that goes before.
  const bool header_alone = zero_copy && header_left;
  const bool asks = zero_copy && !header_left;
  iovec parts[2] = {
      {const_cast<std::byte*>(stream.header.data()) + of_header, stream.header.size() - of_header},
      {const_cast<std::byte*>(payload.data()), payload.size()}};
  msghdr what = {};
  what.msg_iov = header_left ? parts : parts + 1;
  what.msg_iovlen = header_left && !header_alone ? 2 : 1;
  const int flags =
      MSG_NOSIGNAL | MSG_DONTWAIT | (header_alone ? MSG_MORE : 0) | (asks ? MSG_ZEROCOPY : 0);
  Message* const message = stream.message;
  if (asks) {
    // Before the call: the kernel may let go, and the I/O thread hear of it, before it returns.
    stream.held.emplace(stream.next_call, message);
    ++message->held;
  }
  const uint64_t times_writable = stream.times_writable;
  lock.unlock();
  ssize_t written;
  do {
    written = sendmsg(stream.socket, &what, flags);
  } while (written < 0 && errno == EINTR);
  const int error = errno;
  lock.lock();

  if (asks && written > 0) {
    ++stream.next_call;
  } else if (asks) {
    stream.held.erase(stream.next_call);
    --message->held;
  }
  if (written >= 0) {
    stream.copy_next = false;
    stream.written += static_cast<size_t>(written);
    if (stream.written == stream.header.size() + stream.payload.size()) {
      ++message->written;
      stream.message = nullptr;
    }
  } else if (error == EAGAIN || error == EWOULDBLOCK) {
    // Unless there was room again before this thread had the lock.
    if (times_writable == stream.times_writable) stream.writable = false;
  } else if (error == ENOBUFS && asks) {
    stream.copy_next = true;  // more pages are pinned than the system allows
  } else {
    stream.failed = true;
    if (!failure_.has_value()) failure_ = ErrorText(error);
  }
}

}  // namespace fabricast
