// Times the products of three models' matrices: BF16 weights by cuBLASLt, and INT4 weights by way
// of it for many tokens. Some outputs of each are checked first.
#include <cuda_bf16.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_format.h"
#include "kernels/dense/cublaslt.h"
#include "kernels/dense/int4_many_tokens.h"
#include "kernels/gpu/cuda_status.h"
#include "kernels/int4/int4_matrix.h"
#include "kernels/int4/synthetic_weights.h"
#include "kernels/timing/benchmark_main.h"
#include "kernels/timing/device_array.h"
#include "kernels/timing/results.h"

namespace fabricast {
namespace {

struct Product {
  const char* model;
  const char* operation;
  int64_t outputs, inputs;
  OutputKind kind;
};
constexpr Product kProducts[] = {
    {"llama-3.1-405b", "qkv", 18432, 16384, OutputKind::kBf16},
    {"llama-3.1-405b", "o", 16384, 16384, OutputKind::kAddF32},
    {"llama-3.1-405b", "gate_up", 106496, 16384, OutputKind::kBf16},
    {"llama-3.1-405b", "down", 16384, 53248, OutputKind::kAddF32},
    {"llama-3.1-405b", "lm_head", 128256, 16384, OutputKind::kF32},
    {"llama-3.1-70b", "qkv", 10240, 8192, OutputKind::kBf16},
    {"llama-3.1-70b", "o", 8192, 8192, OutputKind::kAddF32},
    {"llama-3.1-70b", "gate_up", 57344, 8192, OutputKind::kBf16},
    {"llama-3.1-70b", "down", 8192, 28672, OutputKind::kAddF32},
    {"llama-3.1-70b", "lm_head", 128256, 8192, OutputKind::kF32},
    {"llama-3.1-8b", "qkv", 6144, 4096, OutputKind::kBf16},
    {"llama-3.1-8b", "o", 4096, 4096, OutputKind::kAddF32},
    {"llama-3.1-8b", "gate_up", 28672, 4096, OutputKind::kBf16},
    {"llama-3.1-8b", "down", 4096, 14336, OutputKind::kAddF32},
    {"llama-3.1-8b", "lm_head", 128256, 4096, OutputKind::kF32},
};

constexpr int64_t kMostTokens = 8192;
// Of the head only the last tokens of requests are computed.
constexpr int64_t kMostHeadTokens = 256;
constexpr int64_t kManyTokens = 64;
// Weights are rotated over ten times an H200's L2 cache.
constexpr int64_t kRotatedBytes = int64_t{512} << 20;
constexpr uint64_t kSeed = 1;
// BF16 roundings of weights and output are 2^-9 each at most; a wrong element is far off.
constexpr double kWorstError = 0.01;

int64_t ElementBytes(OutputKind kind) { return kind == OutputKind::kBf16 ? 2 : 4; }

class DenseBenchmark {
 public:
  DenseBenchmark(const BenchmarkOptions& options, GpuTimer& timer, CublasLt& cublas,
                 KernelResults& results)
      : options_(options), timer_(timer), cublas_(cublas), results_(results) {}

  absl::Status Initialize() {
    int64_t input_elements = 0, output_bytes = 0, scratch_bytes = 0;
    for (const Product& product : kProducts) {
      const int64_t tokens = MostTokens(product);
      input_elements = std::max(input_elements, tokens * product.inputs);
      output_bytes = std::max(output_bytes, tokens * product.outputs * ElementBytes(product.kind));
      scratch_bytes = std::max(scratch_bytes, Int4ManyTokensScratchBytes(product.inputs));
    }
    if (absl::Status status = Allocate(input_elements, "the input", input_); !status.ok()) {
      return status;
    }
    if (absl::Status status = Allocate(output_bytes, "the output", output_); !status.ok()) {
      return status;
    }
    if (absl::Status status = Allocate(scratch_bytes, "scratch", scratch_); !status.ok()) {
      return status;
    }
    if (absl::Status status = Allocate(cublas_.workspace_bytes(), "the workspace", workspace_);
        !status.ok()) {
      return status;
    }
    return FillInput();
  }

