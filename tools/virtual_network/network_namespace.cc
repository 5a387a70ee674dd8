#include "tools/virtual_network/network_namespace.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace fabricast {
namespace {

enum class Kind : char { kUserNamespace, kNetworkNamespace, kError };

// What the child that makes namespaces says of each; the namespace itself comes along.
struct Made {
  Kind kind = Kind::kError;
  int error = 0;
};

union Control {
  char bytes[CMSG_SPACE(sizeof(int))];
  cmsghdr header;
};

// Prepared before the fork: the child of a program with threads must not allocate.
struct IdentityMaps {
  std::string users = absl::StrCat("0 ", geteuid(), " 1");
  std::string groups = absl::StrCat("0 ", getegid(), " 1");
};

void Tell(int socket, Kind kind, int error, int fd) {
  Made made{.kind = kind, .error = error};
  iovec bytes{.iov_base = &made, .iov_len = sizeof(made)};
  msghdr message{};
  message.msg_iov = &bytes;
  message.msg_iovlen = 1;
  Control control{};
  if (fd >= 0) {
    message.msg_control = control.bytes;
    message.msg_controllen = sizeof(control.bytes);
    cmsghdr* const header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof(int));
    memcpy(CMSG_DATA(header), &fd, sizeof(fd));
  }
  while (sendmsg(socket, &message, MSG_NOSIGNAL) < 0 && errno == EINTR) {
  }
}

// The descriptor is -1 for an error. False at the end.
bool Hear(int socket, Made& made, FileDescriptor& fd) {
  iovec bytes{.iov_base = &made, .iov_len = sizeof(made)};
  Control control{};
  msghdr message{};
  message.msg_iov = &bytes;
  message.msg_iovlen = 1;
  message.msg_control = control.bytes;
  message.msg_controllen = sizeof(control.bytes);
  ssize_t got = 0;
  while ((got = recvmsg(socket, &message, MSG_CMSG_CLOEXEC)) < 0 && errno == EINTR) {
  }
  if (got != sizeof(made)) return false;
  fd.Close();
  if (const cmsghdr* header = CMSG_FIRSTHDR(&message)) {
    int received = -1;
    memcpy(&received, CMSG_DATA(header), sizeof(received));
    fd = FileDescriptor(received);
  }
  return true;
}

bool Write(const char* path, const char* text, size_t size) {
  const int fd = open(path, O_WRONLY | O_CLOEXEC);
  if (fd < 0) return false;
  const ssize_t written = write(fd, text, size);
  const int error = errno;
  close(fd);
  errno = error;
  return written == static_cast<ssize_t>(size);
}

// In the child from here on.

bool EnterUserNamespace(const IdentityMaps& maps) {
  return unshare(CLONE_NEWUSER) == 0 && Write("/proc/self/setgroups", "deny", 4) &&
         Write("/proc/self/uid_map", maps.users.data(), maps.users.size()) &&
         Write("/proc/self/gid_map", maps.groups.data(), maps.groups.size());
}

// Opens a namespace that this process is in, and hands it over.
bool HandOver(int socket, Kind kind, const char* path) {
  const int fd = open(path, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return false;
  Tell(socket, kind, 0, fd);
  close(fd);
  return true;
}

[[noreturn]] void MakeInChild(int socket, int count, const IdentityMaps& maps) {
  for (int made = 0; made < count; ++made) {
    bool ok = unshare(CLONE_NEWNET) == 0;
    if (!ok && made == 0 && errno == EPERM) {
      ok = EnterUserNamespace(maps) &&
           HandOver(socket, Kind::kUserNamespace, "/proc/self/ns/user") &&
           unshare(CLONE_NEWNET) == 0;
    }
    if (!ok || !HandOver(socket, Kind::kNetworkNamespace, "/proc/self/ns/net")) {
      Tell(socket, Kind::kError, errno, -1);
      _exit(1);
    }
  }
  _exit(0);
}

absl::Status NoNamespace(int error) {
  const char* const reason = strerror(error);
  if (error == ENOSPC || error == EUSERS) {
    return absl::PermissionDeniedError(
        absl::StrCat("virtual network: no more network or user namespaces (unshare: ", reason,
                     "): raise sysctl user.max_net_namespaces and user.max_user_namespaces"));
  }
  if (error == EINVAL) {
    // A user namespace is for a process of one thread; ThreadSanitizer has one of its own.
    return absl::UnimplementedError(
        absl::StrCat("virtual network: no network namespaces (unshare: ", reason,
                     "): this kernel has none, or none for an ordinary user under "
                     "ThreadSanitizer: run as root"));
  }
  return absl::PermissionDeniedError(absl::StrCat(
      "virtual network: no right to make a network namespace (unshare: ", reason,
      "): run as root with CAP_SYS_ADMIN and CAP_NET_ADMIN (docker run --cap-add=SYS_ADMIN "
      "--cap-add=NET_ADMIN), or allow user namespaces (sysctl kernel.unprivileged_userns_clone=1 "
      "or kernel.apparmor_restrict_unprivileged_userns=0, where there is such a setting)"));
}

}  // namespace

NetworkNamespace::NetworkNamespace(std::shared_ptr<const FileDescriptor> user,
                                   FileDescriptor network)
    : user_(std::move(user)), network_(std::move(network)) {}

absl::StatusOr<std::vector<NetworkNamespace>> NetworkNamespace::Make(int count) {
  int ends[2];
  if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) != 0) {
    return absl::ResourceExhaustedError(
        absl::StrCat("virtual network: no socket: ", strerror(errno)));
  }
  FileDescriptor ours(ends[0]);
  FileDescriptor childs(ends[1]);
  const IdentityMaps maps;
  const pid_t child = fork();
  if (child == 0) MakeInChild(childs.get(), count, maps);
  if (child < 0) {
    return absl::ResourceExhaustedError(
        absl::StrCat("virtual network: no process: ", strerror(errno)));
  }
  childs.Close();
  std::vector<NetworkNamespace> namespaces;
  std::shared_ptr<const FileDescriptor> user;
  int error = 0;
  Made made;
  FileDescriptor fd;
  while (Hear(ours.get(), made, fd)) {
    if (made.kind == Kind::kError) {
      error = made.error;
    } else if (made.kind == Kind::kUserNamespace) {
      user = std::make_shared<const FileDescriptor>(std::move(fd));
    } else {
      namespaces.push_back(NetworkNamespace(user, std::move(fd)));
    }
  }
  while (waitpid(child, nullptr, 0) < 0 && errno == EINTR) {
  }
  if (error != 0) return NoNamespace(error);
  if (static_cast<int>(namespaces.size()) != count) {
    return absl::InternalError("virtual network: the process that makes namespaces died");
  }
  return namespaces;
}

bool NetworkNamespace::Join() const {
  return (user_ == nullptr || setns(user_->get(), CLONE_NEWUSER) == 0) &&
         setns(network_.get(), CLONE_NEWNET) == 0;
}

std::string NetworkNamespace::path() const { return absl::StrCat("/proc/self/fd/", fd()); }

}  // namespace fabricast
