// NCCL between two GPUs, a thread a rank.

#include "runtime/nccl/nccl.h"

#include <cuda_runtime_api.h>

#include <chrono>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/timing/device_array.h"
#include "runtime/check.h"

namespace fabricast {
namespace {

using ::testing::HasSubstr;
using Clock = std::chrono::steady_clock;

constexpr absl::Duration kPatience = absl::Seconds(60);

// Floats of all magnitudes, so that sums are rounded.
std::vector<float> RandomFloats(int64_t count, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<float> floats(static_cast<size_t>(count));
  for (float& value : floats) {
    value = std::ldexp(static_cast<float>(static_cast<int32_t>(random())) / 2147483648.0f,
                       static_cast<int>(random() % 20) - 10);
  }
  return floats;
}

bool SameBits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

// One rank's thread, GPU and stream.
class Rank {
 public:
  explicit Rank(int gpu) {
    FABRICAST_CHECK(cudaSetDevice(gpu) == cudaSuccess);
    FABRICAST_CHECK(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking) == cudaSuccess);
  }
  ~Rank() { cudaStreamDestroy(stream_); }

  template <typename T>
  DeviceArray<T> Array(const std::vector<T>& values) {
    absl::StatusOr<DeviceArray<T>> array = DeviceArray<T>::CopyOf(values);
    FABRICAST_CHECK(array.ok()) << array.status();
    // A small copy from the host may return before its bytes are there.
    FABRICAST_CHECK(cudaStreamSynchronize(nullptr) == cudaSuccess);
    return *std::move(array);
  }
  template <typename T>
  std::vector<T> Values(const DeviceArray<T>& array) {
    FABRICAST_CHECK(cudaStreamSynchronize(stream_) == cudaSuccess);
    absl::StatusOr<std::vector<T>> values = array.ToHost();
    FABRICAST_CHECK(values.ok()) << values.status();
    return *std::move(values);
  }
  cudaStream_t stream() const { return stream_; }

 private:
  cudaStream_t stream_ = nullptr;
};

class NcclTest : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    // Never multicast over NVLink: two GPUs gain nothing by it.
    setenv("NCCL_NVLS_ENABLE", "0", 1);
    setenv("CUDA_MODULE_LOADING", "EAGER", 1);
    absl::StatusOr<std::shared_ptr<Nccl>> nccl = Nccl::Load();
    FABRICAST_CHECK(nccl.ok()) << nccl.status();
    nccl_ = new std::shared_ptr<Nccl>(*std::move(nccl));
  }
  void SetUp() override {
    int gpus = 0;
    if (cudaGetDeviceCount(&gpus) != cudaSuccess || gpus < 2) GTEST_SKIP() << "needs two GPUs";
  }
  Nccl& nccl() { return **nccl_; }

  using Body = std::function<void(int rank, NcclCommunicator& communicator, Rank& here)>;

  void Run(const Body& body, bool link) {
    const absl::StatusOr<NcclId> id = nccl().NewId();
    ASSERT_TRUE(id.ok()) << id.status();
    std::vector<std::thread> threads;
    for (int rank = 0; rank < 2; ++rank) {
      threads.emplace_back([&, rank] {
        Rank here(rank);
        const absl::Time deadline = absl::Now() + kPatience;
        absl::StatusOr<std::unique_ptr<NcclCommunicator>> communicator =
            link ? nccl().JoinLink(*id, rank, /*channels=*/1, deadline)
                 : nccl().Join(*id, 2, rank, deadline);
        ASSERT_TRUE(communicator.ok()) << communicator.status();
        EXPECT_EQ((*communicator)->rank(), rank);
        EXPECT_EQ((*communicator)->ranks(), 2);
        body(rank, **communicator, here);
      });
    }
    for (std::thread& thread : threads) thread.join();
  }
  void OnGroup(const Body& body) { Run(body, /*link=*/false); }
  void OnLink(const Body& body) { Run(body, /*link=*/true); }

 private:
  static inline std::shared_ptr<Nccl>* nccl_ = nullptr;
};

