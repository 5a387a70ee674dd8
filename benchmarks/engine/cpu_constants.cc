// Fits the constants of the cluster local_cpu to this machine: prints the lines of
// topology/specs/gpus/cpu_x86.txtpb, topology/calibration/cpu_x86.txtpb and loopback.txtpb that are
// measured, then what the fit leaves unexplained. See benchmarks/README.md.
//
// All is timed through the executor's own interface, and every term is the cost model's own
// (runtime/cost/stage_cost.h): a constant is the one with which the model gives the measured time.
// Beside what is fitted stand layers of another shape that no fit has seen.

#include <algorithm>
#include <cmath>
#include <iostream>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "benchmarks/engine/measure.h"
#include "benchmarks/engine/processor_rates.h"
#include "benchmarks/engine/random_stage.h"
#include "benchmarks/engine/step_loops.h"
#include "runtime/check.h"
#include "runtime/cost/stage_cost.h"
#include "runtime/executor/sampling.h"
#include "topology/calibration.pb.h"

namespace fabricast {
namespace {

constexpr int kThreads = 2;  // a stage, as the cluster has them
constexpr char kCommand[] = "bazel run --config=opt //benchmarks/engine:cpu_constants";

struct Flags {
  int repeats = 15;
  bool quick = false;
};

// The cost model's view of a stage.
Model ModelOf(const LayerShape& shape) {
  const WeightFormat format = shape.int4 ? WeightFormat::kInt4Group128 : WeightFormat::kBf16;
  const double norm = 4.0 * static_cast<double>(shape.hidden);
  const int64_t q = shape.heads * shape.head_dim;
  const int64_t kv = shape.kv_heads * shape.head_dim;
  LayerKind kind;
  kind.name = "dense";
  kind.operators = {
      ElementwiseOp{"input_norm", norm, 0},
      LinearOp{"qkv", shape.hidden, q + 2 * kv, format, false},
      ElementwiseOp{"rope", 2.0 * static_cast<double>(q + kv), 0},
      AttentionOp{shape.heads, shape.kv_heads, shape.head_dim, /*kv_bytes_per_element=*/4},
      LinearOp{"o", q, shape.hidden, format, false},
      ElementwiseOp{"post_attention_norm", norm, 0},
      LinearOp{"gate_up", shape.hidden, 2 * shape.ffn, format, false},
      ElementwiseOp{"swiglu", 3.0 * static_cast<double>(shape.ffn), 0},
      LinearOp{"down", shape.ffn, shape.hidden, format, false},
  };
  Model model;
  model.name = "random";
  model.layer_format = format;
  model.hidden = shape.hidden;
  model.activation_bytes = 4;
  model.kinds = {kind};
  model.layers.assign(shape.layers, 0);
  return model;
}

// Fixed costs that a layer has: 4 matrix products, attention, 4 elementwise kernels.
constexpr int kKernelsALayer = 9;

struct Fit {
  GpuSpec gpu;
  KernelCalibration kernels;
};

ComputeTime Explain(const Fit& fit, const LayerShape& shape, const BatchShape& batch) {
  return StageCost(ModelOf(shape), fit.gpu, fit.kernels,
                   {.first_layer = 0, .num_layers = shape.layers})
      .Explain(batch);
}

double Matrices(const ComputeTime& time) { return time.weight_read_s() + time.matrix_compute_s(); }

// A step of `requests` times `tokens` tokens after `context`.
BatchShape BatchOf(int64_t requests, int64_t context, int64_t tokens) {
  return tokens == 1 ? BatchShape::Decode(requests, context + 1)
                     : BatchShape::Prefill(tokens, context, /*samples=*/false);
}

GemmCurve& CurveOf(Fit& fit, bool int4) { return *fit.kernels.mutable_gemms(int4 ? 1 : 0); }

// Peaks measured, efficiencies 1, no overhead.
Fit Peaks(const Flags& flags) {
  Fit fit;
  fit.gpu.set_name("cpu_x86");
  fit.gpu.set_memory_bandwidth_gb_s(ReadRate(kThreads, flags.quick ? 0.05 : 1.5) / 1e9);
  fit.gpu.set_bf16_tflops(MultiplyAddRate(kThreads) / 1e12);
  fit.kernels.set_elementwise_efficiency(1);
  for (const char* format : {"bf16", "int4"}) fit.kernels.add_gemms()->set_weight_format(format);
  return fit;
}

// What layers cost that have next to nothing to compute: the same a kernel of every kind.
void FitOverheads(const Flags& flags, Fit& fit) {
  const auto time = [&](int layers) {
    const LayerShape tiny = {
        .layers = layers, .hidden = 128, .ffn = 128, .heads = 2, .kv_heads = 2};
    return RandomStage(tiny, kThreads, 4096).Time(1, 0, 1, 40 * flags.repeats);
  };
  constexpr int kFew = 2;
  constexpr int kMany = 34;
  const double few = time(kFew);
  const double a_layer = (time(kMany) - few) / (kMany - kFew);
  const double a_kernel_us = 1e6 * a_layer / kKernelsALayer;
  // What the engine adds to a step that it was asleep for.
  const double engine_s = Median(TimeEngine({.stages = 1,
                                             .running = 1,
                                             .steps = flags.quick ? 30 : 1000,
                                             .tokenizer = nullptr,
                                             .compute_s = 1e-3})
                                     .wall_s);
  fit.kernels.set_step_overhead_us(1e6 * (std::max(0.0, few - kFew * a_layer) + engine_s));
  for (GemmCurve& curve : *fit.kernels.mutable_gemms()) curve.set_overhead_us(a_kernel_us);
  fit.kernels.mutable_decode_attention()->set_overhead_us(a_kernel_us);
  fit.kernels.mutable_prefill_attention()->set_overhead_us(a_kernel_us);
  fit.kernels.set_elementwise_overhead_us(a_kernel_us);

  constexpr size_t kVocabulary = 128'256;
  std::vector<float> logits(kVocabulary);
  for (size_t i = 0; i < logits.size(); ++i) logits[i] = static_cast<float>(i * 7919 % 1000);
  std::vector<double> seconds;
  for (int i = 0; i < 10 * flags.repeats; ++i) {
    std::vector<float> scratch = logits;
    const double start = WallSeconds();
    FABRICAST_CHECK(Sample({}, i, {}, absl::MakeSpan(scratch)).ok());
    seconds.push_back(WallSeconds() - start);
  }
  fit.kernels.set_sampling_us(1e6 * Undisturbed(seconds));
}

// By what a longer context adds; matrix products small.
void FitAttention(const Flags& flags, Fit& fit) {
  const Fit peaks = fit;
  const LayerShape shape = {.layers = 1, .hidden = 2048, .ffn = 128, .heads = 32, .kv_heads = 8};
  RandomStage stage(shape, kThreads, 40'000);
  const double unit = flags.quick ? 0.125 : 1;
  for (const double length : {256.0, 1024.0, 4096.0}) {
    constexpr int kRequests = 4;
    const int64_t context = static_cast<int64_t>(length * unit);
    const double more = stage.Time(kRequests, context, 1, 3 * flags.repeats) -
                        stage.Time(kRequests, 0, 1, 3 * flags.repeats);
    const ComputeTime ideal = Explain(peaks, shape, BatchShape::Decode(kRequests, context));
    EfficiencyPoint& point = *fit.kernels.mutable_decode_attention()->add_points();
    point.set_x(ideal.decode_attention_s() * fit.gpu.memory_bandwidth_gb_s() * 1e9);
    point.set_efficiency(ideal.decode_attention_s() / more);
  }
  for (const auto& [length, before] :
       {std::pair(32, 512), std::pair(128, 1024), std::pair(512, 2048)}) {
    const int64_t tokens = static_cast<int64_t>(length * unit);
    const int64_t past = static_cast<int64_t>(before * unit);
    const double more =
        stage.Time(1, past, tokens, flags.repeats) - stage.Time(1, 0, tokens, flags.repeats);
    const double with = Explain(peaks, shape, BatchOf(1, past, tokens)).prefill_attention_s();
    const double without = Explain(peaks, shape, BatchOf(1, 0, tokens)).prefill_attention_s();
    EfficiencyPoint& point = *fit.kernels.mutable_prefill_attention()->add_points();
    point.set_x(with * fit.gpu.bf16_tflops() * 1e12);
    point.set_efficiency((with - without) / more);
  }
}

// What the rest leaves of a step; so these curves also carry what elementwise work takes beyond the
// memory's rate. Weights of all layers together are larger than caches.
void FitGemms(const Flags& flags, Fit& fit) {
  const int64_t unit = flags.quick ? 4 : 1;
  for (const bool int4 : {false, true}) {
    const LayerShape shape = {.layers = int4 ? 4 : 2,
                              .hidden = 2048 / unit,
                              .ffn = 5632 / unit,
                              .heads = 32 / unit,
                              .kv_heads = 8 / unit,
                              .head_dim = 64,
                              .int4 = int4};
    RandomStage stage(shape, kThreads, 8192);
    std::vector<EfficiencyPoint> points;
    for (int64_t tokens = 1; tokens <= (flags.quick ? 8 : 512); tokens *= 2) {
      const bool decodes = tokens <= 64;
      const double measured = decodes ? stage.Time(tokens, 0, 1, flags.repeats)
                                      : stage.Time(1, 0, tokens, flags.repeats);
      // Not fitted yet: efficiency 1.
      const ComputeTime time =
          Explain(fit, shape, decodes ? BatchOf(tokens, 0, 1) : BatchOf(1, 0, tokens));
      const double rest = TotalSeconds(time) - Matrices(time);
      EfficiencyPoint& point = points.emplace_back();
      point.set_x(static_cast<double>(tokens));
      point.set_efficiency(Matrices(time) / std::max(measured - rest, measured / 10));
    }
    for (const EfficiencyPoint& point : points) *CurveOf(fit, int4).add_points() = point;
  }
}

struct HeldOut {
  std::string what;
  double measured_s = 0;
  double forecast_s = 0;
};

std::vector<HeldOut> Compare(const Flags& flags, const Fit& fit) {
  std::vector<HeldOut> all;
  const int64_t unit = flags.quick ? 4 : 1;
  for (const bool int4 : {false, true}) {
    const LayerShape shape = {.layers = int4 ? 12 : 4,
                              .hidden = 1024 / unit,
                              .ffn = 2816 / unit + (flags.quick ? 64 : 0),
                              .heads = 16 / unit,
                              .kv_heads = 4 / unit,
                              .head_dim = 64,
                              .int4 = int4};
    RandomStage stage(shape, kThreads, 12'000);
    for (const auto& [requests, context, tokens] :
         {std::tuple<int64_t, int64_t, int64_t>(1, 300, 1),
          {3, 700, 1},
          {6, 300, 1},
          {48, 100, 1},
          {1, 0, 100},
          {1, 300, 200},
          {1, 0, 400}}) {
      const double measured = stage.Time(requests, context, tokens, flags.repeats);
      // The forecast's overhead has the engine's, some 0.01 ms, which was not timed here.
      all.push_back({absl::StrFormat("%s, %d x %d tokens after %d", int4 ? "int4" : "bf16",
                                     requests, tokens, context),
                     measured,
                     TotalSeconds(Explain(fit, shape, BatchOf(requests, context, tokens)))});
    }
  }
  return all;
}

void PrintPoints(const google::protobuf::RepeatedPtrField<EfficiencyPoint>& points) {
  for (const EfficiencyPoint& point : points) {
    std::cout << absl::StrFormat("  points { x: %.0f efficiency: %.3g }\n", point.x(),
                                 point.efficiency());
  }
}

std::string ProvenanceOf(const std::string& indent, double p50, double p90, const std::string& note,
                         double low = 0.5, double high = 3) {
  std::string text = absl::StrFormat(
      "%1$sprovenance {\n%1$s  measured_on: \"%2$s, %3$d hardware threads of a shared virtual "
      "machine, %4$s\"\n%1$s  command: \"%5$s\"\n%1$s  sustained: true\n",
      indent, ProcessorName(), std::thread::hardware_concurrency(), Today(), kCommand);
  if (p50 > 0) {
    absl::StrAppend(
        &text, absl::StrFormat("%1$s  residual_p50: %2$.2f\n%1$s  residual_p90: %3$.2f\n", indent,
                               p50, p90));
  }
  if (!note.empty()) absl::StrAppend(&text, indent, "  note: \"", note, "\"\n");
  absl::StrAppend(
      &text, absl::StrFormat("%1$s  time_low_factor: %2$g\n%1$s  time_high_factor: %3$g\n", indent,
                             low, high));
  return absl::StrCat(text, indent, "}\n");
}

void Print(const Fit& fit, const std::vector<HeldOut>& held_out, const Flags& flags) {
  std::vector<double> errors[2];  // of BF16, of INT4
  std::vector<double> all;
  for (const HeldOut& one : held_out) {
    const double error = std::abs(one.forecast_s / one.measured_s - 1);
    errors[one.what[0] == 'i'].push_back(error);
    all.push_back(error);
  }
  const double p50 = Median(all);
  const double p90 = Percentile(all, 0.9);
  std::cout << "\n## topology/specs/gpus/cpu_x86.txtpb\n\n"
            << absl::StrFormat("memory_bandwidth_gb_s: %.3g\nbf16_tflops: %.3g\n",
                               fit.gpu.memory_bandwidth_gb_s(), fit.gpu.bf16_tflops());
  const KernelCalibration& kernels = fit.kernels;
  std::cout << "\n## topology/calibration/cpu_x86.txtpb\n\n"
            << absl::StrFormat(
                   "step_overhead_us: %.0f\nsampling_us: %.0f\nelementwise_efficiency: %.3g\n"
                   "elementwise_overhead_us: %.2g\n",
                   kernels.step_overhead_us(), kernels.sampling_us(),
                   kernels.elementwise_efficiency(), kernels.elementwise_overhead_us());
  for (int i = 0; i < kernels.gemms_size(); ++i) {
    const GemmCurve& curve = kernels.gemms(i);
    std::cout << absl::StrFormat("gemms {\n  weight_format: \"%s\"\n  overhead_us: %.2g\n",
                                 curve.weight_format(), curve.overhead_us());
    PrintPoints(curve.points());
    std::cout << ProvenanceOf("  ", Median(errors[i]), Percentile(errors[i], 0.9),
                              "The interval is for other processors, smaller models and "
                              "neighbours: benchmarks/results/engine.md")
              << "}\n";
  }
  const auto attention = [&](const char* name, const AttentionCurve& curve) {
    std::cout << absl::StrFormat("%s {\n  overhead_us: %.2g\n", name, curve.overhead_us());
    PrintPoints(curve.points());
    std::cout << ProvenanceOf("  ", p50, p90, "") << "}\n";
  };
  attention("decode_attention", kernels.decode_attention());
  attention("prefill_attention", kernels.prefill_attention());
  std::cout << ProvenanceOf("", p50, p90,
                            "Residuals are of whole steps of layers that no fit has seen.");

  const double copy = CopyRate();
  std::cout << "\n## topology/calibration/loopback.txtpb\n\nsends {\n"
            << "  path: PATH_KIND_HOST_MEMORY\n";
  std::cout << absl::StrFormat(
      "  points { bytes: 1 latency_us: %.1f }\n",
      1e6 * Median(TimeHandOvers(flags.quick ? 100 : 20'000, /*asleep=*/true)));
  std::cout
      << absl::StrFormat("  max_gb_s: %.1f\n", copy / 1e9)
      << ProvenanceOf(
             "  ", 0, 0,
             "Latency: a thread wakes another, 3 us on busy cores and 20 us on idle ones. Rate: "
             "one thread copies.",
             /*low=*/0.1, /*high=*/3)
      << "}\n";

  std::cout << "\n## Layers that no fit has seen\n\n"
            << "| step | measured, ms | model, ms | error, % |\n| --- | ---: | ---: | ---: |\n";
  for (const HeldOut& one : held_out) {
    std::cout << absl::StrFormat("| %s | %.2f | %.2f | %+.0f |\n", one.what, 1e3 * one.measured_s,
                                 1e3 * one.forecast_s, 100 * (one.forecast_s / one.measured_s - 1));
  }
  std::cout << absl::StrFormat("\nError p50 %.0f %%, p90 %.0f %%.\n", 100 * p50, 100 * p90);
}

void Run(const Flags& flags) {
  std::cout << "# Constants of this processor\n\n";
  PrintEnvironment();
  Fit fit = Peaks(flags);
  FitOverheads(flags, fit);
  FitAttention(flags, fit);
  FitGemms(flags, fit);
  Print(fit, Compare(flags, fit), flags);
  std::cout << "\nLoad average of the machine at the end: " << LoadAverage() << "\n";
}

}  // namespace
}  // namespace fabricast

int main(int argc, char** argv) {
  fabricast::EnterWorkingDirectory();
  fabricast::Flags flags;
  CLI::App app("Fits the constants of the cluster local_cpu to this machine.");
  app.add_option("--repeats", flags.repeats, "Steps of each kind; medians are used")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  app.add_flag("--quick", flags.quick, "Small sizes, to see that it works; figures mean nothing");
  CLI11_PARSE(app, argc, argv);
  fabricast::Run(flags);
  return 0;
}
