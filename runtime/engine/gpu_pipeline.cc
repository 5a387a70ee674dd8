#include "runtime/engine/gpu_pipeline.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "runtime/executor/cuda/cuda_device.h"
#include "runtime/executor/cuda/cuda_executor.h"
#include "runtime/executor/cuda/stage_shape.h"

namespace fabricast {
namespace {

absl::StatusOr<StageShape> ShapeOf(const DecoderConfig& config, const WeightSource& source,
                                   const StageShare& share) {
  if (source.checkpoint == nullptr) return ShapeOfSyntheticStage(config, share);
  absl::StatusOr<StageWeights> weights = FindStageWeights(source.checkpoint, config, share);
  if (!weights.ok()) return weights.status();
  return ShapeOfStage(config, *weights);
}

}  // namespace

absl::StatusOr<std::vector<FoundGpu>> FindGpus() {
  absl::StatusOr<int> count = CountCudaDevices();
  if (!count.ok()) return count.status();
  std::vector<FoundGpu> gpus;
  for (int i = 0; i < *count; ++i) {
    absl::StatusOr<CudaDevice> device = FindCudaDevice(i);
    if (!device.ok()) return device.status();
    gpus.push_back({.name = device->name, .memory_bytes = device->total_bytes});
  }
  return gpus;
}

absl::Status CountGpuStageWeights(const DecoderConfig& config, const WeightSource& source,
                                  Plan& plan) {
  if (plan.tensor_parallel != 1) {
    return absl::UnimplementedError(
        absl::StrCat("tensor parallelism ", plan.tensor_parallel,
                     " in a run: drop --tensor-parallel and give each GPU a stage"));
  }
  for (Stage& stage : plan.stages) {
    absl::StatusOr<StageShape> shape = ShapeOf(config, source,
                                               {.first_layer = stage.first_layer,
                                                .num_layers = stage.num_layers,
                                                .embedding = stage.embedding,
                                                .lm_head = stage.lm_head});
    if (!shape.ok()) return shape.status();
    stage.memory.weights = shape->weight_bytes();
  }
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<StageExecutor>> MakeGpuStage(const DecoderConfig& config,
                                                            const WeightSource& source,
                                                            const StageShare& share,
                                                            const GpuStageOptions& options) {
  if (source.checkpoint == nullptr) {
    return MakeSyntheticCudaExecutor(config, share, source.seed, options);
  }
  absl::StatusOr<StageWeights> weights = FindStageWeights(source.checkpoint, config, share);
  if (!weights.ok()) return weights.status();
  return MakeCudaExecutor(config, *std::move(weights), options);
}

}  // namespace fabricast
