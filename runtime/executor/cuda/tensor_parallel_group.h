// The GPUs of one process that share a stage, joined by NCCL.
#ifndef FABRICAST_RUNTIME_EXECUTOR_CUDA_TENSOR_PARALLEL_GROUP_H_
#define FABRICAST_RUNTIME_EXECUTOR_CUDA_TENSOR_PARALLEL_GROUP_H_

#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "runtime/nccl/nccl.h"

namespace fabricast {

// Thread-safe.
class TensorParallelGroup {
 public:
  // `devices`: the ranks'. Sums of at most `peer_sum_count` floats, a multiple of 4, are the GPUs'
  // own if they reach one another's memory (tensor_parallel_peers.h).
  TensorParallelGroup(std::shared_ptr<Nccl> nccl, const NcclId& id, std::vector<int> devices,
                      int64_t peer_sum_count);

  // Joins the current device's GPU, for good; each rank once, from a thread of its own. Returns
  // when all ranks have joined, with the rank's communicator, which is this group's. From then on a
  // kernel may wait for a call of another rank: none should do anything in between that waits for
  // all GPUs, as cudaFree may.
  //
  // kAborted after Abort; else as Nccl::Join and PeerMailbox::Make.
  absl::StatusOr<NcclCommunicator*> Join(int rank);

  // Join fails from now on, and so does what is or will be done with communicators.
  void Abort();

 private:
  // Returns when all ranks have called it `meetings` times in all.
  absl::Status Meet(int meetings);

  const std::shared_ptr<Nccl> nccl_;
  const NcclId id_;
  const std::vector<int> devices_;
  const int64_t peer_sum_count_;  // 0: all sums are NCCL's
  std::mutex mutex_;
  std::condition_variable changed_;
  int arrivals_ = 0;
  bool aborted_ = false;
  // By rank.
  std::vector<void*> mailboxes_;
  std::vector<std::unique_ptr<NcclCommunicator>> communicators_;
};

}  // namespace fabricast

#endif  // FABRICAST_RUNTIME_EXECUTOR_CUDA_TENSOR_PARALLEL_GROUP_H_
