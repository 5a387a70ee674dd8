#include <cuda_runtime.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_format.h"
#include "kernels/gpu/cuda_status.h"
#include "kernels/memory_stream.h"
#include "kernels/memory_stream_reference.h"
#include "kernels/timing/device_array.h"
#include "kernels/timing/gpu_event.h"

namespace fabricast {
namespace {

constexpr int kThreads = 512;
// Independent 16-byte loads in flight per thread: 132 SMs x 2,048 threads x 4 x 16 B = 17 MB,
// against the 3 MB that 4.8 TB/s x 600 ns ask for.
constexpr int kUnroll = 4;
constexpr size_t kBytesPerLoad = sizeof(uint4);
// Long against a reading of the sensors, short against a clock's going down.
constexpr double kSampleSeconds = 0.02;

__device__ uint32_t Sum(const uint4& words) { return words.x + words.y + words.z + words.w; }

__device__ size_t FirstIndex() { return size_t{blockIdx.x} * blockDim.x + threadIdx.x; }
__device__ size_t Stride() { return size_t{gridDim.x} * blockDim.x; }

__global__ void FillPattern(uint4* buffer, size_t count) {
  for (size_t i = FirstIndex(); i < count; i += Stride()) {
    buffer[i] = {StreamPatternWord(4 * i), StreamPatternWord(4 * i + 1),
                 StreamPatternWord(4 * i + 2), StreamPatternWord(4 * i + 3)};
  }
}

// Adds the sum of all words to *checksum, so that no load can be left out.
__global__ void __launch_bounds__(kThreads)
    ReadStream(const uint4* __restrict__ buffer, size_t count, uint32_t* checksum) {
  const size_t stride = Stride();
  uint32_t sum = 0;
  size_t i = FirstIndex();
  for (; i + (kUnroll - 1) * stride < count; i += kUnroll * stride) {
    uint4 loaded[kUnroll];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) loaded[u] = __ldcs(&buffer[i + u * stride]);
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) sum += Sum(loaded[u]);
  }
  for (; i < count; i += stride) sum += Sum(buffer[i]);
  sum = __reduce_add_sync(0xffffffff, sum);
  if (threadIdx.x % warpSize == 0) atomicAdd(checksum, sum);
}

__global__ void __launch_bounds__(kThreads)
    CopyStream(const uint4* __restrict__ from, uint4* __restrict__ to, size_t count) {
  const size_t stride = Stride();
  size_t i = FirstIndex();
  for (; i + (kUnroll - 1) * stride < count; i += kUnroll * stride) {
    uint4 loaded[kUnroll];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) loaded[u] = __ldcs(&from[i + u * stride]);
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) __stcs(&to[i + u * stride], loaded[u]);
  }
  for (; i < count; i += stride) to[i] = from[i];
}

// The buffers and launches of one measurement, on the current device and its default stream.
class Stream {
 public:
  static absl::StatusOr<Stream> Create(StreamKind kind, const MemoryStreamOptions& options) {
    Stream stream(kind, options.buffer_bytes / kBytesPerLoad);
    int processors = 0, blocks_per_processor = 0;
    FABRICAST_RETURN_IF_CUDA_FAILS(
        cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, options.device));
    FABRICAST_RETURN_IF_CUDA_FAILS(cudaOccupancyMaxActiveBlocksPerMultiprocessor(
        &blocks_per_processor, ReadStream, kThreads, 0));
    stream.blocks_ = processors * blocks_per_processor;

    absl::StatusOr<DeviceArray<uint4>> source =
        DeviceArray<uint4>::Allocate(static_cast<int64_t>(stream.count_), "the buffer");
    if (!source.ok()) return source.status();
    stream.source_ = *std::move(source);
    FillPattern<<<stream.blocks_, kThreads>>>(stream.source_.get(), stream.count_);
    FABRICAST_RETURN_IF_CUDA_FAILS(cudaGetLastError());

