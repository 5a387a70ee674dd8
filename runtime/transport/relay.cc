#include "runtime/transport/relay.h"

#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>

#include "runtime/check.h"

namespace fabricast {
namespace {

UniqueFd BlockingSocket(const SocketAddress& of_its_family) {
  UniqueFd fd(socket(of_its_family.get()->sa_family, SOCK_STREAM | SOCK_CLOEXEC, 0));
  FABRICAST_CHECK(fd.valid()) << ErrorText(errno);
  return fd;
}

// Nothing that arrives reaches this socket, acknowledgements included; what it sends does not
// matter then. Packets start with 64 hops to go by default, and are to have 255.
void DropAllThatArrives(int socket) {
  const int hops = 255;
  FABRICAST_CHECK(setsockopt(socket, IPPROTO_IP, IP_MINTTL, &hops, sizeof(hops)) == 0)
      << ErrorText(errno);
}

}  // namespace

Relay::Relay(const std::string& target) : target_(SocketAddress::Parse(target).value()) {
  listener_ = BlockingSocket(target_);
  const SocketAddress any = SocketAddress::FromIp("127.0.0.1", 0).value();
  FABRICAST_CHECK(bind(listener_.get(), any.get(), any.size()) == 0) << ErrorText(errno);
  FABRICAST_CHECK(listen(listener_.get(), 64) == 0) << ErrorText(errno);
  address_ = SocketAddress::OfSocket(listener_.get()).ToString();
  acceptor_ = std::thread([this] { Accept(); });
}

Relay::~Relay() {
  EndAll(/*reset=*/true);
  shutdown(listener_.get(), SHUT_RDWR);
  acceptor_.join();
  for (const std::unique_ptr<Pipe>& pipe : pipes_) {
    pipe->there.join();
    pipe->back.join();
  }
}

void Relay::Reset() { EndAll(/*reset=*/true); }
void Relay::Finish() { EndAll(/*reset=*/false); }

void Relay::Cut() {
  const std::lock_guard<std::mutex> lock(mutex_);
  allowance_ = 0;
  for (const std::unique_ptr<Pipe>& pipe : pipes_) {
    DropAllThatArrives(pipe->near.get());
    DropAllThatArrives(pipe->far.get());
  }
}

void Relay::StopAfter(int64_t bytes) { allowance_ = bytes; }

void Relay::WaitUntilStopped() {
  while (allowance_ > 0) std::this_thread::yield();
}

void Relay::EndAll(bool reset) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (ended_) return;
  ended_ = true;
  for (const std::unique_ptr<Pipe>& pipe : pipes_) {
    for (const int socket : {pipe->near.get(), pipe->far.get()}) {
      if (reset) ResetConnection(socket);
      shutdown(socket, SHUT_RDWR);
    }
  }
}

void Relay::Accept() {
  while (true) {
    UniqueFd near(accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC));
    if (!near.valid()) return;
    UniqueFd far = BlockingSocket(target_);
    if (connect(far.get(), target_.get(), target_.size()) != 0) continue;
    SetNoDelay(near.get());
    SetNoDelay(far.get());
    const std::lock_guard<std::mutex> lock(mutex_);
    if (ended_) continue;
    pipes_.push_back(std::make_unique<Pipe>());
    Pipe& pipe = *pipes_.back();
    pipe.near = std::move(near);
    pipe.far = std::move(far);
    pipe.there = std::thread([this, &pipe] { Copy(pipe.near.get(), pipe.far.get()); });
    pipe.back = std::thread([this, &pipe] { Copy(pipe.far.get(), pipe.near.get()); });
  }
}

void Relay::Copy(int from, int to) {
  std::vector<char> buffer(64 << 10);
  while (true) {
    const ssize_t got = recv(from, buffer.data(), buffer.size(), 0);
    if (got <= 0) break;
    const int64_t pass = std::clamp<int64_t>(allowance_.fetch_sub(got), 0, got);
    for (int64_t sent = 0; sent < pass;) {
      const ssize_t more = send(to, buffer.data() + sent, pass - sent, MSG_NOSIGNAL);
      if (more <= 0) return;
      sent += more;
    }
    if (pass == got) continue;
    // Holds what it has, and reads no more, until all ends.
    pollfd end = {.fd = from, .events = POLLRDHUP, .revents = 0};
    while (poll(&end, 1, -1) < 0) {
    }
    return;
  }
  shutdown(to, SHUT_WR);
}

}  // namespace fabricast
