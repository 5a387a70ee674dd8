// Sums between two GPUs, a thread a rank.

#include "runtime/executor/cuda/tensor_parallel_peers.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "gtest/gtest.h"
#include "runtime/check.h"
#include "runtime/executor/cuda/tensor_parallel_group.h"
#include "runtime/nccl/nccl.h"

namespace fabricast {
namespace {

// 16 tokens of the 405B: twice what goes with flags beside the data.
constexpr int64_t kMaxCount = 262144;

// A rank's value of element `i` in call `call`; of all magnitudes, so that sums are rounded.
float Value(int rank, int64_t call, int64_t i) {
  const uint64_t bits =
      (static_cast<uint64_t>(i) * 2 + rank + static_cast<uint64_t>(call) * 77) * 0x9E3779B97F4A7C15;
  return std::ldexp(static_cast<float>(static_cast<int32_t>(bits >> 32)),
                    static_cast<int>(bits % 20) - 40);
}

class TensorParallelPeersTest : public testing::Test {
 protected:
  void SetUp() override {
    setenv("NCCL_NVLS_ENABLE", "0", 1);  // two GPUs gain nothing by multicast
    int gpus = 0;
    if (cudaGetDeviceCount(&gpus) != cudaSuccess || gpus < 2) GTEST_SKIP() << "needs two GPUs";
    if (!PeerMailbox::Possible({0, 1})) GTEST_SKIP() << "needs GPUs that reach one another";
  }

  using Body = std::function<void(int rank, NcclCommunicator& group, cudaStream_t stream)>;
  void OnBoth(const Body& body) {
    absl::StatusOr<std::shared_ptr<Nccl>> nccl = Nccl::Load();
    ASSERT_TRUE(nccl.ok()) << nccl.status();
    TensorParallelGroup group(*nccl, *(*nccl)->NewId(), {0, 1}, kMaxCount);
    std::vector<std::thread> threads;
    for (int rank = 0; rank < 2; ++rank) {
      threads.emplace_back([&, rank] {
        FABRICAST_CHECK(cudaSetDevice(rank) == cudaSuccess);
        cudaStream_t stream = nullptr;
        FABRICAST_CHECK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking) == cudaSuccess);
        const absl::StatusOr<NcclCommunicator*> joined = group.Join(rank);
        ASSERT_TRUE(joined.ok()) << joined.status();
        body(rank, **joined, stream);
        EXPECT_EQ(cudaStreamSynchronize(stream), cudaSuccess);
        cudaStreamDestroy(stream);
      });
    }
    for (std::thread& thread : threads) thread.join();
  }
};

// Floats on the current GPU, with some behind them that nobody may write.
class Array {
 public:
  explicit Array(int64_t count) : count_(count) {
    FABRICAST_CHECK(cudaMalloc(reinterpret_cast<void**>(&data_), Bytes()) == cudaSuccess);
  }
  ~Array() { cudaFree(data_); }
  float* data() const { return data_; }

  void Fill(int rank, int64_t call, cudaStream_t stream) {
    values_.assign(count_ + kGuard, -1);
    for (int64_t i = 0; i < count_; ++i) values_[i] = Value(rank, call, i);
    FABRICAST_CHECK(cudaMemcpyAsync(data_, values_.data(), Bytes(), cudaMemcpyHostToDevice,
                                    stream) == cudaSuccess);
  }
  // That all hold the sum of both ranks' values of `call`.
  void Check(int64_t call, cudaStream_t stream) {
    FABRICAST_CHECK(cudaMemcpyAsync(values_.data(), data_, Bytes(), cudaMemcpyDeviceToHost,
                                    stream) == cudaSuccess);
    FABRICAST_CHECK(cudaStreamSynchronize(stream) == cudaSuccess);
    for (int64_t i = 0; i < count_; ++i) {
      ASSERT_EQ(values_[i], Value(0, call, i) + Value(1, call, i))
          << "element " << i << " of " << count_ << ", call " << call;
    }
    for (int64_t i = count_; i < count_ + kGuard; ++i) ASSERT_EQ(values_[i], -1) << "behind";
  }

 private:
  static constexpr int64_t kGuard = 1024;
  size_t Bytes() const { return (count_ + kGuard) * sizeof(float); }

  const int64_t count_;
  float* data_ = nullptr;
  std::vector<float> values_;
};

TEST_F(TensorParallelPeersTest, SumsAreRightOfAllSizesInTurn) {
  OnBoth([](int rank, NcclCommunicator& group, cudaStream_t stream) {
    int64_t call = 0;
    // Beyond kMaxCount, and of 4 k + 2: NCCL's.
    for (const int64_t count :
         {4L, 131072L, 8L, 1020L, 131076L, 1024L, 1028L, 262144L, 16384L, 131068L, 2L, 262148L, 4L,
          40000L, 200000L, 131072L, 1L << 20, 12L}) {
      Array array(count);
      for (int again = 0; again < 3; ++again, ++call) {
        array.Fill(rank, call, stream);
        ASSERT_TRUE(group.SumF32(array.data(), count, stream).ok());
        ASSERT_NO_FATAL_FAILURE(array.Check(call, stream));
      }
    }
  });
}

TEST_F(TensorParallelPeersTest, SumsFollowOneAnotherInGraphs) {
  OnBoth([](int rank, NcclCommunicator& group, cudaStream_t stream) {
    constexpr int kCalls = 20;
    for (const int64_t count : {16384, 262144}) {
      Array array(count);
      // Each sum doubles the last one's result, exactly.
      cudaGraph_t graph = nullptr;
      cudaGraphExec_t executable = nullptr;
      ASSERT_EQ(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), cudaSuccess);
      for (int i = 0; i < kCalls; ++i) ASSERT_TRUE(group.SumF32(array.data(), count, stream).ok());
      ASSERT_EQ(cudaStreamEndCapture(stream, &graph), cudaSuccess);
      ASSERT_EQ(cudaGraphInstantiate(&executable, graph, 0), cudaSuccess);
      for (int64_t call = 0; call < 50; ++call) {
        array.Fill(rank, call, stream);
        ASSERT_EQ(cudaGraphLaunch(executable, stream), cudaSuccess);
        std::vector<float> values(count);
        ASSERT_EQ(cudaMemcpyAsync(values.data(), array.data(), count * sizeof(float),
                                  cudaMemcpyDeviceToHost, stream),
                  cudaSuccess);
        ASSERT_EQ(cudaStreamSynchronize(stream), cudaSuccess);
        for (int64_t i = 0; i < count; ++i) {
          ASSERT_EQ(values[i], std::ldexp(Value(0, call, i) + Value(1, call, i), kCalls - 1))
              << "element " << i << " call " << call;
        }
      }
      cudaGraphExecDestroy(executable);
      cudaGraphDestroy(graph);
    }
  });
}

TEST_F(TensorParallelPeersTest, AbortEndsASumThatWaitsForTheOther) {
  OnBoth([](int rank, NcclCommunicator& group, cudaStream_t stream) {
    if (rank == 1) return;
    Array array(16384);
    array.Fill(rank, 0, stream);
    ASSERT_TRUE(group.SumF32(array.data(), 16384, stream).ok());
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    EXPECT_EQ(cudaStreamQuery(stream), cudaErrorNotReady);
    group.Abort();
    EXPECT_EQ(cudaStreamSynchronize(stream), cudaSuccess);
    for (const int64_t count : {4, 16384, 262148}) {
      EXPECT_EQ(group.SumF32(array.data(), count, stream).code(), absl::StatusCode::kCancelled);
    }
  });
}

}  // namespace
}  // namespace fabricast
