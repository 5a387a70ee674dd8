#include "runtime/transport/tcp_transport.h"

#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <condition_variable>
#include <map>
#include <mutex>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "runtime/check.h"
#include "runtime/transport/callback_scope.h"
#include "runtime/transport/tcp_socket.h"

namespace fabricast {
namespace {

constexpr uint64_t kWakeUp = UINT64_MAX;  // the event of wake_

class TcpTransport : public StageTransport {
 public:
  TcpTransport(int stage, std::vector<TcpLink::Setup> links, UniqueFd epoll, UniqueFd wake)
      : stage_(stage), epoll_(std::move(epoll)), wake_(std::move(wake)) {
    for (TcpLink::Setup& setup : links) {
      const int peer = setup.peer;
      links_.push_back(std::make_unique<TcpLink>(std::move(setup), this, [this] { Wake(); }));
      FABRICAST_CHECK(by_peer_.emplace(peer, links_.back().get()).second) << peer;
    }
  }
  ~TcpTransport() override {
    FABRICAST_CHECK(!CallbackScope::Inside(this)) << "destroyed by one of its own callbacks";
    Close();
    if (thread_.joinable()) thread_.join();
  }

  absl::Status Start() {
    for (size_t link = 0; link < links_.size(); ++link) {
      const std::vector<UniqueFd>& sockets = links_[link]->sockets();
      for (size_t socket = 0; socket < sockets.size(); ++socket) {
        // Edges: nobody must be told to stop looking at a stream that nobody reads, and its events
        // never need to change.
        const uint32_t out = socket == 0 ? uint32_t{0} : uint32_t{EPOLLOUT};
        if (!Watch(sockets[socket].get(), EPOLLIN | EPOLLRDHUP | EPOLLET | out,
                   link << 32 | socket)) {
          return NoDescriptors();
        }
      }
    }
    if (!Watch(wake_.get(), EPOLLIN, kWakeUp)) return NoDescriptors();
    thread_ = std::thread([this] { Run(); });
    return absl::OkStatus();
  }

  static absl::Status NoDescriptors() {
    return absl::UnavailableError(
        absl::StrCat("no epoll: ", ErrorText(errno), "; raise the limit of open files"));
  }

  absl::Status Send(int to, absl::Span<const std::byte> bytes, Done done) override {
    const auto link = by_peer_.find(to);
    if (link == by_peer_.end()) return NoLink(to);
    return link->second->Send(bytes, std::move(done));
  }

  absl::Status Receive(int from, absl::Span<std::byte> buffer, Done done) override {
    const auto link = by_peer_.find(from);
    if (link == by_peer_.end()) return NoLink(from);
    return link->second->Receive(buffer, std::move(done));
  }

  void Close() override {
    for (const std::unique_ptr<TcpLink>& link : links_) link->Close();
    closing_ = true;
    Wake();
    if (CallbackScope::Inside(this)) return;
    std::unique_lock<std::mutex> lock(mutex_);
    over_changed_.wait(lock, [this] { return over_ || !thread_.joinable(); });
  }

 private:
  absl::Status NoLink(int peer) const {
    return absl::NotFoundError(absl::StrCat("stage ", stage_, " has no link with stage ", peer));
  }

  bool Watch(int fd, uint32_t events, uint64_t name) {
    epoll_event event = {};
    event.events = events;
    event.data.u64 = name;
    return epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, fd, &event) == 0;
  }

  void Wake() {
    if (woken_.exchange(true)) return;
    const uint64_t one = 1;
    (void)!write(wake_.get(), &one, sizeof(one));
  }

  void Run() {
    constexpr int kEvents = 64;
    epoll_event events[kEvents];
    while (!Over()) {
      int count = epoll_wait(epoll_.get(), events, kEvents, Timeout());
      if (count < 0) {
        FABRICAST_CHECK(errno == EINTR) << ErrorText(errno);
        count = 0;
      }
      for (int i = 0; i < count; ++i) {
        const uint64_t name = events[i].data.u64;
        if (name != kWakeUp) {
          links_[name >> 32]->OnEvents(name & UINT32_MAX, events[i].events);
          continue;
        }
        uint64_t times;
        (void)!read(wake_.get(), &times, sizeof(times));
        woken_ = false;  // before the work: what comes now wakes again
      }
      const TcpLink::Clock::time_point now = TcpLink::Clock::now();
      for (const std::unique_ptr<TcpLink>& link : links_) link->Service(now);
    }
    const std::lock_guard<std::mutex> lock(mutex_);
    over_ = true;
    over_changed_.notify_all();
  }

  bool Over() const {
    return closing_ &&
           std::all_of(links_.begin(), links_.end(), [](const auto& link) { return link->over(); });
  }

  // Milliseconds until a link wants to be served, rounded up; -1 if none does.
  int Timeout() const {
    int timeout = -1;
    for (const std::unique_ptr<TcpLink>& link : links_) {
      const std::optional<TcpLink::Clock::time_point> deadline = link->deadline();
      if (!deadline.has_value()) continue;
      const auto left =
          std::chrono::ceil<std::chrono::milliseconds>(*deadline - TcpLink::Clock::now());
      const int ms = static_cast<int>(std::clamp<int64_t>(left.count(), 0, 3'600'000));
      timeout = timeout < 0 ? ms : std::min(timeout, ms);
    }
    return timeout;
  }

  const int stage_;
  const UniqueFd epoll_;
  const UniqueFd wake_;
  std::atomic<bool> woken_ = false;
  std::atomic<bool> closing_ = false;
  std::vector<std::unique_ptr<TcpLink>> links_;
  std::map<int, TcpLink*> by_peer_;
  std::thread thread_;

  std::mutex mutex_;
  std::condition_variable over_changed_;
  bool over_ = false;  // the thread is about to end
};

}  // namespace

absl::StatusOr<std::unique_ptr<StageTransport>> MakeTcpTransport(
    int stage, std::vector<TcpLink::Setup> links) {
  UniqueFd epoll(epoll_create1(EPOLL_CLOEXEC));
  UniqueFd wake(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!epoll.valid() || !wake.valid()) return TcpTransport::NoDescriptors();
  auto transport =
      std::make_unique<TcpTransport>(stage, std::move(links), std::move(epoll), std::move(wake));
  if (absl::Status status = transport->Start(); !status.ok()) return status;
  return transport;
}

}  // namespace fabricast
