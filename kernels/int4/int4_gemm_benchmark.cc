// Measures the INT4 products of Llama 3.1's layers: verifies each against float64, then times it
// alone, in a CUDA graph with overlapping launches, and under load.

#include <cuda_runtime_api.h>

#include <algorithm>
#include <fstream>
#include <iostream>
#include <map>
#include <memory>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "kernels/gpu/cuda_status.h"
#include "kernels/int4/int4_gemm.h"
#include "kernels/int4/pack_activations.h"
#include "kernels/int4/synthetic_product.h"
#include "kernels/timing/device_array.h"
#include "kernels/timing/results.h"

namespace fabricast {
namespace {

constexpr uint64_t kSeed = 5;
// Of weights between two uses of the same: 20 times an H200's L2 cache.
constexpr int64_t kRotatedBytes = int64_t{1} << 30;
// BF16 outputs: rounding alone is 2^-9 / sqrt(3) x 1.46 = 1.65e-3 (1.46: the mean over a binade).
constexpr double kMostRelativeError = 2e-3;

struct Kernel {
  const char* name;
  ActivationFormat format;
  int most_tokens;
  absl::Status (*multiply)(const Int4Matrix&, const Activations&, const GemmOutput&, void*,
                           const LaunchOptions&);
  int64_t (*workspace_bytes)();
};

constexpr Kernel kKernels[] = {
    {"int4_gemm_mma", ActivationFormat::kMma, 64, Int4GemmMma, Int4GemmMmaWorkspaceBytes},
    {"int4_gemm_wgmma", ActivationFormat::kWgmma, 1024, Int4GemmWgmma, Int4GemmWgmmaWorkspaceBytes},
};

struct Shape {
  const char* model;
  const char* operation;
  int64_t outputs, inputs;
};

constexpr Shape kShapes[] = {
    {"llama-3.1-405b", "qkv", 18432, 16384},      {"llama-3.1-405b", "o", 16384, 16384},
    {"llama-3.1-405b", "gate_up", 106496, 16384}, {"llama-3.1-405b", "down", 16384, 53248},
    {"llama-3.1-70b", "qkv", 10240, 8192},        {"llama-3.1-70b", "o", 8192, 8192},
    {"llama-3.1-70b", "gate_up", 57344, 8192},    {"llama-3.1-70b", "down", 8192, 28672},
    {"llama-3.1-8b", "qkv", 6144, 4096},          {"llama-3.1-8b", "o", 4096, 4096},
    {"llama-3.1-8b", "gate_up", 28672, 4096},     {"llama-3.1-8b", "down", 4096, 14336},
};

// A peer's microseconds by {inputs, outputs, tokens}.
using PeerTimes = std::map<std::tuple<int64_t, int64_t, int64_t>, double>;

// Lines of projection,k,n,m,time_ms.
absl::StatusOr<PeerTimes> ReadPeerTimes(const std::string& path) {
  PeerTimes times;
  if (path.empty()) return times;
  std::ifstream file(path);
  if (!file) return absl::NotFoundError(absl::StrCat(path, ": cannot be read"));
  std::string line;
  std::getline(file, line);  // the header
  while (std::getline(file, line)) {
    const std::vector<std::string> fields = absl::StrSplit(line, ',');
    int64_t k, n, m;
    double ms;
    if (fields.size() != 5 || !absl::SimpleAtoi(fields[1], &k) ||
        !absl::SimpleAtoi(fields[2], &n) || !absl::SimpleAtoi(fields[3], &m) ||
        !absl::SimpleAtod(fields[4], &ms)) {
      return absl::InvalidArgumentError(
          absl::StrFormat("%s: \"%s\" is not projection,k,n,m,time_ms", path, line));
    }
    times[{k, n, m}] = ms * 1e3;
  }
  return times;
}

struct Options {
  std::vector<int> tokens = {1, 8, 16, 32, 64};
  std::string models, operations, kernels;  // those whose name holds it
  TimingOptions timing = {.sustained_seconds = 0.3};
  absl::Duration pause = absl::Milliseconds(200);  // before each measurement
  PeerTimes peer;
};

// A shape's weights, several times over, inputs and expected outputs.
class Product {
 public:
  static absl::StatusOr<std::unique_ptr<Product>> Create(const Shape& shape, int most_tokens,
                                                         GpuStream stream) {
    auto product = std::unique_ptr<Product>(new Product(shape));
    if (absl::Status status = product->Initialize(most_tokens, stream); !status.ok()) return status;
    return product;
  }

