// What each kernel of a decoder layer, and the whole layer, takes: over tokens, contexts and
// models.

#include <algorithm>
#include <iostream>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "benchmarks/kernels/dense.h"
#include "benchmarks/kernels/layer.h"
#include "kernels/dense/cublaslt.h"
#include "kernels/memory_stream.h"
#include "kernels/timing/benchmark_main.h"
#include "kernels/timing/results.h"

namespace fabricast {
namespace {

// Of a graph, and of all its replays: long against a replay's start, short against a clock's going
// down.
constexpr double kGraphUs = 4'000;
constexpr double kReplaysUs = 40'000;
constexpr int kMostLaunches = 16;
// Leaves room for weights and activations on a GPU of 140 GB.
constexpr int64_t kCacheLimit = 50'000'000'000;

std::vector<LayerStep> Steps(bool quick) {
  if (quick) {
    return {{.past = 1023},
            {.past = 0},
            {.past = 8191},
            {.requests = 8, .past = 1023},
            {.requests = 16, .past = 1023},
            {.requests = 64, .past = 1023},
            {.rows = 1024}};
  }
  std::vector<LayerStep> steps;
  for (const int64_t context : {1024, 1, 8192, 32768}) {
    for (int requests = 1; requests <= 256; requests *= 2) {
      steps.push_back({.requests = requests, .past = context - 1});
    }
  }
  for (const int64_t past : {0, 8192, 24576}) {
    for (int rows = 128; rows <= 8192; rows *= 2) steps.push_back({.rows = rows, .past = past});
  }
  return steps;
}

// Where a layer's time without some kernels is measured: with more tokens the clock, which the
// power limit holds down, changes more between two measurements than such a kernel takes.
bool TakesApart(const LayerStep& step) { return step.context() == 1024 && step.tokens() == 1; }

const char* NameOf(const LayerStep& step) { return step.rows == 1 ? "decode" : "prefill"; }

class Measurement {
 public:
  Measurement(const BenchmarkOptions& options, GpuTimer& timer, KernelResults& results)
      : options_(options), timer_(timer), results_(results) {}

  absl::Status Ceilings() {
    const absl::StatusOr<MemoryStreamMeasurement> read =
        MeasureMemoryStream(StreamKind::kRead, {.buffer_bytes = size_t{4} << 30, .seconds = 0.2});
    if (!read.ok()) return read.status();
    results_.mutable_ceilings()->set_read_gb_s(read->rates.burst / 1e9);

    absl::StatusOr<std::unique_ptr<CublasLt>> cublas = CublasLt::Load();
    if (absl::IsUnavailable(cublas.status())) {
      std::cerr << cublas.status() << "\nSteps that need it are left out.\n";
      return absl::OkStatus();
    }
    if (!cublas.ok()) return cublas.status();
    cublas_ = *std::move(cublas);
    const int64_t version = cublas_->version();
    results_.mutable_environment()->set_cublaslt(
        absl::StrCat(version / 10000, ".", version / 100 % 100, ".", version % 100));
    const absl::StatusOr<double> tflops = MatmulTflops(timer_, *cublas_);
    if (!tflops.ok()) return tflops.status();
    results_.mutable_ceilings()->set_bf16_matmul_tflops(*tflops);
    return absl::OkStatus();
  }

  absl::Status Model(const LayerShape& shape) {
    std::unique_ptr<LayerBenchmark> layer;
    measured_.clear();
    for (const LayerStep& step : Steps(options_.quick)) {
      if (!WantsAny(shape, step)) continue;
      if (layer == nullptr) {
        absl::StatusOr<std::unique_ptr<LayerBenchmark>> created =
            LayerBenchmark::Create(shape, cublas_.get(), timer_.stream());
        if (!created.ok()) return created.status();
        layer = *std::move(created);
      }
      absl::Status status = layer->SetStep(step, kCacheLimit);
      if (status.ok()) status.Update(layer->CheckFinite());
      if (status.ok()) status.Update(Step(shape, step, *layer));
      if (absl::IsResourceExhausted(status) || absl::IsUnavailable(status)) {
        std::cerr << shape.model << ", left out: " << status.message() << "\n";
        continue;
      }
      if (!status.ok()) {
        return absl::Status(
            status.code(), absl::StrFormat("%s, %d requests of %d tokens after %d: %s", shape.model,
                                           step.requests, step.rows, step.past, status.message()));
      }
    }
    layer = nullptr;
    if (cublas_ == nullptr || !Wants(shape, "lm_head")) return absl::OkStatus();
    return TimeLmHead(timer_, *cublas_, shape.model, shape.hidden, options_, results_);
  }

 private:
  // --only names an operation, a model, or both: "llama-3.1-8b qkv".
  bool Wants(const LayerShape& shape, const std::string& operation) const {
    return options_.Wants(absl::StrCat(shape.model, " ", operation));
  }
  bool WantsAny(const LayerShape& shape, const LayerStep& step) const {
    bool wants = Wants(shape, NameOf(step));
    for (int i = 0; i < kLayerKernels; ++i) {
      wants = wants || Wants(shape, NameOf(static_cast<LayerKernel>(i)));
    }
    return wants;
  }

