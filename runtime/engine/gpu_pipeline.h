// The stages of a plan, computed on GPUs. Where the program was built without CUDA every function
// says so (kUnimplemented).
#ifndef FABRICAST_RUNTIME_ENGINE_GPU_PIPELINE_H_
#define FABRICAST_RUNTIME_ENGINE_GPU_PIPELINE_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "runtime/executor/gpu_stage.h"
#include "runtime/executor/stage_executor.h"
#include "runtime/model/decoder_config.h"
#include "runtime/plan/plan.h"
#include "runtime/transport/device_transport.h"
#include "runtime/weights/checkpoint.h"
#include "runtime/weights/stage_weights.h"

namespace fabricast {

struct FoundGpu {
  std::string name;  // "NVIDIA H200"
  int64_t memory_bytes = 0;
};

// GPUs of this machine that the process may use; at least one. kUnavailable, saying why and how to
// mend it, if there is none or the driver does not fit.
absl::StatusOr<std::vector<FoundGpu>> FindGpus();

// A model's weights: a checkpoint's, or out of nothing.
struct WeightSource {
  std::shared_ptr<const Checkpoint> checkpoint;  // null: synthetic
  uint64_t seed = 1;                             // of synthetic weights
};

// Replaces the plan's estimate of each stage's weights by what they take on each of its GPUs.
// kUnimplemented for what GPUs do not compute yet, kInvalidArgument if it cannot be divided.
absl::Status CountGpuStageWeights(const DecoderConfig& config, const WeightSource& source,
                                  Plan& plan);

// One stage, with its share of the weights. It is a DeviceExecutor.
absl::StatusOr<std::unique_ptr<StageExecutor>> MakeGpuStage(const DecoderConfig& config,
                                                            const WeightSource& source,
                                                            const StageShare& share,
                                                            const GpuStageOptions& options);

// Whether NCCL can be loaded; else how to mend it, or do without.
absl::Status CheckNccl();

// Joins a stage's GPU (`device`) to those of the stages before and after it by NCCL
// (runtime/transport/nccl_transport.h); the stages are joined by `joined` already.
absl::StatusOr<std::unique_ptr<DeviceTransport>> JoinGpuStages(
    int stage, int stages, int device, std::unique_ptr<StageTransport> joined, absl::Time deadline);

}  // namespace fabricast

#endif  // FABRICAST_RUNTIME_ENGINE_GPU_PIPELINE_H_
