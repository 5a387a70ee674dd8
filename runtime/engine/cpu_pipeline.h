// The stages of a plan, computed on this machine's processor.
#ifndef FABRICAST_RUNTIME_ENGINE_CPU_PIPELINE_H_
#define FABRICAST_RUNTIME_ENGINE_CPU_PIPELINE_H_

#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "runtime/executor/stage_executor.h"
#include "runtime/model/decoder_config.h"
#include "runtime/plan/plan.h"
#include "runtime/weights/checkpoint.h"

namespace fabricast {

// One executor a stage of `plan`, each with its own share of the checkpoint; `threads` compute a
// stage. Replaces the plan's estimate of each stage's weights by what the checkpoint holds.
// kUnimplemented for tensor parallelism.
absl::StatusOr<std::vector<std::unique_ptr<StageExecutor>>> MakeCpuStages(
    const DecoderConfig& config, const std::shared_ptr<const Checkpoint>& checkpoint, int threads,
    Plan& plan);

}  // namespace fabricast

#endif  // FABRICAST_RUNTIME_ENGINE_CPU_PIPELINE_H_
