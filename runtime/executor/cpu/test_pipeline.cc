#include "runtime/executor/cpu/test_pipeline.h"

#include <cstring>
#include <filesystem>

#include "runtime/check.h"
#include "runtime/weights/checkpoint_writer.h"
#include "runtime/weights/stage_weights.h"

namespace fabricast {
namespace {

template <typename T>
std::vector<T> Elements(const Checkpoint& checkpoint, const std::string& name) {
  const Tensor* tensor = checkpoint.Find(name);
  FABRICAST_CHECK(tensor != nullptr) << name;
  std::vector<T> elements(tensor->elements());
  FABRICAST_CHECK(tensor->bytes.size() == elements.size() * sizeof(T)) << name;
  std::memcpy(elements.data(), tensor->bytes.data(), tensor->bytes.size());
  return elements;
}

std::shared_ptr<const Checkpoint> Open(const std::string& folder) {
  absl::StatusOr<std::shared_ptr<const Checkpoint>> checkpoint = Checkpoint::Open(folder);
  FABRICAST_CHECK(checkpoint.ok()) << checkpoint.status().ToString();
  return *std::move(checkpoint);
}

}  // namespace

std::vector<std::string> FixtureNames() {
  return {"llama", "llama_tied", "qwen3", "qwen3_moe", "llama_awq", "qwen3_awq", "qwen3_moe_awq"};
}

bool Fixture::HasReference(const std::string& tensor) const {
  return reference->Find(tensor) != nullptr;
}

std::vector<float> Fixture::Floats(const std::string& tensor) const {
  return Elements<float>(*reference, tensor);
}

std::vector<int32_t> Fixture::Ids(const std::string& tensor) const {
  return Elements<int32_t>(*reference, tensor);
}

Fixture LoadFixture(const std::string& name) {
  const std::string folder = "runtime/executor/testdata/" + name;
  absl::StatusOr<DecoderConfig> config = LoadDecoderConfig(folder);
  FABRICAST_CHECK(config.ok()) << config.status().ToString();
  // A checkpoint's file has another name; what is open stays when its folder goes.
  const TemporaryFolder copy;
  std::filesystem::copy_file(folder + "/reference.safetensors", copy.PathOf("model.safetensors"));
  return {.name = name,
          .config = *std::move(config),
          .checkpoint = Open(folder),
          .reference = Open(copy.path())};
}

Step MakeStep(const std::vector<TestEntry>& entries, std::vector<RequestId> released) {
  static MicroBatchId next = 0;
  Step step;
  step.micro_batch.id = next++;
  for (const TestEntry& entry : entries) {
    step.micro_batch.entries.push_back({.request = entry.request,
                                        .first_token = entry.first_token,
                                        .tokens = static_cast<int64_t>(entry.tokens.size()),
                                        .decode = entry.tokens.size() == 1,
                                        .samples = entry.samples});
    step.tokens.insert(step.tokens.end(), entry.tokens.begin(), entry.tokens.end());
    step.sampling.push_back(entry.sampling);
  }
  step.released = std::move(released);
  return step;
}

SamplingParams Greedy(const DecoderConfig& config) {
  return {.logprobs = static_cast<int>(config.vocabulary)};
}

std::vector<float> Logprobs(const SampledToken& token) {
  std::vector<float> logprobs(token.top.size());
  for (const TokenLogprob& top : token.top) logprobs.at(top.token) = top.logprob;
  return logprobs;
}

TestPipeline::TestPipeline(const DecoderConfig& config,
                           std::shared_ptr<const Checkpoint> checkpoint,
                           const std::vector<int64_t>& layers, const CpuExecutorOptions& options)
    : activations_(layers.size()), hidden_(config.hidden) {
  int64_t first = 0;
  for (size_t stage = 0; stage < layers.size(); ++stage) {
    absl::StatusOr<StageWeights> weights =
        FindStageWeights(checkpoint, config,
                         {.first_layer = first,
                          .num_layers = layers[stage],
                          .embedding = stage == 0,
                          .lm_head = stage + 1 == layers.size()});
    FABRICAST_CHECK(weights.ok()) << weights.status().ToString();
    absl::StatusOr<std::unique_ptr<StageExecutor>> executor =
        MakeCpuExecutor(config, *std::move(weights), options);
    FABRICAST_CHECK(executor.ok()) << executor.status().ToString();
    stages_.push_back(*std::move(executor));
    first += layers[stage];
  }
}

absl::StatusOr<std::vector<SampledToken>> TestPipeline::TryRun(const Step& step) {
  std::vector<SampledToken> sampled;
  absl::Span<const std::byte> input;
  for (size_t stage = 0; stage < stages_.size(); ++stage) {
    const bool last = stage + 1 == stages_.size();
    std::vector<float>& output = activations_[stage];
    output.assign(last ? 0 : step.tokens.size() * hidden_, -1.0f);
    const size_t bytes = output.size() * sizeof(float);
    absl::Status status = stages_[stage]->Run(
        step, input, {reinterpret_cast<std::byte*>(output.data()), bytes}, sampled);
    if (!status.ok()) return status;
    FABRICAST_CHECK(last || sampled.empty());
    input = {reinterpret_cast<const std::byte*>(output.data()), bytes};
  }
  return sampled;
}

std::vector<SampledToken> TestPipeline::Run(const Step& step) {
  absl::StatusOr<std::vector<SampledToken>> sampled = TryRun(step);
  FABRICAST_CHECK(sampled.ok()) << sampled.status().ToString();
  return *std::move(sampled);
}

}  // namespace fabricast
