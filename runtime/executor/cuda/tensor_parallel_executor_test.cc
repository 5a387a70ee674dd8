// A stage on two GPUs against the CPU and against one GPU. Tolerances are those of one GPU
// (cuda_test_pipeline.h): sums of FP32 in another order are off by far less than BF16's roundings.
#include "runtime/executor/cuda/tensor_parallel_executor.h"

#include <cuda_runtime_api.h>

#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "runtime/executor/cpu/test_pipeline.h"
#include "runtime/executor/cuda/cuda_test_pipeline.h"
#include "runtime/executor/device_executor.h"
#include "runtime/weights/stage_weights.h"

namespace fabricast {
namespace {

using ::testing::HasSubstr;

GpuStageOptions OnTwoGpus() {
  GpuStageOptions options = TestStageOptions();
  options.devices = {0, 1};
  return options;
}

class TensorParallelTest : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    setenv("NCCL_NVLS_ENABLE", "0", 1);  // two GPUs gain nothing by multicast
  }
  void SetUp() override {
    int gpus = 0;
    if (cudaGetDeviceCount(&gpus) != cudaSuccess || gpus < 2) GTEST_SKIP() << "needs two GPUs";
  }
};

TEST_F(TensorParallelTest, TextIsTheCpusInChunksAndUnevenPipelines) {
  for (const char* name : {"llama", "qwen3", "llama_awq", "qwen3_awq"}) {
    const Fixture fixture = LoadFixture(name);
    const int64_t layers = fixture.config.layers;
    Comparison comparison(name, layers);
    const struct {
      std::vector<int64_t> split;
      std::vector<std::vector<int>> devices;
    } pipelines[] = {
        {{layers}, {{0, 1}}}, {{1, layers - 1}, {{0, 1}, {0}}}, {{1, layers - 1}, {{1}, {1, 0}}}};
    for (const auto& [split, devices] : pipelines) {
      CudaPipeline gpu(fixture.config, fixture.checkpoint, split, TestStageOptions(), devices);
      for (const int64_t chunk : {128, 33, 7}) {
        TestPipeline cpu(fixture.config, fixture.checkpoint, {layers}, kTestCpuOptions);
        ASSERT_NO_FATAL_FAILURE(ExpectSameText(fixture.config, cpu, gpu, PromptsOf(fixture), chunk,
                                               /*outputs=*/12, comparison));
        gpu.Reset();
      }
    }
  }
}

TEST_F(TensorParallelTest, BiasesAreAddedOnce) {
  const RandomModel model = RandomModel::WithBiases({.hidden = 256, .kv_heads = 4, .ffn = 640});
  Comparison comparison("biases", 2);
  CudaPipeline gpu(model.config(), model.weights(), OnTwoGpus());
  OneCpuStage cpu(model);
  ASSERT_NO_FATAL_FAILURE(ExpectSameText(model.config(), cpu, gpu,
                                         {{1, 2, 3, 4, 5, 6, 7, 8, 9, 10}, {500}, {999, 998, 997}},
                                         256, /*outputs=*/12, comparison));
}

TEST_F(TensorParallelTest, TextIsTheOneGpusForEachKernelOfInt4Products) {
  // Halves of all matrices stay INT4.
  const RandomModel model = RandomModel::Awq({.kv_heads = 4, .ffn = 1280});
  Comparison comparison("AWQ 512, of one GPU", 2);
  GpuStageOptions options = OnTwoGpus();
  options.max_batch_tokens = 1024;
  CudaPipeline two(model.config(), model.weights(), options);
  options.devices = {1};
  CudaPipeline one(model.config(), model.weights(), options);
  const auto expect_same = [&](const std::vector<std::vector<int32_t>>& prompts, int outputs) {
    ExpectSameText(model.config(), one, two, prompts, 1024, outputs, comparison);
    one.Reset();
    two.Reset();
  };
  for (const int tokens : {1, 8, 9, 16, 17, 33, 64, 65, 100, 512, 513, 700}) {
    RandomNormal random(tokens);
    std::vector<std::vector<int32_t>> prompts(1);
    for (int i = 0; i < tokens; ++i) {
      prompts[0].push_back(static_cast<int32_t>(random.Between(0, 999)));
    }
    ASSERT_NO_FATAL_FAILURE(expect_same(prompts, 2));
  }
  for (const int requests : {3, 8, 13, 16, 30, 64}) {
    std::vector<std::vector<int32_t>> prompts;
    for (int r = 0; r < requests; ++r) prompts.push_back({r, 2 * r, 3 * r + 1});
    ASSERT_NO_FATAL_FAILURE(expect_same(prompts, 3));
  }
}