  absl::Status Measure(const Product& product) {
    const int64_t bytes = product.outputs * product.inputs * 2;
    const int64_t copies = Copies(bytes);
    Int4Matrix int4 = {.outputs = product.outputs, .inputs = product.inputs};
    const int64_t int4_copies = Copies(int4.block_bytes());
    DeviceArray<char> blocks;
    DeviceArray<float> row_scale;
    if (absl::Status status = Allocate(int4_copies * int4.block_bytes(), "INT4 weights", blocks);
        !status.ok()) {
      return status;
    }
    if (absl::Status status = Allocate(int4.block_rows() * kInt4BlockRows, "scales", row_scale);
        !status.ok()) {
      return status;
    }
    int4.row_scale = row_scale.get();
    const auto int4_copy = [&](int64_t i) {
      Int4Matrix copy = int4;
      copy.blocks = blocks.get() + i % int4_copies * int4.block_bytes();
      return copy;
    };
    for (int64_t i = 0; i < int4_copies; ++i) {
      if (absl::Status status = FillSyntheticInt4(kSeed, int4_copy(i), {.stream = timer_.stream()});
          !status.ok()) {
        return status;
      }
    }
    {
      DeviceArray<char> dense;
      if (absl::Status status = Allocate(copies * bytes, "BF16 weights", dense); !status.ok()) {
        return status;
      }
      const auto dense_copy = [&](int64_t i) {
        return DenseMatrix{.type = DenseType::kBf16,
                           .outputs = product.outputs,
                           .inputs = product.inputs,
                           .data = dense.get() + i % copies * bytes};
      };
      for (int64_t i = 0; i < copies; ++i) {
        if (absl::Status status =
                DequantizeInt4(int4_copy(0), 0, product.outputs, dense.get() + i * bytes,
                               {.stream = timer_.stream()});
            !status.ok()) {
          return status;
        }
      }
      for (const int tokens : Tokens(product, 1)) {
        absl::Status status =
            Time("cublaslt_bf16", product, tokens, static_cast<double>(bytes),
                 [&](int64_t index, const LaunchOptions& launch) {
                   return cublas_.Multiply(dense_copy(index), Input(product, tokens),
                                           Output(product), workspace_.get(), launch.stream);
                 });
        if (!status.ok()) return status;
      }
    }
    // Heads are not quantised.
    if (std::string(product.operation) == "lm_head") return absl::OkStatus();
    for (const int tokens : Tokens(product, kManyTokens)) {
      absl::Status status = Time(
          "int4_many_tokens", product, tokens, static_cast<double>(int4.bytes()),
          [&](int64_t index, const LaunchOptions& launch) {
            return Int4ManyTokens(
                cublas_, int4_copy(index), Input(product, tokens), Output(product), scratch_.get(),
                Int4ManyTokensScratchBytes(product.inputs), workspace_.get(), launch);
          });
      if (!status.ok()) return status;
    }
    return absl::OkStatus();
  }

 private:
  static int64_t MostTokens(const Product& product) {
    return std::string(product.operation) == "lm_head" ? kMostHeadTokens : kMostTokens;
  }
  static int64_t Copies(int64_t bytes) { return (kRotatedBytes + bytes - 1) / bytes; }

  std::vector<int> Tokens(const Product& product, int64_t fewest) const {
    if (options_.quick) return fewest == 1 ? std::vector<int>{1, 64} : std::vector<int>{64, 1024};
    std::vector<int> tokens;
    for (int64_t t = fewest; t <= MostTokens(product); t *= 2)
      tokens.push_back(static_cast<int>(t));
    return tokens;
  }

  template <typename T>
  static absl::Status Allocate(int64_t size, const char* what, DeviceArray<T>& to) {
    absl::StatusOr<DeviceArray<T>> array = DeviceArray<T>::Allocate(size, what);
    if (!array.ok()) return array.status();
    to = *std::move(array);
    return absl::OkStatus();
  }

  // Normal numbers; their period is prime to the widths, so that no two tokens are alike.
  absl::Status FillInput() {
    std::mt19937 generator(1);
    std::normal_distribution<float> normal;
    values_.resize((1 << 20) - 3);
    for (__nv_bfloat16& value : values_) value = __float2bfloat16(normal(generator));
    for (int64_t at = 0; at < input_.size(); at += static_cast<int64_t>(values_.size())) {
      const int64_t count = std::min(static_cast<int64_t>(values_.size()), input_.size() - at);
      FABRICAST_RETURN_IF_CUDA_FAILS(cudaMemcpy(input_.get() + at, values_.data(),
                                                static_cast<size_t>(count) * 2,
                                                cudaMemcpyHostToDevice));
    }
    return absl::OkStatus();
  }

  Activations Input(const Product& product, int tokens) const {
    return {.layout = {.format = ActivationFormat::kBf16Rows,
                       .tokens = tokens,
                       .inputs = product.inputs},
            .data = input_.get()};
  }
  GemmOutput Output(const Product& product) const {
    return {.kind = product.kind, .data = output_.get(), .stride = product.outputs};
  }

