// NCCL, which is loaded when it is first needed (dlopen).
#ifndef FABRICAST_RUNTIME_NCCL_NCCL_H_
#define FABRICAST_RUNTIME_NCCL_NCCL_H_

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "kernels/gpu/gpu_stream.h"

namespace fabricast {

// Names a communicator to all who join it: ncclUniqueId.
using NcclId = std::array<char, 128>;

// One GPU's end of a group of GPUs. Calls but Abort and CheckAsync do not overlap, and none but
// these may come while another rank's thread of the same process waits for this one. All enqueue
// into `stream`, which is of that GPU, and may be called in a stream capture. Sums come out the
// same, bit for bit, on all ranks. Errors of NCCL are kUnavailable where a peer or the network is
// the cause, else kInternal.
class NcclCommunicator {
 public:
  // Aborts, and waits some seconds for the GPU to get there: graphs that hold calls of any rank of
  // the process must be gone, or it keeps what it has.
  virtual ~NcclCommunicator() = default;

  virtual int rank() const = 0;
  virtual int ranks() const = 0;

  virtual absl::Status SumF32(float* data, int64_t count, GpuStream stream) = 0;  // in place
  // Whether a kernel that follows such a sum may overlap with it (LaunchOptions): not with NCCL's.
  virtual bool SumOverlaps(int64_t /*count*/) const { return false; }
  // `to`: [ranks, bytes].
  virtual absl::Status AllGather(const void* from, int64_t bytes, void* to, GpuStream stream) = 0;
  virtual absl::Status Broadcast(void* data, int64_t bytes, int root, GpuStream stream) = 0;
  virtual absl::Status Send(const void* data, int64_t bytes, int to, GpuStream stream) = 0;
  virtual absl::Status Receive(void* data, int64_t bytes, int from, GpuStream stream) = 0;

  // What NCCL has found since, such as a connection that broke. Any thread.
  virtual absl::Status CheckAsync() = 0;
  // Ends kernels that wait for a peer; what they should have brought means nothing. All other calls
  // are kCancelled from then on. Does not wait for the GPU. Any thread; idempotent.
  virtual void Abort() = 0;
};

// Thread-safe.
class Nccl {
 public:
  // What Load tries, in this order.
  static std::vector<std::string> Libraries();

  // kUnavailable, saying what was looked for and where, and which package has it, if none of
  // `libraries` can be loaded or the one that was is too old. It stays loaded.
  static absl::StatusOr<std::shared_ptr<Nccl>> Load(
      const std::vector<std::string>& libraries = Libraries());
  virtual ~Nccl() = default;

  virtual int version() const = 0;       // 22809
  virtual std::string name() const = 0;  // "NCCL 2.28.9"
  virtual absl::StatusOr<NcclId> NewId() = 0;

  // Returns when all `ranks` have joined, each from a thread or process of its own, with the GPU
  // that is current there; kDeadlineExceeded if they have not by `deadline`. What the calls on all
  // ranks together need is set up too, by making each once with sizes of all magnitudes, so that
  // none waits for peers' processors later; but for Send and Receive, which set themselves up when
  // they are first called, and must not be in a capture then. Joins of one process that overlap in
  // time must be in the same order everywhere, as locks are taken.
  virtual absl::StatusOr<std::unique_ptr<NcclCommunicator>> Join(const NcclId& id, int ranks,
                                                                 int rank, absl::Time deadline) = 0;

  // The same for two ranks, of which 0 sends and 1 receives: that is set up and nothing else. At
  // most `channels` (a power of two) blocks of a kernel move a message, each on a multiprocessor
  // that it shares with nothing large.
  virtual absl::StatusOr<std::unique_ptr<NcclCommunicator>> JoinLink(const NcclId& id, int rank,
                                                                     int channels,
                                                                     absl::Time deadline) = 0;
};

}  // namespace fabricast

#endif  // FABRICAST_RUNTIME_NCCL_NCCL_H_
