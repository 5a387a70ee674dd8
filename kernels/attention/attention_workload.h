// Batches for the attention kernels' benchmark: random numbers in a pool of blocks beyond any
// cache, which the requests hold in random order.
#ifndef FABRICAST_KERNELS_ATTENTION_ATTENTION_WORKLOAD_H_
#define FABRICAST_KERNELS_ATTENTION_ATTENTION_WORKLOAD_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/attention/attention.h"
#include "kernels/timing/device_array.h"

namespace fabricast {

struct AttentionWorkloadOptions {
  int heads = 128;
  int kv_heads = 8;
  int head_dim = 128;
  int requests = 1;
  int rows = 1;                           // of each request
  int past = 0;                           // tokens of each before them
  int64_t pool_bytes = int64_t{1} << 30;  // at least; more where one batch needs it
};

class AttentionWorkload {
 public:
  static absl::StatusOr<std::unique_ptr<AttentionWorkload>> Create(
      const AttentionWorkloadOptions& options);

  // Batch number `index`: no two of rotations() one after the other share a block.
  AttentionArguments arguments(int64_t index) const;
  int64_t rotations() const { return rotations_; }

  // The fewest that must go through memory: the contexts' keys and values, queries and outputs.
  double bytes() const;
  // Of the scores and of the products with the values, 2 a multiply-add.
  double operations() const;

  // ||out - reference|| / ||reference|| of some queries of batch 0, whose output is there.
  absl::StatusOr<double> RelativeError() const;

 private:
  explicit AttentionWorkload(const AttentionWorkloadOptions& options) : options_(options) {}
  absl::Status Initialize();
  absl::StatusOr<std::vector<float>> Gather(int request, int kv_head, int value) const;

  AttentionWorkloadOptions options_;
  int64_t rotations_ = 0;
  std::vector<int32_t> table_;
  KvCacheView cache_;
  DeviceArray<uint16_t> pool_, queries_, output_;
  DeviceArray<uint8_t> workspace_;
  DeviceArray<int32_t> first_row_, rows_, past_, table_on_device_, table_start_;
};

}  // namespace fabricast

#endif  // FABRICAST_KERNELS_ATTENTION_ATTENTION_WORKLOAD_H_
