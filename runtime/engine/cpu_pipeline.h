// The stages of a plan, computed on this machine's processor.
#ifndef FABRICAST_RUNTIME_ENGINE_CPU_PIPELINE_H_
#define FABRICAST_RUNTIME_ENGINE_CPU_PIPELINE_H_

#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "runtime/executor/cpu/cpu_executor.h"
#include "runtime/executor/stage_executor.h"
#include "runtime/model/decoder_config.h"
#include "runtime/plan/plan.h"
#include "runtime/weights/checkpoint.h"
#include "runtime/weights/stage_weights.h"

namespace fabricast {

// One stage, with its share of the checkpoint.
absl::StatusOr<std::unique_ptr<StageExecutor>> MakeCpuStage(
    const DecoderConfig& config, const std::shared_ptr<const Checkpoint>& checkpoint,
    const StageShare& share, const CpuExecutorOptions& options);

// Replaces the plan's estimate of each stage's weights by what the checkpoint holds.
// kUnimplemented for tensor parallelism.
absl::Status CountStageWeights(const DecoderConfig& config,
                               const std::shared_ptr<const Checkpoint>& checkpoint, Plan& plan);

// Both of the above for every stage of `plan`; `threads` compute a stage.
absl::StatusOr<std::vector<std::unique_ptr<StageExecutor>>> MakeCpuStages(
    const DecoderConfig& config, const std::shared_ptr<const Checkpoint>& checkpoint, int threads,
    Plan& plan);

}  // namespace fabricast

#endif  // FABRICAST_RUNTIME_ENGINE_CPU_PIPELINE_H_
