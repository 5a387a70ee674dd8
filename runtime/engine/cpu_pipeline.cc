#include "runtime/engine/cpu_pipeline.h"

#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "runtime/executor/cpu/cpu_executor.h"
#include "runtime/weights/stage_weights.h"

namespace fabricast {

absl::StatusOr<std::vector<std::unique_ptr<StageExecutor>>> MakeCpuStages(
    const DecoderConfig& config, const std::shared_ptr<const Checkpoint>& checkpoint, int threads,
    Plan& plan) {
  if (plan.tensor_parallel != 1) {
    return absl::UnimplementedError(
        absl::StrCat("tensor parallelism ", plan.tensor_parallel,
                     " on processors: drop --tensor-parallel and give a stage more --threads"));
  }
  std::vector<std::unique_ptr<StageExecutor>> stages;
  for (Stage& stage : plan.stages) {
    absl::StatusOr<StageWeights> weights = FindStageWeights(checkpoint, config,
                                                            {.first_layer = stage.first_layer,
                                                             .num_layers = stage.num_layers,
                                                             .embedding = stage.embedding,
                                                             .lm_head = stage.lm_head});
    if (!weights.ok()) return weights.status();
    stage.memory.weights = weights->bytes();
    absl::StatusOr<std::unique_ptr<StageExecutor>> executor =
        MakeCpuExecutor(config, *std::move(weights),
                        {.threads = threads,
                         .kv_block_tokens = plan.scheduler.kv_block_tokens,
                         .kv_blocks = plan.scheduler.kv_blocks});
    if (!executor.ok()) return executor.status();
    stages.push_back(*std::move(executor));
  }
  return stages;
}

}  // namespace fabricast