TEST_F(NcclTest, SumsAreRightAndTheSameBitForBitOnBothRanks) {
  // Of two addends there is one order, so the sum is known exactly. 16,384 floats: a token of the
  // 405B's residual stream; 64 of them; a size that no block divides.
  for (const int64_t count : {1, 3, 16'384, 64 * 16'384, 5'000'001}) {
    const std::vector<float> parts[2] = {RandomFloats(count, 1), RandomFloats(count, 2)};
    std::vector<float> expected(parts[0]);
    for (int64_t i = 0; i < count; ++i) expected[i] += parts[1][i];
    OnGroup([&](int rank, NcclCommunicator& communicator, Rank& here) {
      DeviceArray<float> data = here.Array(parts[rank]);
      const absl::Status status = communicator.SumF32(data.get(), count, here.stream());
      ASSERT_TRUE(status.ok()) << status;
      EXPECT_TRUE(SameBits(here.Values(data), expected)) << rank << " of " << count;
    });
  }
}

TEST_F(NcclTest, AllGatherPutsEachRanksPartInItsPlace) {
  for (const int64_t count : {1, 1'000, 3'000'001}) {
    const std::vector<float> parts[2] = {RandomFloats(count, 3), RandomFloats(count, 4)};
    std::vector<float> expected(parts[0]);
    expected.insert(expected.end(), parts[1].begin(), parts[1].end());
    OnGroup([&](int rank, NcclCommunicator& communicator, Rank& here) {
      const DeviceArray<float> from = here.Array(parts[rank]);
      const DeviceArray<float> to = here.Array(std::vector<float>(2 * count));
      const absl::Status status =
          communicator.AllGather(from.get(), 4 * count, to.get(), here.stream());
      ASSERT_TRUE(status.ok()) << status;
      EXPECT_TRUE(SameBits(here.Values(to), expected)) << rank << " of " << count;
    });
  }
}

TEST_F(NcclTest, BroadcastBringsTheRootsBytesToAll) {
  const std::vector<float> sent[2] = {RandomFloats(12'345, 5), RandomFloats(12'345, 6)};
  OnGroup([&](int rank, NcclCommunicator& communicator, Rank& here) {
    for (int root = 0; root < 2; ++root) {
      const DeviceArray<float> data = here.Array(sent[rank]);
      const absl::Status status =
          communicator.Broadcast(data.get(), data.bytes(), root, here.stream());
      ASSERT_TRUE(status.ok()) << status;
      EXPECT_TRUE(SameBits(here.Values(data), sent[root])) << rank << " from " << root;
    }
  });
}

TEST_F(NcclTest, MessagesOfALinkArriveInOrder) {
  const std::vector<int64_t> counts = {1, 8'192, 7, 1'000'003, 16'384, 2, 9'000'000};
  OnLink([&](int rank, NcclCommunicator& communicator, Rank& here) {
    std::vector<DeviceArray<float>> messages;
    for (size_t i = 0; i < counts.size(); ++i) {
      messages.push_back(
          here.Array(rank == 0 ? RandomFloats(counts[i], i) : std::vector<float>(counts[i])));
    }
    for (const DeviceArray<float>& message : messages) {
      const absl::Status status =
          rank == 0 ? communicator.Send(message.get(), message.bytes(), 1, here.stream())
                    : communicator.Receive(message.get(), message.bytes(), 0, here.stream());
      ASSERT_TRUE(status.ok()) << status;
    }
    for (size_t i = 0; i < counts.size(); ++i) {
      EXPECT_TRUE(SameBits(here.Values(messages[i]), RandomFloats(counts[i], i))) << rank << i;
    }
  });
}

TEST_F(NcclTest, CallsMayBeCapturedAndReplayed) {
  constexpr int64_t kCount = 16'384;
  const std::vector<float> parts[2] = {RandomFloats(kCount, 7), RandomFloats(kCount, 8)};
  OnGroup([&](int rank, NcclCommunicator& communicator, Rank& here) {
    const DeviceArray<float> data = here.Array(parts[rank]);
    const DeviceArray<float> all = here.Array(std::vector<float>(2 * kCount));
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t exec = nullptr;
    ASSERT_EQ(cudaStreamBeginCapture(here.stream(), cudaStreamCaptureModeThreadLocal), cudaSuccess);
    const absl::Status sum = communicator.SumF32(data.get(), kCount, here.stream());
    const absl::Status gather =
        communicator.AllGather(data.get(), data.bytes(), all.get(), here.stream());
    ASSERT_EQ(cudaStreamEndCapture(here.stream(), &graph), cudaSuccess) << sum << gather;
    ASSERT_TRUE(sum.ok()) << sum;
    ASSERT_TRUE(gather.ok()) << gather;
    ASSERT_EQ(cudaGraphInstantiate(&exec, graph, 0), cudaSuccess);
    // The first replay gives a + b on both; each later one doubles it, which is exact.
    for (int replay = 0; replay < 3; ++replay) {
      ASSERT_EQ(cudaGraphLaunch(exec, here.stream()), cudaSuccess);
    }
    std::vector<float> expected(2 * kCount);
    for (int64_t i = 0; i < 2 * kCount; ++i) {
      expected[i] = 4 * (parts[0][i % kCount] + parts[1][i % kCount]);
    }
    EXPECT_TRUE(SameBits(here.Values(all), expected)) << rank;
    cudaGraphExecDestroy(exec);
    cudaGraphDestroy(graph);
  });
}

TEST_F(NcclTest, AbortEndsAReceiveThatWaitsAndAllLaterCalls) {
  OnLink([&](int rank, NcclCommunicator& communicator, Rank& here) {
    const DeviceArray<float> data = here.Array(std::vector<float>(1'000'000));
    if (rank == 0) return;
    // Nobody sends; more than one waits in the stream.
    for (int i = 0; i < 3; ++i) {
      ASSERT_TRUE(communicator.Receive(data.get(), data.bytes(), 0, here.stream()).ok());
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    ASSERT_EQ(cudaStreamQuery(here.stream()), cudaErrorNotReady);
    EXPECT_TRUE(communicator.CheckAsync().ok()) << communicator.CheckAsync();
    const Clock::time_point before = Clock::now();
    communicator.Abort();
    const Clock::time_point aborted = Clock::now();
    EXPECT_EQ(cudaStreamSynchronize(here.stream()), cudaSuccess);
    const Clock::time_point ended = Clock::now();
    EXPECT_LT(ended - before, std::chrono::seconds(1));
    RecordProperty("abort_us", static_cast<int>((aborted - before) / std::chrono::microseconds(1)));
    RecordProperty("ended_us", static_cast<int>((ended - before) / std::chrono::microseconds(1)));
    communicator.Abort();
    EXPECT_EQ(communicator.Receive(data.get(), 4, 0, here.stream()).code(),
              absl::StatusCode::kCancelled);
    EXPECT_EQ(communicator.CheckAsync().code(), absl::StatusCode::kCancelled);
  });
}

TEST_F(NcclTest, AbortOfALoneRankEndsASumThatWaitsForIt) {
  OnGroup([&](int rank, NcclCommunicator& communicator, Rank& here) {
    if (rank == 1) return;
    const DeviceArray<float> data = here.Array(std::vector<float>(100'000));
    ASSERT_TRUE(communicator.SumF32(data.get(), 100'000, here.stream()).ok());
    const Clock::time_point before = Clock::now();
    communicator.Abort();
    EXPECT_EQ(cudaStreamSynchronize(here.stream()), cudaSuccess);
    EXPECT_LT(Clock::now() - before, std::chrono::seconds(1));
  });
}

TEST_F(NcclTest, JoiningAGroupThatNobodyElseJoinsEndsAtTheDeadline) {
  const absl::StatusOr<NcclId> id = nccl().NewId();
  ASSERT_TRUE(id.ok()) << id.status();
  ASSERT_EQ(cudaSetDevice(0), cudaSuccess);
  const Clock::time_point before = Clock::now();
  const absl::Status status = nccl().Join(*id, 2, 0, absl::Now() + absl::Seconds(1)).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kDeadlineExceeded) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("rank 0 of 2"));
  EXPECT_LT(Clock::now() - before, std::chrono::seconds(3));
}

}  // namespace
}  // namespace fabricast
