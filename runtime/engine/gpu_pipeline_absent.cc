#include "runtime/engine/gpu_pipeline.h"

namespace fabricast {
namespace {

absl::Status WithoutCuda() {
  return absl::UnimplementedError(
      "this fabricast was built without CUDA, so only processors compute: use --topology "
      "local_cpu, "
      "or build it where CUDA's toolkit is (--config=cuda); `fabricast simulate` needs neither");
}

}  // namespace

absl::StatusOr<std::vector<FoundGpu>> FindGpus() { return WithoutCuda(); }

absl::Status CountGpuStageWeights(const DecoderConfig&, const WeightSource&, Plan&) {
  return WithoutCuda();
}

absl::StatusOr<std::unique_ptr<StageExecutor>> MakeGpuStage(const DecoderConfig&,
                                                            const WeightSource&, const StageShare&,
                                                            const GpuStageOptions&) {
  return WithoutCuda();
}

absl::Status CheckNccl() { return WithoutCuda(); }

absl::StatusOr<std::unique_ptr<DeviceTransport>> JoinGpuStages(int, int, int,
                                                               std::unique_ptr<StageTransport>,
                                                               absl::Time) {
  return WithoutCuda();
}

}  // namespace fabricast