class TensorParallelShippedModelTest : public TensorParallelTest {
 protected:
  const ShippedModel model_;
};

TEST_F(TensorParallelShippedModelTest, GreedyTextIsTheOneGpusAndTheCpus) {
  SamplingParams greedy;
  greedy.temperature = 0;
  CudaPipeline one(model_.config, model_.checkpoint, {9});
  const std::vector<std::vector<int32_t>> prompts = model_.Prompts();
  const std::vector<std::vector<int32_t>> three(prompts.begin(), prompts.begin() + 3);
  const auto expected = Generate(one, three, greedy, 48);
  Comparison comparison("prose_16m", model_.config.layers);
  const std::vector<std::vector<int>> devices[] = {{{0, 1}}, {{0, 1}, {1}}, {{0}, {1, 0}}};
  for (const auto& gpus : devices) {
    const std::vector<int64_t> split =
        gpus.size() == 1 ? std::vector<int64_t>{9} : std::vector<int64_t>{4, 5};
    CudaPipeline gpu(model_.config, model_.checkpoint, split, TestStageOptions(), gpus);
    ExpectSame(Generate(gpu, three, greedy, 48), expected, false, "of two GPUs and one");
    gpu.Reset();
    TestPipeline cpu(model_.config, model_.checkpoint, {9}, kTestCpuOptions);
    ASSERT_NO_FATAL_FAILURE(ExpectSameText(model_.config, cpu, gpu, prompts, 48,
                                           /*outputs=*/24, comparison));
  }
}

TEST_F(TensorParallelShippedModelTest, TheSameStepsGiveTheSameBitsWithAndWithoutGraphs) {
  const SamplingParams sampling = Greedy(model_.config);
  GpuStageOptions options = OnTwoGpus();
  CudaPipeline with(model_.config, model_.checkpoint, {9}, options);
  options.graphs = false;
  CudaPipeline without(model_.config, model_.checkpoint, {9}, options);
  for (const size_t requests : {1, 2, 4}) {
    std::vector<std::vector<int32_t>> prompts = model_.Prompts();
    prompts.resize(requests);
    prompts.back().resize(20);
    const auto first = Generate(with, prompts, sampling, 10);
    with.Reset();
    ExpectSame(Generate(with, prompts, sampling, 10), first, true, "again");
    with.Reset();
    ExpectSame(Generate(without, prompts, sampling, 10), first, true, "without graphs");
    without.Reset();
  }
  // Drawn tokens, with histories: every rank draws, and that they agree is checked.
  const SamplingParams drawn = {
      .temperature = 1, .top_p = 0.95, .top_k = 100, .repetition_penalty = 1.1, .seed = 5};
  const auto first = Generate(with, model_.Prompts(), drawn, 20);
  with.Reset();
  ExpectSame(Generate(with, model_.Prompts(), drawn, 20), first, false, "drawn again");
}

TEST_F(TensorParallelShippedModelTest, StepsEnqueuedAheadGiveTheSameTokens) {
  const std::unique_ptr<DeviceExecutor> stage = Sure(MakeTensorParallelExecutor(
      model_.config,
      Sure(FindStageWeights(
          model_.checkpoint, model_.config,
          {.first_layer = 0, .num_layers = 9, .embedding = true, .lm_head = true})),
      OnTwoGpus()));
  std::vector<Step> steps;
  const std::vector<std::vector<int32_t>> prompts = model_.Prompts();
  for (size_t r = 0; r < prompts.size(); ++r) {
    steps.push_back(
        MakeStep({{.request = static_cast<RequestId>(r), .first_token = 0, .tokens = prompts[r]}}));
    steps.back().sampling[0].temperature = 0;
  }
  std::vector<int32_t> expected;
  std::vector<SampledToken> sampled;
  for (const Step& step : steps) {
    ASSERT_TRUE(stage->Run(step, {}, {}, sampled).ok());
    expected.push_back(sampled[0].token);
  }
  stage->Reset();
  const size_t ahead = static_cast<size_t>(stage->slots());
  std::chrono::steady_clock::time_point last;
  for (size_t i = 0; i < steps.size() + ahead; ++i) {
    if (i >= ahead) {
      DeviceExecutor::Times times;
      ASSERT_TRUE(stage->Finish(steps[i - ahead], sampled, times).ok());
      ASSERT_EQ(sampled.size(), 1);
      EXPECT_EQ(sampled[0].token, expected[i - ahead]) << i - ahead;
      EXPECT_LT(last, times.computed);
      EXPECT_LE(times.started, times.computed);
      last = times.computed;
    }
    if (i < steps.size()) {
      ASSERT_TRUE(stage->Enqueue(steps[i]).ok());
    }
  }
}