    if (kind == StreamKind::kCopy) {
      absl::StatusOr<DeviceArray<uint4>> target =
          DeviceArray<uint4>::Allocate(static_cast<int64_t>(stream.count_), "the copy");
      if (!target.ok()) return target.status();
      stream.target_ = *std::move(target);
      FABRICAST_RETURN_IF_CUDA_FAILS(
          cudaMemset(stream.target_.get(), 0, stream.count_ * sizeof(uint4)));
    }
    absl::StatusOr<DeviceArray<uint32_t>> checksum = DeviceArray<uint32_t>::Allocate(1);
    if (!checksum.ok()) return checksum.status();
    stream.checksum_ = *std::move(checksum);
    FABRICAST_RETURN_IF_CUDA_FAILS(cudaMemset(stream.checksum_.get(), 0, sizeof(uint32_t)));
    return stream;
  }

  double BytesPerLaunch() const {
    return static_cast<double>(count_ * sizeof(uint4)) * (kind_ == StreamKind::kCopy ? 2 : 1);
  }

  absl::Status Launch() {
    if (kind_ == StreamKind::kCopy) {
      CopyStream<<<blocks_, kThreads>>>(source_.get(), target_.get(), count_);
    } else {
      ReadStream<<<blocks_, kThreads>>>(source_.get(), count_, checksum_.get());
      ++reads_;
    }
    return ToStatus(cudaGetLastError(), "launching a stream kernel");
  }

  // Waits for all launches; then all that was read, or the copy, must be the pattern.
  absl::Status Verify() {
    if (kind_ == StreamKind::kCopy) {
      ReadStream<<<blocks_, kThreads>>>(target_.get(), count_, checksum_.get());
      FABRICAST_RETURN_IF_CUDA_FAILS(cudaGetLastError());
      reads_ = 1;
    }
    uint32_t actual = 0;
    FABRICAST_RETURN_IF_CUDA_FAILS(
        cudaMemcpy(&actual, checksum_.get(), sizeof(actual), cudaMemcpyDeviceToHost));
    const uint32_t expected = StreamPatternChecksum(4 * count_) * reads_;
    if (actual == expected) return absl::OkStatus();
    return absl::DataLossError(absl::StrFormat(
        "device memory gave back other words than were written: checksum %08x, expected %08x",
        actual, expected));
  }

 private:
  Stream(StreamKind kind, size_t count) : kind_(kind), count_(count) {}

  StreamKind kind_;
  size_t count_;  // Of uint4 in a buffer.
  int blocks_ = 0;
  uint32_t reads_ = 0;  // Modulo 2^32, like the checksum.
  DeviceArray<uint4> source_, target_;
  DeviceArray<uint32_t> checksum_;
};

// Averages the readings of the second half of a run.
class SensorLog {
 public:
  explicit SensorLog(const std::string& pci_bus_id) : sensors_(GpuSensors::Open(pci_bus_id)) {}

  void Read() {
    if (!sensors_.ok()) return;
    if (const absl::StatusOr<GpuReading> reading = sensors_->Read(); reading.ok()) {
      readings_.push_back(*reading);
    }
  }

  std::optional<GpuReading> Mean() const {
    if (readings_.empty()) return std::nullopt;
    const size_t begin = readings_.size() / 2;
    const double weight = 1.0 / static_cast<double>(readings_.size() - begin);
    GpuReading mean;
    for (size_t i = begin; i < readings_.size(); ++i) {
      mean.sm_clock_mhz += weight * readings_[i].sm_clock_mhz;
      mean.memory_clock_mhz += weight * readings_[i].memory_clock_mhz;
      mean.power_watts += weight * readings_[i].power_watts;
      mean.temperature_celsius += weight * readings_[i].temperature_celsius;
    }
    return mean;
  }

 private:
  absl::StatusOr<GpuSensors> sensors_;
  std::vector<GpuReading> readings_;
};

// How many launches make up a sample.
absl::StatusOr<int> LaunchesPerSample(Stream& stream) {
  const absl::StatusOr<GpuEvent> begin = CreateGpuEvent(), end = CreateGpuEvent();
  if (!begin.ok()) return begin.status();
  if (!end.ok()) return end.status();
  // The first launch loads the kernel.
  if (absl::Status status = stream.Launch(); !status.ok()) return status;
  FABRICAST_RETURN_IF_CUDA_FAILS(cudaEventRecord(begin->get()));
  if (absl::Status status = stream.Launch(); !status.ok()) return status;
  FABRICAST_RETURN_IF_CUDA_FAILS(cudaEventRecord(end->get()));
  FABRICAST_RETURN_IF_CUDA_FAILS(cudaEventSynchronize(end->get()));
  float milliseconds = 0;
  FABRICAST_RETURN_IF_CUDA_FAILS(cudaEventElapsedTime(&milliseconds, begin->get(), end->get()));
  return std::clamp(static_cast<int>(kSampleSeconds * 1e3 / milliseconds), 1, 1000);
}

