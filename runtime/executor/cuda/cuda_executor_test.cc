// The GPU's executor against the CPU's, which computes the same in float32: tolerances are derived
// in cuda_test_pipeline.h.

#include "runtime/executor/cuda/cuda_executor.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <iostream>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "runtime/executor/cpu/test_pipeline.h"
#include "runtime/executor/cuda/cuda_test_pipeline.h"
#include "runtime/model/decoder_config.h"
#include "runtime/weights/checkpoint.h"

namespace fabricast {
namespace {

using ::testing::HasSubstr;

class CudaExecutorTest : public testing::TestWithParam<std::string> {};

TEST_P(CudaExecutorTest, TextIsTheCpusInChunksAndMixedBatchesAndStages) {
  const Fixture fixture = LoadFixture(GetParam());
  const int64_t layers = fixture.config.layers;
  Comparison comparison(GetParam(), layers);
  for (const int64_t chunk : {128, 33, 7, 1}) {
    TestPipeline cpu(fixture.config, fixture.checkpoint, {layers}, kTestCpuOptions);
    std::vector<int64_t> split = {layers};
    if (chunk == 33) split = {1, layers - 1};
    CudaPipeline gpu(fixture.config, fixture.checkpoint, split);
    ASSERT_NO_FATAL_FAILURE(ExpectSameText(fixture.config, cpu, gpu, PromptsOf(fixture), chunk,
                                           /*outputs=*/12, comparison));
  }
}

INSTANTIATE_TEST_SUITE_P(Models, CudaExecutorTest,
                         testing::Values("llama", "llama_tied", "qwen3", "llama_awq", "qwen3_awq"),
                         [](const auto& info) { return info.param; });

TEST(CudaExecutorTest, MixturesOfExpertsAreRefused) {
  for (const char* name : {"qwen3_moe", "qwen3_moe_awq"}) {
    const Fixture fixture = LoadFixture(name);
    const absl::Status status =
        MakeCudaExecutor(fixture.config,
                         Sure(FindStageWeights(fixture.checkpoint, fixture.config,
                                               {.first_layer = 0,
                                                .num_layers = fixture.config.layers,
                                                .embedding = true,
                                                .lm_head = true})),
                         TestStageOptions())
            .status();
    EXPECT_EQ(status.code(), absl::StatusCode::kUnimplemented);
    EXPECT_THAT(std::string(status.message()),
                HasSubstr("num_experts: 6: mixtures of experts run on the processor only so far"));
  }
}

class ShippedModelTest : public testing::Test {
 protected:
  std::vector<std::vector<int32_t>> Prompts() const { return model_.Prompts(); }

