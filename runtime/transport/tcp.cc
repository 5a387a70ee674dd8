#include "runtime/transport/tcp.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <deque>
#include <mutex>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "runtime/check.h"
#include "runtime/transport/tcp_handshake.h"
#include "runtime/transport/tcp_link.h"
#include "runtime/transport/tcp_socket.h"
#include "runtime/transport/tcp_transport.h"

namespace fabricast {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kMostStreams = 16;
// Connections that have not proved the secret yet. One more takes the place of the oldest, so that
// a crowd of silent ones cannot keep a stage out, which needs two round trips only.
constexpr size_t kMostGuests = 64;
// A handshake that takes longer is given up; a dialler begins another.
constexpr std::chrono::seconds kHandshakeTime{5};
// Between attempts to dial: first and, doubling, last.
constexpr std::chrono::milliseconds kFirstPause{10};
constexpr std::chrono::milliseconds kLastPause{320};
// When the system has no descriptor for who dials.
constexpr std::chrono::milliseconds kPauseWithoutDescriptors{100};
constexpr int kBacklog = 256;

// A connection and the handshake on it.
class Conversation {
 public:
  Conversation(UniqueFd socket, std::unique_ptr<Handshake> handshake)
      : socket_(std::move(socket)), handshake_(std::move(handshake)) {}

  int socket() const { return socket_.get(); }
  bool agreed() const { return handshake_->wanted() == 0; }
  UniqueFd TakeSocket() { return std::move(socket_); }

  absl::Status Say(absl::string_view bytes) {
    // A fresh connection has room for all that a handshake says.
    const ssize_t sent =
        send(socket_.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent == static_cast<ssize_t>(bytes.size())) return absl::OkStatus();
    return absl::UnavailableError(sent < 0 ? ErrorText(errno) : "the connection is stuck");
  }

  // Reads what has come, never beyond the handshake, and answers.
  absl::Status Listen() {
    while (!agreed()) {
      const size_t wanted = handshake_->wanted();
      const ssize_t got = recv(socket_.get(), bytes_.data() + have_, wanted - have_, MSG_DONTWAIT);
      if (got < 0 && errno == EINTR) continue;
      if (got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) return absl::OkStatus();
      if (got < 0) return absl::UnavailableError(ErrorText(errno));
      if (got == 0) return absl::UnavailableError("it hung up during the handshake");
      have_ += static_cast<size_t>(got);
      if (have_ < wanted) continue;
      have_ = 0;
      std::string reply;
      const absl::Status taken = handshake_->Take(absl::string_view(bytes_.data(), wanted), &reply);
      const absl::Status said = reply.empty() ? absl::OkStatus() : Say(reply);
      if (!taken.ok()) return taken;
      if (!said.ok()) return said;
    }
    return absl::OkStatus();
  }

 private:
  UniqueFd socket_;
  std::unique_ptr<Handshake> handshake_;
  std::array<char, Handshake::kMostWanted> bytes_;
  size_t have_ = 0;
};

// The connections of one link, as they come.
struct Joining {
  std::string address;
  std::vector<UniqueFd> sockets;  // control first; invalid while missing
  std::string trouble;            // the last
  bool complete() const {
    return std::all_of(sockets.begin(), sockets.end(),
                       [](const UniqueFd& socket) { return socket.valid(); });
  }
};

// One connection to a higher stage, however often it must be dialled.
struct Dialling {
  int peer = 0;
  int stream = 0;
  SocketAddress address;
  // Neither: waits until `next`. Only the first: connecting. Only the second: shaking hands.
  UniqueFd connecting;
  std::unique_ptr<Conversation> conversation;
  Clock::time_point next;  // to dial, or to give up
  Clock::duration pause = kFirstPause;
};

// A connection from somebody.
struct Guest {
  std::unique_ptr<Conversation> conversation;
  const Acceptor* acceptor = nullptr;  // the conversation's
  std::string address;
  Clock::time_point give_up;
};

// One call of Connect: a loop over all connections that are to be.
class Gathering {
 public:
  Gathering(int listener, int abort, const SharedSecret& secret, const TcpOptions& options,
            const TcpGroup& group)
      : listener_(listener),
        abort_(abort),
        secret_(secret),
        // One for the control stream.
        connections_(options.streams + 1),
        group_(group) {}

  absl::Status Prepare();
  absl::Status Run(Clock::time_point deadline);
  std::map<int, Joining>& links() { return links_; }

 private:
  bool Complete() const {
    return std::all_of(links_.begin(), links_.end(),
                       [](const auto& link) { return link.second.complete(); });
  }
  absl::Status Missing() const;
  bool WaitUntil(Clock::time_point deadline);  // false if aborted

