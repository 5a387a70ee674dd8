// One direction of a link at one of its ends: a stream of the GPU, NCCL's communicator for it, and
// a thread that says when a transfer is over.
#ifndef FABRICAST_RUNTIME_TRANSPORT_NCCL_DIRECTION_H_
#define FABRICAST_RUNTIME_TRANSPORT_NCCL_DIRECTION_H_

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kernels/gpu/gpu_stream.h"
#include "runtime/nccl/nccl.h"
#include "runtime/transport/shared_counters.h"
#include "runtime/transport/stage_transport.h"

namespace fabricast {

// Whether a link is up, and what ended it. Thread-safe.
class LinkEnd {
 public:
  // OK while the link is up.
  absl::Status status() const {
    const std::lock_guard<std::mutex> lock(mutex_);
    return status_;
  }
  bool ended() const { return !status().ok(); }
  // Only the first counts.
  void Set(const absl::Status& status) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (status_.ok()) status_ = status;
  }

 private:
  mutable std::mutex mutex_;
  absl::Status status_;
};

// Thread-safe but for its making and end.
//
// The two GPUs first tell one another by counters that they have come to a transfer, so that NCCL's
// kernels, which spin while they wait, begin together. Counters that the ends do not share are
// relayed by the processors. Without counters the kernels spin.
class NcclDirection {
 public:
  struct Setup {
    int device = 0;
    bool sends = false;
    std::unique_ptr<NcclCommunicator> communicator;  // rank 0 sends
    const SharedCounters* counters = nullptr;        // of the link, or this end's, or none
    int own_counter = 0;                             // this end sets it
    int peer_counter = 0;                            // the other does
    const void* owner = nullptr;                     // of callbacks, for CallbackScope
    // The link's. `fail` is called without locks, and ends it.
    const LinkEnd* end = nullptr;
    std::function<void(const absl::Status&)> fail;
    // Tells the other end of a message, in order. For a direction that sends.
    std::function<void(uint64_t bytes)> announce;
    // Tells the other end what its counter of this end should be; null if it sees it itself.
    std::function<void(uint32_t met)> relay;
    // What ends the link if a message of `came` bytes meets a buffer of `expected`.
    std::function<void(uint64_t came, uint64_t expected)> mismatch;
  };
  static absl::StatusOr<std::unique_ptr<NcclDirection>> Create(Setup setup);
  // The link has ended, and Abort was called.
  ~NcclDirection();

  // `before`, `arrived`: as DeviceTransport's, or null. `at_once`: kResourceExhausted if it would
  // have to wait for room in the stream.
  absl::Status Submit(GpuEventHandle before, absl::Span<std::byte> bytes, GpuEventHandle arrived,
                      bool at_once, StageTransport::Done done);
  // The other end tells of a message. For a direction that receives.
  void Announced(uint64_t bytes);

  // The other end tells its counter.
  void Met(uint32_t met);

  // The link has ended: `done`s will get its status.
  void Wake();
  // Ends what waits in the stream; again and again, until drained(). Does not wait.
  void Abort();
  bool drained() const;
  void WaitUntilDrained();
  // What NCCL has found.
  absl::Status Check() { return setup_.communicator->CheckAsync(); }

 private:
  struct Transfer {
    GpuEventHandle before = nullptr;
    absl::Span<std::byte> bytes;
    GpuEventHandle arrived = nullptr;
    StageTransport::Done done;
  };
  struct Mismatch {
    uint64_t came = 0;
    uint64_t expected = 0;
  };

  explicit NcclDirection(Setup setup) : setup_(std::move(setup)) {}
  absl::Status Prepare();
  // These hold mutex_.
  absl::Status EnqueueWhatFits();
  absl::Status Enqueue(const Transfer& transfer, GpuEventHandle over);
  GpuEventHandle over(uint64_t number) const;
  bool Drained() const { return transfers_.empty() && !running_; }
  void Run();
  void Relay();
  void Release() const;

  const Setup setup_;
  GpuStream stream_ = nullptr;
  std::vector<GpuEventHandle> over_;  // by a transfer's number, in turn
  std::thread thread_;
  std::thread relay_thread_;

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Transfer> transfers_;
  size_t in_stream_ = 0;        // of `transfers_`, the first ones
  uint64_t submitted_ = 0;      // of all times, as the next two
  uint64_t completed_ = 0;      // have left `transfers_`
  uint64_t announced_ = 0;      // by the other end
  std::deque<uint64_t> early_;  // lengths of messages that have no buffer yet
  uint32_t meetings_ = 0;       // transfers in the stream of all times, empty ones left out
  bool mismatched_ = false;     // the link is about to end
  bool running_ = false;        // a `done` is
  bool stopped_ = false;
};

}  // namespace fabricast

#endif  // FABRICAST_RUNTIME_TRANSPORT_NCCL_DIRECTION_H_