  // ||out - ref|| / ||ref|| over outputs of four tokens; INT4 weights as they were before BF16
  // rounded them.
  absl::StatusOr<double> RelativeError(const Product& product, int tokens) const {
    const SyntheticWeights weights(kSeed, product.inputs);
    const int64_t size = ElementBytes(product.kind);
    double error = 0, norm = 0;
    for (const int64_t token :
         {int64_t{0}, int64_t{tokens} / 3, int64_t{tokens} / 2 + 1, int64_t{tokens} - 1}) {
      if (token >= tokens) continue;
      std::vector<char> row(static_cast<size_t>(product.outputs * size));
      FABRICAST_RETURN_IF_CUDA_FAILS(cudaMemcpy(row.data(),
                                                output_.get() + token * product.outputs * size,
                                                row.size(), cudaMemcpyDeviceToHost));
      for (int64_t i = 0; i < 32; ++i) {
        const int64_t output = i * (product.outputs - 1) / 31;
        double expected = 0;
        for (int64_t k = 0; k < product.inputs; ++k) {
          const size_t at = static_cast<size_t>(token * product.inputs + k) % values_.size();
          expected += double{__bfloat162float(values_[at])} * weights.Weight(output, k);
        }
        float got;
        if (product.kind == OutputKind::kBf16) {
          __nv_bfloat16 value;
          std::memcpy(&value, &row[static_cast<size_t>(output * size)], 2);
          got = __bfloat162float(value);
        } else {
          std::memcpy(&got, &row[static_cast<size_t>(output * size)], 4);
        }
        error += (got - expected) * (got - expected);
        norm += expected * expected;
      }
    }
    return std::sqrt(error / norm);
  }

  absl::Status Time(const char* kernel, const Product& product, int tokens, double weight_bytes,
                    const GpuTimer::Launch& launch) {
    FABRICAST_RETURN_IF_CUDA_FAILS(
        cudaMemsetAsync(output_.get(), 0, static_cast<size_t>(output_.size()), timer_.stream()));
    if (absl::Status status = launch(0, {.stream = timer_.stream()}); !status.ok()) return status;
    FABRICAST_RETURN_IF_CUDA_FAILS(cudaStreamSynchronize(timer_.stream()));
    const absl::StatusOr<double> error = RelativeError(product, tokens);
    if (!error.ok()) return error.status();
    if (!(*error < kWorstError)) {
      return absl::InternalError(absl::StrFormat("%s of %s's %s for %d tokens is wrong: error %g",
                                                 kernel, product.model, product.operation, tokens,
                                                 *error));
    }

    KernelTiming& timing = *results_.add_timings();
    timing.set_kernel(kernel);
    timing.set_model(product.model);
    timing.set_operation(product.operation);
    timing.set_tokens(tokens);
    timing.set_outputs(product.outputs);
    timing.set_inputs(product.inputs);
    // The residual is read and written.
    const int64_t output_passes = product.kind == OutputKind::kAddF32 ? 2 : 1;
    timing.set_bytes(weight_bytes +
                     static_cast<double>(
                         tokens * (product.inputs * 2 +
                                   product.outputs * ElementBytes(product.kind) * output_passes)));
    timing.set_operations(2. * static_cast<double>(product.outputs) *
                          static_cast<double>(product.inputs) * tokens);
    timing.set_relative_error(*error);
    // Long ones are few and without a graph: milliseconds, next to which a launch is nothing.
    const bool is_long = tokens >= 256;
    return TimeKernel(timer_, launch,
                      {.repeats = is_long ? 7 : 21,
                       .graph_launches = is_long ? 0 : 8,
                       .sustained_seconds = options_.sustained_seconds},
                      timing);
  }

  const BenchmarkOptions& options_;
  GpuTimer& timer_;
  CublasLt& cublas_;
  KernelResults& results_;
  std::vector<__nv_bfloat16> values_;
  DeviceArray<__nv_bfloat16> input_;
  DeviceArray<char> output_, scratch_, workspace_;
};

absl::Status Measure(const BenchmarkOptions& options, GpuTimer& timer, KernelResults& results) {
  const absl::StatusOr<std::unique_ptr<CublasLt>> cublas = CublasLt::Load();
  if (!cublas.ok()) return cublas.status();
  results.mutable_environment()->set_cublaslt(
      absl::StrFormat("%d.%d.%d", (*cublas)->version() / 10000, (*cublas)->version() / 100 % 100,
                      (*cublas)->version() % 100));
  DenseBenchmark benchmark(options, timer, **cublas, results);
  if (absl::Status status = benchmark.Initialize(); !status.ok()) return status;
  for (const Product& product : kProducts) {
    if (!options.Wants(product.operation)) continue;
    if (options.quick && std::string(product.model) != "llama-3.1-405b") continue;
    if (absl::Status status = benchmark.Measure(product); !status.ok()) return status;
  }
  return absl::OkStatus();
}

}  // namespace
}  // namespace fabricast

int main(int argc, char** argv) {
  return fabricast::KernelBenchmarkMain(
      argc, argv, "Times products with BF16 weights, and with INT4 weights for many tokens.",
      fabricast::Measure);
}
