// Times kernels on the GPU's own timeline.
#ifndef FABRICAST_KERNELS_TIMING_GPU_TIMER_H_
#define FABRICAST_KERNELS_TIMING_GPU_TIMER_H_

#include <cstdint>
#include <functional>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/gpu/gpu_stream.h"

namespace fabricast {

struct GpuTiming {
  double median_us = 0;  // of one launch
  double p99_us = 0;
  double min_us = 0;
  int samples = 0;
};

// One owner. Of the device that is current when it is made; has a stream of its own.
class GpuTimer {
 public:
  // Enqueues launch number `index` (from 0 in each call below) as `options` say, in one kernel or
  // several, without waiting for the GPU. Rotate what it reads by `index`, so that more than the L2
  // cache lies between two uses of the same bytes; a graph is replayed with the indices that it was
  // captured with.
  using Launch = std::function<absl::Status(int64_t index, const LaunchOptions& options)>;

  static absl::StatusOr<std::unique_ptr<GpuTimer>> Create();
  virtual ~GpuTimer() = default;

  virtual GpuStream stream() const = 0;

  // Launches one at a time on a GPU that rests between them; a kernel that spins before each hides
  // the host's part. An empty kernel takes 2 to 3 us this way. kDeadlineExceeded if a launch waits
  // for the GPU.
  virtual absl::StatusOr<GpuTiming> Single(const Launch& launch, int repeats = 21) = 0;
  // `launches` of them in a CUDA graph, with overlap_previous, replayed with rests between; time of
  // one.
  virtual absl::StatusOr<GpuTiming> InGraph(const Launch& launch, int launches = 16,
                                            int repeats = 21) = 0;
  // Under `seconds` of load with overlap_previous, without a pause: the time of one in the second
  // half. The host's part shows for launches of less than a few us.
  virtual absl::StatusOr<double> SustainedUs(const Launch& launch, double seconds = 0.5) = 0;

  // Of a multiprocessor, while one thread spins for 20 ms.
  virtual absl::StatusOr<double> SmClockMhz() = 0;
};

// Bytes read plus bytes written a second of cudaMemcpyAsync from one buffer of `bytes` to another
// on the device: the ceiling that shares are of. Median of lone copies.
absl::StatusOr<double> MeasureCopyBandwidth(GpuTimer& timer, int64_t bytes = int64_t{4} << 30);

}  // namespace fabricast

#endif  // FABRICAST_KERNELS_TIMING_GPU_TIMER_H_
