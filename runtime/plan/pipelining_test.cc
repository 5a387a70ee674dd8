// The rules by hand, on a GPU without overheads: 1 TB/s and 100 TFLOP/s, so that a matrix in BF16
// is bound by reading it up to 100 tokens and by arithmetic beyond.
#include "runtime/plan/pipelining.h"

#include <vector>

#include "absl/status/statusor.h"
#include "gtest/gtest.h"
#include "runtime/model/model.h"
#include "topology/calibration.pb.h"
#include "topology/cluster.pb.h"

namespace fabricast {
namespace {

// A layer: 1024 x 3072 + 1024 x 1024 + 1024 x 8192 + 4096 x 1024 = 2^24 weights of 2 B, 33.55 us to
// read; 2 x 2^24 operations a token, 0.3355 us.
constexpr double kLayerReadUs = 33.554432;
constexpr double kLayerTokenUs = 0.33554432;

Model TwelveLayers() {
  absl::StatusOr<Model> model = ParseModelConfig("twelve.json", R"({
      "architectures": ["LlamaForCausalLM"], "hidden_size": 1024, "intermediate_size": 4096,
      "num_hidden_layers": 12, "num_attention_heads": 8, "num_key_value_heads": 8,
      "vocab_size": 32000, "max_position_embeddings": 131072})");
  if (!model.ok()) ADD_FAILURE() << model.status();
  return *std::move(model);
}

// Attention and elementwise operators take next to nothing.
std::vector<StageCost> Stages(const std::vector<int>& layers, double overhead_us = 0) {
  GpuSpec gpu;
  gpu.set_memory_bandwidth_gb_s(1000);
  gpu.set_bf16_tflops(100);
  KernelCalibration kernels;
  const auto flat = [](double efficiency, auto& curve) {
    EfficiencyPoint& point = *curve.add_points();
    point.set_x(1);
    point.set_efficiency(efficiency);
  };
  GemmCurve& gemm = *kernels.add_gemms();
  gemm.set_weight_format("bf16");
  gemm.set_overhead_us(overhead_us);
  flat(1, gemm);
  flat(1e9, *kernels.mutable_decode_attention());
  flat(1e9, *kernels.mutable_prefill_attention());
  kernels.set_elementwise_efficiency(1e9);
  std::vector<StageCost> stages;
  int first = 0;
  for (int count : layers) {
    stages.emplace_back(TwelveLayers(), gpu, kernels,
                        StageCostOptions{.first_layer = first, .num_layers = count});
    first += count;
  }
  return stages;
}

auto Between(double us) {
  return [us](int64_t) { return us * 1e-6; };
}

TEST(RequestSecondsTest, IsTheShareOfDecodesAndTheChunksOfThePrompt) {
  const StageCost stage = Stages({3}).front();
  // 4 requests in 2 micro-batches: each output token is half of one.
  EXPECT_NEAR(
      RequestSeconds(stage, {.requests = 4, .context = 100, .prompt = 0, .output = 10}, 2, 512),
      10 * 3 * kLayerReadUs * 1e-6 / 2, 1e-9);
  // 1,000 tokens in chunks of 400: 2.5 chunks.
  EXPECT_NEAR(
      RequestSeconds(stage, {.requests = 4, .context = 100, .prompt = 1000, .output = 10}, 2, 400),
      (10 * 3 * kLayerReadUs / 2 + 3 * 1000 * kLayerTokenUs) * 1e-6, 1e-9);
  // A prompt shorter than a chunk is one of its own, bound by reading.
  EXPECT_NEAR(
      RequestSeconds(stage, {.requests = 1, .context = 100, .prompt = 10, .output = 1}, 1, 400),
      2 * 3 * kLayerReadUs * 1e-6, 1e-9);
}

TEST(ChooseMicroBatchesTest, MoreThanStagesWouldReadTheWeightsOnceMore) {
  // 3 x 100.7 us + 20 us in a round of three; a fourth would make it 4 x 100.7 us.
  const MicroBatchChoice choice =
      ChooseMicroBatches(Stages({3, 3, 3}), {.requests = 12, .context = 100}, Between(20));
  EXPECT_EQ(choice.micro_batches, 3);
  EXPECT_EQ(choice.decodes, 4);
  EXPECT_NEAR(choice.token_s, (9 * kLayerReadUs + 20) * 1e-6, 1e-9);
}

TEST(ChooseMicroBatchesTest, OneMoreHidesTheMessagesWhereArithmeticBounds) {
  // 3,000 decodes as 3 x 1,000 or 4 x 750 are the same work; only with four does it hide 20 us.
  const MicroBatchChoice choice =
      ChooseMicroBatches(Stages({3, 3, 3}), {.requests = 3000, .context = 100}, Between(20));
  EXPECT_EQ(choice.micro_batches, 4);
  EXPECT_NEAR(choice.token_s, 3000 * 3 * kLayerTokenUs * 1e-6, 1e-8);
}

TEST(ChooseMicroBatchesTest, ASlowStageHidesTheMessagesToo) {
  // The slowest of 4, 3 and 3 layers is busy for 12 layers a round, the way of one micro-batch
  // takes 10 layers = 335.5 us and 30 us.
  const MicroBatchChoice choice =
      ChooseMicroBatches(Stages({4, 3, 3}), {.requests = 3000, .context = 100}, Between(30));
  EXPECT_EQ(choice.micro_batches, 3);
  EXPECT_NEAR(choice.token_s, 3 * choice.slowest_s, 1e-12);
}

TEST(ChooseMicroBatchesTest, ALoneRequestStillGetsOneAStageForItsPrompt) {
  const MicroBatchChoice choice =
      ChooseMicroBatches(Stages({3, 3, 3}), {.requests = 1, .context = 100}, Between(20));
  EXPECT_EQ(choice.micro_batches, 3);
  EXPECT_EQ(choice.decodes, 1);
}

TEST(ChooseMicroBatchesTest, SlowMessagesTakeAsManyAsHideThemAndNoMoreThanRequests) {
  // In a round of 3,000 decodes bound by arithmetic, messages take 0.4 of the slowest stage's time.
  // It never waits from m with 3 / m + 0.4 <= 1 on: 5.
  const double round_us = 3000 * 3 * kLayerTokenUs;
  EXPECT_EQ(ChooseMicroBatches(Stages({3, 3, 3}), {.requests = 3000, .context = 100},
                               Between(0.4 * round_us))
                .micro_batches,
            5);
  // Bound by reading, messages of 4 stage times of 100.7 us: the fourth costs nothing, 7 stage
  // times pass either way, but there are only 4 requests.
  const MicroBatchChoice few = ChooseMicroBatches(
      Stages({3, 3, 3}), {.requests = 4, .context = 100}, Between(4 * 3 * kLayerReadUs));
  EXPECT_EQ(few.micro_batches, 3);  // the fewest of equals
  EXPECT_NEAR(few.token_s, 7 * 3 * kLayerReadUs * 1e-6, 1e-9);
}

TEST(ChooseChunkTest, TheShortestBeyondTheRidgeFillsThePipelineFirst) {
  // 64 tokens take as long as 100. 8,192 in chunks of 128 on three stages: 63 + 3 chunks in a row
  // against 3 x 64.
  const ChunkChoice choice =
      ChooseChunk(Stages({3, 3, 3}), {.requests = 1, .context = 100, .prompt = 8192}, 2048);
  EXPECT_EQ(choice.tokens, 128);
  EXPECT_NEAR(choice.rate_fraction, 1, 1e-9);
  EXPECT_NEAR(choice.ttft_s, 66 * 128 * 3 * kLayerTokenUs * 1e-6, 1e-9);
  EXPECT_NEAR(choice.ttft_s / choice.unchunked_s, 66.0 / 192, 1e-6);
  // Without a prompt the same, and no time.
  const ChunkChoice any = ChooseChunk(Stages({3, 3, 3}), {}, 2048);
  EXPECT_EQ(any.tokens, 128);
  EXPECT_EQ(any.ttft_s, 0);
}

TEST(ChooseChunkTest, OverheadsMakeChunksLonger) {
  // A layer's four matrices on c tokens: 0.3355 c + 4 x 2 us. Of the rate of 2,048, 512 tokens have
  // 0.967 and 256 have 0.925.
  const double of_512 = 512 / (512 * kLayerTokenUs + 8);
  const double of_2048 = 2048 / (2048 * kLayerTokenUs + 8);
  const ChunkChoice choice =
      ChooseChunk(Stages({3, 3, 3}, 2), {.requests = 1, .context = 100, .prompt = 8192}, 2048);
  EXPECT_EQ(choice.tokens, 512);
  EXPECT_NEAR(choice.rate_fraction, of_512 / of_2048, 1e-6);
  // One stage has nothing to fill: the fewest chunks.
  EXPECT_EQ(
      ChooseChunk(Stages({9}, 2), {.requests = 1, .context = 100, .prompt = 8192}, 2048).tokens,
      2048);
}

TEST(ChooseChunkTest, NeverExceedsTheMost) {
  EXPECT_EQ(ChooseChunk(Stages({3, 3}), {}, 40).tokens, 40);
  EXPECT_EQ(ChooseChunk(Stages({3, 3}), {}, 100).tokens, 100);
}

}  // namespace
}  // namespace fabricast
