// Sockets as TCP transport and benchmarks use them: owned, non-blocking, closed on exec.
#ifndef FABRICAST_RUNTIME_TRANSPORT_TCP_SOCKET_H_
#define FABRICAST_RUNTIME_TRANSPORT_TCP_SOCKET_H_

#include <sys/socket.h>

#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace fabricast {

// Owns a file descriptor.
class UniqueFd {
 public:
  UniqueFd() = default;
  explicit UniqueFd(int fd) : fd_(fd) {}
  UniqueFd(UniqueFd&& other) : fd_(other.fd_) { other.fd_ = -1; }
  UniqueFd& operator=(UniqueFd&& other);
  ~UniqueFd() { Reset(); }

  bool valid() const { return fd_ >= 0; }
  int get() const { return fd_; }
  void Reset();

 private:
  int fd_ = -1;
};

// An IP address with a port.
class SocketAddress {
 public:
  // "10.0.0.2:41234" or "[fe80::1%eth0]:41234": numbers only, no look-up. kInvalidArgument.
  static absl::StatusOr<SocketAddress> Parse(absl::string_view text);
  // An IP address without brackets, and a port from 0 to 65535. kInvalidArgument.
  static absl::StatusOr<SocketAddress> FromIp(const std::string& ip, int port);
  static SocketAddress OfSocket(int socket);  // where it is bound
  static SocketAddress OfPeer(int socket);    // where its other end is

  const sockaddr* get() const { return reinterpret_cast<const sockaddr*>(&storage_); }
  socklen_t size() const { return size_; }
  std::string ToString() const;  // as Parse takes it

 private:
  sockaddr_storage storage_ = {};
  socklen_t size_ = 0;
};

// kUnavailable with the reason if the system has no more.
absl::StatusOr<UniqueFd> NewTcpSocket(const SocketAddress& of_its_family);

std::string ErrorText(int error);  // "Connection refused"

// Sends at once what is written. For every connection of a link.
void SetNoDelay(int socket);

// Ends a connection whose peer has not acknowledged for `dead_after` (at least a second; up to a
// second later), whether something was sent or not. Only for connections whose reader always reads:
// the kernel takes a receiver that is not ready for a dead one.
void WatchPeer(int socket, absl::Duration dead_after);

// Ends a connection with a reset: the kernel drops what it would still send, and lets go of the
// pages of MSG_ZEROCOPY. The descriptor stays, so that calls of other threads fail rather than meet
// another file.
void ResetConnection(int socket);

}  // namespace fabricast

#endif  // FABRICAST_RUNTIME_TRANSPORT_TCP_SOCKET_H_