  const ShippedModel model_;
  const DecoderConfig& config_ = model_.config;
  const std::shared_ptr<const Checkpoint>& checkpoint_ = model_.checkpoint;
};

TEST_F(ShippedModelTest, GreedyTextIsTheCpus) {
  Comparison comparison("prose_16m", config_.layers);
  for (const int64_t chunk : {256, 48}) {
    TestPipeline cpu(config_, checkpoint_, {config_.layers}, kTestCpuOptions);
    CudaPipeline gpu(config_, checkpoint_,
                     chunk == 48 ? std::vector<int64_t>{4, 3, 2} : std::vector<int64_t>{9});
    ASSERT_NO_FATAL_FAILURE(ExpectSameText(config_, cpu, gpu, Prompts(), chunk,
                                           /*outputs=*/48, comparison));
  }
}

TEST_F(ShippedModelTest, TheSameStepsGiveTheSameBitsWithAndWithoutGraphs) {
  SamplingParams sampling = Greedy(config_);
  GpuStageOptions options = TestStageOptions();
  CudaPipeline with(config_, checkpoint_, {9}, options);
  options.graphs = false;
  CudaPipeline without(config_, checkpoint_, {9}, options);
  // Numbers of requests for which there is a graph, so that nothing is padded.
  for (const size_t requests : {1, 2, 4}) {
    std::vector<std::vector<int32_t>> prompts = Prompts();
    prompts.resize(requests);
    prompts.back().resize(20);
    const auto first = Generate(with, prompts, sampling, 10);
    with.Reset();
    ExpectSame(Generate(with, prompts, sampling, 10), first, true, "again");
    with.Reset();
    ExpectSame(Generate(without, prompts, sampling, 10), first, true, "without graphs");
    without.Reset();
  }
}

TEST_F(ShippedModelTest, TokensAreSampledAsOnTheHost) {
  CudaPipeline gpu(config_, checkpoint_, {9});
  const std::vector<SamplingParams> kinds = {
      {.temperature = 0, .repetition_penalty = 1.3},
      {.temperature = 0.7, .seed = 11},
      {.temperature = 1, .top_k = 50, .seed = 7},
      {.temperature = 1.2, .top_p = 0.9, .seed = 3},
      {.temperature = 1, .top_p = 0.95, .top_k = 100, .repetition_penalty = 1.1, .seed = 5},
      {.temperature = 0},
  };
  int64_t tokens = 0;
  int64_t different = 0;
  for (const SamplingParams& kind : kinds) {
    std::vector<std::vector<int32_t>> prompts;
    for (int i = 0; i < 16; ++i) prompts.push_back(Prompts()[i % 3]);
    // The host samples what the GPU computes of the same steps, until the two first differ.
    const auto on_gpu = Generate(gpu, prompts, kind, 20);
    gpu.Reset();
    SamplingParams host_kind = kind;
    host_kind.logprobs = 0;
    const auto on_host = Generate(gpu, prompts, host_kind, 20);
    gpu.Reset();
    for (size_t i = 0; i < prompts.size(); ++i) {
      for (size_t s = 0; s < on_gpu.size(); ++s) {
        ++tokens;
        if (on_gpu[s][i].token == on_host[s][i].token) continue;
        ++different;
        break;
      }
    }
  }
  std::cout << different << " of " << tokens << " tokens are sampled otherwise than on the host\n";
  // A draw that falls on a boundary of probabilities, which both sum in float, is decided by
  // rounding: of 4,096 boundaries each is uncertain by 2^-24 or so, 2^-12 a draw.
  EXPECT_LE(different, 2);
}

TEST_F(ShippedModelTest, AReleasedRequestsBlocksServeOthers) {
  GpuStageOptions options = TestStageOptions();
  options.kv_blocks = 20;  // the four prompts take 17
  CudaPipeline gpu(config_, checkpoint_, {9}, options);
  const SamplingParams sampling = Greedy(config_);
  std::vector<std::vector<int32_t>> prompts = Prompts();
  prompts[3].resize(180);
  const std::vector<SampledToken> first = gpu.Run(OneStep(prompts, sampling));
  // Preempted, and computed again from its first token, in other blocks' places.
  for (int round = 0; round < 3; ++round) {
    Step again = OneStep(prompts, sampling);
    again.released = {3, 1, 0, 2};
    std::rotate(again.released.begin(), again.released.begin() + round, again.released.end());
    const std::vector<SampledToken> second = gpu.Run(again);
    ASSERT_EQ(second.size(), first.size());
    for (size_t i = 0; i < first.size(); ++i) {
      EXPECT_EQ(Logprobs(second[i]), Logprobs(first[i])) << "round " << round << " request " << i;
    }
  }
  const absl::Status status =
      gpu.TryRun(MakeStep({{.request = 9, .first_token = 0, .tokens = prompts[3]}})).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(status.message()), HasSubstr("all 20 of this stage are taken"));
  gpu.Reset();
  EXPECT_TRUE(gpu.TryRun(MakeStep({{.request = 9, .first_token = 0, .tokens = prompts[3]}})).ok());
}

TEST_F(ShippedModelTest, MemoryIsTakenWhileLoadingOnly) {
  GpuStageOptions options = TestStageOptions();
  options.figures = std::make_shared<GpuStageFigures>();
  options.log = [](absl::string_view line) { std::cout << line << "\n"; };
  CudaPipeline gpu(config_, checkpoint_, {9}, options);
  size_t free_before = 0;
  size_t free_after = 0;
  size_t total = 0;
  ASSERT_EQ(cudaMemGetInfo(&free_before, &total), cudaSuccess);
  for (const int64_t chunk : {200, 64, 3}) {
    std::vector<std::vector<int32_t>> prompts = Prompts();
    for (auto& prompt : prompts) prompt.resize(std::min<size_t>(prompt.size(), chunk));
    if (chunk == 200) prompts.erase(prompts.begin(), prompts.begin() + 3);
    Generate(gpu, prompts, {.temperature = 1, .repetition_penalty = 1.2, .seed = 1}, 20);
    gpu.Reset();
  }
  ASSERT_EQ(cudaMemGetInfo(&free_after, &total), cudaSuccess);
  EXPECT_EQ(free_after, free_before);
  const GpuStageFigures::Values figures = options.figures->Get();
  EXPECT_GT(figures.graph_buckets, 0);
  EXPECT_GT(figures.decode_steps, 30);
  EXPECT_GT(figures.decode_seconds, figures.idle_seconds);
  EXPECT_GE(figures.used_bytes, figures.planned_bytes);
}

TEST_F(ShippedModelTest, AStageThatDoesNotFitIsRefusedAtOnce) {
  GpuStageOptions options = TestStageOptions();
  options.kv_blocks = int64_t{1} << 26;
  const absl::Status status =
      MakeCudaExecutor(
          config_,
          Sure(FindStageWeights(
              checkpoint_, config_,
              {.first_layer = 0, .num_layers = 9, .embedding = true, .lm_head = true})),
          options)
          .status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(status.message()), HasSubstr("GB short. --kv-blocks "));
}

