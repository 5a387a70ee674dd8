// NCCL's transport between GPUs: conformance, order on the GPUs, and peers that die or freeze. On
// two GPUs, stages 0 and 2 of the conformance suite share one and are joined by loopback.

#include "runtime/transport/nccl_transport.h"

#include <cuda_runtime_api.h>
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <future>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/timing/device_array.h"
#include "runtime/check.h"
#include "runtime/nccl/nccl.h"
#include "runtime/transport/conformance/outcome.h"
#include "runtime/transport/conformance/transport_conformance.h"
#include "runtime/transport/loopback.h"
#include "runtime/transport/relay.h"
#include "runtime/transport/tcp.h"

namespace fabricast {
namespace {

using ::testing::Each;
using ::testing::HasSubstr;
using Bytes = std::vector<std::byte>;
using Clock = std::chrono::steady_clock;

constexpr size_t kMiB = size_t{1} << 20;
constexpr absl::Duration kPatience = absl::Minutes(1);
constexpr char kToken[] = "0123456789abcdef";
// Says to this program that it is a peer, and where its test listens.
constexpr char kPeerOf[] = "FABRICAST_TEST_PEER_OF";

std::string Message(const absl::Status& status) { return std::string(status.message()); }

int Gpus() {
  static const int count = [] {
    // As nccl_environment.h has it for one host. CUDA reads its own when it is first called.
    setenv("NCCL_NVLS_ENABLE", "0", 1);
    setenv("CUDA_MODULE_LOADING", "EAGER", 1);
    setenv("CUDA_DEVICE_MAX_CONNECTIONS", "32", 1);
    int gpus = 0;
    return cudaGetDeviceCount(&gpus) == cudaSuccess ? gpus : 0;
  }();
  return count;
}

std::shared_ptr<Nccl> LoadedNccl() {
  static const auto* const nccl = [] {
    absl::StatusOr<std::shared_ptr<Nccl>> nccl = Nccl::Load();
    FABRICAST_CHECK(nccl.ok()) << nccl.status();
    return new std::shared_ptr<Nccl>(*std::move(nccl));
  }();
  return *nccl;
}

std::unique_ptr<TcpEndpoint> Listen() {
  absl::StatusOr<std::unique_ptr<TcpEndpoint>> endpoint =
      TcpEndpoint::Listen("127.0.0.1", 0, SharedSecret(kToken), {});
  FABRICAST_CHECK(endpoint.ok()) << endpoint.status();
  return *std::move(endpoint);
}

// A GPU's memory for the host's buffers of the conformance suite. Allocated once: freeing it would
// wait for every kernel of the GPU. Thread-safe.
class Arena {
 public:
  static Arena& Of(int gpu) {
    static std::mutex mutex;
    static auto* const arenas = new std::map<int, Arena*>;
    const std::lock_guard<std::mutex> lock(mutex);
    Arena*& arena = (*arenas)[gpu];
    if (arena == nullptr) arena = new Arena(gpu);
    return *arena;
  }

  // Aligned as `host` is, as far as 16 bytes go. Waits for room.
  std::byte* Take(const void* host, size_t bytes) {
    const size_t offset = reinterpret_cast<uintptr_t>(host) % 16;
    const size_t needed = (offset + bytes + 511) / 256 * 256;
    std::unique_lock<std::mutex> lock(mutex_);
    auto free = free_.end();
    const bool found = given_back_.wait_for(lock, Outcome::kPatience, [&] {
      free = std::find_if(free_.begin(), free_.end(),
                          [needed](const auto& entry) { return entry.second >= needed; });
      return free != free_.end();
    });
    FABRICAST_CHECK(found) << "no " << bytes << " bytes of the arena are free";
    const auto [at, size] = *free;
    free_.erase(free);
    if (size > needed) free_[at + needed] = size - needed;
    taken_[at + offset] = {at, needed};
    return memory_ + at + offset;
  }
  void GiveBack(std::byte* memory) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto taken = taken_.find(static_cast<size_t>(memory - memory_));
    FABRICAST_CHECK(taken != taken_.end());
    auto [at, size] = taken->second;
    taken_.erase(taken);
    auto next = free_.lower_bound(at);
    if (next != free_.end() && at + size == next->first) {
      size += next->second;
      next = free_.erase(next);
    }
    if (next != free_.begin() && std::prev(next)->first + std::prev(next)->second == at) {
      std::prev(next)->second += size;
    } else {
      free_[at] = size;
    }
    given_back_.notify_all();
  }

