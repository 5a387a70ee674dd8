// What a stage on a GPU keeps of its requests on the host: which blocks of the KV cache are whose,
// and the tokens of those with a repetition penalty.
#ifndef FABRICAST_RUNTIME_EXECUTOR_CUDA_STAGE_REQUESTS_H_
#define FABRICAST_RUNTIME_EXECUTOR_CUDA_STAGE_REQUESTS_H_

#include <cstdint>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/types/span.h"
#include "runtime/executor/stage_executor.h"
#include "runtime/scheduler/scheduler.h"

namespace fabricast {

struct StageRequestsOptions {
  int64_t vocabulary = 0;
  bool samples = false;     // the last stage
  int64_t kv_blocks = 0;    // of kKvBlockTokens tokens
  int64_t max_running = 0;  // requests at a time, and so those with a penalty at most
};

// Not thread-safe; one owner.
class StageRequests {
 public:
  explicit StageRequests(const StageRequestsOptions& options);

  // Frees what `step` releases, then makes room for its tokens and takes their history.
  //
  // kInvalidArgument for a token that is not in the vocabulary; kResourceExhausted if KV blocks or
  // histories run out. After an error only Clear may follow. CHECKs that requests continue where
  // they were.
  absl::Status Take(const Step& step);

  // As new.
  void Clear();

  // The request's blocks in order. Valid until the next Take or Clear.
  absl::Span<const int32_t> blocks(RequestId request) const;

  // Of a request with a repetition penalty: which of max_running bitmaps is its, and its tokens so
  // far. -1 and none for others.
  int32_t history_index(RequestId request) const;
  absl::Span<const int32_t> history(RequestId request) const;
  // Bitmaps that the last Take gave to a request: what another left in them must be cleared.
  absl::Span<const int32_t> fresh_histories() const { return fresh_histories_; }

  int64_t blocks_used() const { return options_.kv_blocks - free_blocks(); }

 private:
  struct Context {
    int64_t tokens = 0;
    std::vector<int32_t> blocks;
  };
  struct History {
    int32_t index = -1;
    std::vector<int32_t> tokens;
  };

  absl::Status CheckTokens(const Step& step) const;
  void Release(RequestId request);
  absl::Status ExtendBlocks(const BatchEntry& entry);
  absl::Status ExtendHistory(const BatchEntry& entry, absl::Span<const int32_t> tokens);
  int64_t free_blocks() const {
    return static_cast<int64_t>(given_back_.size()) + options_.kv_blocks - next_block_;
  }

  const StageRequestsOptions options_;
  absl::flat_hash_map<RequestId, Context> contexts_;
  int64_t next_block_ = 0;           // of those never used
  std::vector<int32_t> given_back_;  // the last one is taken first
  absl::flat_hash_map<RequestId, History> histories_;
  std::vector<int32_t> free_histories_;
  std::vector<int32_t> fresh_histories_;
};

}  // namespace fabricast

#endif  // FABRICAST_RUNTIME_EXECUTOR_CUDA_STAGE_REQUESTS_H_
