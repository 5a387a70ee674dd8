// Deployment: which layers of a model on which GPUs of a topology, whether it fits, and what the
// scheduler may use.
#ifndef FABRICAST_RUNTIME_PLAN_PLAN_H_
#define FABRICAST_RUNTIME_PLAN_PLAN_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "runtime/cost/stage_cost.h"
#include "runtime/metrics/result.pb.h"
#include "runtime/model/model.h"
#include "runtime/plan/pipelining.h"
#include "runtime/scheduler/scheduler.h"
#include "topology/topology.h"

namespace fabricast {

// How layers are divided among stages.
enum class Split {
  kEven,             // as equal as whole layers allow; the remainder to the first stages
  kGiven,            // PlanOptions::layers
  kBalancedDecode,   // least time of the slowest stage for a decode micro-batch
  kBalancedPrefill,  // ... for a prefill chunk
  kAuto,             // ... for what a request of PlanOptions::load brings (pipelining.h)
};

struct PlanOptions {
  Split split = Split::kEven;
  std::vector<int> layers;  // one a stage; for kGiven
  int stages = 0;           // 0: as many as the GPUs give at this tensor_parallel
  // GPUs a stage, all in one host: one number for all stages, or one for each.
  std::vector<int> tensor_parallel = {1};
  double reserve_gb = 2.0;      // CUDA context, NCCL buffers, workspaces, fragmentation; a GPU
  int max_in_flight = 0;        // micro-batches; 0: one a stage
  bool auto_in_flight = false;  // ChooseMicroBatches() instead
  int64_t max_batch_tokens = 2048;
  int64_t max_chunk_tokens = 512;
  bool auto_chunk = false;  // ChooseChunk() instead, of at most max_batch_tokens
  int max_running = 256;
  int64_t kv_block_tokens = 16;
  int64_t kv_blocks = 0;  // 0: what fits. A real run's own count, where there is one, is better.
  // What kAuto, auto_in_flight and auto_chunk choose for.
  ExpectedLoad load;
  // For kAuto: a run of this load on the same GPUs, of as many stages. Each stage's roofline is
  // taken times what the stage was measured to compute over what the roofline says of its layers
  // then.
  std::shared_ptr<const Result> measured = nullptr;
};

// Parses "even", "balanced" (= "balanced-decode"), "balanced-prefill", "auto" or "43,42,41" into
// `options`.
absl::Status ParseSplit(absl::string_view text, PlanOptions& options);
// "2" or "2,1,1".
absl::Status ParseTensorParallel(absl::string_view text, PlanOptions& options);

// Memory of one GPU of a stage, bytes.
struct StageMemory {
  int64_t capacity = 0;
  int64_t weights = 0;
  int64_t activations = 0;
  int64_t reserve = 0;
  int64_t kv_bytes_per_token = 0;
  // What is left for the KV cache; negative: it does not fit.
  int64_t left() const { return capacity - weights - activations - reserve; }
};

struct Stage {
  std::vector<int> gpus;  // indices into the topology
  int first_layer = 0;
  int num_layers = 0;
  bool embedding = false;
  bool lm_head = false;
  StageMemory memory;  // of each of its GPUs (of the smallest, if they differ)
};

struct Plan {
  std::vector<Stage> stages;
  SchedulerOptions scheduler;  // with kv_blocks = the stage with the fewest
  // Of the activations of one token between two stages, in what the GPUs keep them in.
  int64_t boundary_bytes_per_token = 0;
  // What was chosen by rule, and why: sentences. Empty if nothing was.
  std::vector<std::string> choices;

  // Whether the GPUs of some stage share its layers.
  bool tensor_parallel() const;

  int64_t kv_tokens() const { return scheduler.kv_blocks * scheduler.kv_block_tokens; }
};

// Every stage gets at least one layer. Activations and KV cache are counted in what the GPUs' specs
// say (`activation_bytes`: 2, float32 on processors 4), whatever `model` has. Fails with
// - kInvalidArgument: options that contradict the model or the topology: 128 heads over 3 GPUs, 5
//   stages on 3 GPUs, a split that does not add up, a tensor-parallel group across hosts, stages
//   whose activations differ in size (processors and GPUs), a measured run of other stages
// - kResourceExhausted: it does not fit. Names the GPU, the shortfall in GB and the nearest plan
//   that fits, or how many such GPUs it would take.
absl::StatusOr<Plan> MakePlan(const Topology& topology, const Model& model,
                              const PlanOptions& options);

// The cost of stage `index` of `plan`, activations counted as MakePlan does. The arguments may go:
// it copies.
StageCost MakeStageCost(const Topology& topology, const Model& model, const Plan& plan, int index);

// A transfer of the pipeline: activations from a stage to the next, tokens from the last to the
// first. The first GPU of a tensor-parallel group speaks for it, since each GPU of it holds all
// activations.
struct PipelineHop {
  int from_stage;
  int to_stage;
  int from_gpu;  // indices into the topology
  int to_gpu;
};
// In order of the sending stage; none for a single stage.
std::vector<PipelineHop> HopsOf(const std::vector<Stage>& stages);
inline std::vector<PipelineHop> HopsOf(const Plan& plan) { return HopsOf(plan.stages); }

// Longest context, prompt and output together, that `requests` (1 and more) at a time can have: KV
// cache and the model's limit.
int64_t LongestContext(const Plan& plan, const Model& model, int64_t requests);

// The plan as results carry it.
PlanResult ToProto(const Plan& plan, const Topology& topology);

// Adds to the result of a run what follows from its plan: the plan itself, and how much of the KV
// cache the run's peak was.
void AddPlan(const Plan& plan, const Topology& topology, Result& result);

// "node_a.gpu0", or "node_a.gpu0+gpu1" for a tensor-parallel group.
std::string StageName(const Stage& stage, const Topology& topology);

}  // namespace fabricast

#endif  // FABRICAST_RUNTIME_PLAN_PLAN_H_