 private:
  static constexpr size_t kBytes = 2048 * kMiB;
  explicit Arena(int gpu) {
    void* memory = nullptr;
    FABRICAST_CHECK(cudaSetDevice(gpu) == cudaSuccess &&
                    cudaMalloc(&memory, kBytes) == cudaSuccess);
    memory_ = static_cast<std::byte*>(memory);
    free_[0] = kBytes;
  }

  std::byte* memory_ = nullptr;
  std::mutex mutex_;
  std::condition_variable given_back_;
  std::map<size_t, size_t> free_;                      // sizes by offset
  std::map<size_t, std::pair<size_t, size_t>> taken_;  // offset and size by what was given
};

// A DeviceTransport for buffers in the host's memory.
class HostBuffers final : public StageTransport {
 public:
  // `near`: for the peers on the same GPU.
  HostBuffers(std::unique_ptr<DeviceTransport> device, int gpu, std::set<int> near_peers,
              std::unique_ptr<StageTransport> near)
      : gpu_(gpu),
        near_peers_(std::move(near_peers)),
        near_(std::move(near)),
        device_(std::move(device)) {}

  absl::Status Send(int to, absl::Span<const std::byte> bytes, Done done) override {
    if (near_peers_.count(to) != 0) return near_->Send(to, bytes, std::move(done));
    FABRICAST_CHECK(cudaSetDevice(gpu_) == cudaSuccess);
    std::byte* const memory = Arena::Of(gpu_).Take(bytes.data(), bytes.size());
    Copy(memory, bytes.data(), bytes.size(), cudaMemcpyHostToDevice);
    absl::Status status =
        device_->Send(to, absl::MakeConstSpan(memory, bytes.size()),
                      [this, memory, done = std::move(done)](absl::Status sent) mutable {
                        Arena::Of(gpu_).GiveBack(memory);
                        std::move(done)(sent);
                      });
    if (!status.ok()) Arena::Of(gpu_).GiveBack(memory);
    return status;
  }

  absl::Status Receive(int from, absl::Span<std::byte> buffer, Done done) override {
    if (near_peers_.count(from) != 0) return near_->Receive(from, buffer, std::move(done));
    std::byte* const memory = Arena::Of(gpu_).Take(buffer.data(), buffer.size());
    absl::Status status =
        device_->Receive(from, absl::MakeSpan(memory, buffer.size()),
                         [this, memory, buffer, done = std::move(done)](absl::Status got) mutable {
                           if (got.ok()) {
                             Copy(buffer.data(), memory, buffer.size(), cudaMemcpyDeviceToHost);
                           }
                           Arena::Of(gpu_).GiveBack(memory);
                           std::move(done)(got);
                         });
    if (!status.ok()) Arena::Of(gpu_).GiveBack(memory);
    return status;
  }

  void Close() override {
    device_->Close();
    near_->Close();
  }

 private:
  static void Copy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind) {
    if (bytes == 0) return;
    cudaError_t error = cudaMemcpy(to, from, bytes, kind);
    // A small copy from the host may return before its bytes are there.
    if (error == cudaSuccess) error = cudaStreamSynchronize(nullptr);
    FABRICAST_CHECK(error == cudaSuccess) << cudaGetErrorName(error);
  }

