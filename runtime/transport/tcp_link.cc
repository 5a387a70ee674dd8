#include "runtime/transport/tcp_link.h"

#include <sys/epoll.h>
#include <sys/socket.h>

#include <cerrno>
#include <utility>

#include "absl/strings/str_cat.h"
#include "runtime/check.h"
#include "runtime/transport/callback_scope.h"

namespace fabricast {
namespace {

std::vector<int> DataSockets(const std::vector<UniqueFd>& sockets) {
  FABRICAST_CHECK(sockets.size() >= 2) << sockets.size();
  std::vector<int> data;
  for (size_t i = 1; i < sockets.size(); ++i) data.push_back(sockets[i].get());
  return data;
}

}  // namespace

TcpLink::TcpLink(Setup setup, const void* owner, std::function<void()> wake)
    : stage_(setup.stage),
      peer_(setup.peer),
      peer_name_(absl::StrCat("stage ", setup.peer, " (", setup.peer_address, ")")),
      dead_after_(setup.dead_after),
      on_broken_(std::move(setup.on_broken)),
      owner_(owner),
      wake_(std::move(wake)),
      sockets_(std::move(setup.sockets)),
      sender_(DataSockets(sockets_), owner, wake_),
      receiver_(DataSockets(sockets_), peer_name_, owner, wake_) {
  for (const UniqueFd& socket : sockets_) SetNoDelay(socket.get());
  WatchPeer(sockets_[0].get(), dead_after_);
}

absl::Status TcpLink::Send(absl::Span<const std::byte> bytes, StageTransport::Done done) {
  return sender_.Send(bytes, std::move(done));
}

absl::Status TcpLink::Receive(absl::Span<std::byte> buffer, StageTransport::Done done) {
  return receiver_.Receive(buffer, std::move(done));
}

void TcpLink::Close() {
  End(absl::CancelledError(absl::StrCat("the link of stages ", stage_, " and ", peer_,
                                        " was closed by stage ", stage_)),
      Farewell{}, /*broken=*/false);
  wake_();
}

void TcpLink::OnEvents(size_t socket, uint32_t events) {
  if (socket == 0) {
    control_readable_ = true;
    return;
  }
  const size_t stream = socket - 1;
  // EPOLLERR alone is no failure: the kernel has let go of pages.
  const bool hung_up = (events & (EPOLLRDHUP | EPOLLHUP)) != 0;
  if ((events & EPOLLERR) != 0) sender_.StreamReleased(stream);
  if (hung_up || (events & (EPOLLOUT | EPOLLERR)) != 0) sender_.StreamWritable(stream);
  if (hung_up || (events & (EPOLLIN | EPOLLERR)) != 0) receiver_.StreamReadable(stream, hung_up);
}

void TcpLink::Service(Clock::time_point now) {
  sender_.Turn();
  if (!ended()) {
    if (const std::optional<TcpReceiver::Offence> offence = receiver_.Turn()) {
      End(offence->status, offence->farewell, /*broken=*/true);
    }
  }
  if (!ended() && control_readable_) ReadControl();
  if (!ended()) CheckStreams(now);
  if (ended()) {
    TellBroken();
    receiver_.GiveBack();
    sender_.Turn();
  }
}

std::optional<TcpLink::Clock::time_point> TcpLink::deadline() const {
  return ended() ? std::nullopt : patience_ends_;
}

bool TcpLink::over() const { return ended() && sender_.over() && receiver_.over(); }

void TcpLink::End(const absl::Status& status, const std::optional<Farewell>& farewell,
                  bool broken) {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (ended_) return;
    ended_ = true;
    if (broken) untold_ = status;
  }
  sender_.End(status);
  receiver_.End(status);
  const int control = sockets_[0].get();
  if (farewell.has_value()) {
    std::array<std::byte, Farewell::kBytes> bytes;
    EncodeFarewell(*farewell, absl::MakeSpan(bytes));
    // It is the first that this stream sends, so there is room.
    (void)send(control, bytes.data(), bytes.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
  }
  shutdown(control, SHUT_WR);
  for (size_t i = 1; i < sockets_.size(); ++i) ResetConnection(sockets_[i].get());
}

void TcpLink::ReadControl() {
  while (true) {
    const ssize_t got = recv(sockets_[0].get(), control_.data() + control_bytes_,
                             control_.size() - control_bytes_, MSG_DONTWAIT);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
      control_readable_ = false;
      return;
    }
    if (got < 0) return End(Gone(ErrorText(errno)), std::nullopt, /*broken=*/true);
    if (got == 0) return End(Gone("it went without a farewell"), std::nullopt, /*broken=*/true);
    control_bytes_ += static_cast<size_t>(got);
    if (control_bytes_ == control_.size()) break;
  }
  const absl::StatusOr<Farewell> farewell = DecodeFarewell(control_);
  absl::Status status;
  if (!farewell.ok()) {
    status = absl::UnavailableError(absl::StrCat(peer_name_, ": ", farewell.status().message()));
  } else if (farewell->reason == Farewell::Reason::kClosed) {
    status = absl::CancelledError(absl::StrCat("the link of stages ", stage_, " and ", peer_,
                                               " was closed by stage ", peer_));
  } else if (farewell->reason == Farewell::Reason::kWrongLength) {
    status = absl::UnavailableError(absl::StrCat(peer_name_, " ended the link: a message of ",
                                                 farewell->came, " bytes came where ",
                                                 farewell->expected, " were expected"));
  } else {
    status = absl::UnavailableError(
        absl::StrCat(peer_name_, " ended the link: what came there was broken"));
  }
  End(status, std::nullopt, /*broken=*/true);
}

// A data stream that fails was reset by its peer, which says why on the control stream, or whose
// end shows there; or it failed alone.
void TcpLink::CheckStreams(Clock::time_point now) {
  std::optional<std::string> failure = receiver_.failure();
  if (!failure.has_value()) failure = sender_.failure();
  if (!failure.has_value()) return;
  if (!patience_ends_.has_value()) patience_ends_ = now + absl::ToChronoNanoseconds(dead_after_);
  if (now < *patience_ends_) return;
  End(Gone(absl::StrCat("a stream failed: ", *failure)), Farewell{Farewell::Reason::kBroken, 0, 0},
      /*broken=*/true);
}

void TcpLink::TellBroken() {
  std::optional<absl::Status> status;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    status.swap(untold_);
  }
  if (!status.has_value() || on_broken_ == nullptr) return;
  const CallbackScope scope(owner_);
  on_broken_(peer_, *status);
}

bool TcpLink::ended() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return ended_;
}

absl::Status TcpLink::Gone(absl::string_view why) const {
  return absl::UnavailableError(absl::StrCat(peer_name_, " is gone: ", why));
}

}  // namespace fabricast
