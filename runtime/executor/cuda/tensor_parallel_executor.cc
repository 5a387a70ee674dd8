#include "runtime/executor/cuda/tensor_parallel_executor.h"

#include <algorithm>
#include <functional>
#include <mutex>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/string_view.h"
#include "runtime/executor/cuda/cuda_executor.h"
#include "runtime/executor/cuda/stage_shape.h"
#include "runtime/executor/cuda/tensor_parallel_group.h"
#include "runtime/executor/cuda/tensor_parallel_ranks.h"
#include "runtime/nccl/nccl.h"

namespace fabricast {
namespace {

// 256 tokens of the 405B, 16 MiB: from there on NCCL is as fast (docs/kernels.md). The mailbox
// takes 4 times as much between two GPUs.
constexpr int64_t kPeerSumCount = int64_t{256} * 16384;

absl::Status CheckDevices(const std::vector<int>& devices) {
  std::vector<int> sorted = devices;
  std::sort(sorted.begin(), sorted.end());
  if (!devices.empty() && std::adjacent_find(sorted.begin(), sorted.end()) == sorted.end()) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(absl::StrCat(
      "the stage's GPUs are [", absl::StrJoin(devices, ", "), "]; give one or more that differ"));
}

using MakeRank = std::function<absl::StatusOr<std::unique_ptr<DeviceExecutor>>(
    const GpuStageOptions&, const TensorParallelMember&)>;
using CheckShape = std::function<absl::Status(const TensorParallelRank&)>;

absl::StatusOr<std::unique_ptr<DeviceExecutor>> Make(const GpuStageOptions& options,
                                                     const CheckShape& check,
                                                     const MakeRank& make) {
  if (absl::Status status = CheckDevices(options.devices); !status.ok()) return status;
  const int ranks = static_cast<int>(options.devices.size());
  if (ranks == 1) return make(options, {});
  if (absl::Status status = check({.rank = 0, .ranks = ranks}); !status.ok()) return status;
  absl::StatusOr<std::shared_ptr<Nccl>> nccl = Nccl::Load();
  if (!nccl.ok()) return nccl.status();
  absl::StatusOr<NcclId> id = (*nccl)->NewId();
  if (!id.ok()) return id.status();

  // Held by what aborts it, which goes after the executors.
  const auto group =
      std::make_shared<TensorParallelGroup>(*nccl, *id, options.devices, kPeerSumCount);
  const auto log_mutex = std::make_shared<std::mutex>();
  const auto make_rank = [&](int rank) {
    GpuStageOptions own = options;
    own.devices = {options.devices[rank]};
    if (rank > 0) own.figures = nullptr;
    if (options.log != nullptr) {
      own.log = [log_mutex, log = options.log](absl::string_view line) {
        const std::lock_guard<std::mutex> lock(*log_mutex);
        log(line);
      };
    }
    TensorParallelMember member;
    member.rank = {.rank = rank, .ranks = ranks};
    member.join = [group, rank] { return group->Join(rank); };
    return make(own, member);
  };
  TensorParallelRanksOptions ranks_options;
  ranks_options.ranks = ranks;
  ranks_options.make = make_rank;
  ranks_options.abort = [group] { group->Abort(); };
  return MakeTensorParallelRanks(ranks_options);
}

}  // namespace

absl::StatusOr<std::unique_ptr<DeviceExecutor>> MakeTensorParallelExecutor(
    const DecoderConfig& config, const StageWeights& weights, const GpuStageOptions& options) {
  return Make(
      options,
      [&](const TensorParallelRank& rank) { return ShapeOfStage(config, weights, rank).status(); },
      [&](const GpuStageOptions& own, const TensorParallelMember& member) {
        return MakeCudaExecutor(config, weights, own, member);
      });
}

absl::StatusOr<std::unique_ptr<DeviceExecutor>> MakeSyntheticTensorParallelExecutor(
    const DecoderConfig& config, const StageShare& share, uint64_t seed,
    const GpuStageOptions& options) {
  return Make(
      options,
      [&](const TensorParallelRank& rank) {
        return ShapeOfSyntheticStage(config, share, rank).status();
      },
      [&](const GpuStageOptions& own, const TensorParallelMember& member) {
        return MakeSyntheticCudaExecutor(config, share, seed, own, member);
      });
}

}  // namespace fabricast