  const int gpu_;
  const std::set<int> near_peers_;
  const std::unique_ptr<StageTransport> near_;
  const std::unique_ptr<DeviceTransport> device_;
};

// Stages in this process, a thread each while they join.
struct Stages {
  std::vector<std::unique_ptr<TcpEndpoint>> endpoints;
  std::map<std::pair<int, int>, std::unique_ptr<Relay>> relays;  // by lower and higher stage
  std::vector<std::unique_ptr<DeviceTransport>> ends;
};

// Each is joined to all others that are on another GPU, in both directions.
std::shared_ptr<Stages> JoinStages(int stages, const NcclLinks& links = {}) {
  auto joined = std::make_shared<Stages>();
  joined->ends.resize(stages);
  std::vector<std::string> addresses;
  for (int stage = 0; stage < stages; ++stage) {
    joined->endpoints.push_back(Listen());
    addresses.push_back(joined->endpoints.back()->address());
  }
  std::vector<std::thread> threads;
  for (int stage = 0; stage < stages; ++stage) {
    TcpGroup group = {.session = "test", .stage = stage, .peers = {}, .on_broken = nullptr};
    NcclLinks own = links;
    own.stage = stage;
    for (int peer = 0; peer < stages; ++peer) {
      if (peer == stage || peer % Gpus() == stage % Gpus()) continue;
      group.peers[peer] = addresses[peer];
      own.receive_from.push_back(peer);
      own.send_to.push_back(peer);
      if (peer < stage) continue;
      std::unique_ptr<Relay>& relay = joined->relays[{stage, peer}];
      relay = std::make_unique<Relay>(addresses[peer]);
      group.peers[peer] = relay->address();
    }
    threads.emplace_back([&joined = *joined, stage, group, own] {
      FABRICAST_CHECK(cudaSetDevice(stage % Gpus()) == cudaSuccess);
      const absl::Time deadline = absl::Now() + kPatience;
      absl::StatusOr<std::unique_ptr<StageTransport>> side =
          joined.endpoints[stage]->Connect(group, deadline);
      FABRICAST_CHECK(side.ok()) << side.status();
      absl::StatusOr<std::unique_ptr<DeviceTransport>> end =
          MakeNcclTransport(LoadedNccl(), *std::move(side), own, deadline);
      FABRICAST_CHECK(end.ok()) << end.status();
      joined.ends[stage] = *std::move(end);
    });
  }
  for (std::thread& thread : threads) thread.join();
  return joined;
}

JoinedEnds JoinForConformance(int stages, const NcclLinks& links) {
  const std::shared_ptr<Stages> joined = JoinStages(stages, links);
  std::vector<std::unique_ptr<StageTransport>> near = MakeLoopbackTransports(stages);
  JoinedEnds ends;
  for (int stage = 0; stage < stages; ++stage) {
    std::set<int> near_peers;
    for (int peer = stage % Gpus(); peer < stages; peer += Gpus()) {
      if (peer != stage) near_peers.insert(peer);
    }
    ends.ends.push_back(std::make_unique<HostBuffers>(std::move(joined->ends[stage]),
                                                      stage % Gpus(), std::move(near_peers),
                                                      std::move(near[stage])));
  }
  ends.kill = [joined](int stage) {
    for (const auto& [link, relay] : joined->relays) {
      if (link.first == stage || link.second == stage) relay->Reset();
    }
  };
  return ends;
}

TransportUnderTest UnderTest(const std::string& name, const NcclLinks& links) {
  return {.name = name,
          .join = [links](int stages) { return JoinForConformance(stages, links); },
          .can_kill = true};
}

NcclLinks Links(int channels, NcclMeeting meeting) {
  NcclLinks links;
  links.channels = channels;
  links.meeting = meeting;
  return links;
}

// Without two GPUs.
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(TransportConformanceTest);

