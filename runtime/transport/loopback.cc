#include "runtime/transport/loopback.h"

#include <cstring>
#include <deque>
#include <mutex>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "runtime/check.h"

namespace fabricast {
namespace {

using Done = StageTransport::Done;

// From one stage to one other.
class Link {
 public:
  absl::Status Send(absl::Span<const std::byte> bytes, Done done) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (closed_) return Closed();
      sends_.push_back({bytes, std::move(done)});
    }
    Deliver();
    return absl::OkStatus();
  }

  absl::Status Receive(absl::Span<std::byte> buffer, Done done) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (closed_) return Closed();
      receives_.push_back({buffer, std::move(done)});
    }
    Deliver();
    return absl::OkStatus();
  }

  void Close() {
    std::deque<PendingSend> sends;
    std::deque<PendingReceive> receives;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      closed_ = true;
      sends.swap(sends_);
      receives.swap(receives_);
    }
    for (PendingSend& send : sends) std::move(send.done)(absl::CancelledError("closed"));
    for (PendingReceive& receive : receives) {
      std::move(receive.done)(absl::CancelledError("closed"));
    }
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

  static absl::Status Closed() {
    return absl::FailedPreconditionError("the transport is closed: open a new one");
  }

  // Hands over what has both ends. One thread at a time, so that messages end in order; another
  // that comes meanwhile leaves its message to the first.
  void Deliver() {
    std::unique_lock<std::mutex> lock(mutex_);
    if (delivering_) return;
    delivering_ = true;
    while (!sends_.empty() && !receives_.empty()) {
      PendingSend send = std::move(sends_.front());
      PendingReceive receive = std::move(receives_.front());
      sends_.pop_front();
      receives_.pop_front();
      lock.unlock();
      absl::Status status;
      if (send.bytes.size() != receive.buffer.size()) {
        status = absl::InvalidArgumentError(absl::StrCat("a message of ", send.bytes.size(),
                                                         " bytes came where ",
                                                         receive.buffer.size(), " were expected"));
      } else if (!send.bytes.empty()) {
        std::memcpy(receive.buffer.data(), send.bytes.data(), send.bytes.size());
      }
      std::move(send.done)(status);
      std::move(receive.done)(status);
      lock.lock();
    }
    delivering_ = false;
  }

  std::mutex mutex_;
  bool closed_ = false;
  bool delivering_ = false;
  std::deque<PendingSend> sends_;
  std::deque<PendingReceive> receives_;
};

// All links of a group, [from * stages + to].
struct Links {
  explicit Links(int stages) : stages(stages), links(static_cast<size_t>(stages) * stages) {}
  Link& link(int from, int to) { return links[static_cast<size_t>(from) * stages + to]; }
  const int stages;
  std::vector<Link> links;
};

class LoopbackTransport : public StageTransport {
 public:
  LoopbackTransport(int stage, std::shared_ptr<Links> links)
      : stage_(stage), links_(std::move(links)) {}
  ~LoopbackTransport() override { Close(); }

  absl::Status Send(int to, absl::Span<const std::byte> bytes, Done done) override {
    if (absl::Status status = CheckPeer(to); !status.ok()) return status;
    return links_->link(stage_, to).Send(bytes, std::move(done));
  }

  absl::Status Receive(int from, absl::Span<std::byte> buffer, Done done) override {
    if (absl::Status status = CheckPeer(from); !status.ok()) return status;
    return links_->link(from, stage_).Receive(buffer, std::move(done));
  }

  void Close() override {
    for (int peer = 0; peer < links_->stages; ++peer) {
      links_->link(stage_, peer).Close();
      links_->link(peer, stage_).Close();
    }
  }

 private:
  absl::Status CheckPeer(int peer) const {
    if (peer >= 0 && peer < links_->stages && peer != stage_) return absl::OkStatus();
    return absl::NotFoundError(absl::StrCat("stage ", stage_, " has no link with stage ", peer,
                                            ": there are stages 0 to ", links_->stages - 1));
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
