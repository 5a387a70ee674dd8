#include "tools/virtual_network/cable_relay.h"

#include <arpa/inet.h>
#include <errno.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <net/if.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <deque>
#include <map>
#include <random>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"

namespace fabricast {
namespace {

// A frame of 64 KiB, which interfaces with segmentation of their own may have, and its header.
constexpr size_t kMaxFrameBytes = (1 << 16) + 64;
// Frames that a socket takes in before the relay wakes up, in both directions.
constexpr int kSocketBufferBytes = 16 << 20;
// 200 ms at 2 Gbit/s; what comes beyond is lost, as in a switch whose memory is full.
constexpr size_t kMaxQueuedBytes = 50'000'000;
// Frames that are read before others get their turn.
constexpr int kReadsAtOnce = 64;

struct JoinCommand {
  char one[IFNAMSIZ] = {};
  char other[IFNAMSIZ] = {};
  double loss = 0;
  int64_t delay_ns = 0;
};

int64_t NowNs() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * 1'000'000'000 + now.tv_nsec;
}

// All frames of one interface, with the header that says which checksums are still to be computed,
// so that they leave as they came. -1 with errno.
int OpenInterface(const char* name) {
  const unsigned index = if_nametoindex(name);
  if (index == 0) return -1;
  // Protocol 0: nothing comes in before it is bound to the interface.
  const int fd = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (fd < 0) return -1;
  const int on = 1;
  sockaddr_ll address{};
  address.sll_family = AF_PACKET;
  address.sll_protocol = htons(ETH_P_ALL);
  address.sll_ifindex = static_cast<int>(index);
  if (setsockopt(fd, SOL_PACKET, PACKET_VNET_HDR, &on, sizeof(on)) != 0 ||
      setsockopt(fd, SOL_PACKET, PACKET_IGNORE_OUTGOING, &on, sizeof(on)) != 0 ||
      bind(fd, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0) {
    const int error = errno;
    close(fd);
    errno = error;
    return -1;
  }
  // The first may be forbidden; then the second gives as much as is allowed.
  for (const auto& [forced, plain] :
       {std::pair(SO_RCVBUFFORCE, SO_RCVBUF), std::pair(SO_SNDBUFFORCE, SO_SNDBUF)}) {
    if (setsockopt(fd, SOL_SOCKET, forced, &kSocketBufferBytes, sizeof(int)) != 0) {
      setsockopt(fd, SOL_SOCKET, plain, &kSocketBufferBytes, sizeof(int));
    }
  }
  return fd;
}

// One direction.
class Way {
 public:
  Way(int from, int to, uint64_t seed) : from_(from), to_(to), random_(seed) {}

  int from() const { return from_; }
  int to() const { return to_; }
  void Set(double loss, int64_t delay_ns) {
    loss_ = loss;
    delay_ns_ = delay_ns;
  }

  void Read(std::vector<char>& buffer) {
    for (int i = 0; i < kReadsAtOnce; ++i) {
      const ssize_t got = recv(from_, buffer.data(), buffer.size(), MSG_DONTWAIT);
      if (got <= 0) return;  // none left, or the interface is down
      const double draw = static_cast<double>(random_() >> 11) * 0x1p-53;
      if (draw < loss_ || queued_bytes_ + got > kMaxQueuedBytes) continue;
      last_due_ns_ = std::max(last_due_ns_, NowNs() + delay_ns_);
      queued_bytes_ += got;
      queue_.push_back(
          {.due_ns = last_due_ns_, .bytes = std::vector<char>(buffer.data(), buffer.data() + got)});
    }
  }

  // Sends what is due.
  void Write(int64_t now_ns) {
    full_ = false;
    while (!queue_.empty() && queue_.front().due_ns <= now_ns) {
      const std::vector<char>& bytes = queue_.front().bytes;
      if (send(to_, bytes.data(), bytes.size(), MSG_DONTWAIT) < 0) {
        full_ = errno == EAGAIN;
        if (full_) return;
        // Else the interface is down or its queue full: lost.
      }
      queued_bytes_ -= bytes.size();
      queue_.pop_front();
    }
  }

  bool full() const { return full_; }
  // Of the next frame; -1: none that time alone would let go.
  int64_t due_ns() const { return queue_.empty() || full_ ? -1 : queue_.front().due_ns; }

 private:
  struct Frame {
    int64_t due_ns;
    std::vector<char> bytes;
  };

  const int from_;
  const int to_;
  std::mt19937_64 random_;
  double loss_ = 0;
  int64_t delay_ns_ = 0;
  int64_t last_due_ns_ = 0;
  bool full_ = false;  // the interface takes no more at present
  size_t queued_bytes_ = 0;
  std::deque<Frame> queue_;
};

// The process.
class RelayLoop {
 public:
  RelayLoop(int control, uint64_t seed) : control_(control), seed_(seed), buffer_(kMaxFrameBytes) {}

  // Until the other end of `control` is closed.
  void Run() {
    while (true) {
      std::vector<pollfd> polled = {{.fd = control_, .events = POLLIN, .revents = 0}};
      int64_t due_ns = -1;
      for (const Way& way : ways_) {
        polled.push_back({.fd = way.from(), .events = POLLIN, .revents = 0});
        polled.push_back({.fd = way.full() ? way.to() : -1, .events = POLLOUT, .revents = 0});
        if (way.due_ns() >= 0 && (due_ns < 0 || way.due_ns() < due_ns)) due_ns = way.due_ns();
      }
      const int64_t wait_ns = std::max<int64_t>(0, due_ns - NowNs());
      const timespec wait{.tv_sec = wait_ns / 1'000'000'000, .tv_nsec = wait_ns % 1'000'000'000};
      ppoll(polled.data(), polled.size(), due_ns < 0 ? nullptr : &wait, nullptr);
      if (polled[0].revents != 0 && !Command()) return;
      for (Way& way : ways_) {
        way.Read(buffer_);
        way.Write(NowNs());
      }
    }
  }

 private:
  bool Command() {
    JoinCommand command;
    if (recv(control_, &command, sizeof(command), 0) != sizeof(command)) return false;
    const int error = Join(command);
    return send(control_, &error, sizeof(error), MSG_NOSIGNAL) == sizeof(error);
  }

  int Join(const JoinCommand& command) {
    auto it = pairs_.find(command.one);
    if (it == pairs_.end()) {
      const int one = OpenInterface(command.one);
      if (one < 0) return errno;
      const int other = OpenInterface(command.other);
      if (other < 0) {
        const int error = errno;
        close(one);
        return error;
      }
      const size_t first = ways_.size();
      ways_.emplace_back(one, other, seed_ + first);
      ways_.emplace_back(other, one, seed_ + first + 1);
      it = pairs_.emplace(command.one, first).first;
    }
    for (size_t i : {it->second, it->second + 1}) ways_[i].Set(command.loss, command.delay_ns);
    return 0;
  }

  const int control_;
  const uint64_t seed_;
  std::vector<char> buffer_;
  std::deque<Way> ways_;  // two for each pair of interfaces
  std::map<std::string, size_t> pairs_;
};

}  // namespace

CableRelay::CableRelay(pid_t pid, FileDescriptor control)
    : pid_(pid), control_(std::move(control)) {}

absl::StatusOr<std::unique_ptr<CableRelay>> CableRelay::Start(const NetworkNamespace& space,
                                                              uint64_t seed) {
  int ends[2];
  if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) != 0) {
    return absl::ResourceExhaustedError(
        absl::StrCat("virtual network: no socket: ", strerror(errno)));
  }
  FileDescriptor ours(ends[0]);
  FileDescriptor childs(ends[1]);
  const pid_t pid = fork();
  if (pid == 0) {
    // An interrupt from the keyboard is for the program; this ends when that does.
    setpgid(0, 0);
    prctl(PR_SET_NAME, "virtual_cable");
    ours.Close();
    if (space.Join()) RelayLoop(childs.get(), seed).Run();
    _exit(0);
  }
  if (pid < 0) {
    return absl::ResourceExhaustedError(
        absl::StrCat("virtual network: no process: ", strerror(errno)));
  }
  return std::unique_ptr<CableRelay>(new CableRelay(pid, std::move(ours)));
}

