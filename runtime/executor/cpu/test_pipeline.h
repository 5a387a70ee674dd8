// For tests: models, and pipelines of CPU executors that run them.
#ifndef FABRICAST_RUNTIME_EXECUTOR_CPU_TEST_PIPELINE_H_
#define FABRICAST_RUNTIME_EXECUTOR_CPU_TEST_PIPELINE_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "runtime/executor/cpu/cpu_executor.h"
#include "runtime/executor/stage_executor.h"
#include "runtime/model/decoder_config.h"
#include "runtime/weights/checkpoint.h"

namespace fabricast {

// The folders of runtime/executor/testdata.
std::vector<std::string> FixtureNames();

// One of them: a checkpoint and what transformers computes from it.
struct Fixture {
  std::string name;
  DecoderConfig config;
  std::shared_ptr<const Checkpoint> checkpoint;
  std::shared_ptr<const Checkpoint> reference;

  bool HasReference(const std::string& tensor) const;
  std::vector<float> Floats(const std::string& tensor) const;
  std::vector<int32_t> Ids(const std::string& tensor) const;
};

// Ends the test program if it is not there or cannot be read.
Fixture LoadFixture(const std::string& name);

// Tokens of one request in a micro-batch.
struct TestEntry {
  RequestId request;
  int64_t first_token;
  std::vector<int32_t> tokens;
  bool samples = true;
  SamplingParams sampling = {};
};

Step MakeStep(const std::vector<TestEntry>& entries, std::vector<RequestId> released = {});

// All logits, up to a constant: the log-probabilities of the whole vocabulary.
SamplingParams Greedy(const DecoderConfig& config);
// Of a sampled token of the above, by token id.
std::vector<float> Logprobs(const SampledToken& token);

// A stage for each of `layers`, their numbers of layers; embedding first, lm_head last. Ends the
// test program on an error.
class TestPipeline {
 public:
  TestPipeline(const DecoderConfig& config, std::shared_ptr<const Checkpoint> checkpoint,
               const std::vector<int64_t>& layers, const CpuExecutorOptions& options);

  // Runs the step through all stages.
  absl::StatusOr<std::vector<SampledToken>> TryRun(const Step& step);
  std::vector<SampledToken> Run(const Step& step);

  // What stage `stage`, not the last, computed in the last step: [tokens, hidden].
  absl::Span<const float> Activations(size_t stage) const { return activations_[stage]; }

 private:
  std::vector<std::unique_ptr<StageExecutor>> stages_;
  std::vector<std::vector<float>> activations_;
  int64_t hidden_;
};

}  // namespace fabricast

#endif  // FABRICAST_RUNTIME_EXECUTOR_CPU_TEST_PIPELINE_H_
