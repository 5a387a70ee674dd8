#include "runtime/transport/tcp_receiver.h"

#include <sys/socket.h>
#include <sys/uio.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "runtime/transport/callback_scope.h"
#include "runtime/transport/tcp_socket.h"

namespace fabricast {
namespace {

// Of one stream in one turn: others have something too.
constexpr size_t kBytesInTurn = size_t{8} << 20;
// How far a stream may be ahead of the posted buffers. That many headers alone are 512 MiB: no
// sockets hold them, so the number was never sent.
constexpr uint64_t kMessagesAhead = uint64_t{1} << 24;

}  // namespace

TcpReceiver::TcpReceiver(const std::vector<int>& sockets, std::string peer, const void* owner,
                         std::function<void()> wake)
    : peer_(std::move(peer)), owner_(owner), wake_(std::move(wake)) {
  for (const int socket : sockets) streams_.push_back({.socket = socket, .missing = {}});
}

absl::Status TcpReceiver::Receive(absl::Span<std::byte> buffer, StageTransport::Done done) {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!ended_.ok()) return ended_;
    posted_.push_back({buffer, std::move(done), SegmentTally(buffer.size())});
    if (!waiting_) return absl::OkStatus();
  }
  wake_();
  return absl::OkStatus();
}

void TcpReceiver::End(absl::Status status) {
  const std::lock_guard<std::mutex> lock(mutex_);
  ended_ = std::move(status);
  stop_ = true;
}

void TcpReceiver::StreamReadable(size_t stream, bool hung_up) {
  streams_[stream].readable = true;
  streams_[stream].hung_up |= hung_up;
}

std::optional<TcpReceiver::Offence> TcpReceiver::Turn() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    waiting_ = false;
  }
  for (Stream& stream : streams_) {
    if (std::optional<Offence> offence = ReadStream(stream)) return offence;
  }
  return std::nullopt;
}

void TcpReceiver::GiveBack() {
  std::unique_lock<std::mutex> lock(mutex_);
  if (ended_.ok()) return;
  giving_ = true;
  for (Stream& stream : streams_) stream.into = nullptr;
  while (!posted_.empty()) {
    StageTransport::Done done = std::move(posted_.front().done);
    posted_.pop_front();
    lock.unlock();
    {
      const CallbackScope scope(owner_);
      std::move(done)(ended_);
      done = nullptr;
    }
    lock.lock();
  }
  giving_ = false;
}

bool TcpReceiver::over() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return !ended_.ok() && posted_.empty() && !giving_;
}

std::optional<TcpReceiver::Offence> TcpReceiver::ReadStream(Stream& stream) {
  size_t budget = kBytesInTurn;
  while (!stop_) {
    bool waits = false;
    if (std::optional<Offence> offence = UseStaged(stream, waits)) return offence;
    if (waits || stop_ || stream.failed || !stream.readable) break;
    if (budget == 0) {
      wake_();
      break;
    }
    ReadSome(stream, budget);
  }
  return std::nullopt;
}

std::optional<TcpReceiver::Offence> TcpReceiver::UseStaged(Stream& stream, bool& waits) {
  while (!stop_) {
    if (stream.into != nullptr) {
      const size_t bytes = std::min(stream.end - stream.begin, stream.missing.size());
      if (bytes > 0) {
        std::memcpy(stream.missing.data(), &stream.staged[stream.begin], bytes);
        stream.begin += bytes;
        stream.missing.remove_prefix(bytes);
      }
      if (!stream.missing.empty()) break;
      stream.into->tally.End();
      stream.into = nullptr;
      GiveFinished();
    } else if (stream.end - stream.begin >= SegmentHeader::kBytes) {
      const absl::StatusOr<SegmentHeader> header = DecodeSegmentHeader(
          absl::MakeConstSpan(stream.staged).subspan(stream.begin, SegmentHeader::kBytes));
      if (!header.ok()) return Broken(std::string(header.status().message()));
      if (std::optional<Offence> offence = Place(stream, *header, waits)) return offence;
      if (waits) break;
      stream.begin += SegmentHeader::kBytes;
    } else {
      break;
    }
  }
  return std::nullopt;
}