std::vector<TransportUnderTest> TransportsUnderTest() {
  if (Gpus() < 2) return {};
  return {UnderTest("meeting", Links(1, NcclMeeting::kShared)),
          UnderTest("relayed", Links(1, NcclMeeting::kRelayed)),
          UnderTest("spinning", Links(4, NcclMeeting::kNone))};
}

INSTANTIATE_TEST_SUITE_P(Nccl, TransportConformanceTest, testing::ValuesIn(TransportsUnderTest()),
                         testing::PrintToStringParamName());

// A GPU's stream and events, as a stage has them.
class Gpu {
 public:
  explicit Gpu(int gpu) : gpu_(gpu) {
    Use();
    FABRICAST_CHECK(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking) == cudaSuccess);
  }
  ~Gpu() {
    Use();
    for (const cudaEvent_t event : events_) cudaEventDestroy(event);
    cudaStreamDestroy(stream_);
  }
  void Use() const { FABRICAST_CHECK(cudaSetDevice(gpu_) == cudaSuccess); }
  cudaEvent_t NewEvent() {
    Use();
    cudaEvent_t event = nullptr;
    FABRICAST_CHECK(cudaEventCreateWithFlags(&event, cudaEventDisableTiming) == cudaSuccess);
    return events_.emplace_back(event);
  }
  DeviceArray<std::byte> Zeros(size_t bytes) const {
    Use();
    absl::StatusOr<DeviceArray<std::byte>> array =
        DeviceArray<std::byte>::Allocate(static_cast<int64_t>(bytes));
    FABRICAST_CHECK(array.ok()) << array.status();
    FABRICAST_CHECK(array->FillBytes(0).ok());
    return *std::move(array);
  }
  cudaStream_t stream() const { return stream_; }

 private:
  const int gpu_;
  cudaStream_t stream_ = nullptr;
  std::vector<cudaEvent_t> events_;
};

absl::Span<std::byte> Span(const DeviceArray<std::byte>& array) {
  return {array.get(), static_cast<size_t>(array.size())};
}

class NcclTransportTest : public testing::Test {
 protected:
  void SetUp() override {
    if (Gpus() < 2) GTEST_SKIP() << "needs two GPUs";
  }
};

