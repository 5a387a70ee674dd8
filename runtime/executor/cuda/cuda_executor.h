// A pipeline stage on one GPU.
#ifndef FABRICAST_RUNTIME_EXECUTOR_CUDA_CUDA_EXECUTOR_H_
#define FABRICAST_RUNTIME_EXECUTOR_CUDA_CUDA_EXECUTOR_H_

#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "runtime/executor/cuda/cuda_decoder.h"
#include "runtime/executor/cuda/stage_shape.h"
#include "runtime/executor/gpu_stage.h"
#include "runtime/executor/stage_executor.h"
#include "runtime/model/decoder_config.h"
#include "runtime/weights/stage_weights.h"

namespace fabricast {

// Arithmetic: cuda_decoder.h. Everything that a step needs is allocated, and graphs of decode steps
// are captured, before this returns; a step of fewer decodes is filled up to the next graph's
// (step_buffer.h).
//
// Of AWQ's GEMM layout groups of 128 are computed with as 4 bits, others as FP16. Logits of
// requests that ask for log-probabilities are sampled on the host, all others on the GPU.
//
// Errors: those of OpenCudaDevice, CublasLt::Load and ShapeOfStage; kInvalidArgument for options
// out of range; kResourceExhausted if the stage does not fit, naming what is short and what would.
// Errors of CUDA name the GPU and where to look (ExplainCudaError).
absl::StatusOr<std::unique_ptr<StageExecutor>> MakeCudaExecutor(const DecoderConfig& config,
                                                                StageWeights weights,
                                                                const GpuStageOptions& options);

// The same of weights that are made up on the GPU (MakeSyntheticCudaWeights).
absl::StatusOr<std::unique_ptr<StageExecutor>> MakeSyntheticCudaExecutor(
    const DecoderConfig& config, const StageShare& share, uint64_t seed,
    const GpuStageOptions& options);

// OK if a stage fits into `free` bytes of a GPU of `total`. `where` names the stage and the GPU.
absl::Status CheckFits(const StageShape& shape, const CudaDecoder::Bytes& needed,
                       const GpuStageOptions& options, int64_t free, int64_t total,
                       absl::string_view where);

}  // namespace fabricast

#endif  // FABRICAST_RUNTIME_EXECUTOR_CUDA_CUDA_EXECUTOR_H_
