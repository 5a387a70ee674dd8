#ifndef FABRICAST_KERNELS_MEMORY_STREAM_H_
#define FABRICAST_KERNELS_MEMORY_STREAM_H_

#include <cstddef>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "kernels/gpu_sensors.h"
#include "kernels/stream_rates.h"

namespace fabricast {

enum class StreamKind {
  kRead,  // Reads a buffer once per launch, as decoding reads the weights.
  kCopy,  // Reads one buffer and writes another. Both count as traffic: a copied byte is two.
};

struct MemoryStreamOptions {
  int device = 0;
  // The size of each buffer, of which kRead has one and kCopy two. At least 4 times the GPU's L2
  // cache (50 MB on an H200, 128 MB on an RTX PRO 6000 Blackwell), or the cache would be measured.
  size_t buffer_bytes = size_t{2} << 30;
  // For how long to keep the memory busy.
  double seconds = 3;
};

struct MemoryStreamMeasurement {
  std::string gpu_name;
  // From the driver's memory clock and bus width: what no kernel exceeds. 0 if the driver does not
  // tell.
  double peak_bytes_per_second = 0;
  size_t buffer_bytes = 0;
  double seconds = 0;
  size_t samples = 0;
  StreamRates rates;
  // The means over the second half of the run, where the machine has NVML.
  std::optional<GpuReading> sensors;
};

// Streams through device memory for `options.seconds` and checks that what was read is what had
// been written. Blocks; one call at a time per GPU.
//
// Returns kUnavailable without a GPU or driver, kInvalidArgument for options that make no sense on
// this GPU, kResourceExhausted if the buffers do not fit, kDataLoss if a byte came back wrong.
absl::StatusOr<MemoryStreamMeasurement> MeasureMemoryStream(StreamKind kind,
                                                            const MemoryStreamOptions& options);

}  // namespace fabricast

#endif  // FABRICAST_KERNELS_MEMORY_STREAM_H_
