// Prices of a serving engine's steps on one GPU: as the forecast has them, and with single terms
// replaced by what was measured, to see what an error comes from.
#ifndef FABRICAST_BENCHMARKS_VALIDATION_STEP_PRICE_H_
#define FABRICAST_BENCHMARKS_VALIDATION_STEP_PRICE_H_

#include <cstdint>
#include <vector>

#include "benchmarks/validation/layer_profile.h"
#include "benchmarks/validation/serving_log.h"
#include "runtime/cost/stage_cost.h"
#include "runtime/model/model.h"
#include "runtime/plan/plan.h"
#include "runtime/scheduler/scheduler.h"
#include "topology/topology.h"

namespace fabricast {

struct Chunk {
  int64_t tokens = 0;
  int64_t past = 0;
  bool samples = true;
};

struct StepShape {
  std::vector<Chunk> chunks;
  int64_t decodes = 0;
  double decode_context = 0;  // of all decodes together

  static StepShape Of(const MicroBatch& micro_batch);
  static StepShape Of(const PromptStep& step);
};

class StepPrice {
 public:
  // A plan of one stage.
  StepPrice(const Topology& topology, const Model& model, const Plan& plan);

  // As the forecast has it.
  double Seconds(const StepShape& step) const;
  // The fixed cost of a step in it, which no profile of kernels contains.
  double step_overhead_s() const { return step_overhead_s_; }
  // Attention in it, the kernels' overheads included.
  double AttentionSeconds(const StepShape& step) const;

  // The same, but where a step has decodes and chunks, its attention is one kernel, as profiled:
  // all decodes, at their mean context, and the largest chunk. Further chunks keep their price.
  double SecondsWithMixedKernel(const StepShape& step, const LayerProfile& profile) const;

 private:
  ComputeTime Explain(const StepShape& step) const;

  StageCost cost_;
  int layers_;
  double step_overhead_s_;
  double decode_overhead_s_;
  double prefill_overhead_s_;
};

// What decode-only steps of a run took beyond their price, by the number of requests: linear
// between windows, constant beyond the first and last. Empty windows: 0.
class DecodeRest {
 public:
  DecodeRest(const std::vector<DecodeWindow>& windows, const StepPrice& price);
  double Seconds(double requests) const;

 private:
  std::vector<double> requests_;
  std::vector<double> seconds_;
};

}  // namespace fabricast

#endif  // FABRICAST_BENCHMARKS_VALIDATION_STEP_PRICE_H_
