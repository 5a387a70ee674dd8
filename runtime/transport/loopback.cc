#include "runtime/transport/loopback.h"

#include <condition_variable>
#include <cstring>
#include <deque>
#include <mutex>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "runtime/check.h"
#include "runtime/transport/callback_scope.h"

namespace fabricast {
namespace {

using Done = StageTransport::Done;

// Two stages, 0 and 1 here, joined in both directions.
class Link {
 public:
  // `group` owns the callbacks, for CallbackScope. `stages` names the two.
  Link(const void* group, int first, int second) : group_(group), stages_{first, second} {}

  absl::Status Send(int from, absl::Span<const std::byte> bytes, Done done) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (!ended_[from].ok()) return ended_[from];
      directions_[from].sends.push_back({bytes, std::move(done)});
    }
    Deliver(from);
    return absl::OkStatus();
  }

  absl::Status Receive(int from, absl::Span<std::byte> buffer, Done done) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (!ended_[1 - from].ok()) return ended_[1 - from];
      directions_[from].receives.push_back({buffer, std::move(done)});
    }
    Deliver(from);
    return absl::OkStatus();
  }

  void Close(int end) {
    const absl::Status closed =
        absl::CancelledError(absl::StrCat("the link of stages ", stages_[0], " and ", stages_[1],
                                          " was closed by stage ", stages_[end]));
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      End(closed, closed);
    }
    Deliver(0);
    Deliver(1);
    if (CallbackScope::Inside(group_)) return;
    std::unique_lock<std::mutex> lock(mutex_);
    idle_.wait(lock, [this] { return !directions_[0].delivering && !directions_[1].delivering; });
  }

 private:
  struct PendingSend {
    absl::Span<const std::byte> bytes;
    Done done;
  };
  struct PendingReceive {
    absl::Span<std::byte> buffer;
    Done done;
  };
  struct Direction {
    bool delivering = false;
    std::deque<PendingSend> sends;
    std::deque<PendingReceive> receives;
  };

  // Holds mutex_. What came first stands.
  void End(absl::Status at_0, absl::Status at_1) {
    if (!ended_[0].ok()) return;
    ended_[0] = std::move(at_0);
    ended_[1] = std::move(at_1);
  }

  // Hands over what has both ends, and gives back all once the link has ended. One thread at a
  // time, so that messages end in order; another that comes meanwhile leaves its to the first.
  void Deliver(int from) {
    const int to = 1 - from;
    Direction& direction = directions_[from];
    std::unique_lock<std::mutex> lock(mutex_);
    if (direction.delivering) return;
    direction.delivering = true;
    while (true) {
      const bool ended = !ended_[from].ok();
      const bool send = !direction.sends.empty();
      const bool receive = !direction.receives.empty();
      if (ended ? !send && !receive : !send || !receive) break;
      PendingSend sent;
      PendingReceive received;
      if (send) {
        sent = std::move(direction.sends.front());
        direction.sends.pop_front();
      }
      if (receive) {
        received = std::move(direction.receives.front());
        direction.receives.pop_front();
      }
      if (!ended && sent.bytes.size() != received.buffer.size()) EndByLength(from, sent, received);
      const absl::Status at_sender = ended_[from];
      const absl::Status at_receiver = ended_[to];
      lock.unlock();
      if (at_sender.ok() && !sent.bytes.empty()) {
        std::memcpy(received.buffer.data(), sent.bytes.data(), sent.bytes.size());
      }
      const CallbackScope scope(group_);
      if (send) std::move(sent.done)(at_sender);
      if (receive) std::move(received.done)(at_receiver);
      lock.lock();
    }
    direction.delivering = false;
    const bool other_way = !ended_[from].ok() && !directions_[to].delivering &&
                           (!directions_[to].sends.empty() || !directions_[to].receives.empty());
    idle_.notify_all();
    lock.unlock();
    if (other_way) Deliver(to);
  }

  // Holds mutex_.
  void EndByLength(int from, const PendingSend& sent, const PendingReceive& received) {
    const std::string lengths =
        absl::StrCat("a message of ", sent.bytes.size(), " bytes came where ",
                     received.buffer.size(), " were expected");
    absl::Status at[2];
    at[from] = absl::UnavailableError(
        absl::StrCat("stage ", stages_[1 - from], " ended the link: ", lengths));
    at[1 - from] = absl::InvalidArgumentError(absl::StrCat("stage ", stages_[from], ": ", lengths));
    End(at[0], at[1]);
  }

  const void* const group_;
  const int stages_[2];
  std::mutex mutex_;
  std::condition_variable idle_;  // a direction is no longer delivering
  absl::Status ended_[2];         // by end; OK while the link is up
  Direction directions_[2];       // by sender
};

// All links of a group.
class Links {
 public:
  explicit Links(int stages) : stages_(stages) {
    for (int second = 0; second < stages; ++second) {
      for (int first = 0; first < second; ++first) links_.emplace_back(this, first, second);
    }
  }
  int stages() const { return stages_; }
  Link& link(int a, int b) {
    const int first = std::min(a, b);
    const int second = std::max(a, b);
    return links_[static_cast<size_t>(second) * (second - 1) / 2 + first];
  }

 private:
  const int stages_;
  std::deque<Link> links_;
};

class LoopbackTransport : public StageTransport {
 public:
  LoopbackTransport(int stage, std::shared_ptr<Links> links)
      : stage_(stage), links_(std::move(links)) {}
  ~LoopbackTransport() override { Close(); }

  absl::Status Send(int to, absl::Span<const std::byte> bytes, Done done) override {
    if (absl::Status status = CheckPeer(to); !status.ok()) return status;
    return links_->link(stage_, to).Send(stage_ < to ? 0 : 1, bytes, std::move(done));
  }

  absl::Status Receive(int from, absl::Span<std::byte> buffer, Done done) override {
    if (absl::Status status = CheckPeer(from); !status.ok()) return status;
    return links_->link(from, stage_).Receive(from < stage_ ? 0 : 1, buffer, std::move(done));
  }

  void Close() override {
    for (int peer = 0; peer < links_->stages(); ++peer) {
      if (peer != stage_) links_->link(stage_, peer).Close(stage_ < peer ? 0 : 1);
    }
  }

 private:
  absl::Status CheckPeer(int peer) const {
    if (peer >= 0 && peer < links_->stages() && peer != stage_) return absl::OkStatus();
    return absl::NotFoundError(absl::StrCat("stage ", stage_, " has no link with stage ", peer,
                                            ": there are stages 0 to ", links_->stages() - 1));
  }

  const int stage_;
  const std::shared_ptr<Links> links_;
};

}  // namespace

std::vector<std::unique_ptr<StageTransport>> MakeLoopbackTransports(int stages) {
  FABRICAST_CHECK(stages >= 1) << stages;
  const auto links = std::make_shared<Links>(stages);
  std::vector<std::unique_ptr<StageTransport>> ends;
  for (int s = 0; s < stages; ++s) ends.push_back(std::make_unique<LoopbackTransport>(s, links));
  return ends;
}

}  // namespace fabricast