  void Dial(Dialling& dialling, Clock::time_point now);
  void Begin(Dialling& dialling);
  void Advance(Dialling& dialling, Clock::time_point now);
  void GiveUp(Dialling& dialling, const std::string& why, Clock::time_point now);
  void Accept(Clock::time_point now);
  // False if the guest has gone, in peace or not.
  bool Advance(Guest& guest, Clock::time_point now);
  void Blame(const Guest& guest, absl::string_view why);

  const int listener_;
  const int abort_;
  const SharedSecret& secret_;
  const int connections_;
  const TcpGroup& group_;
  std::map<int, Joining> links_;
  std::vector<Dialling> diallings_;
  std::deque<Guest> guests_;  // the oldest first
  Clock::time_point listen_again_;
  std::string stranger_;  // who dialled last without saying which of our peers it is

  // Of the last WaitUntil: which of the sockets has something.
  std::vector<pollfd> polled_;
  bool Ready(int socket) const {
    return std::any_of(polled_.begin(), polled_.end(), [socket](const pollfd& polled) {
      return polled.fd == socket && polled.revents != 0;
    });
  }
};

absl::Status Gathering::Prepare() {
  for (const auto& [peer, text] : group_.peers) {
    if (peer == group_.stage || peer < 0) {
      return absl::InvalidArgumentError(
          absl::StrCat("stage ", group_.stage, " cannot have a link with stage ", peer));
    }
    absl::StatusOr<SocketAddress> address = SocketAddress::Parse(text);
    if (!address.ok()) {
      return absl::InvalidArgumentError(
          absl::StrCat("stage ", peer, ": ", address.status().message()));
    }
    Joining& joining = links_[peer];
    joining.address = text;
    joining.sockets.resize(connections_);
    joining.trouble = peer > group_.stage ? "no answer" : "it has not dialled";
    if (peer < group_.stage) continue;
    for (int stream = 0; stream < connections_; ++stream) {
      Dialling& dialling = diallings_.emplace_back();
      dialling.peer = peer;
      dialling.stream = stream;
      dialling.address = *address;
    }
  }
  return absl::OkStatus();
}

absl::Status Gathering::Run(Clock::time_point deadline) {
  while (true) {
    Clock::time_point now = Clock::now();
    for (Dialling& dialling : diallings_) {
      if (dialling.next <= now) Dial(dialling, now);
    }
    if (Complete()) return absl::OkStatus();
    if (now >= deadline) return Missing();
    if (!WaitUntil(deadline)) {
      return absl::CancelledError(
          absl::StrCat("stage ", group_.stage, " was told to stop joining its peers"));
    }
    now = Clock::now();
    for (Dialling& dialling : diallings_) Advance(dialling, now);
    for (size_t i = 0; i < guests_.size();) {
      if (Advance(guests_[i], now)) {
        ++i;
      } else {
        guests_.erase(guests_.begin() + static_cast<std::ptrdiff_t>(i));
      }
    }
    if (Ready(listener_)) Accept(now);
  }
}

bool Gathering::WaitUntil(Clock::time_point deadline) {
  const Clock::time_point now = Clock::now();
  polled_.clear();
  polled_.push_back({.fd = abort_, .events = POLLIN, .revents = 0});
  if (now >= listen_again_) {
    polled_.push_back({.fd = listener_, .events = POLLIN, .revents = 0});
  } else {
    deadline = std::min(deadline, listen_again_);
  }
  for (const Dialling& dialling : diallings_) {
    if (dialling.connecting.valid()) {
      polled_.push_back({.fd = dialling.connecting.get(), .events = POLLOUT, .revents = 0});
    } else if (dialling.conversation != nullptr) {
      polled_.push_back({.fd = dialling.conversation->socket(), .events = POLLIN, .revents = 0});
    }
    deadline = std::min(deadline, dialling.next);
  }
  for (const Guest& guest : guests_) {
    polled_.push_back({.fd = guest.conversation->socket(), .events = POLLIN, .revents = 0});
    deadline = std::min(deadline, guest.give_up);
  }
  const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline - now).count();
  const int count = poll(polled_.data(), polled_.size(),
                         static_cast<int>(std::clamp<int64_t>(left, 0, 3'600'000)));
  if (count <= 0) {
    FABRICAST_CHECK(count == 0 || errno == EINTR || errno == ENOMEM) << ErrorText(errno);
    for (pollfd& polled : polled_) polled.revents = 0;
  }
  return polled_[0].revents == 0;
}

