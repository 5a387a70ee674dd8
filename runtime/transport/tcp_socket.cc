#include "runtime/transport/tcp_socket.h"

#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <system_error>

#include "absl/status/status.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "runtime/check.h"

namespace fabricast {
namespace {

void SetOption(int socket, int level, int option, int value) {
  // It fails only for options that do not exist, or for a connection that has just died.
  (void)setsockopt(socket, level, option, &value, sizeof(value));
}

}  // namespace

UniqueFd& UniqueFd::operator=(UniqueFd&& other) {
  if (this != &other) {
    Reset();
    fd_ = other.fd_;
    other.fd_ = -1;
  }
  return *this;
}

void UniqueFd::Reset() {
  if (fd_ >= 0) close(fd_);
  fd_ = -1;
}

absl::StatusOr<SocketAddress> SocketAddress::Parse(absl::string_view text) {
  const size_t colon = text.rfind(':');
  int port = 0;
  if (colon == absl::string_view::npos || !absl::SimpleAtoi(text.substr(colon + 1), &port)) {
    return absl::InvalidArgumentError(
        absl::StrCat("address '", text, "': give it as 10.0.0.2:41234 or [::1]:41234"));
  }
  absl::string_view ip = text.substr(0, colon);
  if (ip.size() >= 2 && ip.front() == '[' && ip.back() == ']') {
    ip = ip.substr(1, ip.size() - 2);
  } else if (ip.find(':') != absl::string_view::npos) {
    return absl::InvalidArgumentError(
        absl::StrCat("address '", text, "': write an IPv6 address in brackets, [::1]:41234"));
  }
  return FromIp(std::string(ip), port);
}

absl::StatusOr<SocketAddress> SocketAddress::FromIp(const std::string& ip, int port) {
  if (port < 0 || port > 65535) {
    return absl::InvalidArgumentError(absl::StrCat("port ", port, ": ports are 0 to 65535"));
  }
  addrinfo hints = {};
  hints.ai_family = AF_UNSPEC;
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_NUMERICHOST | AI_NUMERICSERV;
  addrinfo* found = nullptr;
  if (ip.empty() || ip.find('\0') != std::string::npos ||
      getaddrinfo(ip.c_str(), std::to_string(port).c_str(), &hints, &found) != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("'", ip, "' is no IP address: give it as 10.0.0.2 or ::1"));
  }
  SocketAddress address;
  std::memcpy(&address.storage_, found->ai_addr, found->ai_addrlen);
  address.size_ = found->ai_addrlen;
  freeaddrinfo(found);
  return address;
}

SocketAddress SocketAddress::OfSocket(int socket) {
  SocketAddress address;
  address.size_ = sizeof(address.storage_);
  if (getsockname(socket, reinterpret_cast<sockaddr*>(&address.storage_), &address.size_) != 0) {
    address = SocketAddress();
  }
  return address;
}

SocketAddress SocketAddress::OfPeer(int socket) {
  SocketAddress address;
  address.size_ = sizeof(address.storage_);
  if (getpeername(socket, reinterpret_cast<sockaddr*>(&address.storage_), &address.size_) != 0) {
    address = SocketAddress();
  }
  return address;
}

std::string SocketAddress::ToString() const {
  char ip[NI_MAXHOST];
  char port[NI_MAXSERV];
  if (size_ == 0 || getnameinfo(get(), size_, ip, sizeof(ip), port, sizeof(port),
                                NI_NUMERICHOST | NI_NUMERICSERV) != 0) {
    return "an unknown address";
  }
  return storage_.ss_family == AF_INET6 ? absl::StrCat("[", ip, "]:", port)
                                        : absl::StrCat(ip, ":", port);
}

absl::StatusOr<UniqueFd> NewTcpSocket(const SocketAddress& of_its_family) {
  UniqueFd fd(socket(of_its_family.get()->sa_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC,
                     IPPROTO_TCP));
  if (!fd.valid()) return absl::UnavailableError(absl::StrCat("no socket: ", ErrorText(errno)));
  return fd;
}

std::string ErrorText(int error) { return std::generic_category().message(error); }

void SetNoDelay(int socket) { SetOption(socket, IPPROTO_TCP, TCP_NODELAY, 1); }

void WatchPeer(int socket, absl::Duration dead_after) {
  FABRICAST_CHECK(dead_after >= absl::Seconds(1)) << absl::FormatDuration(dead_after);
  // The first probe after a quarter of the time, so that a few may be lost.
  const int probe_s =
      static_cast<int>(std::clamp<int64_t>(absl::ToInt64Seconds(dead_after / 4), 1, 3600));
  SetOption(socket, SOL_SOCKET, SO_KEEPALIVE, 1);
  SetOption(socket, IPPROTO_TCP, TCP_KEEPIDLE, probe_s);
  SetOption(socket, IPPROTO_TCP, TCP_KEEPINTVL, probe_s);
  // This limits both what was sent and the probes of keepalive.
  SetOption(socket, IPPROTO_TCP, TCP_USER_TIMEOUT,
            static_cast<int>(std::min<int64_t>(absl::ToInt64Milliseconds(dead_after), INT32_MAX)));
}

void ResetConnection(int socket) {
  sockaddr nowhere = {};
  nowhere.sa_family = AF_UNSPEC;
  // Not connect(), which ThreadSanitizer takes for the beginning of the descriptor.
  (void)syscall(SYS_connect, socket, &nowhere, sizeof(nowhere));
}

}  // namespace fabricast