  absl::Status Step(const LayerShape& shape, const LayerStep& step, LayerBenchmark& layer) {
    KernelTiming whole = Timing(shape, step);
    whole.set_kernel("layer");
    whole.set_operation(NameOf(step));
    // Besides what its kernels read: the keys and values that are appended.
    whole.set_bytes(static_cast<double>(step.tokens() * shape.kv_bytes()));
    for (int i = 0; i < kLayerKernels; ++i) {
      const LayerKernel kernel = static_cast<LayerKernel>(i);
      const LayerWork work = layer.WorkOf(kernel);
      whole.set_operations(whole.operations() + work.operations);
      if (IsProduct(kernel) || kernel == LayerKernel::kAttention) {
        whole.set_bytes(whole.bytes() + work.bytes);
      }
    }
    if (Wants(shape, whole.operation())) {
      absl::Status status = Time(layer, kAllLayerKernels, options_.sustained_seconds, whole);
      if (!status.ok()) return status;
      std::cerr << absl::StrFormat("%s: %d requests of %d tokens after %d: %.1f us\n", shape.model,
                                   step.requests, step.rows, step.past, BestUs(whole));
      *results_.add_timings() = whole;
      if (TakesApart(step)) status.Update(TakeApart(shape, step, layer, whole.graph_us()));
      if (!status.ok()) return status;
    }
    for (int i = 0; i < kLayerKernels; ++i) {
      const LayerKernel kernel = static_cast<LayerKernel>(i);
      const LayerWork work = layer.WorkOf(kernel);
      // Only attention knows the context, and requests from rows.
      const bool attention = kernel == LayerKernel::kAttention;
      const std::string key = attention
                                  ? absl::StrCat(step.requests, " ", step.rows, " ", step.past)
                                  : absl::StrCat(NameOf(kernel), " ", step.tokens());
      if (!work.runs || !Wants(shape, NameOf(kernel)) || !measured_.insert(key).second) continue;
      KernelTiming timing = Timing(shape, step);
      if (!attention) timing.clear_requests();
      if (!attention) timing.clear_context();
      timing.set_kernel(work.kernel);
      timing.set_operation(NameOf(kernel));
      timing.set_outputs(work.outputs);
      timing.set_inputs(work.inputs);
      timing.set_bytes(work.bytes);
      timing.set_operations(work.operations);
      const double sustained = IsProduct(kernel) || attention ? options_.sustained_seconds : 0;
      if (absl::Status status = Time(layer, Only(kernel), sustained, timing); !status.ok()) {
        return status;
      }
      *results_.add_timings() = timing;
    }
    return absl::OkStatus();
  }

  // By how much a layer's graph is shorter without all but products, or products and attention.
  // (Without a single kernel it may be longer: the next product then begins at a worse time.)
  absl::Status TakeApart(const LayerShape& shape, const LayerStep& step, LayerBenchmark& layer,
                         double whole_us) {
    LayerKernels products = 0;
    for (const LayerKernel product :
         {LayerKernel::kQkv, LayerKernel::kO, LayerKernel::kGateUp, LayerKernel::kDown}) {
      products |= Only(product);
    }
    const std::pair<const char*, LayerKernels> parts[] = {
        {"all but products", products},
        {"all but products and attention", products | Only(LayerKernel::kAttention)}};
    for (const auto& [name, kept] : parts) {
      KernelTiming timing = Timing(shape, step);
      timing.set_kernel("layer_part");
      timing.set_operation(name);
      if (absl::Status status = Time(layer, kept, 0, timing); !status.ok()) return status;
      timing.set_graph_us(whole_us - timing.graph_us());
      timing.clear_single_us();
      timing.clear_single_p99_us();
      timing.set_note(absl::StrFormat("%.1f %% of the layer", 100 * timing.graph_us() / whole_us));
      *results_.add_timings() = timing;
    }
    return absl::OkStatus();
  }

  absl::Status Time(LayerBenchmark& layer, LayerKernels kernels, double sustained_seconds,
                    KernelTiming& timing) {
    const auto launch = [&](int64_t index, const LaunchOptions& options) {
      return layer.Enqueue(index, kernels, options);
    };
    const absl::StatusOr<GpuTiming> first = timer_.Single(launch, 1);
    if (!first.ok()) return first.status();
    const double us = std::max(first->median_us, 1.);
    // What takes that long gains nothing from a graph.
    const int launches =
        us > kGraphUs ? 0 : std::clamp(static_cast<int>(kGraphUs / us), 1, kMostLaunches);
    const int repeats =
        std::clamp(static_cast<int>(kReplaysUs / (us * std::max(launches, 1))), 3, 21);
    return TimeKernel(
        timer_, launch,
        {.repeats = repeats, .graph_launches = launches, .sustained_seconds = sustained_seconds},
        timing);
  }

  static KernelTiming Timing(const LayerShape& shape, const LayerStep& step) {
    KernelTiming timing;
    timing.set_model(shape.model);
    timing.set_tokens(step.tokens());
    timing.set_requests(step.requests);
    timing.set_context(step.context());
    return timing;
  }

  const BenchmarkOptions& options_;
  GpuTimer& timer_;
  KernelResults& results_;
  std::unique_ptr<CublasLt> cublas_;
  std::set<std::string> measured_;  // of the model
};

absl::Status Measure(const BenchmarkOptions& options, GpuTimer& timer, KernelResults& results) {
  Measurement measurement(options, timer, results);
  if (absl::Status status = measurement.Ceilings(); !status.ok()) return status;
  for (const LayerShape& shape : Llama31Layers()) {
    if (absl::Status status = measurement.Model(shape); !status.ok()) return status;
    if (options.quick) break;
  }
  return absl::OkStatus();
}

}  // namespace
}  // namespace fabricast

int main(int argc, char** argv) {
  return fabricast::KernelBenchmarkMain(
      argc, argv, "Times the kernels of a decoder layer, and the layer, over tokens and contexts.",
      fabricast::Measure);
}