TEST_F(TensorParallelShippedModelTest, ErrorsOfAStepAreMendedByReset) {
  GpuStageOptions options = OnTwoGpus();
  options.kv_blocks = 4;
  CudaPipeline gpu(model_.config, model_.checkpoint, {9}, options);
  const std::vector<int32_t> prompt = model_.Prompts()[3];
  const Step fits = MakeStep({{.request = 1, .first_token = 0, .tokens = {1, 2, 3}}});
  const int32_t token = gpu.Run(fits)[0].token;
  const absl::Status status =
      gpu.TryRun(MakeStep({{.request = 9, .first_token = 0, .tokens = prompt}})).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(status.message()), HasSubstr("all 4 of this stage are taken"));
  gpu.Reset();
  EXPECT_EQ(gpu.Run(fits)[0].token, token);
}

TEST_F(TensorParallelShippedModelTest, AHiddenStateThatIsNotFiniteIsFoundByAll) {
  StageWeights weights = Sure(
      FindStageWeights(model_.checkpoint, model_.config,
                       {.first_layer = 0, .num_layers = 9, .embedding = true, .lm_head = true}));
  Tensor& gain = weights.layers[4].post_attention_norm;
  std::vector<std::byte> bytes(gain.bytes.begin(), gain.bytes.end());
  const uint16_t not_a_number = 0x7E00;
  std::memcpy(bytes.data() + 10, &not_a_number, sizeof(not_a_number));
  gain.bytes = bytes;
  CudaPipeline gpu(model_.config, weights, OnTwoGpus());
  const absl::Status status =
      gpu.TryRun(MakeStep({{.request = 77, .first_token = 0, .tokens = {1, 2, 3}}})).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInternal);
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("request 77: the hidden state at position 0 is not finite after this "
                        "stage's layers"));
}

TEST_F(TensorParallelShippedModelTest, WhatCannotBeMadeIsRefusedWithoutWaiting) {
  const StageWeights weights = Sure(
      FindStageWeights(model_.checkpoint, model_.config,
                       {.first_layer = 0, .num_layers = 9, .embedding = true, .lm_head = true}));
  const auto refused = [&](std::vector<int> devices, int64_t kv_blocks) {
    GpuStageOptions options = OnTwoGpus();
    options.devices = std::move(devices);
    options.kv_blocks = kv_blocks;
    const auto start = std::chrono::steady_clock::now();
    const absl::Status status =
        MakeTensorParallelExecutor(model_.config, weights, options).status();
    EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(10)) << status;
    EXPECT_FALSE(status.ok());
    return status.ToString();
  };
  EXPECT_THAT(refused({0, 0}, 256), HasSubstr("the stage's GPUs are [0, 0]; give one or more"));
  EXPECT_THAT(refused({}, 256), HasSubstr("the stage's GPUs are []"));
  EXPECT_THAT(refused({0, 1, 2}, 256), HasSubstr("num_key_value_heads: 2 cannot be divided"));
  EXPECT_THAT(refused({0, 99}, 256), HasSubstr("GPU 2 of the 2 of this stage: "));
  EXPECT_THAT(refused({0, 1}, int64_t{1} << 27), HasSubstr("GB short. --kv-blocks "));
}

TEST_F(TensorParallelTest, SyntheticStagesAreAFunctionOfTheSeed) {
  const RandomModel model = RandomModel::Awq({.kv_heads = 4, .ffn = 1280});
  const StageShare share = {.first_layer = 0, .num_layers = 2, .embedding = true, .lm_head = true};
  const auto logprobs = [&](uint64_t seed) {
    std::vector<std::unique_ptr<StageExecutor>> stages;
    stages.push_back(
        Sure(MakeSyntheticTensorParallelExecutor(model.config(), share, seed, OnTwoGpus())));
    CudaPipeline gpu(512, std::move(stages));
    return Generate(gpu, {{1, 2, 3}, {500, 600}}, Greedy(model.config()), 8);
  };
  const auto first = logprobs(1);
  ExpectSame(logprobs(1), first, true, "the same seed");
  EXPECT_NE(Logprobs(logprobs(2)[0][0]), Logprobs(first[0][0]));
}

}  // namespace
}  // namespace fabricast
