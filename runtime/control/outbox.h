// Messages on their way out of one gRPC stream, which takes them one at a time.
#ifndef FABRICAST_RUNTIME_CONTROL_OUTBOX_H_
#define FABRICAST_RUNTIME_CONTROL_OUTBOX_H_

#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <utility>

namespace fabricast {

// Thread-safe. Written once for both ends, whose reactors have no base in common.
template <typename Message>
class Outbox {
 public:
  using MessagePtr = std::shared_ptr<const Message>;

  // `start_write` begins to send a message and returns at once.
  explicit Outbox(std::function<void(const Message*)> start_write)
      : start_write_(std::move(start_write)) {}

  // Never waits. Dropped once closed.
  void Push(MessagePtr message) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (closed_) return;
      messages_.push_back(std::move(message));
      if (messages_.size() > 1) return;
    }
    Start();
  }

  // The front message has left, or the stream is broken and nothing more can.
  void Written(bool ok) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (ok) {
        messages_.pop_front();
      } else {
        closed_ = true;
        messages_.clear();
      }
      if (messages_.empty()) {
        if (when_closed_ != nullptr) std::exchange(when_closed_, nullptr)();
        return;
      }
    }
    Start();
  }

  // Takes no more; `then` runs, here or in Written, when what was pushed has left. Once.
  void Close(std::function<void()> then) {
    const std::lock_guard<std::mutex> lock(mutex_);
    closed_ = true;
    if (messages_.empty()) {
      then();
    } else {
      when_closed_ = std::move(then);
    }
  }

 private:
  // The front message stays where it is until Written.
  void Start() {
    const Message* front;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      front = messages_.front().get();
    }
    start_write_(front);
  }

  const std::function<void(const Message*)> start_write_;
  std::mutex mutex_;
  bool closed_ = false;
  std::deque<MessagePtr> messages_;
  std::function<void()> when_closed_;
};

}  // namespace fabricast

#endif  // FABRICAST_RUNTIME_CONTROL_OUTBOX_H_
