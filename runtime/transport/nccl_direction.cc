#include "runtime/transport/nccl_direction.h"

#include <cuda_runtime_api.h>

#include <chrono>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/gpu/cuda_status.h"
#include "runtime/check.h"
#include "runtime/transport/callback_scope.h"
#include "runtime/transport/device_transport.h"

namespace fabricast {
namespace {

// Between looks at a counter that the GPU is to set: short beside the way to the other end.
constexpr std::chrono::microseconds kRelayPause{20};
constexpr size_t kMostInStream = DeviceTransport::kMostTransfers;

// The calling thread's device is `device` while it lives.
class DeviceScope {
 public:
  explicit DeviceScope(int device) {
    if (cudaGetDevice(&outer_) != cudaSuccess) outer_ = device;
    if (outer_ != device) cudaSetDevice(device);
    changed_ = outer_ != device;
  }
  ~DeviceScope() {
    if (changed_) cudaSetDevice(outer_);
  }
  DeviceScope(const DeviceScope&) = delete;
  DeviceScope& operator=(const DeviceScope&) = delete;

 private:
  int outer_ = 0;
  bool changed_ = false;
};

}  // namespace

absl::StatusOr<std::unique_ptr<NcclDirection>> NcclDirection::Create(Setup setup) {
  std::unique_ptr<NcclDirection> direction(new NcclDirection(std::move(setup)));
  if (absl::Status status = direction->Prepare(); !status.ok()) return status;
  return direction;
}

absl::Status NcclDirection::Prepare() {
  const DeviceScope scope(setup_.device);
  int least = 0, greatest = 0;
  FABRICAST_RETURN_IF_CUDA_FAILS(cudaDeviceGetStreamPriorityRange(&least, &greatest));
  // Its few blocks go before those of kernels that wait for room on a multiprocessor.
  FABRICAST_RETURN_IF_CUDA_FAILS(
      cudaStreamCreateWithPriority(&stream_, cudaStreamNonBlocking, greatest));
  for (size_t i = 0; i < kMostInStream; ++i) {
    cudaEvent_t event = nullptr;
    FABRICAST_RETURN_IF_CUDA_FAILS(
        cudaEventCreateWithFlags(&event, cudaEventDisableTiming | cudaEventBlockingSync));
    over_.push_back(event);
  }
  thread_ = std::thread([this] { Run(); });
  if (setup_.relay != nullptr) relay_thread_ = std::thread([this] { Relay(); });
  return absl::OkStatus();
}

NcclDirection::~NcclDirection() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    stopped_ = true;
    changed_.notify_all();
  }
  if (thread_.joinable()) thread_.join();
  if (relay_thread_.joinable()) relay_thread_.join();
  const DeviceScope scope(setup_.device);
  // A transfer that could not be put into the stream whole may have left a wait there.
  while (stream_ != nullptr && cudaStreamQuery(stream_) == cudaErrorNotReady) {
    Release();
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  for (const GpuEventHandle event : over_) cudaEventDestroy(event);
  if (stream_ != nullptr) cudaStreamDestroy(stream_);
}

absl::Status NcclDirection::Submit(GpuEventHandle before, absl::Span<std::byte> bytes,
                                   GpuEventHandle arrived, bool at_once,
                                   StageTransport::Done done) {
  absl::Status enqueued;
  std::optional<Mismatch> mismatch;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (absl::Status status = setup_.end->status(); !status.ok()) return status;
    if (at_once && transfers_.size() >= kMostInStream) {
      return absl::ResourceExhaustedError(
          absl::StrCat(transfers_.size(), " transfers of this link wait already"));
    }
    transfers_.push_back({before, bytes, arrived, std::move(done)});
    ++submitted_;
    if (setup_.sends) setup_.announce(bytes.size());
    if (!early_.empty()) {
      if (early_.front() != bytes.size()) mismatch = Mismatch{early_.front(), bytes.size()};
      early_.pop_front();
    }
    mismatched_ |= mismatch.has_value();
    enqueued = EnqueueWhatFits();
  }
  if (mismatch.has_value()) setup_.mismatch(mismatch->came, mismatch->expected);
  if (!enqueued.ok()) setup_.fail(enqueued);
  return absl::OkStatus();
}

void NcclDirection::Announced(uint64_t bytes) {
  std::optional<Mismatch> mismatch;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (announced_ < submitted_) {
      const uint64_t expected = transfers_[announced_ - completed_].bytes.size();
      if (expected != bytes) mismatch = Mismatch{bytes, expected};
    } else {
      early_.push_back(bytes);
    }
    ++announced_;
    mismatched_ |= mismatch.has_value();
    changed_.notify_all();
  }
  if (mismatch.has_value()) setup_.mismatch(mismatch->came, mismatch->expected);
}

