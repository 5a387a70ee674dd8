// A head with an engine over stages that are elsewhere, and what became of its requests. Stages
// compute what FakeExecutor does.
#ifndef FABRICAST_RUNTIME_CONTROL_TESTING_TEST_PIPELINE_H_
#define FABRICAST_RUNTIME_CONTROL_TESTING_TEST_PIPELINE_H_

#include <condition_variable>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "runtime/control/remote_stages.h"
#include "runtime/engine/engine.h"

namespace fabricast {

inline constexpr int kMaxRunning = 8;  // requests at a time

// Of `stages` stages, with fingerprints of a model and a topology; StageOptions fits.
RemoteStagesOptions TestHeadOptions(int stages, const SharedSecret& secret);
Fingerprints TestFingerprints();

class TestPipeline {
 public:
  // CHECKs that it can listen.
  explicit TestPipeline(const RemoteStagesOptions& options);
  ~TestPipeline();

  std::string address() const { return remote_->address(); }
  RemoteStages& remote() { return *remote_; }
  Engine& engine() { return *engine_; }

  RequestId Submit(std::vector<int32_t> prompt, int64_t count, int logprobs = -1);
  // What a request got, or its error, when it has ended.
  absl::StatusOr<std::vector<int32_t>> Await(RequestId id);
  // Both.
  absl::StatusOr<std::vector<int32_t>> Generate(std::vector<int32_t> prompt, int64_t count);
  // Generates until it works: the first tries may meet the end of what was.
  std::vector<int32_t> GenerateAgain(const std::vector<int32_t>& prompt, int64_t count);
  void AwaitTokens(RequestId id, size_t count);

 private:
  struct Outcome {
    std::vector<int32_t> tokens;
    bool ended = false;
    absl::Status error;
  };

  RemoteStages* remote_ = nullptr;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::map<RequestId, Outcome> outcomes_;
  std::unique_ptr<Engine> engine_;
};

}  // namespace fabricast

#endif  // FABRICAST_RUNTIME_CONTROL_TESTING_TEST_PIPELINE_H_
