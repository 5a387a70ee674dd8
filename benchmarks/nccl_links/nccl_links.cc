// What a hop between two GPUs takes over NCCL, and what it takes from the kernels beside it. Prints
// Markdown; see benchmarks/README.md.
//
// Two ends in one process, on GPUs 0 and 1. Times are the GPUs' own, between events, of work that
// was all enqueued before the first of it began.

#include <cuda_runtime_api.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <functional>
#include <iostream>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "benchmarks/nccl_links/full_gpu.h"
#include "kernels/timing/device_array.h"
#include "runtime/check.h"
#include "runtime/nccl/nccl.h"
#include "runtime/transport/nccl_transport.h"
#include "runtime/transport/tcp.h"

namespace fabricast {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int64_t kKiB = int64_t{1} << 10;
constexpr int64_t kMiB = int64_t{1} << 20;
constexpr absl::Duration kPatience = absl::Seconds(60);
constexpr int kRounds = 16;    // of a chain of hops there and back
constexpr int kRepeats = 5;    // medians
constexpr int kHead = 10'000;  // us that the GPU is kept while a chain is enqueued

void Check(const absl::Status& status) { FABRICAST_CHECK(status.ok()) << status; }
void Check(cudaError_t error) { Check(ToStatus(error, "CUDA")); }

double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

// One GPU's part of a measurement.
struct End {
  int gpu = 0;
  cudaStream_t stream = nullptr;     // waits for arrivals
  cudaStream_t compute = nullptr;    // keeps the GPU busy
  std::vector<cudaEvent_t> arrived;  // with timing
  cudaEvent_t start = nullptr, stop = nullptr;
  DeviceArray<std::byte> buffer;
  std::unique_ptr<DeviceTransport> transport;
  double taken_mb = 0;  // of the GPU's memory by two directions

  void Use() const { Check(cudaSetDevice(gpu)); }
  absl::Span<std::byte> bytes(int64_t count) const {
    return {buffer.get(), static_cast<size_t>(count)};
  }
};

constexpr std::pair<NcclMeeting, const char*> kMeetings[] = {{NcclMeeting::kShared, "meeting"},
                                                             {NcclMeeting::kRelayed, "relayed"},
                                                             {NcclMeeting::kNone, "spinning"}};

class Links {
 public:
  Links(std::shared_ptr<Nccl> nccl, int channels, NcclMeeting meeting) {
    std::unique_ptr<TcpEndpoint> endpoints[2];
    for (std::unique_ptr<TcpEndpoint>& endpoint : endpoints) {
      absl::StatusOr<std::unique_ptr<TcpEndpoint>> listening =
          TcpEndpoint::Listen("127.0.0.1", 0, SharedSecret("0123456789abcdef"), {});
      Check(listening.status());
      endpoint = *std::move(listening);
    }
    std::vector<std::thread> threads;
    for (int stage = 0; stage < 2; ++stage) {
      threads.emplace_back([&, stage] {
        End& end = ends_[stage];
        end.gpu = stage;
        end.Use();
        const absl::Time deadline = absl::Now() + kPatience;
        absl::StatusOr<std::unique_ptr<StageTransport>> side =
            endpoints[stage]->Connect({.session = "benchmark",
                                       .stage = stage,
                                       .peers = {{1 - stage, endpoints[1 - stage]->address()}},
                                       .on_broken = nullptr},
                                      deadline);
        Check(side.status());
        size_t free_before = 0, free_after = 0, total = 0;
        Check(cudaMemGetInfo(&free_before, &total));
        NcclLinks links;
        links.stage = stage;
        links.receive_from = links.send_to = {1 - stage};
        links.channels = channels;
        links.meeting = meeting;
        absl::StatusOr<std::unique_ptr<DeviceTransport>> transport =
            MakeNcclTransport(nccl, *std::move(side), links, deadline);
        Check(transport.status());
        end.transport = *std::move(transport);
        Check(cudaMemGetInfo(&free_after, &total));
        end.taken_mb = (static_cast<double>(free_before) - static_cast<double>(free_after)) / 1e6;
        Check(cudaStreamCreateWithFlags(&end.stream, cudaStreamNonBlocking));
        Check(cudaStreamCreateWithFlags(&end.compute, cudaStreamNonBlocking));
        Check(cudaEventCreate(&end.start));
        Check(cudaEventCreate(&end.stop));
        for (int i = 0; i < kRounds; ++i) Check(cudaEventCreate(&end.arrived.emplace_back()));
        absl::StatusOr<DeviceArray<std::byte>> buffer = DeviceArray<std::byte>::Allocate(64 * kMiB);
        Check(buffer.status());
        end.buffer = *std::move(buffer);
      });
    }
    for (std::thread& thread : threads) thread.join();
  }
  ~Links() {
    Settle();
    for (End& end : ends_) {
      end.Use();
      end.transport = nullptr;
      for (const cudaEvent_t event : end.arrived) cudaEventDestroy(event);
      cudaEventDestroy(end.start);
      cudaEventDestroy(end.stop);
      cudaStreamDestroy(end.stream);
      cudaStreamDestroy(end.compute);
    }
  }
  End& end(int stage) { return ends_[stage]; }