  // Verifies and times.
  absl::Status Measure(const Kernel& kernel, int tokens, const Options& options, GpuTimer& timer,
                       KernelTiming& timing) {
    const ActivationLayout layout = {
        .format = kernel.format, .tokens = tokens, .inputs = shape_.inputs};
    const absl::StatusOr<DeviceArray<char>> data =
        DeviceArray<char>::Allocate(layout.bytes(), "activations");
    if (!data.ok()) return data.status();
    const absl::StatusOr<DeviceArray<float>> scale =
        DeviceArray<float>::Allocate(tokens, "token scales");
    if (!scale.ok()) return scale.status();
    absl::StatusOr<DeviceArray<char>> workspace =
        DeviceArray<char>::Allocate(kernel.workspace_bytes(), "a workspace");
    if (!workspace.ok()) return workspace.status();
    if (absl::Status status = workspace->FillBytes(0); !status.ok()) return status;
    const Activations input = {layout, data->get(), scale->get()};
    const GemmOutput output = {OutputKind::kBf16, output_.get(), shape_.outputs};
    if (absl::Status status = PackActivations(x_.get(), input, {.stream = timer.stream()});
        !status.ok()) {
      return status;
    }
    const auto launch = [&](int64_t index, const LaunchOptions& launch_options) {
      Int4Matrix weights = matrix_;
      weights.blocks = blocks_.get() + index % copies_ * matrix_.block_bytes();
      return kernel.multiply(weights, input, output, workspace->get(), launch_options);
    };

    // Under load a GPU's clock goes down for its power, and stays there for a while.
    absl::SleepFor(options.pause);
    for (int64_t copy = 0; copy < copies_; ++copy) {
      FABRICAST_RETURN_IF_CUDA_FAILS(cudaMemsetAsync(
          output_.get(), 0xff, static_cast<size_t>(output_.bytes()), timer.stream()));
      if (absl::Status status = launch(copy, {.stream = timer.stream()}); !status.ok()) {
        return status;
      }
      const absl::StatusOr<double> error =
          RelativeError(expected_.get(), output, tokens, shape_.outputs, timer.stream());
      if (!error.ok()) return error.status();
      timing.set_relative_error(std::max(timing.relative_error(), *error));
      if (!(*error <= kMostRelativeError)) {
        return absl::DataLossError(absl::StrFormat(
            "%s of %s %s, %d tokens: relative error %.3e, at most %.1e expected", kernel.name,
            shape_.model, shape_.operation, tokens, *error, kMostRelativeError));
      }
    }

    timing.set_kernel(kernel.name);
    timing.set_model(shape_.model);
    timing.set_operation(shape_.operation);
    timing.set_tokens(tokens);
    timing.set_outputs(shape_.outputs);
    timing.set_inputs(shape_.inputs);
    const double outputs = static_cast<double>(shape_.outputs);
    const double inputs = static_cast<double>(shape_.inputs);
    // Weights as packed, activations and outputs in 2 bytes.
    timing.set_bytes(static_cast<double>(matrix_.bytes()) + 2 * tokens * (inputs + outputs));
    timing.set_operations(2 * tokens * inputs * outputs);
    const auto peer = options.peer.find({shape_.inputs, shape_.outputs, tokens});
    if (peer != options.peer.end()) {
      timing.set_peer("Marlin, by table");
      timing.set_peer_us(peer->second);
    }
    return TimeKernel(timer, launch, options.timing, timing);
  }

 private:
  explicit Product(const Shape& shape)
      : shape_(shape), matrix_{.outputs = shape.outputs, .inputs = shape.inputs} {}