// Keeps the GPU busy for `seconds`: while a sample runs, the next two are in its queue.
absl::StatusOr<std::vector<StreamSample>> Run(Stream& stream, double seconds, SensorLog& log) {
  const absl::StatusOr<int> launches = LaunchesPerSample(stream);
  if (!launches.ok()) return launches.status();

  constexpr size_t kQueued = 3;
  std::array<GpuEvent, kQueued + 1> events;
  for (GpuEvent& event : events) {
    absl::StatusOr<GpuEvent> created = CreateGpuEvent();
    if (!created.ok()) return created.status();
    event = *std::move(created);
  }
  // Boundary i lies between sample i - 1 and sample i.
  const auto boundary = [&](size_t i) { return events[i % events.size()].get(); };
  const auto enqueue_sample = [&](size_t i) -> absl::Status {
    for (int launch = 0; launch < *launches; ++launch) {
      if (absl::Status status = stream.Launch(); !status.ok()) return status;
    }
    return ToStatus(cudaEventRecord(boundary(i + 1)), "recording an event");
  };

  FABRICAST_RETURN_IF_CUDA_FAILS(cudaEventRecord(boundary(0)));
  for (size_t i = 0; i < kQueued; ++i) {
    if (absl::Status status = enqueue_sample(i); !status.ok()) return status;
  }
  std::vector<StreamSample> samples;
  for (double elapsed = 0; elapsed < seconds; elapsed += samples.back().seconds) {
    const size_t i = samples.size();
    FABRICAST_RETURN_IF_CUDA_FAILS(cudaEventSynchronize(boundary(i + 1)));
    float milliseconds = 0;
    FABRICAST_RETURN_IF_CUDA_FAILS(
        cudaEventElapsedTime(&milliseconds, boundary(i), boundary(i + 1)));
    samples.push_back(
        {.bytes = stream.BytesPerLaunch() * *launches, .seconds = milliseconds / 1e3});
    if (absl::Status status = enqueue_sample(i + kQueued); !status.ok()) return status;
    log.Read();
  }
  return samples;
}

absl::Status CheckOptions(const MemoryStreamOptions& options) {
  int l2_bytes = 0;
  FABRICAST_RETURN_IF_CUDA_FAILS(
      cudaDeviceGetAttribute(&l2_bytes, cudaDevAttrL2CacheSize, options.device));
  if (options.buffer_bytes < 4 * static_cast<size_t>(l2_bytes)) {
    return absl::InvalidArgumentError(
        absl::StrFormat("buffer_bytes is %d: less than 4 times the GPU's L2 cache of %d bytes",
                        options.buffer_bytes, l2_bytes));
  }
  if (!(options.seconds > 0)) return absl::InvalidArgumentError("seconds must be positive");
  return absl::OkStatus();
}

// Two transfers per clock and pin: the double data rate that the driver's clock leaves out.
double PeakBytesPerSecond(int device) {
  int clock_khz = 0, bus_bits = 0;
  if (cudaDeviceGetAttribute(&clock_khz, cudaDevAttrMemoryClockRate, device) != cudaSuccess ||
      cudaDeviceGetAttribute(&bus_bits, cudaDevAttrGlobalMemoryBusWidth, device) != cudaSuccess) {
    return 0;
  }
  return 2.0 * clock_khz * 1e3 * bus_bits / 8;
}

}  // namespace

absl::StatusOr<MemoryStreamMeasurement> MeasureMemoryStream(StreamKind kind,
                                                            const MemoryStreamOptions& options) {
  FABRICAST_RETURN_IF_CUDA_FAILS(cudaSetDevice(options.device));
  if (absl::Status status = CheckOptions(options); !status.ok()) return status;
  cudaDeviceProp properties;
  FABRICAST_RETURN_IF_CUDA_FAILS(cudaGetDeviceProperties(&properties, options.device));
  std::array<char, 32> pci_bus_id = {};
  FABRICAST_RETURN_IF_CUDA_FAILS(cudaDeviceGetPCIBusId(
      pci_bus_id.data(), static_cast<int>(pci_bus_id.size()), options.device));

  absl::StatusOr<Stream> stream = Stream::Create(kind, options);
  if (!stream.ok()) return stream.status();
  FABRICAST_RETURN_IF_CUDA_FAILS(cudaDeviceSynchronize());
  SensorLog log(pci_bus_id.data());
  const absl::StatusOr<std::vector<StreamSample>> samples = Run(*stream, options.seconds, log);
  if (!samples.ok()) return samples.status();
  if (absl::Status status = stream->Verify(); !status.ok()) return status;
  const absl::StatusOr<StreamRates> rates = SummarizeStream(*samples);
  if (!rates.ok()) return rates.status();

  double seconds = 0;
  for (const StreamSample& sample : *samples) seconds += sample.seconds;
  return MemoryStreamMeasurement{.gpu_name = properties.name,
                                 .peak_bytes_per_second = PeakBytesPerSecond(options.device),
                                 .buffer_bytes = options.buffer_bytes,
                                 .seconds = seconds,
                                 .samples = samples->size(),
                                 .rates = *rates,
                                 .sensors = log.Mean()};
}

}  // namespace fabricast
