#include "runtime/executor/cuda/tensor_parallel_group.h"

#include <atomic>
#include <chrono>
#include <future>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "gtest/gtest.h"

namespace fabricast {
namespace {

class FakeCommunicator : public NcclCommunicator {
 public:
  FakeCommunicator(int rank, int ranks, std::atomic<int>& aborts)
      : rank_(rank), ranks_(ranks), aborts_(aborts) {}
  int rank() const override { return rank_; }
  int ranks() const override { return ranks_; }
  absl::Status SumF32(float*, int64_t, GpuStream) override { return absl::OkStatus(); }
  absl::Status AllGather(const void*, int64_t, void*, GpuStream) override {
    return absl::OkStatus();
  }
  absl::Status Broadcast(void*, int64_t, int, GpuStream) override { return absl::OkStatus(); }
  absl::Status Send(const void*, int64_t, int, GpuStream) override { return absl::OkStatus(); }
  absl::Status Receive(void*, int64_t, int, GpuStream) override { return absl::OkStatus(); }
  absl::Status CheckAsync() override { return absl::OkStatus(); }
  void Abort() override { ++aborts_; }

 private:
  const int rank_;
  const int ranks_;
  std::atomic<int>& aborts_;
};

class FakeNccl : public Nccl {
 public:
  int version() const override { return 22809; }
  std::string name() const override { return "NCCL of a test"; }
  absl::StatusOr<NcclId> NewId() override { return NcclId{}; }
  absl::StatusOr<std::unique_ptr<NcclCommunicator>> Join(const NcclId&, int ranks, int rank,
                                                         absl::Time) override {
    ++joins_;
    if (rank == failing_rank_) return absl::UnavailableError("no peer access");
    return std::make_unique<FakeCommunicator>(rank, ranks, aborts_);
  }
  absl::StatusOr<std::unique_ptr<NcclCommunicator>> JoinLink(const NcclId&, int, int,
                                                             absl::Time) override {
    return absl::UnimplementedError("");
  }

  int failing_rank_ = -1;
  std::atomic<int> joins_ = 0;
  std::atomic<int> aborts_ = 0;
};

class TensorParallelGroupTest : public testing::Test {
 protected:
  std::future<absl::StatusOr<NcclCommunicator*>> Join(int rank) {
    return std::async(std::launch::async, [this, rank] { return group_.Join(rank); });
  }

  const std::shared_ptr<FakeNccl> nccl_ = std::make_shared<FakeNccl>();
  TensorParallelGroup group_{nccl_, NcclId{}, {0, 1}, /*peer_sum_count=*/0};
};

TEST_F(TensorParallelGroupTest, NobodyJoinsNcclBeforeAllAreThere) {
  auto first = Join(1);
  EXPECT_EQ(first.wait_for(std::chrono::milliseconds(50)), std::future_status::timeout);
  EXPECT_EQ(nccl_->joins_, 0);
  auto second = Join(0);
  const absl::StatusOr<NcclCommunicator*> one = first.get();
  const absl::StatusOr<NcclCommunicator*> zero = second.get();
  ASSERT_TRUE(zero.ok() && one.ok());
  EXPECT_EQ((*zero)->rank(), 0);
  EXPECT_EQ((*one)->rank(), 1);
  group_.Abort();
  EXPECT_EQ(nccl_->aborts_, 2);
}

TEST_F(TensorParallelGroupTest, AbortEndsTheWaitForOneThatDoesNotCome) {
  auto waiting = Join(0);
  EXPECT_EQ(waiting.wait_for(std::chrono::milliseconds(20)), std::future_status::timeout);
  group_.Abort();
  EXPECT_EQ(waiting.get().status().code(), absl::StatusCode::kAborted);
  EXPECT_EQ(group_.Join(1).status().code(), absl::StatusCode::kAborted);
  EXPECT_EQ(nccl_->joins_, 0);
}

TEST_F(TensorParallelGroupTest, AbortEndsTheWaitForOneThatNcclDoesNotTake) {
  nccl_->failing_rank_ = 1;
  auto joined = Join(0);
  EXPECT_EQ(group_.Join(1).status(), absl::UnavailableError("no peer access"));
  EXPECT_EQ(joined.wait_for(std::chrono::milliseconds(50)), std::future_status::timeout);
  group_.Abort();
  EXPECT_EQ(joined.get().status().code(), absl::StatusCode::kAborted);
  EXPECT_EQ(nccl_->aborts_, 1);
}

}  // namespace
}  // namespace fabricast
