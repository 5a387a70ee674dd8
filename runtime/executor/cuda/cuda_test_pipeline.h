// For tests: pipelines of stages on GPUs, and their comparison with the CPU's.
//
// Tolerance of logits. Weights are the same numbers on both sides (AWQ's INT4, BF16 and FP16 are
// exact in float32). The GPU rounds what enters and leaves matrix products to BF16 or FP16: of a
// layer the normed input, q k v, the weights of attention, its output, the normed input again, gate
// and up, and SwiGLU's output, which are 7 roundings; the last norm and, between stages, the hidden
// state are one each. Rounding to BF16 is off by at most 2^-8 of a number, and in the mean by about
// 2^-9.5 (FP16: an eighth of that). A sum of products with independent errors is off by the same
// share of its size, and a residual stream of L layers by at most sqrt(7 L + 2) times that; as it
// grows, an earlier layer's part of it shrinks, for which 2^-10 stands here. A score s of
// attention turns a relative error e into e |s| of a weight; the largest scores, which count, are
// about 4 here. So logits are off by
//   4 x 2^-10 x sqrt(7 L + 2)
// of their standard deviation, in the mean over tokens and positions. Positions differ: one that
// hangs on two keys of nearly the same score is off by more, 3 times that; and the worst of a
// thousand tokens by 3.3 deviations of its position's error. So a position is off by 3 times the
// mean at most, and a single logit by 10 times.
#ifndef FABRICAST_RUNTIME_EXECUTOR_CUDA_CUDA_TEST_PIPELINE_H_
#define FABRICAST_RUNTIME_EXECUTOR_CUDA_CUDA_TEST_PIPELINE_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "runtime/check.h"
#include "runtime/executor/cpu/cpu_executor.h"
#include "runtime/executor/cpu/test_pipeline.h"
#include "runtime/executor/cpu/test_weights.h"
#include "runtime/executor/gpu_stage.h"
#include "runtime/executor/stage_executor.h"
#include "runtime/model/decoder_config.h"
#include "runtime/weights/checkpoint.h"
#include "runtime/weights/stage_weights.h"

namespace fabricast {

template <typename T>
T Sure(absl::StatusOr<T> value) {
  FABRICAST_CHECK(value.ok()) << value.status().ToString();
  return *std::move(value);
}

// What both sides are made for: 256 blocks of 16 tokens, and on GPUs steps of 256 tokens of 64
// requests.
GpuStageOptions TestStageOptions();
constexpr CpuExecutorOptions kTestCpuOptions = {
    .threads = 4, .kv_block_tokens = 16, .kv_blocks = 256};

// Stages in a row.
class CudaPipeline {
 public:
  CudaPipeline(int64_t hidden, std::vector<std::unique_ptr<StageExecutor>> stages);
  // A stage for each of `layers`, their numbers of layers; embedding first, lm_head last.
  // `devices`: each stage's GPUs, or empty for those of `options`.
  CudaPipeline(const DecoderConfig& config, const std::shared_ptr<const Checkpoint>& checkpoint,
               const std::vector<int64_t>& layers,
               const GpuStageOptions& options = TestStageOptions(),
               const std::vector<std::vector<int>>& devices = {});
  // The whole model on options.devices.
  CudaPipeline(const DecoderConfig& config, const StageWeights& weights,
               const GpuStageOptions& options);

  absl::StatusOr<std::vector<SampledToken>> TryRun(const Step& step);
  std::vector<SampledToken> Run(const Step& step) { return Sure(TryRun(step)); }
  void Reset();

 private:
  int64_t hidden_;
  std::vector<std::unique_ptr<StageExecutor>> stages_;
};

// Compares log-probabilities of the whole vocabulary, and remembers how far they were off.
class Comparison {
 public:
  Comparison(std::string name, int64_t layers);
  ~Comparison();

  void Expect(const SampledToken& gpu, const SampledToken& cpu, const std::string& where);

 private:
  const std::string name_;
  const int64_t layers_;
  int64_t rows_ = 0;
  int64_t equal_ = 0;
  int64_t decided_ = 0;
  double square_sum_ = 0;
  double worst_ = 0;
};

using RunStep = std::function<std::vector<SampledToken>(const Step&)>;

// A prompt in chunks, then greedy decoding, of several requests at a time: the CPU's tokens go into
// both.
void ExpectSameText(const DecoderConfig& config, const RunStep& cpu, CudaPipeline& gpu,
                    const std::vector<std::vector<int32_t>>& prompts, int64_t chunk, int outputs,
                    Comparison& comparison);
template <typename Cpu>
void ExpectSameText(const DecoderConfig& config, Cpu& cpu, CudaPipeline& gpu,
                    const std::vector<std::vector<int32_t>>& prompts, int64_t chunk, int outputs,
                    Comparison& comparison) {
  const RunStep run = [&cpu](const Step& step) { return cpu.Run(step); };
  ExpectSameText(config, run, gpu, prompts, chunk, outputs, comparison);
}

std::vector<std::vector<int32_t>> PromptsOf(const Fixture& fixture);

// The model that is shipped: trained, so that its greedy choices are wide apart.
struct ShippedModel {
  ShippedModel();
  std::vector<std::vector<int32_t>> Prompts() const;

  DecoderConfig config;
  std::shared_ptr<const Checkpoint> checkpoint;
  std::shared_ptr<const Checkpoint> reference;
};

// Of 2 layers, a vocabulary of 1,000 and random weights.
struct ModelSizes {
  int64_t hidden = 512;
  int64_t heads = 8;
  int64_t kv_heads = 2;
  int64_t head_dim = 64;
  int64_t ffn = 1152;
};

class RandomModel {
 public:
  // AWQ in groups of 128 and FP16.
  static RandomModel Awq(const ModelSizes& sizes) { return RandomModel(sizes, true); }
  // BF16, with biases everywhere.
  static RandomModel WithBiases(const ModelSizes& sizes) { return RandomModel(sizes, false); }

  const DecoderConfig& config() const { return config_; }
  const StageWeights& weights() const { return weights_; }

 private:
  RandomModel(const ModelSizes& sizes, bool awq);

  TensorStore store_;
  DecoderConfig config_;
  StageWeights weights_;
};

// As TestPipeline, of one stage.
class OneCpuStage {
 public:
  explicit OneCpuStage(const RandomModel& model);
  std::vector<SampledToken> Run(const Step& step);

 private:
  std::unique_ptr<StageExecutor> stage_;
};

// The whole prompts, of request 0, 1, ...; seeds count up from that of `sampling`.
Step OneStep(const std::vector<std::vector<int32_t>>& prompts, const SamplingParams& sampling);

// Prompts, then `steps` decodes of all of them, each of its own last token.
std::vector<std::vector<SampledToken>> Generate(CudaPipeline& gpu,
                                                const std::vector<std::vector<int32_t>>& prompts,
                                                const SamplingParams& sampling, int steps);

void ExpectSame(const std::vector<std::vector<SampledToken>>& a,
                const std::vector<std::vector<SampledToken>>& b, bool logprobs,
                const std::string& what);

}  // namespace fabricast

#endif  // FABRICAST_RUNTIME_EXECUTOR_CUDA_CUDA_TEST_PIPELINE_H_
