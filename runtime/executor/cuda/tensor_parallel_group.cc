#include "runtime/executor/cuda/tensor_parallel_group.h"

#include <utility>

#include "absl/status/status.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "runtime/executor/cuda/tensor_parallel_peers.h"

namespace fabricast {
namespace {

// All are there, so that it takes as long as NCCL's set-up does: about a second.
constexpr absl::Duration kSetUp = absl::Seconds(60);

absl::Status Aborted() {
  return absl::AbortedError("another GPU of this stage has failed before all were ready");
}

}  // namespace

TensorParallelGroup::TensorParallelGroup(std::shared_ptr<Nccl> nccl, const NcclId& id,
                                         std::vector<int> devices, int64_t peer_sum_count)
    : nccl_(std::move(nccl)),
      id_(id),
      devices_(std::move(devices)),
      peer_sum_count_(peer_sum_count > 0 && PeerMailbox::Possible(devices_) ? peer_sum_count : 0),
      mailboxes_(devices_.size()),
      communicators_(devices_.size()) {}

absl::Status TensorParallelGroup::Meet(int meetings) {
  const int all = meetings * static_cast<int>(communicators_.size());
  std::unique_lock<std::mutex> lock(mutex_);
  ++arrivals_;
  changed_.notify_all();
  changed_.wait(lock, [&] { return arrivals_ >= all || aborted_; });
  return aborted_ ? Aborted() : absl::OkStatus();
}

absl::StatusOr<NcclCommunicator*> TensorParallelGroup::Join(int rank) {
  if (absl::Status status = Meet(1); !status.ok()) return status;
  absl::StatusOr<std::unique_ptr<NcclCommunicator>> joined =
      nccl_->Join(id_, static_cast<int>(devices_.size()), rank, absl::Now() + kSetUp);
  if (!joined.ok()) return joined.status();
  std::unique_ptr<PeerMailbox> mailbox;
  if (peer_sum_count_ > 0) {
    absl::StatusOr<std::unique_ptr<PeerMailbox>> made =
        PeerMailbox::Make(devices_, rank, peer_sum_count_);
    if (!made.ok()) return made.status();
    mailbox = *std::move(made);
  }
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    communicators_[rank] = *std::move(joined);
    if (mailbox != nullptr) mailboxes_[rank] = mailbox->memory();
  }
  if (absl::Status status = Meet(2); !status.ok()) return status;
  const std::lock_guard<std::mutex> lock(mutex_);
  if (aborted_) return Aborted();
  std::unique_ptr<NcclCommunicator>& communicator = communicators_[rank];
  if (mailbox != nullptr) {
    communicator = SummingAmongPeers(std::move(communicator), std::move(mailbox), mailboxes_);
  }
  return communicator.get();
}

void TensorParallelGroup::Abort() {
  const std::lock_guard<std::mutex> lock(mutex_);
  aborted_ = true;
  changed_.notify_all();
  for (const auto& communicator : communicators_) {
    if (communicator != nullptr) communicator->Abort();
  }
}

}  // namespace fabricast
