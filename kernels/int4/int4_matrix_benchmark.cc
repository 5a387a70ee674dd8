// Measures how fast INT4 matrices of Llama 3.1 405B's shapes are filled and dequantised. That what
// is written is right is int4_matrix_test's matter.

#include <memory>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/int4/int4_matrix.h"
#include "kernels/timing/benchmark_main.h"
#include "kernels/timing/device_array.h"
#include "kernels/timing/results.h"

namespace fabricast {
namespace {

struct Shape {
  const char* operation;
  int64_t outputs, inputs;
};
constexpr Shape kShapes[] = {
    {"qkv", 18432, 16384}, {"gate_up", 106496, 16384}, {"down", 16384, 53248}};

absl::Status MeasureShape(const Shape& shape, const BenchmarkOptions& options, GpuTimer& timer,
                          KernelResults& results) {
  Int4Matrix matrix = {.outputs = shape.outputs, .inputs = shape.inputs};
  const absl::StatusOr<DeviceArray<char>> blocks =
      DeviceArray<char>::Allocate(matrix.block_bytes(), "weights");
  if (!blocks.ok()) return blocks.status();
  const absl::StatusOr<DeviceArray<float>> row_scale =
      DeviceArray<float>::Allocate(matrix.row_scale_bytes() / 4, "row scales");
  if (!row_scale.ok()) return row_scale.status();
  const absl::StatusOr<DeviceArray<uint16_t>> bf16 =
      DeviceArray<uint16_t>::Allocate(shape.outputs * shape.inputs, "BF16 weights");
  if (!bf16.ok()) return bf16.status();
  matrix.blocks = blocks->get();
  matrix.row_scale = row_scale->get();

  const auto time = [&](const char* kernel, double bytes, const GpuTimer::Launch& launch) {
    KernelTiming& timing = *results.add_timings();
    timing.set_kernel(kernel);
    timing.set_model("llama-3.1-405b");
    timing.set_operation(shape.operation);
    timing.set_outputs(shape.outputs);
    timing.set_inputs(shape.inputs);
    timing.set_bytes(bytes);
    return TimeKernel(
        timer, launch,
        {.repeats = 11, .graph_launches = 4, .sustained_seconds = options.sustained_seconds},
        timing);
  };
  const double packed = static_cast<double>(matrix.bytes());
  if (options.Wants("fill")) {
    if (absl::Status status = time("fill_synthetic_int4", packed,
                                   [&](int64_t, const LaunchOptions& launch) {
                                     return FillSyntheticInt4(1, matrix, launch);
                                   });
        !status.ok()) {
      return status;
    }
  }
  if (!options.Wants("dequantize")) return absl::OkStatus();
  return time("dequantize_int4", packed + 2.0 * static_cast<double>(bf16->size()),
              [&](int64_t, const LaunchOptions& launch) {
                return DequantizeInt4(matrix, 0, shape.outputs, bf16->get(), launch);
              });
}

absl::Status Measure(const BenchmarkOptions& options, GpuTimer& timer, KernelResults& results) {
  for (const Shape& shape : kShapes) {
    if (absl::Status status = MeasureShape(shape, options, timer, results); !status.ok()) {
      return status;
    }
    if (options.quick) break;
  }
  return absl::OkStatus();
}

}  // namespace
}  // namespace fabricast

int main(int argc, char** argv) {
  return fabricast::KernelBenchmarkMain(argc, argv, "Measures filling and dequantising INT4.",
                                        fabricast::Measure);
}
