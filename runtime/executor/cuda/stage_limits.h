// What a GPU can take of a stage, found out before anything is loaded.
#ifndef FABRICAST_RUNTIME_EXECUTOR_CUDA_STAGE_LIMITS_H_
#define FABRICAST_RUNTIME_EXECUTOR_CUDA_STAGE_LIMITS_H_

#include <cstdint>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "runtime/executor/cuda/cuda_decoder.h"
#include "runtime/executor/cuda/stage_shape.h"
#include "runtime/executor/gpu_stage.h"

namespace fabricast {

// kInvalidArgument naming the flag and its range.
absl::Status CheckOptions(const GpuStageOptions& options);

// OK if a stage fits into `free` bytes of a GPU of `total`. `where` names the stage and the GPU.
absl::Status CheckFits(const StageShape& shape, const CudaDecoder::Bytes& needed,
                       const GpuStageOptions& options, int64_t free, int64_t total,
                       absl::string_view where);

}  // namespace fabricast

#endif  // FABRICAST_RUNTIME_EXECUTOR_CUDA_STAGE_LIMITS_H_