// Each message is written long after it was enqueued, and read long after it came, by streams that
// no processor waits for, over two slots at either end.
TEST_F(NcclTransportTest, TransfersKeepTheOrderOfTheGpusWork) {
  constexpr int kMessages = 40;
  constexpr int kSlots = 2;
  constexpr size_t kBytes = kMiB;
  constexpr size_t kDelayBytes = 512 * kMiB;  // some 0.3 ms to copy
  for (const NcclMeeting meeting :
       {NcclMeeting::kShared, NcclMeeting::kRelayed, NcclMeeting::kNone}) {
    const std::shared_ptr<Stages> joined = JoinStages(2, Links(1, meeting));
    Gpu at_0(0), at_1(1);
    const DeviceArray<std::byte> delay_0 = at_0.Zeros(2 * kDelayBytes);
    const DeviceArray<std::byte> delay_1 = at_1.Zeros(2 * kDelayBytes);
    const DeviceArray<std::byte> seen = at_1.Zeros(kMessages * kBytes);
    std::vector<DeviceArray<std::byte>> outputs, inputs;
    std::vector<cudaEvent_t> ready, sent_free, free, arrived;
    for (int slot = 0; slot < kSlots; ++slot) {
      outputs.push_back(at_0.Zeros(kBytes));
      inputs.push_back(at_1.Zeros(kBytes));
      ready.push_back(at_0.NewEvent());
      free.push_back(at_1.NewEvent());
      arrived.push_back(at_1.NewEvent());
    }
    std::vector<Outcome> sends(kMessages), receives(kMessages);
    std::thread sender([&] {
      at_0.Use();
      for (int i = 0; i < kMessages; ++i) {
        const int slot = i % kSlots;
        // The slot is the sender's again, and so is its event.
        if (i >= kSlots) {
          ASSERT_TRUE(sends[i - kSlots].Wait().ok()) << sends[i - kSlots].Wait();
        }
        cudaMemcpyAsync(delay_0.get(), delay_0.get() + kDelayBytes, kDelayBytes,
                        cudaMemcpyDeviceToDevice, at_0.stream());
        cudaMemsetAsync(outputs[slot].get(), i + 1, kBytes, at_0.stream());
        ASSERT_EQ(cudaEventRecord(ready[slot], at_0.stream()), cudaSuccess);
        ASSERT_TRUE(
            joined->ends[0]->SendAfter(ready[slot], 1, Span(outputs[slot]), sends[i].done()).ok());
      }
    });
    at_1.Use();
    for (int i = 0; i < kMessages; ++i) {
      const int slot = i % kSlots;
      if (i >= kSlots) {
        ASSERT_TRUE(receives[i - kSlots].Wait().ok()) << receives[i - kSlots].Wait();
      }
      ASSERT_TRUE(joined->ends[1]
                      ->ReceiveAfter(i < kSlots ? nullptr : free[slot], 0, Span(inputs[slot]),
                                     arrived[slot], receives[i].done())
                      .ok());
      ASSERT_EQ(cudaStreamWaitEvent(at_1.stream(), arrived[slot], 0), cudaSuccess);
      cudaMemcpyAsync(delay_1.get(), delay_1.get() + kDelayBytes, kDelayBytes,
                      cudaMemcpyDeviceToDevice, at_1.stream());
      cudaMemcpyAsync(seen.get() + i * kBytes, inputs[slot].get(), kBytes, cudaMemcpyDeviceToDevice,
                      at_1.stream());
      ASSERT_EQ(cudaEventRecord(free[slot], at_1.stream()), cudaSuccess);
    }
    sender.join();
    ASSERT_EQ(cudaStreamSynchronize(at_1.stream()), cudaSuccess);
    const absl::StatusOr<std::vector<std::byte>> bytes = seen.ToHost();
    ASSERT_TRUE(bytes.ok()) << bytes.status();
    for (int i = 0; i < kMessages; ++i) {
      const std::vector<std::byte> message(bytes->begin() + i * kBytes,
                                           bytes->begin() + (i + 1) * kBytes);
      ASSERT_EQ(message, std::vector<std::byte>(kBytes, static_cast<std::byte>(i + 1))) << i;
    }
  }
}

TEST_F(NcclTransportTest, MoreTransfersThanFitAreRefusedAfterEventsAndWaitWithout) {
  const std::shared_ptr<Stages> joined = JoinStages(2);
  Gpu at_1(1);
  const DeviceArray<std::byte> buffer = at_1.Zeros(4);
  const cudaEvent_t arrived = at_1.NewEvent();
  Outcome outcome;
  for (int i = 0; i < DeviceTransport::kMostTransfers; ++i) {
    ASSERT_TRUE(joined->ends[1]->Receive(0, Span(buffer), outcome.done()).ok());
  }
  EXPECT_EQ(joined->ends[1]->ReceiveAfter(nullptr, 0, Span(buffer), arrived, outcome.done()).code(),
            absl::StatusCode::kResourceExhausted);
  ASSERT_TRUE(joined->ends[1]->Receive(0, Span(buffer), outcome.done()).ok());
  joined->ends[1]->Close();
  EXPECT_EQ(outcome.times(), DeviceTransport::kMostTransfers + 1u);
  EXPECT_EQ(outcome.Wait().code(), absl::StatusCode::kCancelled);
}

