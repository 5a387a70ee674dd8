// What a stage on a GPU is given, and what it tells of itself; without CUDA's headers, for callers
// that may be built without it.
#ifndef FABRICAST_RUNTIME_EXECUTOR_GPU_STAGE_H_
#define FABRICAST_RUNTIME_EXECUTOR_GPU_STAGE_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"

namespace fabricast {

// Of one stage, from its loading on. Thread-safe.
class GpuStageFigures {
 public:
  struct Values {
    std::string gpu;            // "NVIDIA H200, driver 580.95.05, CUDA 13.0, cuBLASLt 13.1.0"
    int64_t planned_bytes = 0;  // weights, KV cache and buffers
    int64_t used_bytes = 0;     // by the GPU's own account, its context apart
    int64_t weight_bytes = 0;
    double load_seconds = 0;   // of the weights
    int graph_buckets = 0;     // numbers of requests for which there are graphs
    double graph_seconds = 0;  // to try the kernels out and capture them
    // Of decode steps that followed one another: time on the GPU's own timeline from the start of
    // a step's first work (the copy of its buffer) to the start of the next's, and the part of it
    // between a step's last work and the next's first.
    int64_t decode_steps = 0;
    double decode_seconds = 0;
    double idle_seconds = 0;

    std::string Text() const;  // for the user; empty while nothing is loaded
  };

  Values Get() const {
    const std::lock_guard<std::mutex> lock(mutex_);
    return values_;
  }
  template <typename Change>
  void Update(const Change& change) {
    const std::lock_guard<std::mutex> lock(mutex_);
    change(values_);
  }

 private:
  mutable std::mutex mutex_;
  Values values_;
};

struct GpuStageOptions {
  // Among the GPUs that the process sees. Several share the stage (tensor parallelism); the first
  // one's memory holds what the stage gets and gives.
  std::vector<int> devices = {0};
  std::string name = "";         // of the stage, for messages: "stage 1"
  int64_t first_layer = 0;       // of the stage in the model, for messages
  int64_t kv_block_tokens = 16;  // a multiple of 16
  int64_t kv_blocks = 0;         // > 0
  int64_t max_batch_tokens = 0;  // of a step, > 0
  int64_t max_running = 0;       // requests at a time, and so entries of a step; > 0
  bool graphs = true;            // false: every step is launched kernel by kernel
  int threads = 4;               // that read the checkpoint
  std::function<void(absl::string_view)> log = nullptr;  // of loading, a line each; may be null
  std::shared_ptr<GpuStageFigures> figures = nullptr;    // filled if it is not null
};

}  // namespace fabricast

#endif  // FABRICAST_RUNTIME_EXECUTOR_GPU_STAGE_H_