  // There and back: what GPU 0 had is what it gets.
  void Verify(int64_t bytes) {
    std::vector<std::byte> sent(static_cast<size_t>(bytes));
    for (int64_t i = 0; i < bytes; ++i) sent[i] = static_cast<std::byte>(i * 2'654'435'761u >> 13);
    ends_[0].Use();
    Check(cudaMemcpy(ends_[0].buffer.get(), sent.data(), bytes, cudaMemcpyHostToDevice));
    Chain(bytes, 1);
    ends_[0].Use();
    std::vector<std::byte> received(sent.size());
    Check(cudaMemcpy(received.data(), ends_[0].buffer.get(), bytes, cudaMemcpyDeviceToHost));
    FABRICAST_CHECK(sent == received) << "a message of " << bytes << " bytes came back otherwise";
  }

  // Microseconds of a hop of a chain of `rounds` there and back.
  double Chain(int64_t bytes, int rounds = kRounds, int head_us = kHead) {
    End& here = ends_[0];
    End& there = ends_[1];
    Settle();
    here.Use();
    Check(WaitInBlocks(1, 0, head_us, here.stream));
    Check(cudaEventRecord(here.start, here.stream));
    for (int i = 0; i < rounds; ++i) {
      there.Use();
      Check(
          there.transport->ReceiveAfter(nullptr, 0, there.bytes(bytes), there.arrived[i], Done()));
      Check(there.transport->SendAfter(there.arrived[i], 0, there.bytes(bytes), Done()));
      here.Use();
      Check(here.transport->SendAfter(i == 0 ? here.start : here.arrived[i - 1], 1,
                                      here.bytes(bytes), Done()));
      Check(here.transport->ReceiveAfter(nullptr, 1, here.bytes(bytes), here.arrived[i], Done()));
    }
    FABRICAST_CHECK(cudaEventQuery(here.start) == cudaErrorNotReady) << "enqueued too late";
    Check(cudaStreamWaitEvent(here.stream, here.arrived[rounds - 1], 0));
    Check(cudaEventRecord(here.stop, here.stream));
    Check(cudaEventSynchronize(here.stop));
    float ms = 0;
    Check(cudaEventElapsedTime(&ms, here.start, here.stop));
    there.Use();
    Check(cudaStreamSynchronize(there.stream));
    return 1e3 * ms / (2 * rounds);
  }

  // Bytes a second of messages that follow one another in one direction.
  double Stream(int64_t bytes) {
    End& here = ends_[0];
    End& there = ends_[1];
    Settle();
    here.Use();
    Check(WaitInBlocks(1, 0, kHead, here.stream));
    Check(cudaEventRecord(here.start, here.stream));
    for (int i = 0; i < kRounds; ++i) {
      here.Use();
      Check(here.transport->SendAfter(here.start, 1, here.bytes(bytes), Done()));
      there.Use();
      Check(
          there.transport->ReceiveAfter(nullptr, 0, there.bytes(bytes), there.arrived[i], Done()));
    }
    FABRICAST_CHECK(cudaEventQuery(here.start) == cudaErrorNotReady) << "enqueued too late";
    there.Use();
    Check(cudaEventSynchronize(there.arrived[kRounds - 1]));
    float ms = 0;
    Check(cudaEventElapsedTime(&ms, there.arrived[0], there.arrived[kRounds - 1]));
    return static_cast<double>(bytes) * (kRounds - 1) / (1e-3 * ms);
  }

  // Microseconds that GPU 1 takes for `kernels` kernels of `microseconds` on `blocks`
  // multiprocessors, while it waits for `receives` messages, or none, that come later.
  double Beside(int receives, int blocks, int shared_bytes, int microseconds, int kernels) {
    Settle();
    End& here = ends_[0];
    End& there = ends_[1];
    there.Use();
    for (int i = 0; i < receives; ++i) {
      Check(there.transport->ReceiveAfter(nullptr, 0, there.bytes(kMiB), there.arrived[i], Done()));
    }
    // The receive has come to wait on the GPU.
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
    Check(cudaEventRecord(there.start, there.compute));
    for (int i = 0; i < kernels; ++i) {
      Check(WaitInBlocks(blocks, shared_bytes, microseconds, there.compute));
    }
    Check(cudaEventRecord(there.stop, there.compute));
    Check(cudaEventSynchronize(there.stop));
    float ms = 0;
    Check(cudaEventElapsedTime(&ms, there.start, there.stop));
    here.Use();
    for (int i = 0; i < receives; ++i) {
      Check(here.transport->SendAfter(nullptr, 1, here.bytes(kMiB), Done()));
    }
    there.Use();
    if (receives > 0) Check(cudaEventSynchronize(there.arrived[receives - 1]));
    return 1e3 * ms;
  }

  // Chain, while kernels of `microseconds` that fill both GPUs follow one another.
  double ChainBeside(int64_t bytes, int shared_bytes, int microseconds) {
    for (End& end : ends_) {
      end.Use();
      int blocks = 0;
      Check(cudaDeviceGetAttribute(&blocks, cudaDevAttrMultiProcessorCount, end.gpu));
      // As long as the chain's head and some more.
      for (int i = 0; i < (kHead + 30'000) / microseconds; ++i) {
        Check(
            WaitInBlocks(blocks - (end.gpu == 0 ? 1 : 0), shared_bytes, microseconds, end.compute));
      }
    }
    const double us = Chain(bytes);
    for (End& end : ends_) {
      end.Use();
      Check(cudaStreamSynchronize(end.compute));
    }
    return us;
  }

  // Waits for every transfer's `done`.
  void Settle() {
    while (pending_ > 0) std::this_thread::sleep_for(std::chrono::microseconds(100));
  }

  // Microseconds of the processor for a call of ReceiveAfter, and of SendAfter.
  std::pair<double, double> Calls() {
    End& here = ends_[0];
    End& there = ends_[1];
    constexpr int kCalls = 32;
    there.Use();
    const Clock::time_point a = Clock::now();
    for (int i = 0; i < kCalls; ++i) {
      Check(there.transport->ReceiveAfter(nullptr, 0, there.bytes(32 * kKiB),
                                          there.arrived[i % kRounds], Done()));
    }
    const Clock::time_point b = Clock::now();
    here.Use();
    const Clock::time_point c = Clock::now();
    for (int i = 0; i < kCalls; ++i) {
      Check(here.transport->SendAfter(nullptr, 1, here.bytes(32 * kKiB), Done()));
    }
    const Clock::time_point d = Clock::now();
    there.Use();
    Check(cudaEventSynchronize(there.arrived[(kCalls - 1) % kRounds]));
    const auto us = [](Clock::duration time) {
      return std::chrono::duration<double, std::micro>(time).count() / kCalls;
    };
    return {us(b - a), us(d - c)};
  }

 private:
  StageTransport::Done Done() {
    ++pending_;
    return [this](absl::Status status) {
      Check(status);
      --pending_;
    };
  }

  End ends_[2];
  std::atomic<int> pending_ = 0;
};

std::string SizeText(int64_t bytes) {
  return bytes < kMiB ? absl::StrCat(bytes / kKiB, " KiB") : absl::StrCat(bytes / kMiB, " MiB");
}

template <typename F>
double MedianOf(const F& measure) {
  std::vector<double> values;
  for (int i = 0; i < kRepeats; ++i) values.push_back(measure());
  return Median(values);
}

void Hops(const std::shared_ptr<Nccl>& nccl, const std::vector<int>& channel_counts) {
  std::cout << "\n## A hop\n\nus of one of " << 2 * kRounds
            << " hops in a chain there and back, and GB/s of messages that follow one another; "
               "the processor's us a call of ReceiveAfter and of SendAfter of 32 KiB.\n";
  for (const auto& [meeting, name] : kMeetings) {
    for (const int channels : channel_counts) {
      Links links(nccl, channels, meeting);
      const auto [receive_us, send_us] = links.Calls();
      std::cout << absl::StrFormat(
          "\n%d channels, %s; calls %.1f and %.1f us; %.0f MB of a GPU for both directions\n\n",
          channels, name, receive_us, send_us, links.end(1).taken_mb);
      std::cout << "| message | us | GB/s |\n| ---: | ---: | ---: |\n";
      for (const int64_t bytes : {8 * kKiB, 32 * kKiB, 128 * kKiB, 512 * kKiB, kMiB, 2 * kMiB,
                                  8 * kMiB, 32 * kMiB, 64 * kMiB}) {
        links.Verify(bytes);
        std::cout << absl::StrFormat("| %s | %.1f | %.1f |\n", SizeText(bytes),
                                     MedianOf([&] { return links.Chain(bytes); }),
                                     MedianOf([&] { return links.Stream(bytes); }) / 1e9)
                  << std::flush;
      }
    }
  }
}

void Neighbours(const std::shared_ptr<Nccl>& nccl, const std::vector<int>& channel_counts) {
  int multiprocessors = 0;
  Check(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, 1));
  std::cout << "\n## What a receive that waits takes from kernels\n\n"
            << "us of 10 kernels of 100 us, a block a multiprocessor (" << multiprocessors
            << "), with so much shared memory, while so many messages are waited for.\n";
  constexpr int kShared[] = {0, 64 << 10, 100 << 10, 128 << 10, 200 << 10, 226 << 10, 227 << 10};
  for (const auto& [meeting, name] : kMeetings) {
    for (const int channels : channel_counts) {
      Links links(nccl, channels, meeting);
      std::cout << "\n"
                << channels << " channels, " << name
                << "\n\n| shared | none | one | two | one, all multiprocessors but " << channels
                << " |\n| ---: | ---: | ---: | ---: | ---: |\n";
      for (const int shared : kShared) {
        std::cout << absl::StrFormat("| %d KiB", shared >> 10);
        for (const int receives : {0, 1, 2}) {
          std::cout << absl::StrFormat(
              " | %.0f",
              MedianOf([&] { return links.Beside(receives, multiprocessors, shared, 100, 10); }));
        }
        std::cout << absl::StrFormat(" | %.0f", MedianOf([&] {
                                       return links.Beside(1, multiprocessors - channels, shared,
                                                           100, 10);
                                     }))
                  << " |\n"
                  << std::flush;
      }
      std::cout << "\nus of a hop while kernels of 200 us that fill both GPUs follow one another, "
                   "of 32 KiB and 2 MiB:";
      for (const int shared : {0, 100 << 10, 200 << 10}) {
        std::cout << absl::StrFormat(
            " %d KiB: %.0f, %.0f;", shared >> 10,
            MedianOf([&] { return links.ChainBeside(32 * kKiB, shared, 200); }),
            MedianOf([&] { return links.ChainBeside(2 * kMiB, shared, 200); }));
      }
      std::cout << "\n" << std::flush;
    }
  }
}

// Sends a word from GPU 0 to GPU 1 every 10 ms while it lives.
class Keeper {
 public:
  Keeper() {
    thread_ = std::thread([this] {
      Check(cudaSetDevice(1));
      void* there = nullptr;
      Check(cudaMalloc(&there, 4));
      Check(cudaSetDevice(0));
      void* here = nullptr;
      Check(cudaMalloc(&here, 4));
      const cudaError_t enabled = cudaDeviceEnablePeerAccess(1, 0);
      if (enabled != cudaErrorPeerAccessAlreadyEnabled) Check(enabled);
      (void)cudaGetLastError();
      cudaStream_t stream = nullptr;
      Check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
      while (!over_) {
        Check(cudaMemcpyPeerAsync(there, 1, here, 0, 4, stream));
        std::this_thread::sleep_for(std::chrono::milliseconds(10));
      }
      Check(cudaStreamSynchronize(stream));
      Check(cudaStreamDestroy(stream));
    });
  }
  ~Keeper() {
    over_ = true;
    thread_.join();
  }

