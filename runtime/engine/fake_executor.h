// A stage that computes something simple: the next token is a hash of all tokens so far.
//
// Checks what every executor relies on: steps in launch order, contexts without gaps, requests
// released before they begin anew, and activations that come from the stage before.
#ifndef FABRICAST_RUNTIME_ENGINE_FAKE_EXECUTOR_H_
#define FABRICAST_RUNTIME_ENGINE_FAKE_EXECUTOR_H_

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "runtime/executor/stage_executor.h"

namespace fabricast {

// The token that follows `tokens` in every fake stage: 0 ... 999.
int32_t FakeNextToken(const std::vector<int32_t>& tokens);
// What a request with this prompt gets, of `count` tokens.
std::vector<int32_t> FakeContinuation(std::vector<int32_t> prompt, int64_t count);

class FakeExecutor : public StageExecutor {
 public:
  // Called before each step, on the stage's thread; an error is the step's.
  using Hook = std::function<absl::Status(const Step&)>;

  // Stage `stage` of `stages`.
  FakeExecutor(int stage, int stages, Hook hook = nullptr);

  int64_t activation_bytes_per_token() const override { return sizeof(int64_t); }
  absl::Status Run(const Step& step, absl::Span<const std::byte> input,
                   absl::Span<std::byte> output, std::vector<SampledToken>& sampled) override;
  void Reset() override;

 private:
  const int stage_;
  const int stages_;
  const Hook hook_;
  MicroBatchId next_ = 0;
  std::map<RequestId, std::vector<int32_t>> contexts_;
};

std::vector<std::unique_ptr<StageExecutor>> FakeStages(int stages,
                                                       FakeExecutor::Hook hook = nullptr);

}  // namespace fabricast

#endif  // FABRICAST_RUNTIME_ENGINE_FAKE_EXECUTOR_H_
