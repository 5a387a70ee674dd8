#include "runtime/engine/gpu_pipeline.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "runtime/executor/cuda/cuda_device.h"
#include "runtime/executor/cuda/stage_shape.h"
#include "runtime/executor/cuda/tensor_parallel_executor.h"
#include "runtime/nccl/nccl.h"
#include "runtime/transport/nccl_transport.h"

namespace fabricast {
namespace {

absl::StatusOr<StageShape> ShapeOf(const DecoderConfig& config, const WeightSource& source,
                                   const StageShare& share, const TensorParallelRank& rank) {
  if (source.checkpoint == nullptr) return ShapeOfSyntheticStage(config, share, rank);
  absl::StatusOr<StageWeights> weights = FindStageWeights(source.checkpoint, config, share);
  if (!weights.ok()) return weights.status();
  return ShapeOfStage(config, *weights, rank);
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
  for (Stage& stage : plan.stages) {
    absl::StatusOr<StageShape> shape = ShapeOf(config, source,
                                               {.first_layer = stage.first_layer,
                                                .num_layers = stage.num_layers,
                                                .embedding = stage.embedding,
                                                .lm_head = stage.lm_head},
                                               {.ranks = static_cast<int>(stage.gpus.size())});
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
    return MakeSyntheticTensorParallelExecutor(config, share, source.seed, options);
  }
  absl::StatusOr<StageWeights> weights = FindStageWeights(source.checkpoint, config, share);
  if (!weights.ok()) return weights.status();
  return MakeTensorParallelExecutor(config, *weights, options);
}

absl::Status CheckNccl() {
  const absl::Status status = Nccl::Load().status();
  if (status.ok()) return status;
  return absl::Status(
      status.code(),
      absl::StrCat(status.message(),
                   "; or do without: --transport tcp takes activations through the processes"));
}

absl::StatusOr<std::unique_ptr<DeviceTransport>> JoinGpuStages(
    int stage, int stages, int device, std::unique_ptr<StageTransport> joined,
    absl::Time deadline) {
  absl::StatusOr<std::shared_ptr<Nccl>> nccl = Nccl::Load();
  if (!nccl.ok()) return nccl.status();
  absl::StatusOr<CudaDevice> opened = OpenCudaDevice(device);
  if (!opened.ok()) return opened.status();
  NcclLinks links;
  links.stage = stage;
  if (stage > 0) links.receive_from = {stage - 1};
  if (stage + 1 < stages) links.send_to = {stage + 1};
  return MakeNcclTransport(*std::move(nccl), std::move(joined), links, deadline);
}

}  // namespace fabricast