void Gathering::Dial(Dialling& dialling, Clock::time_point now) {
  if (dialling.connecting.valid() || dialling.conversation != nullptr) {
    return GiveUp(dialling,
                  dialling.connecting.valid()
                      ? "no answer"
                      : "something listens there, but is not joining this pipeline",
                  now);
  }
  absl::StatusOr<UniqueFd> socket = NewTcpSocket(dialling.address);
  if (!socket.ok()) return GiveUp(dialling, std::string(socket.status().message()), now);
  dialling.next = now + kHandshakeTime;
  dialling.connecting = *std::move(socket);
  if (connect(dialling.connecting.get(), dialling.address.get(), dialling.address.size()) == 0) {
    return Begin(dialling);
  }
  if (errno != EINPROGRESS && errno != EINTR) GiveUp(dialling, ErrorText(errno), now);
}

// It is connected.
void Gathering::Begin(Dialling& dialling) {
  const StreamClaim claim = {.from = group_.stage,
                             .to = dialling.peer,
                             .stream = dialling.stream,
                             .streams = connections_};
  auto dialler = std::make_unique<Dialler>(secret_, group_.session, claim, RandomNonce());
  const std::string hello = dialler->hello();
  dialling.conversation =
      std::make_unique<Conversation>(std::move(dialling.connecting), std::move(dialler));
  if (absl::Status status = dialling.conversation->Say(hello); !status.ok()) {
    GiveUp(dialling, std::string(status.message()), Clock::now());
  }
}

void Gathering::Advance(Dialling& dialling, Clock::time_point now) {
  if (dialling.connecting.valid()) {
    if (!Ready(dialling.connecting.get())) return;
    int error = 0;
    socklen_t size = sizeof(error);
    getsockopt(dialling.connecting.get(), SOL_SOCKET, SO_ERROR, &error, &size);
    if (error != 0) return GiveUp(dialling, ErrorText(error), now);
    return Begin(dialling);
  }
  if (dialling.conversation == nullptr || !Ready(dialling.conversation->socket())) return;
  const absl::Status status = dialling.conversation->Listen();
  if (!status.ok()) return GiveUp(dialling, std::string(status.message()), now);
  if (!dialling.conversation->agreed()) return;
  links_[dialling.peer].sockets[dialling.stream] = dialling.conversation->TakeSocket();
  dialling.conversation.reset();
  dialling.next = Clock::time_point::max();
}

void Gathering::GiveUp(Dialling& dialling, const std::string& why, Clock::time_point now) {
  links_[dialling.peer].trouble = why;
  dialling.connecting.Reset();
  dialling.conversation.reset();
  dialling.next = now + dialling.pause;
  dialling.pause = std::min<Clock::duration>(2 * dialling.pause, kLastPause);
}

void Gathering::Accept(Clock::time_point now) {
  // A few at a time, so that guests are heard between them.
  for (size_t i = 0; i < kMostGuests / 2; ++i) {
    UniqueFd socket(accept4(listener_, nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC));
    if (!socket.valid()) {
      const bool none_left =
          errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM;
      if (none_left) listen_again_ = now + kPauseWithoutDescriptors;
      if (errno == EAGAIN || errno == EWOULDBLOCK || none_left) return;
      continue;  // that one has gone again
    }
    if (guests_.size() == kMostGuests) {
      Blame(guests_.front(), "too many dialled at once");
      guests_.pop_front();
    }
    Guest& guest = guests_.emplace_back();
    guest.address = SocketAddress::OfPeer(socket.get()).ToString();
    auto acceptor = std::make_unique<Acceptor>(
        secret_,
        Acceptor::Expected{.session = group_.session,
                           .stage = group_.stage,
                           .streams = connections_,
                           .may_dial =
                               [this](int stage) {
                                 return stage < group_.stage && group_.peers.count(stage) > 0;
                               }},
        RandomNonce());
    guest.acceptor = acceptor.get();
    guest.conversation = std::make_unique<Conversation>(std::move(socket), std::move(acceptor));
    guest.give_up = now + kHandshakeTime;
  }
}

bool Gathering::Advance(Guest& guest, Clock::time_point now) {
  if (Ready(guest.conversation->socket())) {
    const absl::Status status = guest.conversation->Listen();
    if (!status.ok()) {
      Blame(guest, std::string(status.message()));
      return false;
    }
    if (guest.conversation->agreed()) {
      const StreamClaim& claim = *guest.acceptor->claim();
      // It dials again only if it has given up what it had before.
      links_[claim.from].sockets[claim.stream] = guest.conversation->TakeSocket();
      links_[claim.from].address = guest.address;
      return false;
    }
  }
  if (now < guest.give_up) return true;
  Blame(guest, "it fell silent during the handshake");
  return false;
}

