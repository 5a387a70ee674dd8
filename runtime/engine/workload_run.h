// Offers a workload to an engine in real time, as the simulator does in simulated time.
#ifndef FABRICAST_RUNTIME_ENGINE_WORKLOAD_RUN_H_
#define FABRICAST_RUNTIME_ENGINE_WORKLOAD_RUN_H_

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

#include "absl/status/status.h"
#include "runtime/engine/engine.h"
#include "runtime/engine/generation.h"
#include "runtime/workload/workload.h"

namespace fabricast {

struct WorkloadRunOptions {
  // Makes request `index` of the workload; called once each, on any thread, one at a time.
  std::function<GenerationRequest(size_t index)> make_request;
  // Looked at 50 times a second: once it is true nothing more arrives and what runs is cancelled.
  const std::atomic<bool>* interrupted = nullptr;
  // Called about 50 times a second, on the caller's thread, with the share of requests that ended.
  std::function<void(double done)> progress;
};

// Submits the requests when they are due (closed loop: the next when one ends) and returns when all
// have ended: OK, though some may have been rejected or lost with the pipeline; kCancelled if it
// was interrupted; or engine.status(), without those that were not due yet, if the stages are gone.
absl::Status RunWorkload(Engine& engine, const Workload& workload,
                         const WorkloadRunOptions& options);

// `count` token ids below `vocabulary`, none of them in `excluded` (sorted): a prompt where only
// its length is known. The same arguments give the same ids.
std::vector<int32_t> RandomPrompt(int64_t count, int32_t vocabulary,
                                  const std::vector<int32_t>& excluded, uint64_t seed);

}  // namespace fabricast

#endif  // FABRICAST_RUNTIME_ENGINE_WORKLOAD_RUN_H_