  absl::Status Initialize(int most_tokens, GpuStream stream) {
    copies_ = kRotatedBytes / matrix_.block_bytes() + 2;
    absl::StatusOr<DeviceArray<char>> blocks =
        DeviceArray<char>::Allocate(copies_ * matrix_.block_bytes(), "weights");
    if (!blocks.ok()) return blocks.status();
    blocks_ = *std::move(blocks);
    absl::StatusOr<DeviceArray<float>> row_scale =
        DeviceArray<float>::Allocate(matrix_.row_scale_bytes() / 4, "row scales");
    if (!row_scale.ok()) return row_scale.status();
    row_scale_ = *std::move(row_scale);
    absl::StatusOr<DeviceArray<uint16_t>> x =
        DeviceArray<uint16_t>::Allocate(most_tokens * shape_.inputs, "inputs");
    if (!x.ok()) return x.status();
    x_ = *std::move(x);
    absl::StatusOr<DeviceArray<uint16_t>> output =
        DeviceArray<uint16_t>::Allocate(most_tokens * shape_.outputs, "outputs");
    if (!output.ok()) return output.status();
    output_ = *std::move(output);
    absl::StatusOr<DeviceArray<double>> expected =
        DeviceArray<double>::Allocate(most_tokens * shape_.outputs, "expected outputs");
    if (!expected.ok()) return expected.status();
    expected_ = *std::move(expected);

    matrix_.row_scale = row_scale_.get();
    absl::Status status;
    for (int64_t copy = 0; copy < copies_; ++copy) {
      matrix_.blocks = blocks_.get() + copy * matrix_.block_bytes();
      status.Update(FillSyntheticInt4(kSeed, matrix_, {.stream = stream}));
    }
    status.Update(FillNormalBf16(kSeed, x_.get(), x_.size(), {.stream = stream}));
    status.Update(SyntheticProduct(kSeed, shape_.outputs, shape_.inputs, x_.get(), most_tokens,
                                   expected_.get(), {.stream = stream}));
    return status;
  }