// Whoever it was: nothing but its own word says which stage it is.
void Gathering::Blame(const Guest& guest, absl::string_view why) {
  const std::optional<StreamClaim>& claim = guest.acceptor->claim();
  const auto link = claim.has_value() ? links_.find(claim->from) : links_.end();
  if (link == links_.end() || link->first > group_.stage) {
    stranger_ = absl::StrCat("; somebody dialled from ", guest.address, ", but ", why);
  } else {
    link->second.trouble = absl::StrCat("it dialled from ", guest.address, ", but ", why);
  }
}

absl::Status Gathering::Missing() const {
  std::vector<std::string> missing;
  for (const auto& [peer, link] : links_) {
    if (link.complete()) continue;
    missing.push_back(absl::StrCat("stage ", peer, " (", link.address, "): ", link.trouble));
  }
  return absl::DeadlineExceededError(absl::StrCat("stage ", group_.stage, " is not joined to ",
                                                  absl::StrJoin(missing, "; "), stranger_));
}

class TcpEndpointImpl : public TcpEndpoint {
 public:
  TcpEndpointImpl(UniqueFd listener, UniqueFd abort, SharedSecret secret, const TcpOptions& options)
      : listener_(std::move(listener)),
        abort_(std::move(abort)),
        secret_(std::move(secret)),
        options_(options),
        address_(SocketAddress::OfSocket(listener_.get()).ToString()) {}

  const std::string& address() const override { return address_; }

  absl::StatusOr<std::unique_ptr<StageTransport>> Connect(const TcpGroup& group,
                                                          absl::Time deadline) override {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      FABRICAST_CHECK(!connecting_) << "two calls of Connect at once on " << address_;
      connecting_ = true;
    }
    Gathering gathering(listener_.get(), abort_.get(), secret_, options_, group);
    absl::Status status = gathering.Prepare();
    if (status.ok()) {
      // Not for ever, which the clock could not add up.
      const absl::Duration left =
          std::clamp(deadline - absl::Now(), absl::ZeroDuration(), absl::Hours(24 * 365));
      status = gathering.Run(Clock::now() + absl::ToChronoNanoseconds(left));
    }
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      connecting_ = false;
      uint64_t times;
      (void)!read(abort_.get(), &times, sizeof(times));
    }
    if (!status.ok()) return status;
    std::vector<TcpLink::Setup> links;
    for (auto& [peer, joining] : gathering.links()) {
      links.push_back({.stage = group.stage,
                       .peer = peer,
                       .peer_address = joining.address,
                       .sockets = std::move(joining.sockets),
                       .dead_after = options_.dead_after,
                       .on_broken = group.on_broken});
    }
    return MakeTcpTransport(group.stage, std::move(links));
  }

  void Abort() override {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!connecting_) return;
    const uint64_t one = 1;
    (void)!write(abort_.get(), &one, sizeof(one));
  }

 private:
  const UniqueFd listener_;
  const UniqueFd abort_;
  const SharedSecret secret_;
  const TcpOptions options_;
  const std::string address_;
  std::mutex mutex_;
  bool connecting_ = false;
};

}  // namespace

absl::StatusOr<std::unique_ptr<TcpEndpoint>> TcpEndpoint::Listen(const std::string& ip, int port,
                                                                 SharedSecret secret,
                                                                 const TcpOptions& options) {
  if (options.streams < 1 || options.streams > kMostStreams) {
    return absl::InvalidArgumentError(
        absl::StrCat(options.streams, " streams a link: give 1 to ", kMostStreams));
  }
  if (options.dead_after < absl::Seconds(1) || options.dead_after > absl::Hours(24)) {
    return absl::InvalidArgumentError(absl::StrCat("a peer dead after ",
                                                   absl::FormatDuration(options.dead_after),
                                                   ": give a second to a day"));
  }
  const absl::StatusOr<SocketAddress> address = SocketAddress::FromIp(ip, port);
  if (!address.ok()) return address.status();
  absl::StatusOr<UniqueFd> listener = NewTcpSocket(*address);
  if (!listener.ok()) return listener.status();
  UniqueFd abort(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  // A stage that is started again may have the same port, though connections to it are still
  // ending.
  const int on = 1;
  setsockopt(listener->get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
  if (!abort.valid() || bind(listener->get(), address->get(), address->size()) != 0 ||
      listen(listener->get(), kBacklog) != 0) {
    const int error = errno;
    const std::string mend = error == EADDRNOTAVAIL ? "; give an address of this machine"
                             : error == EADDRINUSE  ? "; give another port, or 0 for any"
                                                    : "";
    return absl::UnavailableError(
        absl::StrCat("cannot listen on ", address->ToString(), ": ", ErrorText(error), mend));
  }
  return std::make_unique<TcpEndpointImpl>(*std::move(listener), std::move(abort),
                                           std::move(secret), options);
}

}  // namespace fabricast
