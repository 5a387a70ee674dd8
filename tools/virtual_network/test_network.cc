#include "tools/virtual_network/test_network.h"

#include <arpa/inet.h>
#include <errno.h>
#include <net/if.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sched.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "runtime/check.h"

namespace fabricast {
namespace {

sockaddr_in AddressOf(const std::string& ip, int port) {
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<uint16_t>(port));
  FABRICAST_CHECK(inet_pton(AF_INET, ip.c_str(), &address.sin_addr) == 1) << ip;
  return address;
}

FileDescriptor Bound(int type, int port) {
  FileDescriptor fd(socket(AF_INET, type | SOCK_CLOEXEC, 0));
  const int on = 1;  // also where connections of a listener before this one linger
  setsockopt(fd.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
  const sockaddr_in address = AddressOf("0.0.0.0", port);
  FABRICAST_CHECK(bind(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) == 0)
      << strerror(errno);
  return fd;
}

// True once there is something to read.
bool WaitReadable(const FileDescriptor& socket, absl::Time deadline) {
  pollfd polled{.fd = socket.get(), .events = POLLIN, .revents = 0};
  const absl::Duration left = std::max(absl::ZeroDuration(), deadline - absl::Now());
  return poll(&polled, 1, static_cast<int>(absl::ToInt64Milliseconds(left))) == 1;
}

}  // namespace

std::string WhyNoVirtualNetwork() {
  for (const char* tool : {"ip", "tc"}) {
    bool found = false;
    for (const char* folder : {"/usr/sbin/", "/sbin/", "/usr/bin/", "/bin/"}) {
      found = found || access(absl::StrCat(folder, tool).c_str(), X_OK) == 0;
    }
    if (!found) return absl::StrCat(tool, " is missing: apt-get install iproute2");
  }
  const int error = StatusInFork([] {
    const bool can = unshare(CLONE_NEWNET) == 0 || unshare(CLONE_NEWUSER | CLONE_NEWNET) == 0;
    return can ? 0 : errno;
  });
  if (error == 0) return "";
  return absl::StrCat("no right to make a network namespace (unshare: ", strerror(error), ")");
}

int StatusInFork(const std::function<int()>& body) {
  const pid_t child = fork();
  FABRICAST_CHECK(child >= 0) << strerror(errno);
  if (child == 0) _exit(body());
  int status = 0;
  FABRICAST_CHECK(waitpid(child, &status, 0) == child) << strerror(errno);
  return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

std::vector<std::string> InterfaceNames() {
  std::vector<std::string> names;
  struct if_nameindex* const list = if_nameindex();
  FABRICAST_CHECK(list != nullptr) << strerror(errno);
  for (const struct if_nameindex* entry = list; entry->if_name != nullptr; ++entry) {
    names.push_back(entry->if_name);
  }
  if_freenameindex(list);
  std::sort(names.begin(), names.end());
  return names;
}

bool CarrierBecomes(bool plugged) {
  const FileDescriptor fd(socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  const absl::Time deadline = absl::Now() + kPatience;
  while (true) {
    ifreq request{};
    strcpy(request.ifr_name, "eth0");
    FABRICAST_CHECK(ioctl(fd.get(), SIOCGIFFLAGS, &request) == 0) << strerror(errno);
    if (((request.ifr_flags & IFF_RUNNING) != 0) == plugged) return true;
    if (absl::Now() >= deadline) return false;
    absl::SleepFor(absl::Milliseconds(5));
  }
}

FileDescriptor Listen(int port) {
  FileDescriptor fd = Bound(SOCK_STREAM, port);
  FABRICAST_CHECK(listen(fd.get(), 16) == 0) << strerror(errno);
  return fd;
}

FileDescriptor OpenDatagrams(int port) { return Bound(SOCK_DGRAM, port); }

int PortOf(const FileDescriptor& listening) {
  sockaddr_in address{};
  socklen_t size = sizeof(address);
  FABRICAST_CHECK(getsockname(listening.get(), reinterpret_cast<sockaddr*>(&address), &size) == 0)
      << strerror(errno);
  return ntohs(address.sin_port);
}

FileDescriptor Connect(const std::string& ip, int port, absl::Time deadline) {
  const sockaddr_in address = AddressOf(ip, port);
  while (true) {
    FileDescriptor fd(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    const int on = 1;
    setsockopt(fd.get(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
    if (connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) == 0) {
      return fd;
    }
    if (absl::Now() >= deadline) return FileDescriptor();
    absl::SleepFor(absl::Milliseconds(2));
  }
}

int ConnectError(const std::string& ip, int port) {
  errno = 0;
  return Connect(ip, port, absl::InfinitePast()).get() >= 0 ? 0 : errno;
}

FileDescriptor Accept(const FileDescriptor& listening) {
  FileDescriptor fd(accept4(listening.get(), nullptr, nullptr, SOCK_CLOEXEC));
  const int on = 1;
  setsockopt(fd.get(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
  return fd;
}

bool SendAll(const FileDescriptor& socket, const void* bytes, size_t size) {
  const char* at = static_cast<const char*>(bytes);
  while (size > 0) {
    const ssize_t sent = send(socket.get(), at, size, MSG_NOSIGNAL);
    if (sent < 0 && errno == EINTR) continue;
    if (sent <= 0) return false;
    at += sent;
    size -= sent;
  }
  return true;
}

bool ReceiveAll(const FileDescriptor& socket, void* bytes, size_t size) {
  char* at = static_cast<char*>(bytes);
  while (size > 0) {
    const ssize_t got = recv(socket.get(), at, size, 0);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return false;
    at += got;
    size -= got;
  }
  return true;
}

void SendDatagram(const FileDescriptor& socket, const std::string& ip, int port, int number) {
  const sockaddr_in address = AddressOf(ip, port);
  sendto(socket.get(), &number, sizeof(number), 0, reinterpret_cast<const sockaddr*>(&address),
         sizeof(address));
}

int ReceiveDatagram(const FileDescriptor& socket, absl::Time deadline) {
  int number = 0;
  if (!WaitReadable(socket, deadline) ||
      recv(socket.get(), &number, sizeof(number), MSG_DONTWAIT) != sizeof(number)) {
    return -1;
  }
  return number;
}

}  // namespace fabricast
