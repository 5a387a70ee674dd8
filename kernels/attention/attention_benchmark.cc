// Times decode and prefill attention for the Llama shapes, after comparing with float64.

#include <cuda_runtime_api.h>

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_format.h"
#include "kernels/attention/attention.h"
#include "kernels/attention/attention_workload.h"
#include "kernels/gpu/cuda_status.h"
#include "kernels/timing/benchmark_main.h"
#include "kernels/timing/results.h"

namespace fabricast {
namespace {

struct Model {
  std::string name;
  int heads;
};

// All with 8 KV heads and a head_dim of 128.
std::vector<Model> Models() {
  return {{"llama-3.1-405b", 128}, {"llama-3.1-70b", 64}, {"llama-3.1-8b", 32}};
}

// Weights and outputs are rounded to BF16, of 8 bits: by 2^-8 of their size each at worst.
constexpr double kMaxRelativeError = 0x1p-7;

absl::Status Measure(const BenchmarkOptions& options, GpuTimer& timer, const Model& model,
                     const AttentionWorkloadOptions& of_workload, KernelResults& results) {
  AttentionWorkloadOptions workload_options = of_workload;
  workload_options.heads = model.heads;
  const absl::StatusOr<std::unique_ptr<AttentionWorkload>> workload =
      AttentionWorkload::Create(workload_options);
  if (!workload.ok()) return workload.status();
  const int rows = of_workload.rows;
  const auto launch = [&](int64_t index, const LaunchOptions& launch_options) {
    const AttentionArguments arguments = (*workload)->arguments(index);
    return rows == 1
               ? DecodeAttention(arguments, launch_options)
               : PrefillAttention(arguments, rows, rows * of_workload.requests, launch_options);
  };

  KernelTiming timing;
  timing.set_kernel(rows == 1 ? "decode_attention" : "prefill_attention");
  timing.set_operation("attention");
  timing.set_model(model.name);
  timing.set_tokens(int64_t{of_workload.requests} * rows);
  timing.set_requests(of_workload.requests);
  timing.set_context(of_workload.past + rows);
  timing.set_bytes((*workload)->bytes());
  timing.set_operations((*workload)->operations());

  if (absl::Status status = launch(0, {.stream = timer.stream()}); !status.ok()) return status;
  FABRICAST_RETURN_IF_CUDA_FAILS(cudaStreamSynchronize(timer.stream()));
  const absl::StatusOr<double> error = (*workload)->RelativeError();
  if (!error.ok()) return error.status();
  if (!(*error <= kMaxRelativeError)) {
    return absl::DataLossError(absl::StrFormat(
        "%s, %d requests of %d + %d tokens: a relative error of %g against float64, at most %g",
        timing.kernel(), of_workload.requests, of_workload.past, rows, *error, kMaxRelativeError));
  }
  timing.set_relative_error(*error);

  // Long kernels less often; 4 TB/s and 400 TFLOP/s are an H200's.
  const double estimated_us =
      std::max((*workload)->bytes() / 4e6, (*workload)->operations() / 400e6);
  TimingOptions timing_options;
  timing_options.repeats = static_cast<int>(std::clamp(5e5 / estimated_us, 3.0, 21.0));
  timing_options.graph_launches = estimated_us < 2000 ? 16 : 0;
  timing_options.sustained_seconds = options.sustained_seconds;
  if (absl::Status status = TimeKernel(timer, launch, timing_options, timing); !status.ok()) {
    return status;
  }
  *results.add_timings() = timing;
  return absl::OkStatus();
}

absl::Status MeasureAll(const BenchmarkOptions& options, GpuTimer& timer, KernelResults& results) {
  std::vector<AttentionWorkloadOptions> workloads;
  if (options.Wants("decode_attention")) {
    for (const int context : {1024, 8192, 32768}) {
      for (const int requests : {1, 4, 16, 64}) {
        if (options.quick && (context > 8192 || requests == 4)) continue;
        workloads.push_back({.requests = requests, .rows = 1, .past = context - 1});
      }
    }
  }
  if (options.Wants("prefill_attention")) {
    for (const int past : {0, 2048, 8192, 32768}) {
      for (const int rows : {512, 1024, 2048, 4096, 8192}) {
        if (options.quick && (past > 0 || rows % 2048 != 0)) continue;
        workloads.push_back({.requests = 1, .rows = rows, .past = past});
      }
    }
  }
  for (const Model& model : Models()) {
    if (options.quick && model.heads != 128) continue;
    for (const AttentionWorkloadOptions& workload : workloads) {
      if (absl::Status status = Measure(options, timer, model, workload, results); !status.ok()) {
        return status;
      }
    }
  }
  return absl::OkStatus();
}

}  // namespace
}  // namespace fabricast

int main(int argc, char** argv) {
  return fabricast::KernelBenchmarkMain(argc, argv, "Times attention over a paged KV cache.",
                                        fabricast::MeasureAll);
}