// Ends that ask for different ways to meet agree on one.
TEST_F(NcclTransportTest, OnlyDirectionsThatWereAskedForExist) {
  for (const auto& [meeting_0, meeting_1] :
       {std::pair(NcclMeeting::kNone, NcclMeeting::kShared),
        std::pair(NcclMeeting::kRelayed, NcclMeeting::kShared),
        std::pair(NcclMeeting::kShared, NcclMeeting::kRelayed)}) {
    const NcclMeeting meetings[2] = {meeting_0, meeting_1};
    const std::unique_ptr<TcpEndpoint> endpoints[2] = {Listen(), Listen()};
    std::unique_ptr<DeviceTransport> ends[2];
    std::vector<std::thread> threads;
    for (int stage = 0; stage < 2; ++stage) {
      threads.emplace_back([&, stage] {
        ASSERT_EQ(cudaSetDevice(stage), cudaSuccess);
        const absl::Time deadline = absl::Now() + kPatience;
        absl::StatusOr<std::unique_ptr<StageTransport>> side =
            endpoints[stage]->Connect({.session = "test",
                                       .stage = stage,
                                       .peers = {{1 - stage, endpoints[1 - stage]->address()}},
                                       .on_broken = nullptr},
                                      deadline);
        ASSERT_TRUE(side.ok()) << side.status();
        NcclLinks links;
        links.stage = stage;
        links.meeting = meetings[stage];
        (stage == 0 ? links.send_to : links.receive_from) = {1 - stage};
        absl::StatusOr<std::unique_ptr<DeviceTransport>> end =
            MakeNcclTransport(LoadedNccl(), *std::move(side), links, deadline);
        ASSERT_TRUE(end.ok()) << end.status();
        ends[stage] = *std::move(end);
      });
    }
    for (std::thread& thread : threads) thread.join();
    Outcome outcome;
    EXPECT_EQ(ends[0]->Receive(1, {}, outcome.done()).code(), absl::StatusCode::kNotFound);
    EXPECT_EQ(ends[1]->Send(0, {}, outcome.done()).code(), absl::StatusCode::kNotFound);
    Gpu at_0(0), at_1(1);
    const DeviceArray<std::byte> sent = at_0.Zeros(1000), received = at_1.Zeros(1000);
    Outcome moved;
    ASSERT_TRUE(ends[0]->Send(1, Span(sent), moved.done()).ok());
    ASSERT_TRUE(ends[1]->Receive(0, Span(received), moved.done()).ok());
    EXPECT_TRUE(moved.Wait(2).ok()) << moved.Wait(2);
  }
}

TEST_F(NcclTransportTest, APeerThatDoesNotComeIsNamedAtTheDeadline) {
  const std::unique_ptr<TcpEndpoint> endpoints[2] = {Listen(), Listen()};
  const auto connect = [&](int stage) {
    return endpoints[stage]->Connect({.session = "test",
                                      .stage = stage,
                                      .peers = {{1 - stage, endpoints[1 - stage]->address()}},
                                      .on_broken = nullptr},
                                     absl::Now() + kPatience);
  };
  std::future<absl::StatusOr<std::unique_ptr<StageTransport>>> other =
      std::async(std::launch::async, [&] { return connect(1); });
  absl::StatusOr<std::unique_ptr<StageTransport>> side = connect(0);
  ASSERT_TRUE(side.ok()) << side.status();
  const absl::StatusOr<std::unique_ptr<StageTransport>> silent = other.get();
  ASSERT_EQ(cudaSetDevice(0), cudaSuccess);
  NcclLinks links;
  links.send_to = {1};
  const absl::Status status = MakeNcclTransport(LoadedNccl(), *std::move(side), links,
                                                absl::Now() + absl::Milliseconds(300))
                                  .status();
  EXPECT_EQ(status.code(), absl::StatusCode::kDeadlineExceeded) << status;
  EXPECT_THAT(Message(status), HasSubstr("stage 1"));
}

