#include "runtime/executor/cuda/tensor_parallel_peers.h"

#include <cuda_runtime_api.h>

#include <atomic>
#include <cstddef>
#include <utility>

#include "absl/status/status.h"
#include "kernels/gpu/cuda_status.h"

namespace fabricast {
namespace {

constexpr int64_t kWords = 256;  // bytes behind the mailbox, for `calls`

class Mailbox : public PeerMailbox {
 public:
  Mailbox(int rank, int ranks, int64_t max_count) {
    sum_.rank = rank;
    sum_.ranks = ranks;
    sum_.max_count = max_count;
  }
  ~Mailbox() override {
    if (memory_ != nullptr) cudaFree(memory_);
    if (pool_ != nullptr) cudaMemPoolDestroy(pool_);
    if (aborted_ != nullptr) cudaFreeHost(aborted_);
  }

  // From a pool of its own: only that is mapped into the others.
  absl::Status Allocate(const std::vector<int>& devices) {
    cudaMemPoolProps properties = {};
    properties.allocType = cudaMemAllocationTypePinned;
    properties.location = {.type = cudaMemLocationTypeDevice, .id = devices[sum_.rank]};
    FABRICAST_RETURN_IF_CUDA_FAILS(cudaMemPoolCreate(&pool_, &properties));
    std::vector<cudaMemAccessDesc> access;
    for (const int device : devices) {
      access.push_back({.location = {.type = cudaMemLocationTypeDevice, .id = device},
                        .flags = cudaMemAccessFlagsProtReadWrite});
    }
    FABRICAST_RETURN_IF_CUDA_FAILS(cudaMemPoolSetAccess(pool_, access.data(), access.size()));
    const int64_t bytes = PeerMailboxBytes(sum_.ranks, sum_.max_count);
    FABRICAST_RETURN_IF_CUDA_FAILS(
        cudaMallocFromPoolAsync(&memory_, bytes + kWords, pool_, cudaStreamPerThread));
    FABRICAST_RETURN_IF_CUDA_FAILS(
        cudaMemsetAsync(memory_, 0, bytes + kWords, cudaStreamPerThread));
    FABRICAST_RETURN_IF_CUDA_FAILS(cudaHostAlloc(reinterpret_cast<void**>(&aborted_),
                                                 sizeof(*aborted_), cudaHostAllocPortable));
    *aborted_ = 0;
    FABRICAST_RETURN_IF_CUDA_FAILS(cudaStreamSynchronize(cudaStreamPerThread));
    sum_.calls = reinterpret_cast<uint32_t*>(static_cast<std::byte*>(memory_) + bytes);
    sum_.aborted = aborted_;
    return absl::OkStatus();
  }

  void* memory() const override { return memory_; }
  PeerSum Sum(const std::vector<void*>& mailboxes) const override {
    PeerSum sum = sum_;
    for (int r = 0; r < sum.ranks; ++r) sum.mailboxes[r] = mailboxes[r];
    return sum;
  }
  void Abort() override { *static_cast<volatile uint32_t*>(aborted_) = 1; }

 private:
  PeerSum sum_;
  cudaMemPool_t pool_ = nullptr;
  void* memory_ = nullptr;
  uint32_t* aborted_ = nullptr;
};

class PeerCommunicator : public NcclCommunicator {
 public:
  PeerCommunicator(std::unique_ptr<NcclCommunicator> nccl, std::unique_ptr<PeerMailbox> own,
                   const std::vector<void*>& mailboxes)
      : nccl_(std::move(nccl)), own_(std::move(own)), sum_(own_->Sum(mailboxes)) {}

  int rank() const override { return nccl_->rank(); }
  int ranks() const override { return nccl_->ranks(); }

  bool SumOverlaps(int64_t count) const override {
    return count <= sum_.max_count && count % 4 == 0;
  }
  absl::Status SumF32(float* data, int64_t count, GpuStream stream) override {
    if (!SumOverlaps(count)) return nccl_->SumF32(data, count, stream);
    if (aborted_) return absl::CancelledError("the group's communicator was aborted");
    return PeerSumF32(sum_, data, count, {.stream = stream, .overlap_previous = true});
  }
  absl::Status AllGather(const void* from, int64_t bytes, void* to, GpuStream stream) override {
    return nccl_->AllGather(from, bytes, to, stream);
  }
  absl::Status Broadcast(void* data, int64_t bytes, int root, GpuStream stream) override {
    return nccl_->Broadcast(data, bytes, root, stream);
  }
  absl::Status Send(const void* data, int64_t bytes, int to, GpuStream stream) override {
    return nccl_->Send(data, bytes, to, stream);
  }
  absl::Status Receive(void* data, int64_t bytes, int from, GpuStream stream) override {
    return nccl_->Receive(data, bytes, from, stream);
  }
  absl::Status CheckAsync() override { return nccl_->CheckAsync(); }
  void Abort() override {
    aborted_ = true;
    own_->Abort();
    nccl_->Abort();
  }

 private:
  const std::unique_ptr<NcclCommunicator> nccl_;
  const std::unique_ptr<PeerMailbox> own_;
  const PeerSum sum_;
  std::atomic<bool> aborted_ = false;
};

}  // namespace

bool PeerMailbox::Possible(const std::vector<int>& devices) {
  if (devices.size() > static_cast<size_t>(kMaxPeerRanks)) return false;
  for (const int from : devices) {
    for (const int to : devices) {
      int reaches = from == to ? 1 : 0;
      if (from != to && cudaDeviceCanAccessPeer(&reaches, from, to) != cudaSuccess) {
        cudaGetLastError();
        return false;
      }
      if (reaches == 0) return false;
    }
  }
  return true;
}

absl::StatusOr<std::unique_ptr<PeerMailbox>> PeerMailbox::Make(const std::vector<int>& devices,
                                                               int rank, int64_t max_count) {
  auto mailbox = std::make_unique<Mailbox>(rank, static_cast<int>(devices.size()), max_count);
  if (absl::Status status = mailbox->Allocate(devices); !status.ok()) return status;
  return mailbox;
}

std::unique_ptr<NcclCommunicator> SummingAmongPeers(std::unique_ptr<NcclCommunicator> nccl,
                                                    std::unique_ptr<PeerMailbox> own,
                                                    const std::vector<void*>& mailboxes) {
  return std::make_unique<PeerCommunicator>(std::move(nccl), std::move(own), mailboxes);
}

}  // namespace fabricast
