#include "benchmarks/kernels/dense.h"

#include <cstdint>

#include "benchmarks/kernels/random_array.h"
#include "kernels/int4/activations.h"
#include "kernels/int4/gemm_output.h"
#include "kernels/timing/device_array.h"
#include "kernels/timing/results.h"

namespace fabricast {
namespace {

constexpr int kVocabulary = 128'256;

// Fills the times of `timing` for rows x inputs times outputs x inputs.
absl::Status TimeProduct(GpuTimer& timer, CublasLt& cublas, int tokens, int64_t outputs,
                         int64_t inputs, OutputKind kind, const TimingOptions& options,
                         KernelTiming& timing) {
  absl::StatusOr<DeviceArray<uint16_t>> weights =
      DeviceArray<uint16_t>::Allocate(outputs * inputs, "BF16 weights");
  if (!weights.ok()) return weights.status();
  absl::StatusOr<DeviceArray<uint16_t>> input =
      DeviceArray<uint16_t>::Allocate(tokens * inputs, "a product's input");
  if (!input.ok()) return input.status();
  const absl::StatusOr<DeviceArray<float>> output =
      DeviceArray<float>::Allocate(tokens * outputs, "a product's output");
  if (!output.ok()) return output.status();
  const absl::StatusOr<DeviceArray<char>> workspace =
      DeviceArray<char>::Allocate(cublas.workspace_bytes(), "cuBLASLt's workspace");
  if (!workspace.ok()) return workspace.status();
  absl::Status status = FillNormal(*weights);
  status.Update(FillNormal(*input));
  if (!status.ok()) return status;

  const DenseMatrix matrix = {.outputs = outputs, .inputs = inputs, .data = weights->get()};
  const Activations activations = {
      .layout = {.format = ActivationFormat::kBf16Rows, .tokens = tokens, .inputs = inputs},
      .data = input->get()};
  return TimeKernel(
      timer,
      [&](int64_t, const LaunchOptions& launch) {
        return cublas.Multiply(matrix, activations, {kind, output->get(), outputs},
                               workspace->get(), launch.stream);
      },
      options, timing);
}

}  // namespace

absl::StatusOr<double> MatmulTflops(GpuTimer& timer, CublasLt& cublas) {
  constexpr int kSize = 8192;
  KernelTiming timing;
  if (absl::Status status = TimeProduct(timer, cublas, kSize, kSize, kSize, OutputKind::kBf16,
                                        {.graph_launches = 0}, timing);
      !status.ok()) {
    return status;
  }
  return 2.0 * kSize * kSize * kSize / timing.single_us() / 1e6;
}

absl::Status TimeLmHead(GpuTimer& timer, CublasLt& cublas, const std::string& model, int hidden,
                        const BenchmarkOptions& options, KernelResults& results) {
  for (int tokens = 1; tokens <= 256; tokens *= options.quick ? 16 : 2) {
    KernelTiming timing;
    timing.set_kernel("cublaslt_bf16");
    timing.set_model(model);
    timing.set_operation("lm_head");
    timing.set_tokens(tokens);
    timing.set_outputs(kVocabulary);
    timing.set_inputs(hidden);
    timing.set_bytes(2.0 * kVocabulary * hidden);
    timing.set_operations(2.0 * tokens * kVocabulary * hidden);
    if (absl::Status status = TimeProduct(
            timer, cublas, tokens, kVocabulary, hidden, OutputKind::kF32,
            {.repeats = 11, .graph_launches = 4, .sustained_seconds = options.sustained_seconds},
            timing);
        !status.ok()) {
      return status;
    }
    *results.add_timings() = timing;
  }
  return absl::OkStatus();
}

}  // namespace fabricast
