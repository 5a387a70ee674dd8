#include "runtime/engine/cpu_pipeline.h"

#include <utility>

namespace fabricast {
namespace {

StageShare ShareOf(const Stage& stage) {
  return {.first_layer = stage.first_layer,
          .num_layers = stage.num_layers,
          .embedding = stage.embedding,
          .lm_head = stage.lm_head};
}

}  // namespace

absl::StatusOr<std::unique_ptr<StageExecutor>> MakeCpuStage(
    const DecoderConfig& config, const std::shared_ptr<const Checkpoint>& checkpoint,
    const StageShare& share, const CpuExecutorOptions& options) {
  absl::StatusOr<StageWeights> weights = FindStageWeights(checkpoint, config, share);
  if (!weights.ok()) return weights.status();
  return MakeCpuExecutor(config, *std::move(weights), options);
}

absl::Status CountStageWeights(const DecoderConfig& config,
                               const std::shared_ptr<const Checkpoint>& checkpoint, Plan& plan) {
  if (plan.tensor_parallel()) {
    return absl::UnimplementedError(
        "tensor parallelism on processors: drop --tensor-parallel and give a stage more --threads");
  }
  for (Stage& stage : plan.stages) {
    absl::StatusOr<StageWeights> weights = FindStageWeights(checkpoint, config, ShareOf(stage));
    if (!weights.ok()) return weights.status();
    stage.memory.weights = weights->bytes();
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<std::unique_ptr<StageExecutor>>> MakeCpuStages(
    const DecoderConfig& config, const std::shared_ptr<const Checkpoint>& checkpoint, int threads,
    Plan& plan) {
  if (absl::Status status = CountStageWeights(config, checkpoint, plan); !status.ok()) {
    return status;
  }
  std::vector<std::unique_ptr<StageExecutor>> stages;
  for (const Stage& stage : plan.stages) {
    absl::StatusOr<std::unique_ptr<StageExecutor>> executor =
        MakeCpuStage(config, checkpoint, ShareOf(stage),
                     {.threads = threads,
                      .kv_block_tokens = plan.scheduler.kv_block_tokens,
                      .kv_blocks = plan.scheduler.kv_blocks});
    if (!executor.ok()) return executor.status();
    stages.push_back(*std::move(executor));
  }
  return stages;
}

}  // namespace fabricast