TEST_F(ShippedModelTest, AHiddenStateThatIsNotFiniteIsTracedToItsLayer) {
  StageWeights weights = Sure(
      FindStageWeights(checkpoint_, config_,
                       {.first_layer = 0, .num_layers = 9, .embedding = true, .lm_head = true}));
  // The gain of the fifth layer's second norm, in FP16.
  Tensor& gain = weights.layers[4].post_attention_norm;
  std::vector<std::byte> bytes(gain.bytes.begin(), gain.bytes.end());
  const uint16_t not_a_number = 0x7E00;
  std::memcpy(bytes.data() + 10, &not_a_number, sizeof(not_a_number));
  gain.bytes = bytes;
  std::unique_ptr<StageExecutor> stage =
      Sure(MakeCudaExecutor(config_, weights, TestStageOptions()));
  std::vector<SampledToken> sampled;
  const absl::Status status = stage->Run(
      MakeStep({{.request = 77, .first_token = 0, .tokens = {1, 2, 3}}}), {}, {}, sampled);
  EXPECT_EQ(status.code(), absl::StatusCode::kInternal);
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("request 77: the hidden state at position 0 is not finite after layer 5 of "
                        "this stage's 9 (model.layers.4): are the weights?"));
}

// Large enough for all three kernels of INT4 matrix products, and their borders.
constexpr ModelSizes kAwqSizes = {.hidden = 512, .heads = 8, .kv_heads = 2, .ffn = 1152};

TEST(AwqModelTest, TextIsTheCpusForEachKernelOfInt4Products) {
  const RandomModel model = RandomModel::Awq(kAwqSizes);
  Comparison comparison("AWQ 512", 2);
  GpuStageOptions options = TestStageOptions();
  options.max_batch_tokens = 1024;
  for (const int tokens : {1, 8, 9, 16, 17, 33, 64, 65, 100, 512, 513, 700}) {
    OneCpuStage cpu(model);
    CudaPipeline gpu(model.config(), model.weights(), options);
    RandomNormal random(tokens);
    std::vector<std::vector<int32_t>> prompts(1);
    for (int i = 0; i < tokens; ++i) {
      prompts[0].push_back(static_cast<int32_t>(random.Between(0, 999)));
    }
    ASSERT_NO_FATAL_FAILURE(ExpectSameText(model.config(), cpu, gpu, prompts, 1024,
                                           /*outputs=*/2, comparison));
  }
  // Decodes of many requests, in graphs and beyond.
  for (const int requests : {3, 8, 13, 16, 30, 64}) {
    OneCpuStage cpu(model);
    CudaPipeline gpu(model.config(), model.weights(), options);
    std::vector<std::vector<int32_t>> prompts;
    for (int r = 0; r < requests; ++r) prompts.push_back({r, 2 * r, 3 * r + 1});
    ASSERT_NO_FATAL_FAILURE(ExpectSameText(model.config(), cpu, gpu, prompts, 1024,
                                           /*outputs=*/3, comparison));
  }
}

TEST(SyntheticStageTest, WeightsAreAFunctionOfTheSeed) {
  const RandomModel model = RandomModel::Awq(kAwqSizes);
  const auto tokens = [&](uint64_t seed) {
    std::vector<std::unique_ptr<StageExecutor>> stages;
    stages.push_back(Sure(MakeSyntheticCudaExecutor(
        model.config(), {.first_layer = 0, .num_layers = 2, .embedding = true, .lm_head = true},
        seed, TestStageOptions())));
    CudaPipeline gpu(512, std::move(stages));
    return Generate(gpu, {{1, 2, 3}, {500, 600}}, Greedy(model.config()), 8);
  };
  const auto first = tokens(1);
  ExpectSame(tokens(1), first, true, "the same seed");
  EXPECT_NE(Logprobs(tokens(2)[0][0]), Logprobs(first[0][0]));
}

}  // namespace
}  // namespace fabricast
