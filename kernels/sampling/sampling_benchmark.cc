// Times sampling over a vocabulary of 128,256, for some kinds of parameters; tokens are checked
// first.
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdint>
#include <random>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_format.h"
#include "absl/types/span.h"
#include "kernels/gpu/cuda_status.h"
#include "kernels/sampling/philox.h"
#include "kernels/sampling/sampling.h"
#include "kernels/sampling/sampling_reference.h"
#include "kernels/timing/benchmark_main.h"
#include "kernels/timing/device_array.h"
#include "kernels/timing/results.h"

namespace fabricast {
namespace {

constexpr int kVocabulary = 128'256;
constexpr int kRepeats = 21;
// Sampling overwrites the logits: so many rows as there are launches, two to warm up.
constexpr int kCopies = kRepeats + 2;

struct Kind {
  const char* operation;
  GpuSamplingRow row;
};
constexpr Kind kKinds[] = {
    {"greedy", {}},
    {"greedy, penalty", {.repetition_penalty = 1.2f, .history = 0}},
    {"temperature", {.temperature = 1}},
    {"top_k 50", {.temperature = 1, .top_k = 50}},
    {"top_p 0.9", {.temperature = 1, .top_p = 0.9f}},
    {"top_k 50, top_p 0.9, penalty",
     {.temperature = 1, .top_p = 0.9f, .top_k = 50, .repetition_penalty = 1.2f, .history = 0}},
};

// One row's tokens, as the reference or as a rounding allows.
bool IsRight(const GpuSampledToken& sampled, const SamplingReference& reference,
             const GpuSamplingRow& row) {
  if (row.temperature == 0) return sampled.token == reference.greedy();
  constexpr double kRounding = 0x1p-20;
  const double uniform = UniformAt(row.seed, static_cast<uint64_t>(row.position));
  for (const double factor : {1., 1 - kRounding, 1 + kRounding}) {
    for (const double u : {uniform, uniform - kRounding, uniform + kRounding}) {
      if (sampled.token == reference.Draw(u, factor)) return true;
    }
  }
  return false;
}

absl::Status Measure(const BenchmarkOptions& options, GpuTimer& timer, KernelResults& results) {
  std::mt19937 generator(1);
  // A model's logits have about this deviation.
  std::normal_distribution<float> normal(0, 3);
  std::vector<float> values(kVocabulary);
  for (float& value : values) value = normal(generator);
  const std::vector<uint32_t> seen(static_cast<size_t>(HistoryWords(kVocabulary)), 0x01000001);
  const absl::StatusOr<DeviceArray<uint32_t>> histories = DeviceArray<uint32_t>::CopyOf(seen);
  if (!histories.ok()) return histories.status();

  for (const int rows : options.quick ? std::vector<int>{1} : std::vector<int>{1, 8, 64, 256}) {
    const int64_t elements = int64_t{rows} * kVocabulary;
    absl::StatusOr<DeviceArray<float>> logits =
        DeviceArray<float>::Allocate(kCopies * elements, "logits");
    if (!logits.ok()) return logits.status();
    const absl::StatusOr<DeviceArray<GpuSampledToken>> sampled =
        DeviceArray<GpuSampledToken>::Allocate(rows);
    if (!sampled.ok()) return sampled.status();
    // One row, then what is there once more, until all are there.
    const auto fill = [&]() -> absl::Status {
      FABRICAST_RETURN_IF_CUDA_FAILS(cudaMemcpy(
          logits->get(), values.data(), values.size() * sizeof(float), cudaMemcpyHostToDevice));
      for (int64_t filled = kVocabulary; filled < logits->size(); filled *= 2) {
        const int64_t count = std::min(filled, logits->size() - filled);
        FABRICAST_RETURN_IF_CUDA_FAILS(cudaMemcpy(logits->get() + filled, logits->get(),
                                                  static_cast<size_t>(count) * sizeof(float),
                                                  cudaMemcpyDeviceToDevice));
      }
      return ToStatus(cudaDeviceSynchronize(), "filling in the logits");
    };
    for (const Kind& kind : kKinds) {
      if (!options.Wants(kind.operation)) continue;
      std::vector<GpuSamplingRow> parameters;
      for (int row = 0; row < rows; ++row) {
        parameters.push_back(kind.row);
        parameters.back().seed = static_cast<uint64_t>(row);
      }
      const absl::StatusOr<DeviceArray<GpuSamplingRow>> device_parameters =
          DeviceArray<GpuSamplingRow>::CopyOf(parameters);
      if (!device_parameters.ok()) return device_parameters.status();
      const GpuTimer::Launch launch = [&](int64_t index, const LaunchOptions& launch_options) {
        return SampleTokens(logits->get() + index % kCopies * elements, kVocabulary, rows,
                            kVocabulary, device_parameters->get(), histories->get(), sampled->get(),
                            launch_options);
      };
      if (absl::Status status = fill(); !status.ok()) return status;
      if (absl::Status status = launch(0, {.stream = timer.stream()}); !status.ok()) return status;
      FABRICAST_RETURN_IF_CUDA_FAILS(cudaStreamSynchronize(timer.stream()));
      const absl::StatusOr<std::vector<GpuSampledToken>> tokens = sampled->ToHost();
      if (!tokens.ok()) return tokens.status();
      const SamplingReference reference(values, kind.row, seen);
      for (size_t row = 0; row < parameters.size(); ++row) {
        if (!IsRight((*tokens)[row], reference, parameters[row])) {
          return absl::InternalError(absl::StrFormat("%s: token %d of row %d is wrong",
                                                     kind.operation, (*tokens)[row].token, row));
        }
      }

      if (absl::Status status = fill(); !status.ok()) return status;
      KernelTiming& timing = *results.add_timings();
      timing.set_kernel("sample_tokens");
      timing.set_operation(kind.operation);
      timing.set_tokens(rows);
      timing.set_outputs(kVocabulary);
      timing.set_bytes(4. * static_cast<double>(elements));
      if (absl::Status status =
              TimeKernel(timer, launch, {.repeats = kRepeats, .graph_launches = 0}, timing);
          !status.ok()) {
        return status;
      }
    }
  }
  return absl::OkStatus();
}

}  // namespace
}  // namespace fabricast

int main(int argc, char** argv) {
  return fabricast::KernelBenchmarkMain(argc, argv, "Times sampling on the GPU.",
                                        fabricast::Measure);
}
