// A pipeline stage on one GPU.
#ifndef FABRICAST_RUNTIME_EXECUTOR_CUDA_CUDA_EXECUTOR_H_
#define FABRICAST_RUNTIME_EXECUTOR_CUDA_CUDA_EXECUTOR_H_

#include <cstdint>
#include <functional>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "runtime/executor/cuda/cuda_decoder.h"
#include "runtime/executor/cuda/stage_shape.h"
#include "runtime/executor/device_executor.h"
#include "runtime/executor/gpu_stage.h"
#include "runtime/model/decoder_config.h"
#include "runtime/nccl/nccl.h"
#include "runtime/weights/stage_weights.h"

namespace fabricast {

// A GPU's part in a stage that several share (tensor_parallel_executor.h).
struct TensorParallelMember {
  TensorParallelRank rank;
  // Called once everything is allocated and all kernels are loaded; returns when the others have
  // come that far, with a communicator that outlives the executor. Null: there are no others.
  std::function<absl::StatusOr<NcclCommunicator*>()> join = nullptr;
};

// On the only GPU of options.devices. Arithmetic: cuda_decoder.h. Everything that a step needs is
// allocated, and graphs of decode steps are captured, before this returns; a step of fewer decodes
// is filled up to the next graph's (step_buffer.h).
//
// Of AWQ's GEMM layout groups of 128 are computed with as 4 bits, others as FP16. Logits of
// requests that ask for log-probabilities are sampled on the host, all others on the GPU.
//
// As a member of several, all must be given the same steps, at about the same time: each computes
// its part and samples the same tokens. Rank 0 has the stage's input and output; the others' are
// empty, as if they were the first and the last stage.
//
// Errors: those of OpenCudaDevice, CublasLt::Load and ShapeOfStage; kInvalidArgument for options
// out of range; kResourceExhausted if the stage does not fit, naming what is short and what would.
// Errors of CUDA name the GPU and where to look (ExplainCudaError).
absl::StatusOr<std::unique_ptr<DeviceExecutor>> MakeCudaExecutor(
    const DecoderConfig& config, StageWeights weights, const GpuStageOptions& options,
    const TensorParallelMember& member = {});

// The same of weights that are made up on the GPU (MakeSyntheticCudaWeights).
absl::StatusOr<std::unique_ptr<DeviceExecutor>> MakeSyntheticCudaExecutor(
    const DecoderConfig& config, const StageShare& share, uint64_t seed,
    const GpuStageOptions& options, const TensorParallelMember& member = {});

}  // namespace fabricast

#endif  // FABRICAST_RUNTIME_EXECUTOR_CUDA_CUDA_EXECUTOR_H_