 private:
  std::atomic<bool> over_ = false;
  std::thread thread_;
};

// Hops over links that have rested.
void Rests(const std::shared_ptr<Nccl>& nccl) {
  std::cout
      << "\n## After a rest\n\nus of a hop, half of one there and back, with 4 channels, when "
         "nothing has gone over the link for so long, or a word every 10 ms.\n\n| rest |";
  std::vector<std::unique_ptr<Links>> links;
  for (const auto& [meeting, name] : kMeetings) {
    std::cout << " 32 KiB, " << name << " | 768 KiB |";
    links.push_back(std::make_unique<Links>(nccl, 4, meeting));
  }
  std::cout << "\n| ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n";
  const auto row = [&](int rest_ms, const char* note) {
    std::cout << "| " << rest_ms << " ms" << note;
    for (const std::unique_ptr<Links>& each : links) {
      for (const int64_t bytes : {32 * kKiB, 768 * kKiB}) {
        const double us = MedianOf([&] { return each->Chain(bytes, 1, 1'000 * rest_ms); });
        std::cout << absl::StrFormat(" | %.1f", us);
      }
    }
    std::cout << " |\n" << std::flush;
  };
  for (const int rest_ms : {1, 10, 25, 30, 40, 50, 100}) row(rest_ms, "");
  const Keeper keeper;
  for (const int rest_ms : {25, 50, 100}) row(rest_ms, ", words");
}

// Collectives of a group of two, as tensor parallelism uses them.
void Sums(const std::shared_ptr<Nccl>& nccl) {
  std::cout << "\n## Sums of FP32 over two GPUs\n\nus of one of 20 that follow one another.\n\n"
            << "| bytes | us |\n| ---: | ---: |\n"
            << std::flush;
  const absl::StatusOr<NcclId> id = nccl->NewId();
  Check(id.status());
  std::vector<std::thread> threads;
  for (int rank = 0; rank < 2; ++rank) {
    threads.emplace_back([&, rank] {
      Check(cudaSetDevice(rank));
      size_t free_before = 0, free_after = 0, total = 0;
      Check(cudaMemGetInfo(&free_before, &total));
      absl::StatusOr<std::unique_ptr<NcclCommunicator>> group =
          nccl->Join(*id, 2, rank, absl::Now() + kPatience);
      Check(group.status());
      Check(cudaMemGetInfo(&free_after, &total));
      cudaStream_t stream = nullptr;
      Check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
      cudaEvent_t start = nullptr, stop = nullptr;
      Check(cudaEventCreate(&start));
      Check(cudaEventCreate(&stop));
      absl::StatusOr<DeviceArray<float>> data = DeviceArray<float>::Allocate(16 * kMiB);
      Check(data.status());
      Check(data->FillBytes(0));
      for (const int64_t bytes :
           {16 * kKiB, 64 * kKiB, 256 * kKiB, kMiB, 4 * kMiB, 16 * kMiB, 64 * kMiB}) {
        constexpr int kSums = 20;
        const double us = MedianOf([&] {
          Check(WaitInBlocks(1, 0, 2'000, stream));
          Check(group.value()->SumF32(data->get(), bytes / 4, stream));
          Check(cudaEventRecord(start, stream));
          for (int i = 0; i < kSums; ++i) {
            Check(group.value()->SumF32(data->get(), bytes / 4, stream));
          }
          Check(cudaEventRecord(stop, stream));
          Check(cudaEventSynchronize(stop));
          float ms = 0;
          Check(cudaEventElapsedTime(&ms, start, stop));
          return 1e3 * ms / kSums;
        });
        if (rank == 0) std::cout << absl::StrFormat("| %s | %.1f |\n", SizeText(bytes), us);
      }
      if (rank == 0) {
        std::cout << absl::StrFormat("\nThe group takes %.0f MB of a GPU.\n",
                                     static_cast<double>(free_before - free_after) / 1e6);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

int Main(int argc, char** argv) {
  CLI::App app("Hops over NCCL between two GPUs, and what they take from the kernels beside them");
  std::string only;
  std::vector<int> channels = {1, 2, 4, 8, 16};
  app.add_option("--only", only, "One part: neighbours, rests, hops or sums")
      ->check(CLI::IsMember({"neighbours", "rests", "hops", "sums"}));
  app.add_option("--channels", channels, "Channels: powers of two")->delimiter(',');
  CLI11_PARSE(app, argc, argv);

  // As runtime/transport/nccl_environment.h has it for one host.
  for (const auto& [name, value] :
       {std::pair("NCCL_NVLS_ENABLE", "0"), std::pair("CUDA_MODULE_LOADING", "EAGER"),
        std::pair("CUDA_DEVICE_MAX_CONNECTIONS", "32")}) {
    setenv(name, value, /*overwrite=*/0);
  }
  const absl::StatusOr<std::shared_ptr<Nccl>> nccl = Nccl::Load();
  Check(nccl.status());
  int gpus = 0;
  Check(cudaGetDeviceCount(&gpus));
  FABRICAST_CHECK(gpus >= 2) << "needs two GPUs; this machine has " << gpus;
  cudaDeviceProp properties;
  Check(cudaGetDeviceProperties(&properties, 0));
  std::cout << "- GPUs: 2 of " << gpus << " " << properties.name << "; " << nccl.value()->name()
            << "\n";
  if (only.empty() || only == "neighbours") Neighbours(*nccl, channels);
  if (only.empty() || only == "rests") Rests(*nccl);
  if (only.empty() || only == "hops") Hops(*nccl, channels);
  if (only.empty() || only == "sums") Sums(*nccl);
  return 0;
}

}  // namespace
}  // namespace fabricast

int main(int argc, char** argv) { return fabricast::Main(argc, argv); }
