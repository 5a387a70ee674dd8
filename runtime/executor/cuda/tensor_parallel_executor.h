// A pipeline stage on the GPUs that its options name: one, or several that share it.
#ifndef FABRICAST_RUNTIME_EXECUTOR_CUDA_TENSOR_PARALLEL_EXECUTOR_H_
#define FABRICAST_RUNTIME_EXECUTOR_CUDA_TENSOR_PARALLEL_EXECUTOR_H_

#include <cstdint>
#include <memory>

#include "absl/status/statusor.h"
#include "runtime/executor/device_executor.h"
#include "runtime/executor/gpu_stage.h"
#include "runtime/model/decoder_config.h"
#include "runtime/weights/stage_weights.h"

namespace fabricast {

// MakeCudaExecutor on the only device; else one for each, rank by rank, with its share of the
// weights (TensorParallelRank), joined by NCCL and driven as MakeTensorParallelRanks says. All read
// the checkpoint at the same time. options.figures are the first GPU's.
//
// Errors of MakeCudaExecutor, of Nccl::Load and Join; kInvalidArgument if there is no device, one
// is named twice, or the model cannot be divided (ShapeOfStage).
absl::StatusOr<std::unique_ptr<DeviceExecutor>> MakeTensorParallelExecutor(
    const DecoderConfig& config, const StageWeights& weights, const GpuStageOptions& options);

// The same with MakeSyntheticCudaExecutor.
absl::StatusOr<std::unique_ptr<DeviceExecutor>> MakeSyntheticTensorParallelExecutor(
    const DecoderConfig& config, const StageShare& share, uint64_t seed,
    const GpuStageOptions& options);

}  // namespace fabricast

#endif  // FABRICAST_RUNTIME_EXECUTOR_CUDA_TENSOR_PARALLEL_EXECUTOR_H_
