#include <cuda_runtime.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <memory>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "kernels/gpu/cuda_status.h"
#include "kernels/timing/device_array.h"
#include "kernels/timing/gpu_event.h"
#include "kernels/timing/gpu_timer.h"

namespace fabricast {
namespace {

// A kernel that holds the stream gives up after this: a launch that waits for the GPU would wait
// for it for ever.
constexpr uint64_t kHoldLimitNs = 2'000'000'000;
constexpr uint64_t kClockSpinNs = 20'000'000;
// Between two samples the GPU rests for this many times what the last one took: without, those that
// draw much power would be measured at the clock that sustained load leaves.
constexpr double kRest = 3;
constexpr absl::Duration kLongestRest = absl::Milliseconds(50);
// Long against an event's half microsecond.
constexpr double kSustainedSampleUs = 2000;

__device__ uint64_t Nanoseconds() {
  uint64_t now;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
  return now;
}

// Memory of the host that a spinning kernel and the host both see.
struct Gate {
  volatile int64_t opened;  // by the host: the number of the last launch that may go
  volatile int64_t gave_up;
};

__global__ void HoldStream(Gate* gate, int64_t number) {
  const uint64_t begin = Nanoseconds();
  while (gate->opened < number) {
    if (Nanoseconds() - begin > kHoldLimitNs) {
      gate->gave_up = 1;
      return;
    }
  }
}

__global__ void CountCycles(double* cycles_per_ns) {
  const uint64_t begin = Nanoseconds();
  const int64_t begin_cycles = clock64();
  uint64_t end = begin;
  while (end - begin < kClockSpinNs) end = Nanoseconds();
  *cycles_per_ns = static_cast<double>(clock64() - begin_cycles) / static_cast<double>(end - begin);
}

struct StreamDestroy {
  void operator()(cudaStream_t stream) const { cudaStreamDestroy(stream); }
};
struct GraphDestroy {
  void operator()(cudaGraph_t graph) const { cudaGraphDestroy(graph); }
};
struct GraphExecDestroy {
  void operator()(cudaGraphExec_t graph) const { cudaGraphExecDestroy(graph); }
};
using GraphExec = std::unique_ptr<CUgraphExec_st, GraphExecDestroy>;
struct HostFree {
  void operator()(Gate* gate) const { cudaFreeHost(gate); }
};

absl::StatusOr<double> MicrosecondsBetween(const GpuEvent& begin, const GpuEvent& end) {
  float milliseconds = 0;
  FABRICAST_RETURN_IF_CUDA_FAILS(cudaEventElapsedTime(&milliseconds, begin.get(), end.get()));
  return double{milliseconds} * 1e3;
}

GpuTiming Summarize(std::vector<double> us) {
  std::sort(us.begin(), us.end());
  const auto quantile = [&us](double q) {
    return us[static_cast<size_t>(std::ceil(q * static_cast<double>(us.size()))) - 1];
  };
  return {.median_us = quantile(0.5),
          .p99_us = quantile(0.99),
          .min_us = us.front(),
          .samples = static_cast<int>(us.size())};
}

class EventTimer : public GpuTimer {
 public:
  absl::Status Initialize() {
    cudaStream_t stream = nullptr;
    FABRICAST_RETURN_IF_CUDA_FAILS(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    stream_.reset(stream);
    void* gate = nullptr;
    FABRICAST_RETURN_IF_CUDA_FAILS(cudaHostAlloc(&gate, sizeof(Gate), cudaHostAllocMapped));
    gate_.reset(static_cast<Gate*>(gate));
    gate_->opened = 0;
    gate_->gave_up = 0;
    for (GpuEvent& event : events_) {
      absl::StatusOr<GpuEvent> created = CreateGpuEvent();
      if (!created.ok()) return created.status();
      event = *std::move(created);
    }
    return absl::OkStatus();
  }

  GpuStream stream() const override { return stream_.get(); }

  absl::StatusOr<GpuTiming> Single(const Launch& launch, int repeats) override {
    return Sample(
        [&](int64_t index) -> absl::Status { return launch(index, {.stream = stream()}); }, repeats,
        1);
  }

  absl::StatusOr<GpuTiming> InGraph(const Launch& launch, int launches, int repeats) override {
    // Some initialise themselves when first launched, which a capture forbids.
    if (absl::Status status = launch(0, {.stream = stream()}); !status.ok()) return status;
    FABRICAST_RETURN_IF_CUDA_FAILS(cudaStreamSynchronize(stream()));

    FABRICAST_RETURN_IF_CUDA_FAILS(
        cudaStreamBeginCapture(stream(), cudaStreamCaptureModeThreadLocal));
    absl::Status captured;
    for (int index = 0; index < launches && captured.ok(); ++index) {
      captured.Update(launch(index, {.stream = stream(), .overlap_previous = true}));
    }
    cudaGraph_t graph = nullptr;
    const absl::Status ended =
        ToStatus(cudaStreamEndCapture(stream(), &graph), "cudaStreamEndCapture");
    const std::unique_ptr<CUgraph_st, GraphDestroy> graph_owner(graph);
    if (!captured.ok()) return captured;
    if (!ended.ok()) return ended;
    cudaGraphExec_t executable = nullptr;
    FABRICAST_RETURN_IF_CUDA_FAILS(cudaGraphInstantiate(&executable, graph, 0));
    const GraphExec executable_owner(executable);

    return Sample(
        [&](int64_t) { return ToStatus(cudaGraphLaunch(executable, stream()), "cudaGraphLaunch"); },
        repeats, launches);
  }

  absl::StatusOr<double> SustainedUs(const Launch& launch, double seconds) override {
    const absl::StatusOr<GpuTiming> lone = Single(launch, 3);
    if (!lone.ok()) return lone.status();
    const int launches =
        std::clamp(static_cast<int>(kSustainedSampleUs / std::max(lone->median_us, 1.)), 1, 500);

    // Boundary i lies between sample i - 1 and sample i; while one runs, the next are in the queue.
    constexpr int kQueued = static_cast<int>(kEvents) - 1;
    int64_t index = 0;
    const auto boundary = [this](int i) -> const GpuEvent& {
      return events_[static_cast<size_t>(i) % kEvents];
    };
    const auto enqueue = [&](int sample) -> absl::Status {
      for (int i = 0; i < launches; ++i) {
        if (absl::Status status = launch(index++, {.stream = stream(), .overlap_previous = true});
            !status.ok()) {
          return status;
        }
      }
      return ToStatus(cudaEventRecord(boundary(sample + 1).get(), stream()), "cudaEventRecord");
    };
    FABRICAST_RETURN_IF_CUDA_FAILS(cudaEventRecord(boundary(0).get(), stream()));
    for (int sample = 0; sample < kQueued; ++sample) {
      if (absl::Status status = enqueue(sample); !status.ok()) return status;
    }
    std::vector<double> us;
    for (double elapsed_us = 0; elapsed_us < seconds * 1e6;) {
      const int sample = static_cast<int>(us.size());
      FABRICAST_RETURN_IF_CUDA_FAILS(cudaEventSynchronize(boundary(sample + 1).get()));
      const absl::StatusOr<double> took =
          MicrosecondsBetween(boundary(sample), boundary(sample + 1));
      if (!took.ok()) return took.status();
      us.push_back(*took);
      elapsed_us += *took;
      if (absl::Status status = enqueue(sample + kQueued); !status.ok()) return status;
    }
    FABRICAST_RETURN_IF_CUDA_FAILS(cudaStreamSynchronize(stream()));
    double sum = 0;
    for (size_t i = us.size() / 2; i < us.size(); ++i) sum += us[i];
    return sum / static_cast<double>((us.size() - us.size() / 2) * static_cast<size_t>(launches));
  }

  absl::StatusOr<double> SmClockMhz() override {
    absl::StatusOr<DeviceArray<double>> cycles_per_ns = DeviceArray<double>::Allocate(1);
    if (!cycles_per_ns.ok()) return cycles_per_ns.status();
    CountCycles<<<1, 1, 0, stream()>>>(cycles_per_ns->get());
    FABRICAST_RETURN_IF_CUDA_FAILS(cudaGetLastError());
    FABRICAST_RETURN_IF_CUDA_FAILS(cudaStreamSynchronize(stream()));
    const absl::StatusOr<std::vector<double>> measured = cycles_per_ns->ToHost();
    if (!measured.ok()) return measured.status();
    return measured->front() * 1e3;
  }

 private:
  static constexpr size_t kEvents = 4;

  // Times what `enqueue` enqueues, `parts` equal parts of it one after another.
  absl::StatusOr<GpuTiming> Sample(const std::function<absl::Status(int64_t)>& enqueue, int repeats,
                                   int parts) {
    // The first launches load code, which waits for the GPU, and bring the clocks up.
    constexpr int kWarmUps = 2;
    for (int64_t index = 0; index < kWarmUps; ++index) {
      if (absl::Status status = enqueue(index); !status.ok()) return status;
      FABRICAST_RETURN_IF_CUDA_FAILS(cudaStreamSynchronize(stream()));
    }
    std::vector<double> us;
    for (int64_t index = kWarmUps; index < repeats + kWarmUps; ++index) {
      if (!us.empty()) {
        absl::SleepFor(std::min(absl::Microseconds(kRest * parts * us.back()), kLongestRest));
      }
      HoldStream<<<1, 1, 0, stream()>>>(gate_.get(), ++held_);
      FABRICAST_RETURN_IF_CUDA_FAILS(cudaGetLastError());
      absl::Status status =
          ToStatus(cudaEventRecord(events_[0].get(), stream()), "cudaEventRecord");
      if (status.ok()) status.Update(enqueue(index));
      status.Update(ToStatus(cudaEventRecord(events_[1].get(), stream()), "cudaEventRecord"));
      gate_->opened = held_;
      status.Update(ToStatus(cudaStreamSynchronize(stream()), "a launch that was timed"));
      if (!status.ok()) return status;
      if (gate_->gave_up != 0) {
        gate_->gave_up = 0;
        return absl::DeadlineExceededError(
            "a launch that was timed did not return within 2 s: it waits for the GPU");
      }
      const absl::StatusOr<double> took = MicrosecondsBetween(events_[0], events_[1]);
      if (!took.ok()) return took.status();
      us.push_back(*took / parts);
    }
    return Summarize(std::move(us));
  }

  std::unique_ptr<CUstream_st, StreamDestroy> stream_;
  std::unique_ptr<Gate, HostFree> gate_;
  int64_t held_ = 0;
  std::array<GpuEvent, kEvents> events_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<GpuTimer>> GpuTimer::Create() {
  auto timer = std::make_unique<EventTimer>();
  if (absl::Status status = timer->Initialize(); !status.ok()) return status;
  return timer;
}

absl::StatusOr<double> MeasureCopyBandwidth(GpuTimer& timer, int64_t bytes) {
  absl::StatusOr<DeviceArray<char>> from = DeviceArray<char>::Allocate(bytes, "the copy's source");
  if (!from.ok()) return from.status();
  absl::StatusOr<DeviceArray<char>> to = DeviceArray<char>::Allocate(bytes, "the copy's target");
  if (!to.ok()) return to.status();
  if (absl::Status status = from->FillBytes(0x5a); !status.ok()) return status;
  constexpr int kRepeats = 11;
  const absl::StatusOr<GpuTiming> timing = timer.Single(
      [&](int64_t, const LaunchOptions& options) {
        return ToStatus(cudaMemcpyAsync(to->get(), from->get(), static_cast<size_t>(bytes),
                                        cudaMemcpyDeviceToDevice, options.stream),
                        "cudaMemcpyAsync");
      },
      kRepeats);
  if (!timing.ok()) return timing.status();
  return 2e6 * static_cast<double>(bytes) / timing->median_us;
}

}  // namespace fabricast