CableRelay::~CableRelay() {
  // Forks of this process may hold the other end of its control open.
  kill(pid_, SIGKILL);
  while (waitpid(pid_, nullptr, 0) < 0 && errno == EINTR) {
  }
}

absl::Status CableRelay::Join(const std::string& one, const std::string& other,
                              const Disturbance& disturbance) {
  JoinCommand command{.loss = disturbance.loss,
                      .delay_ns = absl::ToInt64Nanoseconds(disturbance.delay)};
  one.copy(command.one, IFNAMSIZ - 1);
  other.copy(command.other, IFNAMSIZ - 1);
  int error = 0;
  if (send(control_.get(), &command, sizeof(command), MSG_NOSIGNAL) != sizeof(command) ||
      recv(control_.get(), &error, sizeof(error), 0) != sizeof(error)) {
    return absl::InternalError("virtual network: the process that disturbs frames has died");
  }
  if (error == EPERM) {
    return absl::PermissionDeniedError(
        "virtual network: no right to read frames (AF_PACKET): give CAP_NET_RAW");
  }
  if (error != 0) {
    return absl::UnimplementedError(absl::StrCat("virtual network: no packet socket for ", one,
                                                 " and ", other, ": ", strerror(error),
                                                 ": the kernel needs AF_PACKET of Linux 4.20"));
  }
  return absl::OkStatus();
}

}  // namespace fabricast
