// Times by hand: a GPU of 1 GB/s and 4 GFLOP/s, so that a megabyte takes a millisecond and a matrix
// product turns from reading to arithmetic at 4 tokens.
#include "runtime/cost/stage_cost.h"

#include <cmath>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "runtime/model/model.h"
#include "topology/topology.h"

namespace fabricast {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr double kMs = 1e-3;
constexpr double kUs = 1e-6;

GpuSpec RoundGpu() {
  GpuSpec gpu;
  gpu.set_memory_bandwidth_gb_s(1);
  gpu.set_bf16_tflops(0.004);
  return gpu;
}

// Efficiency 1 everywhere; every overhead has a decimal of its own, so that a sum shows its parts.
KernelCalibration RoundKernels() {
  KernelCalibration kernels;
  kernels.set_name("round");
  for (const char* format : {"bf16", "int4"}) {
    GemmCurve& curve = *kernels.add_gemms();
    curve.set_weight_format(format);
    curve.set_overhead_us(1);
    EfficiencyPoint& point = *curve.add_points();
    point.set_x(1);
    point.set_efficiency(1);
  }
  kernels.mutable_decode_attention()->set_overhead_us(10);
  kernels.mutable_prefill_attention()->set_overhead_us(100);
  kernels.set_elementwise_efficiency(1);
  kernels.set_elementwise_overhead_us(1000);
  kernels.set_step_overhead_us(10000);
  kernels.set_sampling_us(5000);
  return kernels;
}

LayerKind Layer(int64_t columns, WeightFormat format = WeightFormat::kBf16) {
  return {.name = "layer",
          .operators = {
              // 4,000 B a token: 4 us.
              ElementwiseOp{.name = "norm", .elements_per_token = 2000, .weight_elements = 0},
              // With 1,000 columns in BF16: 2 MB of weights are read in 2 ms; a token takes
              // 2 x 1e6 operations: 0.5 ms.
              LinearOp{.name = "square", .in = 1000, .out = columns, .format = format},
              // A token of KV cache: 2 (K, V) x 2 heads x 10 x 2 B = 80 B. A token and one that it
              // attends to: 2 (Q K^T, P V) x 2 x 8 heads x 10 = 320 operations.
              AttentionOp{.heads = 8, .kv_heads = 2, .head_dim = 10},
          }};
}

// Four equal layers.
Model TinyModel() {
  Model model;
  model.name = "tiny";
  model.hidden = 1000;  // 2,000 B a token between stages
  model.vocabulary = 5000;
  model.max_context = 1000;
  model.kinds = {Layer(1000)};
  model.layers = {0, 0, 0, 0};
  model.embedding_bytes = 10'000'000;
  model.lm_head_bytes = 10'000'000;
  return model;
}

// Two of the tiny model's layers in the middle of a pipeline.
StageCost InnerStage(const KernelCalibration& kernels = RoundKernels()) {
  return StageCost(TinyModel(), RoundGpu(), kernels, {.first_layer = 1, .num_layers = 2});
}

StageCost LastStage() {
  return StageCost(TinyModel(), RoundGpu(), RoundKernels(),
                   {.first_layer = 2, .num_layers = 2, .lm_head = true});
}

void SetPoints(std::vector<std::pair<double, double>> points,
               google::protobuf::RepeatedPtrField<EfficiencyPoint>& curve) {
  curve.Clear();
  for (const auto& [x, efficiency] : points) {
    EfficiencyPoint& point = *curve.Add();
    point.set_x(x);
    point.set_efficiency(efficiency);
  }
}

TEST(BatchShapeTest, DecodesReadTheirContextAndChunksAttendToWhatCameBefore) {
  MicroBatch micro_batch;
  micro_batch.entries = {
      {.request = 1, .first_token = 99, .tokens = 1, .decode = true, .samples = true},
      {.request = 2, .first_token = 9, .tokens = 1, .decode = true, .samples = true},
      // The middle of a prompt, then a whole one of 3 tokens.
      {.request = 3, .first_token = 512, .tokens = 256, .decode = false, .samples = false},
      {.request = 4, .first_token = 0, .tokens = 3, .decode = false, .samples = true},
  };
  const BatchShape shape = BatchShape::Of(micro_batch);
  EXPECT_EQ(shape.tokens, 1 + 1 + 256 + 3);
  EXPECT_EQ(shape.sampled, 3);
  EXPECT_EQ(shape.decodes, 2);
  // The caches hold 99 and 9 tokens; each decode adds its own.
  EXPECT_EQ(shape.decode_context, 100 + 10);
  // 513 + 514 + ... + 768 = 256 x 512 + 256 x 257 / 2; 1 + 2 + 3.
  EXPECT_THAT(shape.chunks_attended, ElementsAre(131072 + 32896, 6));
}

TEST(BatchShapeTest, DecodeAndPrefillAreMicroBatchesInShort) {
  MicroBatch decodes;
  for (RequestId request : {1, 2, 3}) {
    decodes.entries.push_back(
        {.request = request, .first_token = 49, .tokens = 1, .decode = true, .samples = true});
  }
  const BatchShape of_decodes = BatchShape::Of(decodes);
  const BatchShape decode = BatchShape::Decode(3, 50);
  EXPECT_EQ(decode.tokens, of_decodes.tokens);
  EXPECT_EQ(decode.sampled, of_decodes.sampled);
  EXPECT_EQ(decode.decodes, of_decodes.decodes);
  EXPECT_EQ(decode.decode_context, of_decodes.decode_context);
  EXPECT_THAT(decode.chunks_attended, IsEmpty());

  MicroBatch chunk;
  chunk.entries = {{.request = 1, .first_token = 4, .tokens = 8, .decode = false, .samples = true}};
  const BatchShape of_chunk = BatchShape::Of(chunk);
  const BatchShape prefill = BatchShape::Prefill(8, 4, true);
  EXPECT_EQ(prefill.tokens, of_chunk.tokens);
  EXPECT_EQ(prefill.sampled, of_chunk.sampled);
  EXPECT_EQ(prefill.decodes, 0);
  EXPECT_EQ(prefill.decode_context, 0);
  EXPECT_EQ(prefill.chunks_attended, of_chunk.chunks_attended);
  EXPECT_EQ(BatchShape::Prefill(8, 4, false).sampled, 0);
}

TEST(StageCostTest, AFewDecodesAreBoundByReadingWeights) {
  const ComputeTime time = InnerStage().Explain(BatchShape::Decode(3, 50));
  // 3 tokens would compute for 1.5 ms a layer, reading takes 2 ms; two layers.
  EXPECT_DOUBLE_EQ(time.weight_read_s(), 4 * kMs);
  EXPECT_EQ(time.matrix_compute_s(), 0);
  // 3 x 50 tokens x 80 B = 12,000 B: 12 us a layer.
  EXPECT_DOUBLE_EQ(time.decode_attention_s(), 24 * kUs);
  EXPECT_EQ(time.prefill_attention_s(), 0);
  // 3 tokens x 4 us + 1 ms, a layer.
  EXPECT_DOUBLE_EQ(time.elementwise_s(), 2 * (12 * kUs + 1 * kMs));
  EXPECT_EQ(time.collective_s(), 0);
  // The step, and in each layer a matrix product and a decode kernel.
  EXPECT_DOUBLE_EQ(time.overhead_s(), (10000 + 2 * 1 + 2 * 10) * kUs);
  EXPECT_DOUBLE_EQ(TotalSeconds(time), (4000 + 24 + 2024 + 10022) * kUs);
}

TEST(StageCostTest, APrefillChunkIsBoundByArithmetic) {
  const ComputeTime time = InnerStage().Explain(BatchShape::Prefill(8, 4, true));
  EXPECT_EQ(time.weight_read_s(), 0);
  // 8 tokens x 0.5 ms a layer.
  EXPECT_DOUBLE_EQ(time.matrix_compute_s(), 8 * kMs);
  EXPECT_EQ(time.decode_attention_s(), 0);
  // 5 + 6 + ... + 12 = 68 pairs x 320 operations / 4e9 = 5.44 us a layer.
  EXPECT_DOUBLE_EQ(time.prefill_attention_s(), 2 * 5.44 * kUs);
  EXPECT_DOUBLE_EQ(time.elementwise_s(), 2 * (32 * kUs + 1 * kMs));
  EXPECT_DOUBLE_EQ(time.overhead_s(), (10000 + 2 * 1 + 2 * 100) * kUs);
}

TEST(StageCostTest, ReadingAndArithmeticCrossAtFourTokens) {
  const StageCost stage = InnerStage();
  // 4 x 0.5 ms = 2 ms: as long as reading, and counted as that.
  EXPECT_DOUBLE_EQ(stage.Explain(BatchShape::Decode(4, 1)).weight_read_s(), 4 * kMs);
  EXPECT_EQ(stage.Explain(BatchShape::Decode(4, 1)).matrix_compute_s(), 0);
  EXPECT_EQ(stage.Explain(BatchShape::Decode(5, 1)).weight_read_s(), 0);
  EXPECT_DOUBLE_EQ(stage.Explain(BatchShape::Decode(5, 1)).matrix_compute_s(), 5 * kMs);
}

TEST(StageCostTest, WeightsInInt4AreReadFasterAndComputedAlike) {
  Model model = TinyModel();
  model.kinds = {Layer(1000, WeightFormat::kInt4Group128)};
  model.layer_format = WeightFormat::kInt4Group128;
  const StageCost stage(model, RoundGpu(), RoundKernels(), {.first_layer = 0, .num_layers = 1});
  // 500,000 B of weights; scales and zeros of 8 groups (of 128; the last has 104) x 1,000 columns x
  // 2.5 B.
  EXPECT_DOUBLE_EQ(stage.Explain(BatchShape::Decode(1, 1)).weight_read_s(), 0.52 * kMs);
  EXPECT_DOUBLE_EQ(stage.Explain(BatchShape::Decode(2, 1)).matrix_compute_s(), 2 * 0.5 * kMs);
}

TEST(StageCostTest, LayersCostWhatTheirKindCosts) {
  Model model = TinyModel();
  model.kinds = {Layer(1000), Layer(3000)};
  model.layers = {0, 0, 1, 1};
  const auto read_s = [&](int first, int layers) {
    return StageCost(model, RoundGpu(), RoundKernels(),
                     {.first_layer = first, .num_layers = layers})
        .Explain(BatchShape::Decode(1, 1))
        .weight_read_s();
  };
  EXPECT_DOUBLE_EQ(read_s(0, 2), (2 + 2) * kMs);
  EXPECT_DOUBLE_EQ(read_s(1, 2), (2 + 6) * kMs);
  EXPECT_DOUBLE_EQ(read_s(2, 2), (6 + 6) * kMs);
}

TEST(StageCostTest, AttentionOfAChunkGrowsWithItsSquare) {
  const StageCost stage = InnerStage();
  const auto attention_s = [&](int64_t tokens, int64_t past) {
    return stage.Explain(BatchShape::Prefill(tokens, past, false)).prefill_attention_s();
  };
  // 1 + 2 + ... + n pairs: 5,050 of 100 tokens, 20,100 of 200.
  EXPECT_DOUBLE_EQ(attention_s(200, 0) / attention_s(100, 0), 20100.0 / 5050);
  // The second half of a prompt is what the whole has over the first.
  EXPECT_DOUBLE_EQ(attention_s(100, 100), attention_s(200, 0) - attention_s(100, 0));
}

TEST(StageCostTest, TwoChunksAreTwoKernelsEachAtItsOwnEfficiency) {
  KernelCalibration kernels = RoundKernels();
  // 68 pairs are 21,760 operations; twice that would run at twice the efficiency.
  SetPoints({{21760, 0.25}, {43520, 0.5}}, *kernels.mutable_prefill_attention()->mutable_points());
  const StageCost stage = InnerStage(kernels);
  BatchShape two = BatchShape::Prefill(8, 4, true);
  two.tokens = 16;
  two.chunks_attended.push_back(two.chunks_attended.front());
  const ComputeTime time = stage.Explain(two);
  // 5.44 us / 0.25, twice a layer.
  EXPECT_DOUBLE_EQ(time.prefill_attention_s(), 2 * 2 * 5.44 * kUs / 0.25);
  EXPECT_DOUBLE_EQ(time.overhead_s(), (10000 + 2 * 1 + 2 * 2 * 100) * kUs);
}

TEST(StageCostTest, AMixedMicroBatchPaysForDecodesAndChunks) {
  BatchShape mixed = BatchShape::Decode(3, 50);
  mixed.tokens += 8;
  mixed.chunks_attended = BatchShape::Prefill(8, 4, true).chunks_attended;
  const ComputeTime time = InnerStage().Explain(mixed);
  // The matrices see all 11 tokens at once.
  EXPECT_DOUBLE_EQ(time.matrix_compute_s(), 2 * 11 * 0.5 * kMs);
  EXPECT_DOUBLE_EQ(time.decode_attention_s(), 24 * kUs);
  EXPECT_DOUBLE_EQ(time.prefill_attention_s(), 2 * 5.44 * kUs);
  EXPECT_DOUBLE_EQ(time.overhead_s(), (10000 + 2 * 1 + 2 * 10 + 2 * 100) * kUs);
}

TEST(StageCostTest, OnlyTheLastStageMakesLogitsAndOnlyOfSampledRows) {
  const StageCost inner = InnerStage();
  const StageCost last = LastStage();
  // 1,000 x 5,000 x 2 B = 10 MB: 10 ms; a matrix product more, and the sampling.
  const BatchShape decode = BatchShape::Decode(3, 50);
  EXPECT_DOUBLE_EQ(last.Explain(decode).weight_read_s(),
                   inner.Explain(decode).weight_read_s() + 10 * kMs);
  EXPECT_DOUBLE_EQ(last.Explain(decode).overhead_s(),
                   inner.Explain(decode).overhead_s() + (1 + 5000) * kUs);
  // Of the 8 tokens of a prompt's last chunk only one is a row of lm_head: still bound by reading.
  const ComputeTime ends = last.Explain(BatchShape::Prefill(8, 4, true));
  EXPECT_DOUBLE_EQ(ends.weight_read_s(), 10 * kMs);
  EXPECT_DOUBLE_EQ(ends.matrix_compute_s(), 8 * kMs);
  // 5 rows of 1e7 operations: 12.5 ms, beside 5 tokens in two layers.
  EXPECT_DOUBLE_EQ(last.Explain(BatchShape::Decode(5, 1)).matrix_compute_s(), (12.5 + 5) * kMs);
  // A chunk that samples nothing costs the same on both.
  const BatchShape middle = BatchShape::Prefill(8, 4, false);
  EXPECT_EQ(TotalSeconds(last.Explain(middle)), TotalSeconds(inner.Explain(middle)));
}

TEST(StageCostTest, TheFirstStageLooksUpTheEmbedding) {
  const StageCost first(TinyModel(), RoundGpu(), RoundKernels(),
                        {.first_layer = 0, .num_layers = 2, .embedding = true});
  const BatchShape batch = BatchShape::Decode(3, 50);
  const ComputeTime with = first.Explain(batch);
  const ComputeTime without = InnerStage().Explain(batch);
  // A kernel more; 2,000 B read and 2,000 B written a token.
  EXPECT_DOUBLE_EQ(with.elementwise_s(), without.elementwise_s() + 1 * kMs + 3 * 4 * kUs);
  EXPECT_DOUBLE_EQ(TotalSeconds(with) - with.elementwise_s(),
                   TotalSeconds(without) - without.elementwise_s());
}

TEST(StageCostTest, TensorParallelismHalvesTheWorkAndAddsTwoAllReducesALayer) {
  double reduced_bytes = 0;
  double gathered_bytes = 0;
  const StageCost halves(TinyModel(), RoundGpu(), RoundKernels(),
                         {.first_layer = 2,
                          .num_layers = 2,
                          .lm_head = true,
                          .tensor_parallel = 2,
                          .all_reduce =
                              [&](double bytes) {
                                reduced_bytes = bytes;
                                return 7 * kUs;
                              },
                          .all_gather =
                              [&](double bytes) {
                                gathered_bytes = bytes;
                                return 11 * kUs;
                              }});
  const ComputeTime half = halves.Explain(BatchShape::Decode(3, 50));
  const ComputeTime whole = LastStage().Explain(BatchShape::Decode(3, 50));
  // Layers and lm_head, KV heads 1 instead of 2.
  EXPECT_DOUBLE_EQ(half.weight_read_s(), whole.weight_read_s() / 2);
  EXPECT_DOUBLE_EQ(half.decode_attention_s(), whole.decode_attention_s() / 2);
  // 3 tokens x 1,000 in FP32; 2 layers x 2. Logits of 3 rows in FP32.
  EXPECT_EQ(reduced_bytes, 12'000);
  EXPECT_EQ(gathered_bytes, 3 * 5000 * 4);
  EXPECT_DOUBLE_EQ(half.collective_s(), (4 * 7 + 11) * kUs);
  EXPECT_EQ(half.overhead_s(), whole.overhead_s());

  const BatchShape chunk = BatchShape::Prefill(8, 4, false);
  EXPECT_DOUBLE_EQ(halves.Explain(chunk).matrix_compute_s(),
                   LastStage().Explain(chunk).matrix_compute_s() / 2);
  EXPECT_DOUBLE_EQ(halves.Explain(chunk).prefill_attention_s(),
                   LastStage().Explain(chunk).prefill_attention_s() / 2);
  EXPECT_EQ(reduced_bytes, 8 * 4000);
  // Nothing is sampled, nothing gathered.
  EXPECT_DOUBLE_EQ(halves.Explain(chunk).collective_s(), 4 * 7 * kUs);
}

TEST(StageCostTest, WithMoreGpusThanKvHeadsEachReadsAWholeHead) {
  const auto decode_s = [](int gpus) {
    return StageCost(TinyModel(), RoundGpu(), RoundKernels(),
                     {.first_layer = 0,
                      .num_layers = 2,
                      .tensor_parallel = gpus,
                      .all_reduce = [](double) { return 0; }})
        .Explain(BatchShape::Decode(3, 50))
        .decode_attention_s();
  };
  // 2 KV heads: 12 us a layer on one GPU, 6 us on two and no less on eight.
  EXPECT_DOUBLE_EQ(decode_s(2), 12 * kUs);
  EXPECT_DOUBLE_EQ(decode_s(8), 12 * kUs);
}

TEST(StageCostTest, AnEmptyBatchTakesNoTime) {
  EXPECT_EQ(TotalSeconds(LastStage().Explain(BatchShape())), 0);
}

TEST(StageCostTest, AGpuThatThrottlesComputesSlowerAndReadsAsFast) {
  GpuSpec throttled = RoundGpu();
  throttled.set_sustained_compute_fraction(0.8);
  const StageCost stage(TinyModel(), throttled, RoundKernels(),
                        {.first_layer = 1, .num_layers = 2});
  EXPECT_DOUBLE_EQ(stage.Explain(BatchShape::Decode(3, 50)).weight_read_s(), 4 * kMs);
  EXPECT_DOUBLE_EQ(stage.Explain(BatchShape::Prefill(8, 4, true)).matrix_compute_s(),
                   8 / 0.8 * kMs);
  EXPECT_DOUBLE_EQ(stage.Explain(BatchShape::Prefill(8, 4, true)).prefill_attention_s(),
                   2 * 5.44 / 0.8 * kUs);
}

TEST(StageCostTest, EfficiencyIsLinearInTheLogarithmAndConstantBeyondTheEnds) {
  KernelCalibration kernels = RoundKernels();
  SetPoints({{4, 1.0}, {16, 0.5}, {256, 0.25}}, *kernels.mutable_gemms(0)->mutable_points());
  const StageCost stage = InnerStage(kernels);
  const auto efficiency = [&](int64_t tokens) {
    const ComputeTime time = stage.Explain(BatchShape::Decode(tokens, 1));
    // Two layers of max(2 ms, tokens x 0.5 ms).
    return 2 * std::max(2.0, tokens * 0.5) * kMs / (time.weight_read_s() + time.matrix_compute_s());
  };
  EXPECT_DOUBLE_EQ(efficiency(1), 1.0);
  EXPECT_DOUBLE_EQ(efficiency(4), 1.0);
  EXPECT_DOUBLE_EQ(efficiency(8), 0.75);  // half of the way from log2 4 = 2 to log2 16 = 4
  EXPECT_DOUBLE_EQ(efficiency(16), 0.5);
  EXPECT_DOUBLE_EQ(efficiency(32), 0.4375);  // a quarter of the way from 4 to 8
  EXPECT_DOUBLE_EQ(efficiency(256), 0.25);
  EXPECT_DOUBLE_EQ(efficiency(4096), 0.25);
}

TEST(StageCostTest, EfficiencyOfDecodeAttentionGoesByTheBytesOfAllDecodes) {
  KernelCalibration kernels = RoundKernels();
  SetPoints({{8000, 0.5}, {32000, 1.0}}, *kernels.mutable_decode_attention()->mutable_points());
  const StageCost stage = InnerStage(kernels);
  // 200 tokens x 80 B = 16,000 B, half of the way: 16 us / 0.75 a layer, however many requests.
  EXPECT_DOUBLE_EQ(stage.Explain(BatchShape::Decode(1, 200)).decode_attention_s(),
                   2 * 16 / 0.75 * kUs);
  EXPECT_DOUBLE_EQ(stage.Explain(BatchShape::Decode(4, 50)).decode_attention_s(),
                   2 * 16 / 0.75 * kUs);
}

TEST(StageCostTest, ElementwiseKernelsRunAtTheirEfficiency) {
  KernelCalibration kernels = RoundKernels();
  kernels.set_elementwise_efficiency(0.5);
  // 3 tokens x 4 us / 0.5; the overhead stays.
  EXPECT_DOUBLE_EQ(InnerStage(kernels).Explain(BatchShape::Decode(3, 50)).elementwise_s(),
                   2 * (24 * kUs + 1 * kMs));
}

TEST(StageCostTest, MoreTokensAndMoreContextAreNeverCheaper) {
  const StageCost stage = LastStage();
  double last_decode_s = 0;
  double last_context_s = 0;
  double last_chunk_s = 0;
  double last_past_s = 0;
  for (int64_t n = 1; n <= 600; ++n) {
    const double decode_s = TotalSeconds(stage.Explain(BatchShape::Decode(n, 64)));
    const double context_s = TotalSeconds(stage.Explain(BatchShape::Decode(8, n)));
    const double chunk_s = TotalSeconds(stage.Explain(BatchShape::Prefill(n, 64, true)));
    const double past_s = TotalSeconds(stage.Explain(BatchShape::Prefill(64, n, true)));
    EXPECT_GT(decode_s, last_decode_s) << n;
    EXPECT_GT(context_s, last_context_s) << n;
    EXPECT_GT(chunk_s, last_chunk_s) << n;
    EXPECT_GT(past_s, last_past_s) << n;
    last_decode_s = decode_s;
    last_context_s = context_s;
    last_chunk_s = chunk_s;
    last_past_s = past_s;
  }
}

TEST(StageCostTest, TheSameBatchTakesTheSameTimeInAnyOrder) {
  const StageCost asked_before = LastStage();
  for (int64_t n : {600, 1, 64}) asked_before.Explain(BatchShape::Decode(n, 10));
  for (int64_t n : {1, 2, 64, 600}) {
    EXPECT_EQ(TotalSeconds(asked_before.Explain(BatchShape::Decode(n, 10))),
              TotalSeconds(LastStage().Explain(BatchShape::Decode(n, 10))));
  }
}

TEST(CheckCalibrationTest, NamesTheCurveThatIsMissing) {
  KernelCalibration kernels = RoundKernels();
  Model model = TinyModel();
  EXPECT_TRUE(CheckCalibration(model, kernels).ok());

  model.layer_format = WeightFormat::kFp8;
  const absl::Status no_fp8 = CheckCalibration(model, kernels);
  EXPECT_EQ(no_fp8.code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(no_fp8.message(),
            "calibration round: no curve for fp8 weights, which tiny has: add a `gemms` entry with "
            "weight_format: \"fp8\"");

  // Layers in INT4 have their curve, but lm_head is BF16 whatever the layers are.
  model.layer_format = WeightFormat::kInt4Group128;
  kernels.mutable_gemms()->DeleteSubrange(0, 1);
  const absl::Status no_bf16 = CheckCalibration(model, kernels);
  EXPECT_EQ(no_bf16.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(no_bf16.message()), HasSubstr("no curve for bf16 weights"));
  model.lm_head_bytes = 0;
  EXPECT_TRUE(CheckCalibration(model, kernels).ok());
}

TEST(StageCostDeathTest, LayersBeyondTheModelAndMissingAllReducesAreBugs) {
  EXPECT_DEATH(
      StageCost(TinyModel(), RoundGpu(), RoundKernels(), {.first_layer = 3, .num_layers = 2}),
      "layers 3\\+2 of 4");
  EXPECT_DEATH(StageCost(TinyModel(), RoundGpu(), RoundKernels(),
                         {.first_layer = 0, .num_layers = 2, .tensor_parallel = 2}),
               "tensor_parallel=2");
}

// The paper's pipeline: Llama 3.1 405B in INT4, 42 layers on each of three GPUs.
class TrinityTest : public ::testing::Test {
 protected:
  void SetUp() override {
    absl::StatusOr<Topology> topology = Topology::Load("trinity_200g");
    ASSERT_TRUE(topology.ok()) << topology.status();
    absl::StatusOr<Model> model = LoadModel("llama-3.1-405b-instruct-awq-int4");
    ASSERT_TRUE(model.ok()) << model.status();
    for (int s = 0; s < 3; ++s) {
      stages_.emplace_back(
          *model, topology->gpus()[s].spec, topology->kernels(s),
          StageCostOptions{
              .first_layer = 42 * s, .num_layers = 42, .embedding = s == 0, .lm_head = s == 2});
    }
  }

  std::vector<StageCost> stages_;
};

TEST_F(TrinityTest, OneTokenTakesALittleLongerThanReadingTheWeights) {
  double token_s = 0;
  double weight_read_s = 0;
  for (const StageCost& stage : stages_) {
    const ComputeTime time = stage.Explain(BatchShape::Decode(1, 2048));
    token_s += TotalSeconds(time);
    weight_read_s += time.weight_read_s();
  }
  // A layer has 16,384 x (18,432 + 16,384 + 106,496) + 53,248 x 16,384 = 3.188e9 weights of
  // 4.15625 bits: 1.656 GB. 126 of them and lm_head's 16,384 x 128,256 x 2 B = 4.20 GB are 212.9
  // GB, which 1.792 TB/s read in 118.8 ms.
  EXPECT_GT(weight_read_s, 0.1187);
  EXPECT_GT(token_s, 0.119);
  EXPECT_LT(token_s, 0.160);
  EXPECT_GT(weight_read_s / token_s, 0.8);
}

TEST_F(TrinityTest, AChunkOf2048TokensTakesMoreThanASecondAStage) {
  std::vector<double> seconds;
  for (const StageCost& stage : stages_) {
    const ComputeTime time = stage.Explain(BatchShape::Prefill(2048, 0, true));
    // 42 x 2 x 3.188e9 x 2,048 = 548e12 operations: 1.09 s at the peak of 503.8 TFLOP/s, which no
    // kernel reaches.
    EXPECT_GT(time.matrix_compute_s(), 1.2);
    EXPECT_LT(TotalSeconds(time), 3);
    seconds.push_back(TotalSeconds(time));
  }
  // The Max-Q sustains 440.5 x 0.8 = 352 of the Workstation's 503.8 TFLOP/s.
  EXPECT_NEAR(seconds[2] / seconds[1], 503.8 / (440.5 * 0.8), 0.03);
}

// One layer of 4 experts of which a token goes through 2: gate_up of 2 MB, down of 1 MB each.
Model ExpertsModel(WeightFormat format = WeightFormat::kBf16) {
  Model model = TinyModel();
  model.layer_format = format;
  model.kinds = {{.name = "experts",
                  .operators = {RoutedExpertsOp{
                      .experts = 4, .per_token = 2, .in = 1000, .ffn = 500, .format = format}}}};
  model.layers = {0};
  return model;
}

ComputeTime OfExperts(int64_t tokens, const KernelCalibration& kernels = RoundKernels()) {
  return StageCost(ExpertsModel(), RoundGpu(), kernels, {.first_layer = 0, .num_layers = 1})
      .Explain(BatchShape::Decode(tokens, 1));
}

TEST(RoutedExpertsTest, OnlyTheExpertsTouchedAreRead) {
  // One token touches 2, two touch 4 (1 - 1/4) = 3, three 3.5 in expectation; 3 ms each.
  EXPECT_DOUBLE_EQ(OfExperts(1).weight_read_s(), 2 * 3 * kMs);
  EXPECT_DOUBLE_EQ(OfExperts(2).weight_read_s(), 3 * 3 * kMs);
  EXPECT_DOUBLE_EQ(OfExperts(3).weight_read_s(), 3.5 * 3 * kMs);
  EXPECT_EQ(OfExperts(3).matrix_compute_s(), 0);
  // Two grouped kernels and the step.
  EXPECT_DOUBLE_EQ(OfExperts(3).overhead_s(), (10000 + 2 * 1) * kUs);
}

TEST(RoutedExpertsTest, ArithmeticIsThatOfTheExpertsATokenGoesThrough) {
  // 2 experts x 2 x 1.5e6 operations at 4e9 a second: 1.5 ms a token. 16 tokens take 24 ms, reading
  // all 4 experts 12.
  EXPECT_DOUBLE_EQ(OfExperts(16).matrix_compute_s(), 16 * 1.5 * kMs);
  EXPECT_EQ(OfExperts(16).weight_read_s(), 0);
  // The two meet at 2 n = 4 touched: 7.97 tokens.
  EXPECT_GT(OfExperts(7).weight_read_s(), 0);
  EXPECT_GT(OfExperts(8).matrix_compute_s(), 0);
}

TEST(RoutedExpertsTest, EfficiencyIsThatOfTheRowsAnExpertGets) {
  KernelCalibration kernels = RoundKernels();
  SetPoints({{1, 1}, {4, 0.5}}, *kernels.mutable_gemms(0)->mutable_points());
  // One token: a row in each of the two.
  EXPECT_DOUBLE_EQ(OfExperts(1, kernels).weight_read_s(), 6 * kMs);
  // Two tokens: 4 rows over 3 experts, log2(4/3) of the way of log2(4) from 1 to 0.5.
  EXPECT_DOUBLE_EQ(OfExperts(2, kernels).weight_read_s(),
                   9 * kMs / (1 - 0.5 * std::log2(4.0 / 3) / 2));
  // 16 tokens: 32 rows over almost 4 experts are beyond the curve's end.
  EXPECT_DOUBLE_EQ(OfExperts(16, kernels).matrix_compute_s(), 24 * kMs / 0.5);
}

TEST(RoutedExpertsTest, TensorParallelismHalvesEveryExpert) {
  const StageCost halves(
      ExpertsModel(), RoundGpu(), RoundKernels(),
      {.first_layer = 0, .num_layers = 1, .tensor_parallel = 2, .all_reduce = [](double) {
         return 0;
       }});
  EXPECT_DOUBLE_EQ(halves.Explain(BatchShape::Decode(2, 1)).weight_read_s(), 9 * kMs / 2);
}

TEST(StageCostTest, Float32ActivationsMoveTwiceTheBytes) {
  const Model full = WithActivationBytes(TinyModel(), 4);
  const StageCostOptions options{.first_layer = 0, .num_layers = 2, .embedding = true};
  const BatchShape batch = BatchShape::Decode(3, 50);
  const ComputeTime half =
      StageCost(TinyModel(), RoundGpu(), RoundKernels(), options).Explain(batch);
  const ComputeTime twice = StageCost(full, RoundGpu(), RoundKernels(), options).Explain(batch);
  EXPECT_DOUBLE_EQ(twice.decode_attention_s(), 2 * half.decode_attention_s());
  // 3 tokens x (2 layers x 4,000 B + 4,000 B of embedding) more; kernels cost 1 ms each as before.
  EXPECT_DOUBLE_EQ(twice.elementwise_s(), half.elementwise_s() + 3 * 12 * kUs);
  EXPECT_EQ(twice.weight_read_s(), half.weight_read_s());
}

}  // namespace
}  // namespace fabricast