  Shape shape_;
  Int4Matrix matrix_;
  int64_t copies_ = 0;
  DeviceArray<char> blocks_;
  DeviceArray<float> row_scale_;
  DeviceArray<uint16_t> x_, output_;
  DeviceArray<double> expected_;
};

void PrintHeader(const KernelResults& results) {
  const MeasuredEnvironment& environment = results.environment();
  std::cout << absl::StrFormat(
      "%s, driver %s, SM %.0f MHz, limit %.0f W; copy %.0f GB/s\n%-16s %-15s %-8s %6s | %8s %6s "
      "%7s | %8s %6s | %8s %6s | %9s\n",
      environment.gpu(), environment.driver(), environment.sm_clock_mhz(),
      environment.power_limit_watts(), results.ceilings().copy_gb_s(), "kernel", "model",
      "operation", "tokens", "lone us", "% copy", "x peer", "graph us", "% copy", "load us",
      "% copy", "error");
}

void PrintTiming(const KernelTiming& timing, double copy_gb_s) {
  const auto time_and_share = [&](double us) {
    if (!(us > 0)) return std::string("       -      -");
    return absl::StrFormat("%8.2f %6.1f", us, 100 * timing.bytes() / (us * 1e3) / copy_gb_s);
  };
  std::cout << absl::StrFormat("%-16s %-15s %-8s %6d | %s %7s | %s | %s | %9.2e", timing.kernel(),
                               timing.model(), timing.operation(), timing.tokens(),
                               time_and_share(timing.single_us()),
                               timing.peer_us() > 0
                                   ? absl::StrFormat("%.3f", timing.single_us() / timing.peer_us())
                                   : "-",
                               time_and_share(timing.graph_us()),
                               time_and_share(timing.sustained_us()), timing.relative_error())
            << std::endl;
}

absl::Status Run(int device, const Options& options, KernelResults& results) {
  FABRICAST_RETURN_IF_CUDA_FAILS(cudaSetDevice(device));
  const absl::StatusOr<std::unique_ptr<GpuTimer>> timer = GpuTimer::Create();
  if (!timer.ok()) return timer.status();
  absl::StatusOr<MeasuredEnvironment> environment = MeasureEnvironment(**timer);
  if (!environment.ok()) return environment.status();
  *results.mutable_environment() = *std::move(environment);
  const absl::StatusOr<double> copy = MeasureCopyBandwidth(**timer);
  if (!copy.ok()) return copy.status();
  results.mutable_ceilings()->set_copy_gb_s(*copy / 1e9);
  PrintHeader(results);

  const auto holds = [](const char* name, const std::string& part) {
    return std::string(name).find(part) != std::string::npos;
  };
  const int most_tokens = *std::max_element(options.tokens.begin(), options.tokens.end());
  for (const Shape& shape : kShapes) {
    if (!holds(shape.model, options.models) || !holds(shape.operation, options.operations)) {
      continue;
    }
    const absl::StatusOr<std::unique_ptr<Product>> product =
        Product::Create(shape, most_tokens, (*timer)->stream());
    if (!product.ok()) return product.status();
    for (const Kernel& kernel : kKernels) {
      if (!holds(kernel.name, options.kernels)) continue;
      for (const int tokens : options.tokens) {
        if (tokens > kernel.most_tokens) continue;
        KernelTiming timing;
        const absl::Status status = (*product)->Measure(kernel, tokens, options, **timer, timing);
        if (absl::IsUnimplemented(status)) break;  // on this GPU
        if (!status.ok()) return status;
        PrintTiming(timing, results.ceilings().copy_gb_s());
        *results.add_timings() = timing;
      }
    }
  }
  return absl::OkStatus();
}

int Main(int argc, char** argv) {
  CLI::App app("Measures INT4 matrix products.");
  Options options;
  int device = 0;
  std::string peer, out;
  app.add_option("--tokens", options.tokens, "numbers of tokens, with commas between")
      ->delimiter(',')
      ->check(CLI::Range(1, 8192));
  app.add_option("--models", options.models, "models whose name holds this");
  app.add_option("--operations", options.operations, "operations whose name holds this");
  app.add_option("--kernels", options.kernels, "kernels whose name holds this");
  app.add_option("--repeats", options.timing.repeats, "lone launches, and graphs")
      ->check(CLI::Range(1, 10000));
  app.add_option("--graph_launches", options.timing.graph_launches, "in a graph; 0: no graph")
      ->check(CLI::Range(0, 1000));
  app.add_option("--sustained_seconds", options.timing.sustained_seconds,
                 "how long to load the GPU for each sustained time; 0: none")
      ->check(CLI::Range(0.0, 60.0));
  double pause_seconds = absl::ToDoubleSeconds(options.pause);
  app.add_option("--pause_seconds", pause_seconds, "before each measurement, for the GPU's clock")
      ->check(CLI::Range(0.0, 60.0));
  app.add_option("--marlin", peer, "file of Marlin's times: projection,k,n,m,time_ms");
  app.add_option("--device", device, "which GPU, as CUDA counts them");
  app.add_option("--json,--out", out, "file for the results");
  bool quick = false;
  app.add_flag("--quick", quick, "two numbers of tokens, the smallest model");
  CLI11_PARSE(app, argc, argv);
  if (quick) {
    options.models = "8b";
    options.tokens = {1, 16};
  }

  absl::StatusOr<PeerTimes> times = ReadPeerTimes(peer);
  if (!times.ok()) {
    std::cerr << times.status() << "\n";
    return 1;
  }
  options.peer = *std::move(times);
  options.pause = absl::Seconds(pause_seconds);
  KernelResults results;
  absl::Status status = Run(device, options, results);
  if (!out.empty() && results.timings_size() > 0) {
    status.Update(WriteKernelResults(results, out));
  }
  if (!status.ok()) std::cerr << status << "\n";
  return status.ok() ? 0 : 1;
}

}  // namespace
}  // namespace fabricast

int main(int argc, char** argv) { return fabricast::Main(argc, argv); }
