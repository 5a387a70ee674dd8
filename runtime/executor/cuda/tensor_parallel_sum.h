// Sums over GPUs of one process that write into one another's memory, as NVLink makes them: one
// kernel, without NCCL's launch, and which overlaps with its neighbours in the stream as all of
// ours do.
//
// Each rank writes its array into a mailbox on every other one, and adds what comes into its own in
// the order of ranks, so that all have the same bits. Small arrays go 4 bytes of data beside 4 of
// the call's number, which say that the data is there (NCCL's LL protocol): what counts is how long
// one GPU's word takes to the other. Larger ones go as they are, and a flag a block of threads
// follows.
#ifndef FABRICAST_RUNTIME_EXECUTOR_CUDA_TENSOR_PARALLEL_SUM_H_
#define FABRICAST_RUNTIME_EXECUTOR_CUDA_TENSOR_PARALLEL_SUM_H_

#include <cstdint>

#include "absl/status/status.h"
#include "kernels/gpu/gpu_stream.h"

namespace fabricast {

constexpr int kMaxPeerRanks = 8;

// One rank's view. All ranks make the same calls, with the same counts, in the same order.
struct PeerSum {
  int rank = 0;
  int ranks = 0;          // at most kMaxPeerRanks
  int64_t max_count = 0;  // of floats; a multiple of 4
  // PeerMailboxBytes each, zero at first, on each rank's GPU and within reach of all.
  void* mailboxes[kMaxPeerRanks] = {};
  uint32_t* calls = nullptr;          // two words on this GPU, zero at first
  const uint32_t* aborted = nullptr;  // the host's, page-locked; not zero: waits end
};

int64_t PeerMailboxBytes(int ranks, int64_t max_count);

// data[i] = the sum of all ranks' data[i]. `count`: a multiple of 4, at most max_count; `data`:
// 16-byte aligned. After an abort data means nothing.
absl::Status PeerSumF32(const PeerSum& peers, float* data, int64_t count,
                        const LaunchOptions& options);

}  // namespace fabricast

#endif  // FABRICAST_RUNTIME_EXECUTOR_CUDA_TENSOR_PARALLEL_SUM_H_
