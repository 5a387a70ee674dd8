// The sums of a group whose GPUs reach one another's memory: small ones by PeerSumF32, which takes
// a fraction of NCCL's time for them, all else by NCCL.
#ifndef FABRICAST_RUNTIME_EXECUTOR_CUDA_TENSOR_PARALLEL_PEERS_H_
#define FABRICAST_RUNTIME_EXECUTOR_CUDA_TENSOR_PARALLEL_PEERS_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "runtime/executor/cuda/tensor_parallel_sum.h"
#include "runtime/nccl/nccl.h"

namespace fabricast {

// Memory on one rank's GPU that all others write into; and a word of the host's.
class PeerMailbox {
 public:
  // Whether each of `devices`, as many as ranks, may write into the others' memory.
  static bool Possible(const std::vector<int>& devices);
  // On devices[rank], which is current. kResourceExhausted if there is no room.
  static absl::StatusOr<std::unique_ptr<PeerMailbox>> Make(const std::vector<int>& devices,
                                                           int rank, int64_t max_count);
  virtual ~PeerMailbox() = default;

  virtual void* memory() const = 0;
  // As rank's, with all ranks' mailboxes.
  virtual PeerSum Sum(const std::vector<void*>& mailboxes) const = 0;
  virtual void Abort() = 0;
};

// `mailboxes`: all ranks'; `own` goes with the result.
std::unique_ptr<NcclCommunicator> SummingAmongPeers(std::unique_ptr<NcclCommunicator> nccl,
                                                    std::unique_ptr<PeerMailbox> own,
                                                    const std::vector<void*>& mailboxes);

}  // namespace fabricast

#endif  // FABRICAST_RUNTIME_EXECUTOR_CUDA_TENSOR_PARALLEL_PEERS_H_