std::optional<TcpReceiver::Offence> TcpReceiver::Place(Stream& stream, const SegmentHeader& header,
                                                       bool& waits) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (header.message < first_) {
    return Broken(absl::StrCat("message ", header.message, " came again"));
  }
  const uint64_t index = header.message - first_;
  if (index >= posted_.size()) {
    if (index > kMessagesAhead) {
      return Broken(absl::StrCat("message ", header.message, " came when ", first_, " was next"));
    }
    waits = waiting_ = true;
    return std::nullopt;
  }
  Posted& posted = posted_[index];
  if (header.message_bytes != posted.buffer.size()) {
    return Offence{absl::InvalidArgumentError(
                       absl::StrCat(peer_, ": a message of ", header.message_bytes,
                                    " bytes came where ", posted.buffer.size(), " were expected")),
                   {Farewell::Reason::kWrongLength, header.message_bytes, posted.buffer.size()}};
  }
  if (!posted.tally.Begin(header)) {
    return Broken(absl::StrCat("message ", header.message, ": the segment from ", header.offset,
                               " came again"));
  }
  stream.into = &posted;
  stream.missing = posted.buffer.subspan(header.offset, header.bytes);
  return std::nullopt;
}

void TcpReceiver::ReadSome(Stream& stream, size_t& budget) {
  // At most a part of a header is left.
  std::memmove(stream.staged.data(), &stream.staged[stream.begin], stream.end - stream.begin);
  stream.end -= stream.begin;
  stream.begin = 0;
  const size_t missing = stream.into != nullptr ? stream.missing.size() : 0;
  iovec parts[2] = {{stream.missing.data(), missing},
                    {stream.staged.data() + stream.end, stream.staged.size() - stream.end}};
  msghdr what = {};
  what.msg_iov = missing > 0 ? parts : parts + 1;
  what.msg_iovlen = missing > 0 ? 2 : 1;
  const ssize_t got = recvmsg(stream.socket, &what, MSG_DONTWAIT);
  if (got < 0) {
    if (errno == EINTR) return;
    if (errno != EAGAIN && errno != EWOULDBLOCK) return Fail(stream, ErrorText(errno));
    stream.readable = false;
    return;
  }
  if (got == 0) return Fail(stream, "the connection was closed");
  const size_t bytes = static_cast<size_t>(got);
  const size_t direct = std::min(bytes, missing);
  stream.missing.remove_prefix(direct);
  stream.end += bytes - direct;
  budget -= std::min(budget, bytes);
  // Less than was asked for is all there is (epoll(7)), but for the stream's end.
  if (bytes < parts[1].iov_len + missing && !stream.hung_up) stream.readable = false;
}

void TcpReceiver::GiveFinished() {
  std::unique_lock<std::mutex> lock(mutex_);
  while (!posted_.empty() && posted_.front().tally.complete()) {
    StageTransport::Done done = std::move(posted_.front().done);
    posted_.pop_front();
    ++first_;
    giving_ = true;
    lock.unlock();
    {
      const CallbackScope scope(owner_);
      std::move(done)(absl::OkStatus());
      done = nullptr;
    }
    lock.lock();
    giving_ = false;
  }
}

void TcpReceiver::Fail(Stream& stream, std::string why) {
  stream.failed = true;
  if (!failure_.has_value()) failure_ = std::move(why);
}

TcpReceiver::Offence TcpReceiver::Broken(const std::string& why) const {
  return {absl::UnavailableError(absl::StrCat(peer_, " sent what no stage sends: ", why)),
          {Farewell::Reason::kBroken, 0, 0}};
}

}  // namespace fabricast