// This program, run again as stage 1 on GPU 1: sends every message back.
class PeerProcess {
 public:
  explicit PeerProcess(const std::string& address_of_0) {
    int ends[2];
    FABRICAST_CHECK(pipe2(ends, O_CLOEXEC) == 0);
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, ends[1], 9);
    setenv(kPeerOf, address_of_0.c_str(), 1);
    char program[] = "/proc/self/exe", filter[] = "--gtest_filter=PeerProcessTest.*";
    char* const arguments[] = {program, filter, nullptr};
    FABRICAST_CHECK(posix_spawn(&pid_, program, &actions, nullptr, arguments, environ) == 0);
    unsetenv(kPeerOf);
    posix_spawn_file_actions_destroy(&actions);
    close(ends[1]);
    char text[100] = {};
    FABRICAST_CHECK(read(ends[0], text, sizeof(text) - 1) > 0) << "the peer has died";
    address_ = text;
    close(ends[0]);
  }
  ~PeerProcess() {
    Signal(SIGKILL);
    waitpid(pid_, nullptr, 0);
  }
  const std::string& address() const { return address_; }
  void Signal(int signal) const { kill(pid_, signal); }

 private:
  pid_t pid_ = 0;
  std::string address_;
};

std::unique_ptr<DeviceTransport> JoinPeer(TcpEndpoint& endpoint, const TcpGroup& group,
                                          const NcclLinks& links) {
  FABRICAST_CHECK(cudaSetDevice(links.stage) == cudaSuccess);
  const absl::Time deadline = absl::Now() + kPatience;
  absl::StatusOr<std::unique_ptr<StageTransport>> side = endpoint.Connect(group, deadline);
  FABRICAST_CHECK(side.ok()) << side.status();
  absl::StatusOr<std::unique_ptr<DeviceTransport>> end =
      MakeNcclTransport(LoadedNccl(), *std::move(side), links, deadline);
  FABRICAST_CHECK(end.ok()) << end.status();
  return *std::move(end);
}

TEST(PeerProcessTest, SendsEveryMessageBack) {
  const char* const peer_of = std::getenv(kPeerOf);
  if (peer_of == nullptr) GTEST_SKIP() << "the peer of other tests";
  const std::unique_ptr<TcpEndpoint> endpoint = Listen();
  const std::string& address = endpoint->address();
  FABRICAST_CHECK(write(9, address.data(), address.size()) > 0);
  close(9);
  NcclLinks links;
  links.stage = 1;
  links.receive_from = links.send_to = {0};
  const std::unique_ptr<DeviceTransport> end = JoinPeer(
      *endpoint, {.session = "test", .stage = 1, .peers = {{0, peer_of}}, .on_broken = nullptr},
      links);
  Gpu gpu(1);
  const DeviceArray<std::byte> buffer = gpu.Zeros(kMiB);
  while (true) {
    Outcome outcome;
    if (!end->Receive(0, Span(buffer), outcome.done()).ok() || !outcome.Wait(1).ok()) return;
    if (!end->Send(0, Span(buffer), outcome.done()).ok() || !outcome.Wait(2).ok()) return;
  }
}

class NcclProcessTest : public NcclTransportTest {
 protected:
  void SetUp() override {
    NcclTransportTest::SetUp();
    if (IsSkipped()) return;
    endpoint_ = Listen();
    peer_ = std::make_unique<PeerProcess>(endpoint_->address());
    NcclLinks links;
    links.receive_from = links.send_to = {1};
    links.on_broken = [this](int, const absl::Status& status) { broken_.done()(status); };
    end_ = JoinPeer(
        *endpoint_,
        {.session = "test", .stage = 0, .peers = {{1, peer_->address()}}, .on_broken = nullptr},
        links);
    gpu_ = std::make_unique<Gpu>(0);
    sent_ = gpu_->Zeros(kMiB);
    received_ = gpu_->Zeros(kMiB);
  }
  void TearDown() override {
    if (end_ == nullptr) return;
    end_ = nullptr;
    EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  }

