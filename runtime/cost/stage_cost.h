// How long a stage computes a micro-batch: a roofline with measured efficiency, operator by
// operator.
//
// - matrix product: overhead + max(weight bytes / memory bandwidth, operations / peak) /
//   efficiency(tokens)
// - routed experts, two grouped kernels, touched = ExpectedExpertsTouched(tokens), rows = tokens x
//   experts a token / touched: overhead + max(touched x weight bytes of one / memory bandwidth,
//   operations / peak) / efficiency(rows); uniform routing, unvalidated
// - decode attention, one kernel for all decodes: overhead + KV bytes / memory bandwidth /
//   efficiency(KV bytes)
// - prefill attention, a kernel a chunk: overhead + operations / peak / efficiency(operations)
// - elementwise: overhead + bytes / (memory bandwidth x efficiency)
// - tensor parallelism: two all-reduces of FP32 partial sums a layer, and the last stage gathers
// the
//   logits of its sampled rows (communication_cost.h)
// - step: a fixed cost a step; the last stage adds lm_head and sampling
//
// Efficiencies come from topology/calibration; docs/model.md has equations, sources and gaps.
#ifndef FABRICAST_RUNTIME_COST_STAGE_COST_H_
#define FABRICAST_RUNTIME_COST_STAGE_COST_H_

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "runtime/metrics/compute_time.h"
#include "runtime/metrics/result.pb.h"
#include "runtime/model/model.h"
#include "runtime/scheduler/scheduler.h"
#include "topology/calibration.pb.h"
#include "topology/cluster.pb.h"

namespace fabricast {

// What the time of a micro-batch depends on.
struct BatchShape {
  int64_t tokens = 0;
  int64_t sampled = 0;  // rows of lm_head
  int64_t decodes = 0;
  int64_t decode_context = 0;  // KV-cache tokens read by all decodes together, their own included
  // For each prefill chunk, the sum over its tokens of the tokens that each attends to.
  std::vector<double> chunks_attended;

  static BatchShape Of(const MicroBatch& micro_batch);
  // `requests` decodes with `context` tokens of KV cache each, their own included.
  static BatchShape Decode(int64_t requests, int64_t context);
  // One chunk of `tokens` after `past` tokens; the prompt's last if `samples`.
  static BatchShape Prefill(int64_t tokens, int64_t past, bool samples);
};

struct StageCostOptions {
  int first_layer = 0;
  int num_layers = 0;
  bool embedding = false;
  bool lm_head = false;
  int tensor_parallel = 1;
  // Seconds of an all-reduce, and of an all-gather whose output is that many bytes, among the
  // stage's GPUs. The first is required if tensor_parallel > 1, the second with lm_head besides.
  std::function<double(double bytes)> all_reduce = nullptr;
  std::function<double(double bytes)> all_gather = nullptr;
};

// kNotFound if `kernels` lacks a curve that the model's weights need.
absl::Status CheckCalibration(const Model& model, const KernelCalibration& kernels);

// Not thread-safe: it remembers times by number of tokens.
class StageCost {
 public:
  // Copies what it needs; the arguments may go. `gpu` is the slowest of the stage. CHECKs that the
  // layers exist and that CheckCalibration(model, kernels) is OK.
  StageCost(const Model& model, const GpuSpec& gpu, const KernelCalibration& kernels,
            StageCostOptions options);

  // Time by cause; all fields 0 for an empty batch.
  ComputeTime Explain(const BatchShape& batch) const;

 private:
  // Efficiency over x, linear in log2(x), constant beyond the ends.
  class Curve {
   public:
    Curve() = default;
    explicit Curve(const google::protobuf::RepeatedPtrField<EfficiencyPoint>& points);
    double At(double x) const;

   private:
    std::vector<double> log2_x_;
    std::vector<double> efficiency_;
  };
  struct FormatCurve {
    std::string format;
    double overhead_s = 0;
    Curve efficiency;
  };
  struct Gemm {
    double count = 0;  // layers that have it
    double weight_bytes = 0;
    double flops_per_token = 0;
    int curve = 0;
    // Of that many such matrices a token goes through `per_token`; bytes and operations are those
    // of one.
    int64_t experts = 1;
    int64_t per_token = 1;
  };
  struct Attention {
    double count = 0;               // layers that have it
    double kv_bytes_per_token = 0;  // of one layer and GPU
    // Of one layer and GPU, for a query token and a token that it attends to.
    double flops_per_pair = 0;
  };
  struct MatrixTime {
    double read_s = 0;
    double compute_s = 0;
    double overhead_s = 0;
  };
  int CurveFor(const KernelCalibration& kernels, absl::string_view format);
  void AddGemm(const Gemm& gemm, int64_t tokens, MatrixTime& time) const;
  const MatrixTime& LayerMatrices(int64_t tokens) const;

  double bandwidth_;  // bytes/s
  double peak_;       // operations/s, as sustained
  StageCostOptions options_;
  std::vector<FormatCurve> gemm_curves_;
  std::vector<Gemm> gemms_;
  Gemm lm_head_;
  Curve decode_curve_;
  Curve prefill_curve_;
  double decode_overhead_s_ = 0;
  double prefill_overhead_s_ = 0;
  std::vector<Attention> attentions_;
  double elementwise_kernels_ = 0;  // of all layers
  double elementwise_bytes_per_token_ = 0;
  double elementwise_efficiency_ = 1;
  double elementwise_overhead_s_ = 0;
  double step_overhead_s_ = 0;
  double sampling_s_ = 0;
  int all_reduces_ = 0;
  double all_reduce_bytes_per_token_ = 0;
  double logits_bytes_per_row_ = 0;
  mutable std::vector<std::optional<MatrixTime>> by_tokens_;  // memo of LayerMatrices
};

}  // namespace fabricast

#endif  // FABRICAST_RUNTIME_COST_STAGE_COST_H_