absl::Status NcclDirection::EnqueueWhatFits() {
  while (in_stream_ < transfers_.size() && in_stream_ < kMostInStream) {
    if (mismatched_ || setup_.end->ended()) return absl::OkStatus();
    const absl::Status status = Enqueue(transfers_[in_stream_], over(completed_ + in_stream_));
    if (!status.ok()) return status;
    ++in_stream_;
    changed_.notify_all();
  }
  return absl::OkStatus();
}

absl::Status NcclDirection::Enqueue(const Transfer& transfer, GpuEventHandle over) {
  const DeviceScope scope(setup_.device);
  if (transfer.before != nullptr) {
    FABRICAST_RETURN_IF_CUDA_FAILS(cudaStreamWaitEvent(stream_, transfer.before, 0));
  }
  if (!transfer.bytes.empty()) {
    ++meetings_;
    if (setup_.counters != nullptr) {
      absl::Status status = setup_.counters->Set(setup_.own_counter, meetings_, stream_);
      if (status.ok()) {
        status = setup_.counters->WaitFor(setup_.peer_counter, meetings_, stream_);
      }
      if (!status.ok()) return status;
    }
    const auto bytes = static_cast<int64_t>(transfer.bytes.size());
    const absl::Status status =
        setup_.sends ? setup_.communicator->Send(transfer.bytes.data(), bytes, 1, stream_)
                     : setup_.communicator->Receive(transfer.bytes.data(), bytes, 0, stream_);
    if (!status.ok()) return status;
  }
  if (transfer.arrived != nullptr) {
    FABRICAST_RETURN_IF_CUDA_FAILS(cudaEventRecord(transfer.arrived, stream_));
  }
  FABRICAST_RETURN_IF_CUDA_FAILS(cudaEventRecord(over, stream_));
  return absl::OkStatus();
}

GpuEventHandle NcclDirection::over(uint64_t number) const { return over_[number % kMostInStream]; }

void NcclDirection::Run() {
  // Its errors come again in what follows. Not for a while only: see DeviceExecutor::UseDevice.
  cudaSetDevice(setup_.device);
  std::unique_lock<std::mutex> lock(mutex_);
  while (true) {
    changed_.wait(lock, [this] {
      return transfers_.empty() ? stopped_ : in_stream_ > 0 || setup_.end->ended();
    });
    if (transfers_.empty()) return;
    absl::Status status;
    if (in_stream_ > 0) {
      const GpuEventHandle event = over(completed_);
      lock.unlock();
      status = ToStatus(cudaEventSynchronize(event), "cudaEventSynchronize");
      if (!status.ok()) setup_.fail(status);
      lock.lock();
      if (!setup_.sends) {
        changed_.wait(lock, [this] {
          return (announced_ > completed_ && !mismatched_) || setup_.end->ended();
        });
      }
      --in_stream_;
    }
    // It ended before what waited for it in the stream was let go, so this tells the two apart.
    status = setup_.end->status();
    StageTransport::Done done = std::move(transfers_.front().done);
    transfers_.pop_front();
    ++completed_;
    running_ = true;
    const absl::Status enqueued = EnqueueWhatFits();
    lock.unlock();
    if (!enqueued.ok()) setup_.fail(enqueued);
    {
      const CallbackScope callback(setup_.owner);
      std::move(done)(status);
      done = nullptr;
    }
    lock.lock();
    running_ = false;
    changed_.notify_all();
  }
}

void NcclDirection::Relay() {
  uint32_t told = 0;
  std::unique_lock<std::mutex> lock(mutex_);
  while (true) {
    changed_.wait(lock, [&] { return stopped_ || (meetings_ != told && !setup_.end->ended()); });
    if (stopped_) return;
    lock.unlock();
    if (const uint32_t met = setup_.counters->Now(setup_.own_counter); met != told) {
      told = met;
      setup_.relay(met);
    } else {
      std::this_thread::sleep_for(kRelayPause);
    }
    lock.lock();
  }
}

void NcclDirection::Met(uint32_t met) {
  if (setup_.counters == nullptr || setup_.end->ended()) return;
  setup_.counters->SetNow(setup_.peer_counter, met);
}

void NcclDirection::Wake() {
  const std::lock_guard<std::mutex> lock(mutex_);
  changed_.notify_all();
}

void NcclDirection::Abort() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    Release();
  }
  setup_.communicator->Abort();
}

// Lets the stream pass all meetings. The other end's GPU may set the counter back.
void NcclDirection::Release() const {
  if (setup_.counters != nullptr) setup_.counters->SetNow(setup_.peer_counter, meetings_);
}

bool NcclDirection::drained() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return Drained();
}

void NcclDirection::WaitUntilDrained() {
  std::unique_lock<std::mutex> lock(mutex_);
  changed_.wait(lock, [this] { return Drained(); });
}

}  // namespace fabricast