  void Exchange(Outcome& outcome) {
    ASSERT_TRUE(end_->Receive(1, Span(received_), outcome.done()).ok());
    ASSERT_TRUE(end_->Send(1, Span(sent_), outcome.done()).ok());
  }

  std::unique_ptr<TcpEndpoint> endpoint_;
  std::unique_ptr<PeerProcess> peer_;
  std::unique_ptr<DeviceTransport> end_;
  std::unique_ptr<Gpu> gpu_;
  DeviceArray<std::byte> sent_, received_;
  Outcome broken_;
};

TEST_F(NcclProcessTest, ADeadPeerEndsWhatIsPendingWithinASecondAndIsNamed) {
  Outcome works;
  Exchange(works);
  ASSERT_TRUE(works.Wait(2).ok()) << works.Wait(2);
  Outcome pending;
  for (int i = 0; i < 3; ++i) {
    ASSERT_TRUE(end_->Receive(1, Span(received_), pending.done()).ok());
  }
  std::this_thread::sleep_for(std::chrono::milliseconds(100));
  const Clock::time_point killed = Clock::now();
  peer_->Signal(SIGKILL);
  EXPECT_EQ(pending.Wait(3).code(), absl::StatusCode::kUnavailable) << pending.Wait(3);
  EXPECT_LT(Clock::now() - killed, std::chrono::seconds(1));
  EXPECT_THAT(Message(pending.Wait(3)), HasSubstr("stage 1"));
  EXPECT_THAT(pending.statuses(), Each(pending.Wait(3)));
  EXPECT_EQ(broken_.Wait(), pending.Wait(3));
  EXPECT_EQ(end_->Send(1, Span(sent_), works.done()), pending.Wait(3));
}

TEST_F(NcclProcessTest, ADeathInTheMidstOfTrafficEndsIt) {
  Outcome outcome;
  std::atomic<int> accepted = 0;
  std::thread killer([&] {
    EXPECT_TRUE(outcome.Came(100));
    peer_->Signal(SIGKILL);
  });
  for (absl::Status status; status.ok();) {
    Outcome one;
    status = end_->Receive(1, Span(received_), outcome.done());
    if (!status.ok()) break;
    ++accepted;
    status = end_->Send(1, Span(sent_), one.done());
    if (status.ok()) one.Came(1);
  }
  killer.join();
  EXPECT_TRUE(outcome.Came(accepted));
  EXPECT_EQ(outcome.Wait(accepted).code(), absl::StatusCode::kUnavailable);
}

TEST_F(NcclProcessTest, APeerThatIsStoppedForAWhileLosesNothing) {
  peer_->Signal(SIGSTOP);
  Outcome outcome;
  Exchange(outcome);
  std::this_thread::sleep_for(std::chrono::seconds(2));
  for (const absl::Status& status : outcome.statuses()) EXPECT_TRUE(status.ok()) << status;
  EXPECT_LT(outcome.times(), 2u);
  EXPECT_EQ(broken_.times(), 0u);
  peer_->Signal(SIGCONT);
  EXPECT_TRUE(outcome.Wait(2).ok()) << outcome.Wait(2);
}

TEST_F(NcclProcessTest, CloseDoesNotWaitForAFrozenPeer) {
  Outcome works;
  Exchange(works);
  ASSERT_TRUE(works.Wait(2).ok()) << works.Wait(2);
  peer_->Signal(SIGSTOP);
  Outcome pending;
  for (int i = 0; i < 3; ++i) Exchange(pending);
  std::this_thread::sleep_for(std::chrono::milliseconds(100));
  const Clock::time_point before = Clock::now();
  end_->Close();
  EXPECT_LT(Clock::now() - before, std::chrono::seconds(1));
  EXPECT_EQ(pending.times(), 6u);
  EXPECT_EQ(pending.Wait(6).code(), absl::StatusCode::kCancelled);
  EXPECT_EQ(broken_.times(), 0u);
}

}  // namespace
}  // namespace fabricast
