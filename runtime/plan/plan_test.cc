// The paper's deployment in bytes, what is refused and with which way out, and splits against all
// others.
#include "runtime/plan/plan.h"

#include <algorithm>
#include <deque>
#include <limits>
#include <memory>
#include <numeric>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace fabricast {
namespace {

using ::testing::AllOf;
using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::Ge;
using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::SizeIs;
using ::testing::StartsWith;

constexpr char k405bInt4[] = "llama-3.1-405b-instruct-awq-int4";
constexpr char k1b[] = "llama-3.2-1b-instruct";  // 16 layers, tied embeddings

Topology Cluster(const std::string& name, const std::vector<Override>& overrides = {}) {
  absl::StatusOr<Topology> topology = Topology::Load(name, overrides);
  if (!topology.ok()) ADD_FAILURE() << topology.status();
  return *std::move(topology);
}

Model ModelOf(const std::string& name, const std::string& quantization = "") {
  absl::StatusOr<Model> model = LoadModel(name, quantization);
  if (!model.ok()) ADD_FAILURE() << model.status();
  return *std::move(model);
}

Plan MustPlan(const Topology& topology, const Model& model, const PlanOptions& options = {}) {
  absl::StatusOr<Plan> plan = MakePlan(topology, model, options);
  if (!plan.ok()) ADD_FAILURE() << plan.status();
  return *std::move(plan);
}

PlanOptions WithSplit(absl::string_view split) {
  PlanOptions options;
  const absl::Status status = ParseSplit(split, options);
  EXPECT_TRUE(status.ok()) << status;
  return options;
}

std::vector<int> LayersOf(const Plan& plan) {
  std::vector<int> layers;
  for (const Stage& stage : plan.stages) layers.push_back(stage.num_layers);
  return layers;
}

std::string Refusal(const Topology& topology, const Model& model, const PlanOptions& options,
                    absl::StatusCode code) {
  const absl::Status status = MakePlan(topology, model, options).status();
  EXPECT_EQ(status.code(), code) << status;
  return std::string(status.message());
}

double SlowestSeconds(const Topology& topology, const Model& model, const Plan& plan,
                      const BatchShape& batch) {
  double slowest_s = 0;
  for (size_t s = 0; s < plan.stages.size(); ++s) {
    const StageCost cost = MakeStageCost(topology, model, plan, static_cast<int>(s));
    slowest_s = std::max(slowest_s, TotalSeconds(cost.Explain(batch)));
  }
  return slowest_s;
}

// What stages are balanced for: a token of each of 8 requests at 2,048 tokens; the last chunk of a
// prompt after 2,048.
const BatchShape kDecode = BatchShape::Decode(8, 2048);
const BatchShape kPrefill = BatchShape::Prefill(PlanOptions().max_chunk_tokens, 2048, true);

TEST(TrinityPlanTest, SplitsThe405BIntoThreeTimes42LayersAsThePaperDoes) {
  const Plan plan = MustPlan(Cluster("trinity_200g"), ModelOf(k405bInt4));
  EXPECT_THAT(LayersOf(plan), ElementsAre(42, 42, 42));
  EXPECT_EQ(plan.stages[1].first_layer, 42);
  EXPECT_EQ(plan.stages[2].first_layer, 84);
  EXPECT_THAT(plan.stages[2].gpus, ElementsAre(2));
  EXPECT_TRUE(plan.stages[0].embedding);
  EXPECT_FALSE(plan.stages[0].lm_head);
  EXPECT_FALSE(plan.stages[2].embedding);
  EXPECT_TRUE(plan.stages[2].lm_head);
  // One micro-batch a stage.
  EXPECT_EQ(plan.scheduler.max_in_flight, 3);
}

TEST(TrinityPlanTest, WeightsTake72GBAGpuAndLeave24) {
  const Plan plan = MustPlan(Cluster("trinity_200g"), ModelOf(k405bInt4));
  // A layer: 16,384 x (18,432 + 16,384 + 106,496) + 53,248 x 16,384 = 3,187,671,040 weights of
  // 4.15625 bits = 1,656,094,720 B, and two norms of 32,768 B. Embedding and lm_head: 128,256 x
  // 16,384 x 2 B = 4,202,692,608 each; the final norm another 32,768 B.
  constexpr int64_t kLayers = 42 * (int64_t{1'656'094'720} + 2 * 32'768);
  constexpr int64_t kTable = 4'202'692'608;
  EXPECT_EQ(plan.stages[0].memory.weights, kLayers + kTable);           // 73.8 GB
  EXPECT_EQ(plan.stages[1].memory.weights, kLayers);                    // 69.6 GB
  EXPECT_EQ(plan.stages[2].memory.weights, kLayers + kTable + 32'768);  // 73.8 GB
  int64_t sum = 0;
  for (const Stage& stage : plan.stages) {
    sum += stage.memory.weights;
    EXPECT_EQ(stage.memory.capacity, 96'000'000'000);
  }
  EXPECT_EQ(sum, ModelOf(k405bInt4).weight_bytes());
  // The paper: about 72 GB of weights on each GPU, about 24 GB left.
  EXPECT_NEAR(sum / 3e9, 72.4, 0.1);
  EXPECT_NEAR(96 - sum / 3e9, 24, 0.5);
}

TEST(TrinityPlanTest, TheKvCacheGetsWhatTheFullestStageHasLeft) {
  const Plan plan = MustPlan(Cluster("trinity_200g"), ModelOf(k405bInt4));
  // A token: input, residual, normed input and output of 32,768 B, and both sides of gate_up, 2 x
  // (16,384 + 106,496): 376,832 B. The last stage: 256 rows of 128,256 logits in FP32.
  EXPECT_EQ(plan.stages[0].memory.activations, 2048 * 376'832);
  EXPECT_EQ(plan.stages[2].memory.activations, 2048 * 376'832 + 256 * 128'256 * 4);
  EXPECT_EQ(plan.stages[2].memory.reserve, 2'000'000'000);
  // 2 x 8 KV heads x 128 x 2 B = 4,096 B a layer.
  EXPECT_EQ(plan.stages[2].memory.kv_bytes_per_token, 42 * 4096);
  // 96e9 - 73,761,456,128 - 903,086,080 - 2e9.
  EXPECT_EQ(plan.stages[2].memory.left(), 19'335'457'792);
  // A block: 16 x 172,032 = 2,752,512 B. 19,335,457,792 / 2,752,512 = 7024.7.
  EXPECT_EQ(plan.scheduler.kv_blocks, 7024);
  EXPECT_EQ(plan.kv_tokens(), 7024 * 16);
}

TEST(TrinityPlanTest, OptionsOfTheSchedulerGoThrough) {
  PlanOptions options;
  options.max_in_flight = 7;
  options.max_batch_tokens = 1024;
  options.max_chunk_tokens = 256;
  options.max_running = 20;
  options.kv_block_tokens = 32;
  options.kv_blocks = 100;
  const Plan plan = MustPlan(Cluster("trinity_200g"), ModelOf(k405bInt4), options);
  EXPECT_EQ(plan.scheduler.max_in_flight, 7);
  EXPECT_EQ(plan.scheduler.max_batch_tokens, 1024);
  EXPECT_EQ(plan.scheduler.max_chunk_tokens, 256);
  EXPECT_EQ(plan.scheduler.max_running, 20);
  EXPECT_EQ(plan.scheduler.kv_block_tokens, 32);
  EXPECT_EQ(plan.scheduler.kv_blocks, 100);
  // Smaller micro-batches need less memory: 1,024 tokens, 20 rows of logits.
  EXPECT_EQ(plan.stages[2].memory.activations, 1024 * 376'832 + 20 * 128'256 * 4);

  options.kv_blocks = 1'000'000;
  EXPECT_THAT(Refusal(Cluster("trinity_200g"), ModelOf(k405bInt4), options,
                      absl::StatusCode::kResourceExhausted),
              AllOf(HasSubstr("--kv-blocks 1000000"), HasSubstr("blocks of 32 tokens fit")));
  options.kv_blocks = 0;
  options.max_chunk_tokens = 0;
  EXPECT_THAT(Refusal(Cluster("trinity_200g"), ModelOf(k405bInt4), options,
                      absl::StatusCode::kInvalidArgument),
              HasSubstr("--chunk-tokens 0"));
}

TEST(TrinityPlanTest, ThreeGpusCannotShareALayerAndThatIsSaidBeforeAnythingElse) {
  // In BF16 it would not fit either, but 128 heads over 3 is what has to change.
  PlanOptions options;
  options.tensor_parallel = {3};
  for (const char* quantization : {"", "bf16"}) {
    EXPECT_THAT(Refusal(Cluster("trinity_200g"), ModelOf("llama-3.1-405b-instruct", quantization),
                        options, absl::StatusCode::kInvalidArgument),
                HasSubstr("128 heads do not divide by 3: use 1, 2, 4 or 8"));
  }
}

TEST(TrinityPlanTest, The405BInBf16IsRefusedWithTheShortfallAndTheGpusItTakes) {
  const std::string refusal = Refusal(Cluster("trinity_200g"), ModelOf("llama-3.1-405b-instruct"),
                                      {}, absl::StatusCode::kResourceExhausted);
  // A layer: 6.375 GB. Stage 0: 42 of them and the embedding are 272.0 GB of weights; with 0.8 of
  // activations, 2 of reserve and a block of KV cache 274.7 GB of 96.
  EXPECT_THAT(refusal, HasSubstr("node_a.gpu0: 42 layers need 274.7 GB (weights 272.0, activations "
                                 "0.8, reserve 2.0), it has 96.0: 178.7 GB short"));
  EXPECT_THAT(refusal, HasSubstr("node_a.gpu1: 42 layers need 270.5 GB"));
  EXPECT_THAT(refusal, HasSubstr("node_b.gpu0: 42 layers need 274.9 GB"));
  // (96 - 2 - 0.8) / 6.375 = 14.6 layers on an inner stage, 13.9 beside embedding or lm_head:
  // Trinity holds 13 + 14 + 13, and 13 + 8 x 14 + 13 are the first to hold 126.
  EXPECT_THAT(refusal, HasSubstr("the stages hold 40 of 126 layers"));
  EXPECT_THAT(refusal, HasSubstr("It takes 10 such GPUs"));
  EXPECT_THAT(refusal, HasSubstr("--quantization int4"));
}

TEST(FitTest, AGivenSplitThatDoesNotFitComesWithTheNearestThatDoes) {
  const Topology topology = Cluster("trinity_200g");
  const Model model = ModelOf(k405bInt4);
  const std::string refusal =
      Refusal(topology, model, WithSplit("60,40,26"), absl::StatusCode::kResourceExhausted);
  // 60 x 1.656 + 4.2 + 0.8 + 2 = 106.3.
  EXPECT_THAT(refusal, HasSubstr("node_a.gpu0: 60 layers need 106.3 GB"));
  EXPECT_THAT(refusal, Not(HasSubstr("node_a.gpu1: 40")));
  // Stage 0 holds (96 - 2 - 0.8 - 4.2) / 1.656 = 53 layers; the other 7 go next door.
  const std::string way_out = "The nearest that fits: --split ";
  ASSERT_THAT(refusal, HasSubstr(way_out));
  const std::string split = refusal.substr(refusal.find(way_out) + way_out.size());
  EXPECT_EQ(split, "53,47,26");
  EXPECT_THAT(LayersOf(MustPlan(topology, model, WithSplit(split))), ElementsAre(53, 47, 26));
  // It is the nearest: a layer more does not fit.
  Refusal(topology, model, WithSplit("54,46,26"), absl::StatusCode::kResourceExhausted);
}

TEST(FitTest, TheNearestSplitFitsWhateverWasAskedFor) {
  const Topology topology = Cluster("trinity_200g");
  const Model model = ModelOf(k405bInt4);
  int refused = 0;
  for (int first = 1; first <= 124; first += 9) {
    for (int second = 1; first + second <= 125; second += 9) {
      const absl::StatusOr<Plan> plan = MakePlan(
          topology, model, WithSplit(absl::StrCat(first, ",", second, ",", 126 - first - second)));
      if (plan.ok()) continue;
      ++refused;
      const std::string message(plan.status().message());
      const size_t at = message.find("--split ");
      ASSERT_NE(at, std::string::npos) << message;
      const std::string split = message.substr(at + 8);
      const absl::StatusOr<Plan> nearest = MakePlan(topology, model, WithSplit(split));
      EXPECT_TRUE(nearest.ok()) << split << ": " << nearest.status();
    }
  }
  EXPECT_GT(refused, 50);
}

TEST(FitTest, AnEvenSplitThatDoesNotFitPointsToAnUnevenOne) {
  // 70 GB on stage 0 do not hold its 73.8 GB of weights; the others have room for more than 42.
  const Topology topology = Cluster("trinity_200g", {{"node_a.gpu0.memory_gb", "70"}});
  const Model model = ModelOf(k405bInt4);
  const std::string refusal = Refusal(topology, model, {}, absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(refusal, HasSubstr("node_a.gpu0: 42 layers need"));
  // (70 - 2 - 0.8 - 4.2) / 1.656 = 38.04.
  EXPECT_THAT(refusal, HasSubstr("--split 38,46,42"));
  MustPlan(topology, model, WithSplit("38,46,42"));
  // Balanced splits go by what fits to begin with.
  for (const char* split : {"balanced-decode", "balanced-prefill"}) {
    const Plan plan = MustPlan(topology, model, WithSplit(split));
    EXPECT_LE(plan.stages[0].num_layers, 38);
  }
}

TEST(FitTest, AGpuWithoutRoomForALayerIsNamed) {
  // The other two hold all 16 layers of the 1B, but a stage needs one at least: 0.53 GB of lm_head,
  // 0.12 of the layer, 0.2 of activations and 2 of reserve are more than 2.8.
  const Topology topology = Cluster("trinity_200g", {{"node_b.gpu0.memory_gb", "2.8"}});
  for (const char* split : {"even", "balanced", "balanced-prefill", "8,7,1"}) {
    EXPECT_THAT(
        Refusal(topology, ModelOf(k1b), WithSplit(split), absl::StatusCode::kResourceExhausted),
        HasSubstr("node_b.gpu0 has no room for a single layer"))
        << split;
  }
}

// The number in "It takes 10 such GPUs".
int GpusNeeded(const std::string& refusal) {
  const std::string before = "It takes ";
  const size_t at = refusal.find(before);
  int gpus = 0;
  if (at == std::string::npos ||
      !absl::SimpleAtoi(std::string(refusal.substr(
                            at + before.size(), refusal.find(" such GPUs") - at - before.size())),
                        &gpus)) {
    ADD_FAILURE() << refusal;
  }
  return gpus;
}

TEST(FitTest, ItTakesAsManyGpusAsItSays) {
  const Model model = ModelOf("llama-3.1-70b-instruct");
  int checked = 0;
  for (int tensor_parallel : {1, 2}) {
    for (int memory_gb = 12; memory_gb < 96; ++memory_gb) {
      const Topology topology =
          Cluster("rtx_pro_6000_x8", {{"*.*.memory_gb", absl::StrCat(memory_gb)}});
      std::vector<int> said;
      for (int stages = 1; stages * tensor_parallel <= 8; ++stages) {
        PlanOptions options;
        options.tensor_parallel = {tensor_parallel};
        options.stages = stages;
        const absl::StatusOr<Plan> plan = MakePlan(topology, model, options);
        if (plan.ok()) {
          for (int gpus : said) EXPECT_EQ(gpus, stages * tensor_parallel) << memory_gb << " GB";
          ++checked;
          break;
        }
        const std::string message(plan.status().message());
        // An uneven split may fit where the even one does not.
        if (message.find("nearest") != std::string::npos) {
          for (int gpus : said) EXPECT_EQ(gpus, stages * tensor_parallel) << memory_gb << " GB";
          ++checked;
          break;
        }
        said.push_back(GpusNeeded(message));
        EXPECT_GT(said.back(), stages * tensor_parallel) << memory_gb << " GB";
      }
    }
  }
  EXPECT_GE(checked, 100);
}

TEST(SplitTest, GivenLayersMustAddUpAndBeOneNumberAStage) {
  const Topology topology = Cluster("trinity_200g");
  const Model model = ModelOf(k405bInt4);
  const auto refusal = [&](absl::string_view split) {
    return Refusal(topology, model, WithSplit(split), absl::StatusCode::kInvalidArgument);
  };
  EXPECT_EQ(refusal("42,42,41"),
            absl::StrCat("--split 42,42,41 adds up to 125, ", k405bInt4, " has 126 layers"));
  EXPECT_EQ(refusal("63,63"),
            "--split 63,63 gives 2 stages, the plan has 3: give one number a stage");
  EXPECT_EQ(refusal("63,63,0"), "--split 63,63,0: a stage needs at least one layer");
  EXPECT_EQ(refusal("64,63,-1"), "--split 64,63,-1: a stage needs at least one layer");
}

TEST(SplitTest, EvenSplitsGiveTheRemainderToTheFirstStages) {
  // 126 = 4 x 31 + 2; 16 = 3 x 5 + 1.
  EXPECT_THAT(LayersOf(MustPlan(Cluster("h200_x4"), ModelOf(k405bInt4))),
              ElementsAre(32, 32, 31, 31));
  EXPECT_THAT(LayersOf(MustPlan(Cluster("trinity_200g"), ModelOf(k1b))), ElementsAre(6, 5, 5));
}

TEST(SplitTest, BalancedSplitsAreCompleteAndNeverSlowerThanEven) {
  const struct {
    const char* topology;
    const char* model;
  } cases[] = {{"trinity_200g", k405bInt4},
               {"trinity_400g", k405bInt4},
               {"trinity_200g", "llama-3.1-70b-instruct"},
               {"h200_x4", k405bInt4},
               {"rtx_pro_6000_x8", "qwen3-32b"}};
  for (const auto& c : cases) {
    const Topology topology = Cluster(c.topology);
    const Model model = ModelOf(c.model);
    const Plan even = MustPlan(topology, model);
    for (const auto& [split, batch] :
         {std::pair("balanced-decode", kDecode), {"balanced-prefill", kPrefill}}) {
      const Plan balanced = MustPlan(topology, model, WithSplit(split));
      const std::vector<int> layers = LayersOf(balanced);
      EXPECT_EQ(std::accumulate(layers.begin(), layers.end(), 0), model.num_layers());
      int first = 0;
      for (const Stage& stage : balanced.stages) {
        EXPECT_EQ(stage.first_layer, first);
        first += stage.num_layers;
      }
      EXPECT_LE(SlowestSeconds(topology, model, balanced, batch),
                SlowestSeconds(topology, model, even, batch))
          << c.topology << ", " << c.model << ", " << split;
    }
  }
}

TEST(SplitTest, PrefillGivesTheMaxQFewerLayers) {
  // It sustains 352 of the Workstation Edition's 503.8 TFLOP/s: about 126 x 352 / (2 x 503.8 + 352)
  // = 33 layers.
  const std::vector<int> layers = LayersOf(
      MustPlan(Cluster("trinity_200g"), ModelOf(k405bInt4), WithSplit("balanced-prefill")));
  EXPECT_NEAR(layers[2], 33, 2);
  EXPECT_LT(layers[2], layers[0]);
  EXPECT_LT(layers[2], layers[1]);
}

TEST(SplitTest, DecodeGivesTheLastStageFewerLayersForItsLmHead) {
  // Reading lm_head's 4.2 GB takes as long as 2.5 layers of 1.656 GB; all GPUs read alike.
  const std::vector<int> layers =
      LayersOf(MustPlan(Cluster("trinity_200g"), ModelOf(k405bInt4), WithSplit("balanced")));
  EXPECT_LT(layers[2], layers[0]);
  EXPECT_GE(layers[2], layers[0] - 4);
  EXPECT_NEAR(layers[0], layers[1], 1);
}

TEST(SplitTest, BalancedIsTheBestOfAllSplits) {
  const Model model = ModelOf(k1b);
  // As it is; with the GPUs unlike each other; with the first one too small for its best share.
  const std::vector<std::vector<Override>> clusters = {
      {},
      {{"node_a.gpu0.memory_bandwidth_gb_s", "600"}, {"node_b.gpu0.bf16_tflops", "100"}},
      {{"node_b.gpu0.bf16_tflops", "50"}, {"node_a.gpu0.memory_gb", "4"}},
  };
  for (size_t c = 0; c < clusters.size(); ++c) {
    const Topology topology = Cluster("trinity_200g", clusters[c]);
    for (const auto& [split, batch] :
         {std::pair("balanced-decode", kDecode), {"balanced-prefill", kPrefill}}) {
      double best_s = std::numeric_limits<double>::infinity();
      int fits = 0;
      for (int first = 1; first <= 14; ++first) {
        for (int second = 1; first + second <= 15; ++second) {
          const absl::StatusOr<Plan> plan =
              MakePlan(topology, model,
                       WithSplit(absl::StrCat(first, ",", second, ",", 16 - first - second)));
          if (!plan.ok()) continue;
          ++fits;
          best_s = std::min(best_s, SlowestSeconds(topology, model, *plan, batch));
        }
      }
      // 15 x 14 / 2 ways to cut 16 layers into three; the small GPU refuses some.
      EXPECT_EQ(fits == 105, c != 2) << fits;
      const Plan balanced = MustPlan(topology, model, WithSplit(split));
      EXPECT_DOUBLE_EQ(SlowestSeconds(topology, model, balanced, batch), best_s)
          << "cluster " << c << ", " << split;
    }
  }
}

TEST(SplitTest, EveryStageOfABalancedSplitHasALayer) {
  // 16 layers over 8 stages: lm_head alone takes longer than its share, yet a stage without layers
  // is none.
  const Topology topology = Cluster("rtx_pro_6000_x8");
  for (const char* split : {"balanced-decode", "balanced-prefill"}) {
    const std::vector<int> layers = LayersOf(MustPlan(topology, ModelOf(k1b), WithSplit(split)));
    EXPECT_THAT(layers, AllOf(SizeIs(8), Each(Ge(1)))) << split;
    EXPECT_EQ(std::accumulate(layers.begin(), layers.end(), 0), 16);
  }
}

TEST(RangesTest, AbsurdOptionsAreRefusedByName) {
  const auto refusal = [](auto set) {
    PlanOptions options;
    set(options);
    return Refusal(Cluster("trinity_200g"), ModelOf(k405bInt4), options,
                   absl::StatusCode::kInvalidArgument);
  };
  EXPECT_THAT(refusal([](PlanOptions& o) { o.reserve_gb = -5; }), HasSubstr("--reserve-gb -5"));
  EXPECT_THAT(refusal([](PlanOptions& o) { o.reserve_gb = std::nan(""); }),
              HasSubstr("--reserve-gb nan"));
  EXPECT_THAT(refusal([](PlanOptions& o) { o.reserve_gb = 1e30; }),
              HasSubstr("--reserve-gb 1e+30"));
  EXPECT_THAT(refusal([](PlanOptions& o) { o.stages = -1; }), HasSubstr("--stages -1"));
  EXPECT_THAT(refusal([](PlanOptions& o) { o.max_in_flight = -1; }),
              HasSubstr("--max-in-flight -1"));
  EXPECT_THAT(refusal([](PlanOptions& o) { o.kv_blocks = -3; }), HasSubstr("--kv-blocks -3"));
  EXPECT_THAT(refusal([](PlanOptions& o) { o.kv_block_tokens = 0; }),
              HasSubstr("--kv-block-tokens 0"));
  EXPECT_THAT(refusal([](PlanOptions& o) { o.max_batch_tokens = 99'999'999'999'999; }),
              HasSubstr("--max-batch-tokens 1e+14"));
  EXPECT_THAT(refusal([](PlanOptions& o) { o.max_chunk_tokens = 0; }),
              HasSubstr("--chunk-tokens 0"));
  EXPECT_THAT(refusal([](PlanOptions& o) { o.max_running = 0; }), HasSubstr("--max-running 0"));
}

TEST(ParseSplitTest, ReadsNamesAndNumbers) {
  EXPECT_EQ(WithSplit("even").split, Split::kEven);
  EXPECT_EQ(WithSplit("balanced").split, Split::kBalancedDecode);
  EXPECT_EQ(WithSplit("balanced-decode").split, Split::kBalancedDecode);
  EXPECT_EQ(WithSplit("balanced-prefill").split, Split::kBalancedPrefill);
  const PlanOptions given = WithSplit("43,42,41");
  EXPECT_EQ(given.split, Split::kGiven);
  EXPECT_THAT(given.layers, ElementsAre(43, 42, 41));
  // A second one replaces the first.
  PlanOptions twice = given;
  ASSERT_TRUE(ParseSplit("63,63", twice).ok());
  EXPECT_THAT(twice.layers, ElementsAre(63, 63));
}

TEST(ParseSplitTest, AnythingElseIsRefusedWithTheForms) {
  for (const char* text : {"", "evenly", "42,,42", "42;42", "42,42,", "4.5,4", "99999999999,1"}) {
    PlanOptions options;
    const absl::Status status = ParseSplit(text, options);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << text;
    EXPECT_EQ(
        status.message(),
        absl::StrCat("--split '", text,
                     "': use even, balanced, balanced-decode, balanced-prefill, auto or layers "
                     "a stage such as 42,42,42"));
  }
}

TEST(ParseTensorParallelTest, ReadsOneNumberOrOneAStage) {
  PlanOptions options;
  ASSERT_TRUE(ParseTensorParallel("2", options).ok());
  EXPECT_THAT(options.tensor_parallel, ElementsAre(2));
  ASSERT_TRUE(ParseTensorParallel("2,1,1", options).ok());
  EXPECT_THAT(options.tensor_parallel, ElementsAre(2, 1, 1));
  for (const char* text : {"", "two", "2,", "2;1"}) {
    EXPECT_EQ(ParseTensorParallel(text, options),
              absl::InvalidArgumentError(absl::StrCat(
                  "--tensor-parallel '", text,
                  "': give the GPUs of every stage, such as 2, or of each, such as 2,1")));
  }
}

TEST(StagesTest, FewerStagesUseTheFirstGpusAndMoreAreRefused) {
  PlanOptions options;
  options.stages = 2;
  const Plan plan = MustPlan(Cluster("h200_x4"), ModelOf(k405bInt4), options);
  EXPECT_THAT(LayersOf(plan), ElementsAre(63, 63));
  EXPECT_THAT(plan.stages[1].gpus, ElementsAre(1));
  EXPECT_EQ(plan.scheduler.max_in_flight, 2);

  const auto refusal = [&](int stages, int tensor_parallel) {
    options.stages = stages;
    options.tensor_parallel = {tensor_parallel};
    return Refusal(Cluster("h200_x4"), ModelOf(k405bInt4), options,
                   absl::StatusCode::kInvalidArgument);
  };
  EXPECT_EQ(refusal(5, 1), "5 stages of 1 GPUs need 5, h200_x4 has 4: use at most 4 stages");
  EXPECT_EQ(refusal(3, 2), "3 stages of 2 GPUs need 6, h200_x4 has 4: use at most 2 stages");
  EXPECT_THAT(refusal(-1, 1), HasSubstr("--stages -1: must be from 0"));
  EXPECT_EQ(refusal(0, 8), "tensor parallelism over 8 GPUs, h200_x4 has 4: use 1 to 4");
  EXPECT_THAT(refusal(0, 0), HasSubstr("a tensor-parallel size of 0"));
}

TEST(StagesTest, AStageNeedsALayer) {
  EXPECT_EQ(
      Refusal(Cluster("leaf_spine_16"), ModelOf(k1b), {}, absl::StatusCode::kInvalidArgument),
      "128 stages for the 16 layers of llama-3.2-1b-instruct: a stage needs at least one; use "
      "--stages");
}

TEST(TensorParallelTest, GpusOfAStageShareItsWeightsAndKvHeads) {
  const Topology topology = Cluster("rtx_pro_6000_x8");
  const Model model = ModelOf(k405bInt4);
  PlanOptions options;
  options.tensor_parallel = {2};
  options.stages = 3;
  const Plan two = MustPlan(topology, model, options);
  EXPECT_TRUE(two.tensor_parallel());
  EXPECT_THAT(LayersOf(two), ElementsAre(42, 42, 42));
  EXPECT_THAT(two.stages[1].gpus, ElementsAre(2, 3));
  EXPECT_EQ(StageName(two.stages[1], topology), "node_a.gpu2+gpu3");
  // Half of a layer's 1,656,160,256 B; 4 of 8 KV heads.
  EXPECT_EQ(two.stages[1].memory.weights, 42 * int64_t{1'656'160'256} / 2);
  EXPECT_EQ(two.stages[1].memory.kv_bytes_per_token, 42 * 4096 / 2);
  // Half of gate_up's 245,760 B; the residual stream is whole on each GPU.
  EXPECT_EQ(two.stages[1].memory.activations, 2048 * (4 * 32'768 + 122'880));
}

TEST(TensorParallelTest, EachGpuOfTheFirstStageHasTheEmbeddingWhole) {
  const Topology topology = Cluster("h200_x4");
  PlanOptions options;
  options.tensor_parallel = {2};
  const Plan plan = MustPlan(topology, ModelOf(k405bInt4), options);
  // 63 layers halved; tables of 4,202,692,608 B, of which lm_head is halved; the final norm.
  constexpr int64_t kLayers = 63 * int64_t{1'656'160'256} / 2;
  EXPECT_EQ(plan.stages[0].memory.weights, kLayers + 4'202'692'608);
  EXPECT_EQ(plan.stages[1].memory.weights, kLayers + 4'202'692'608 / 2 + 32'768);
}

TEST(TensorParallelTest, StagesMayHaveDifferentNumbersOfGpus) {
  const Topology topology = Cluster("h200_x4");
  const Model model = ModelOf(k405bInt4);
  PlanOptions options = WithSplit("84,42");
  options.tensor_parallel = {2, 1};
  const Plan plan = MustPlan(topology, model, options);
  EXPECT_TRUE(plan.tensor_parallel());
  EXPECT_THAT(plan.stages[0].gpus, ElementsAre(0, 1));
  EXPECT_THAT(plan.stages[1].gpus, ElementsAre(2));
  EXPECT_EQ(StageName(plan.stages[0], topology), "node_a.gpu0+gpu1");
  // Twice the layers on twice the GPUs: the same KV cache a GPU.
  EXPECT_EQ(plan.stages[0].memory.kv_bytes_per_token, 84 * 4096 / 2);
  EXPECT_EQ(plan.stages[1].memory.kv_bytes_per_token, 42 * 4096);
  EXPECT_EQ(plan.stages[0].memory.weights, 84 * int64_t{1'656'160'256} / 2 + 4'202'692'608);
  EXPECT_EQ(plan.stages[1].memory.weights, 42 * int64_t{1'656'160'256} + 4'202'692'608 + 32'768);
  // The stage with the least room beside its KV cache has the fewest blocks.
  int64_t blocks = std::numeric_limits<int64_t>::max();
  for (const Stage& stage : plan.stages) {
    blocks = std::min(blocks, stage.memory.left() / (16 * stage.memory.kv_bytes_per_token));
  }
  EXPECT_EQ(plan.scheduler.kv_blocks, blocks);
  // The first GPU of a group speaks for it.
  const std::vector<PipelineHop> hops = HopsOf(plan);
  ASSERT_THAT(hops, SizeIs(2));
  EXPECT_EQ(hops[0].from_gpu, 0);
  EXPECT_EQ(hops[0].to_gpu, 2);
  EXPECT_EQ(hops[1].to_gpu, 0);
  // The result says so a stage.
  const PlanResult result = ToProto(plan, topology);
  EXPECT_EQ(result.tensor_parallel(), 0);
  EXPECT_EQ(result.stages(0).gpus_size(), 2);
  EXPECT_EQ(result.stages(1).gpus_size(), 1);
  EXPECT_EQ(result.memory_size(), 3);
  // Only the first stage adds up what its GPUs computed.
  EXPECT_GT(MakeStageCost(topology, model, plan, 0).Explain(kDecode).collective_s(), 0);
  EXPECT_EQ(MakeStageCost(topology, model, plan, 1).Explain(kDecode).collective_s(), 0);
}

TEST(TensorParallelTest, BalancedSplitsGiveMoreGpusMoreLayers) {
  const Topology topology = Cluster("h200_x4");
  PlanOptions options = WithSplit("balanced-prefill");
  options.tensor_parallel = {2, 1, 1};
  const std::vector<int> layers = LayersOf(MustPlan(topology, ModelOf(k405bInt4), options));
  EXPECT_GT(layers[0], 3 * layers[1] / 2);
  EXPECT_LE(layers[0], 2 * layers[1]);
}

TEST(TensorParallelTest, UnevenGroupsThatCannotBeAreRefused) {
  const auto refusal = [](const char* topology, std::vector<int> sizes, int stages = 0) {
    PlanOptions options;
    options.tensor_parallel = std::move(sizes);
    options.stages = stages;
    return Refusal(Cluster(topology), ModelOf(k405bInt4), options,
                   absl::StatusCode::kInvalidArgument);
  };
  EXPECT_EQ(refusal("h200_x4", {2, 1}, 3),
            "--tensor-parallel 2,1 is of 2 stages, --stages says 3: give one number a stage, or "
            "one for all");
  EXPECT_EQ(refusal("h200_x4", {2, 2, 1}),
            "--tensor-parallel 2,2,1 needs 5 GPUs, h200_x4 has 4: use fewer or smaller stages");
  EXPECT_EQ(refusal("h200_x4", {1, 8}),
            "tensor parallelism over 8 GPUs, h200_x4 has 4: use 1 to 4");
  EXPECT_THAT(refusal("h200_x4", {1, 3}), HasSubstr("128 heads do not divide by 3"));
  EXPECT_THAT(refusal("h200_x4", {1, 0}), HasSubstr("a tensor-parallel size of 0"));
  // Two GPUs of node_a, one of node_b.
  EXPECT_THAT(refusal("trinity_200g", {1, 2}),
              StartsWith("stage 1 would split its layers over node_a.gpu1 and node_b.gpu0, which "
                         "are in two hosts"));
}

// What a request of `load` brings the slowest stage, over the mean.
double Imbalance(const Topology& topology, const Model& model, const Plan& plan,
                 const ExpectedLoad& load) {
  double slowest_s = 0;
  double sum_s = 0;
  const int stages = static_cast<int>(plan.stages.size());
  for (int s = 0; s < stages; ++s) {
    const double seconds = RequestSeconds(MakeStageCost(topology, model, plan, s), load, stages,
                                          plan.scheduler.max_chunk_tokens);
    slowest_s = std::max(slowest_s, seconds);
    sum_s += seconds;
  }
  return slowest_s / (sum_s / stages) - 1;
}

TEST(AutoSplitTest, EvensOutToTwoPercentWhatTheLoadBrings) {
  const Topology topology = Cluster("h200_x4");
  const Model model = ModelOf(k405bInt4);
  PlanOptions options = WithSplit("auto");
  options.stages = 3;
  // lm_head makes the last of three even stages 3.6 % slower than the mean in decode.
  PlanOptions even;
  even.stages = 3;
  const ExpectedLoad loads[] = {{},
                                {.requests = 48, .context = 1088, .prompt = 1024, .output = 128},
                                {.requests = 1, .context = 8193, .prompt = 8192, .output = 1}};
  for (const ExpectedLoad& load : loads) {
    options.load = load;
    const Plan plan = MustPlan(topology, model, options);
    EXPECT_LE(Imbalance(topology, model, plan, load), 0.02) << load.prompt;
    ASSERT_THAT(plan.choices, SizeIs(1));
    EXPECT_THAT(plan.choices[0],
                AllOf(StartsWith(absl::StrCat("split ", LayersOf(plan)[0], ",")),
                      HasSubstr("by the roofline"), Not(HasSubstr("no split of whole layers"))));
  }
  EXPECT_GT(Imbalance(topology, model, MustPlan(topology, model, even), ExpectedLoad()), 0.02);
}

TEST(AutoSplitTest, SaysWhereWholeLayersAreTooCoarse) {
  // 16 layers over 8 stages.
  const Plan plan = MustPlan(Cluster("rtx_pro_6000_x8"), ModelOf(k1b), WithSplit("auto"));
  ASSERT_THAT(plan.choices, SizeIs(1));
  EXPECT_THAT(plan.choices[0], HasSubstr("no split of whole layers that fits is faster"));
}

// A run of `plan` in which its stages were busy for these seconds.
std::shared_ptr<const Result> RunOf(const Plan& plan, const Topology& topology,
                                    const std::vector<double>& busy_s) {
  auto run = std::make_shared<Result>();
  *run->mutable_plan() = ToProto(plan, topology);
  for (double seconds : busy_s) run->add_stages()->set_busy_s(seconds);
  return run;
}

TEST(AutoSplitTest, GoesByMeasuredStagesWhereTheyAreAtHand) {
  const Topology topology = Cluster("h200_x4");
  const Model model = ModelOf(k405bInt4);
  PlanOptions options;
  options.stages = 3;
  const Plan even = MustPlan(topology, model, options);
  // As the roofline says, but the middle stage a fifth slower. Layers n with n0 = n2 +
  // lm_head's 2.5 and n1 = n0 / 1.2: 126 + 2.5 = n0 (2 + 1 / 1.2), so 45.4, 37.8 and 42.9.
  std::vector<double> busy_s;
  for (int s = 0; s < 3; ++s) {
    busy_s.push_back((s == 1 ? 1.2 : 1) * 1000 *
                     RequestSeconds(MakeStageCost(topology, model, even, s), {}, 3, 512));
  }
  options.split = Split::kAuto;
  options.measured = RunOf(even, topology, busy_s);
  const Plan plan = MustPlan(topology, model, options);
  EXPECT_NEAR(plan.stages[0].num_layers, 45.4, 1);
  EXPECT_NEAR(plan.stages[1].num_layers, 37.8, 1);
  EXPECT_NEAR(plan.stages[2].num_layers, 42.9, 1);
  EXPECT_THAT(plan.choices[0], HasSubstr("by measured times"));
}

TEST(AutoSplitTest, AMeasuredRunOfOtherStagesIsRefused) {
  const Topology topology = Cluster("h200_x4");
  const Model model = ModelOf(k405bInt4);
  PlanOptions options;
  options.stages = 3;
  const Plan even = MustPlan(topology, model, options);
  const auto refusal = [&](std::shared_ptr<const Result> run, std::vector<int> tp) {
    PlanOptions automatic = WithSplit("auto");
    automatic.tensor_parallel = std::move(tp);
    automatic.measured = std::move(run);
    return Refusal(topology, model, automatic, absl::StatusCode::kInvalidArgument);
  };
  EXPECT_EQ(refusal(RunOf(even, topology, {1, 1, 1}), {1}),
            "the measured run has 3 stages, the plan 4: measure this model on stages of these "
            "GPUs, with any split");
  EXPECT_THAT(refusal(RunOf(even, topology, {1, 1, 1}), {2, 1, 1}),
              HasSubstr("has 1 GPUs in stage 0, the plan 2"));
  EXPECT_THAT(refusal(RunOf(even, topology, {1, 0, 1}), {1, 1, 1}),
              HasSubstr("has no busy time of stage 1"));
  const Plan other = MustPlan(topology, ModelOf("llama-3.1-70b-instruct"), options);
  EXPECT_THAT(refusal(RunOf(other, topology, {1, 1, 1}), {1, 1, 1}),
              HasSubstr("is not of 126 layers"));
}

TEST(AutoTest, MicroBatchesAndChunkAreChosenByRuleAndSaid) {
  const Topology topology = Cluster("h200_x4");
  const Model model = ModelOf(k405bInt4);
  PlanOptions options;
  options.stages = 3;
  options.auto_in_flight = true;
  options.auto_chunk = true;
  options.load = {.requests = 48, .context = 8320, .prompt = 8192, .output = 256};
  const Plan plan = MustPlan(topology, model, options);
  // Reading weights bounds 15 decodes: no more micro-batches than stages, whose unevenness hides
  // the messages.
  EXPECT_EQ(plan.scheduler.max_in_flight, 3);
  // Chunks that keep the products at their rate and fill three stages.
  EXPECT_GE(plan.scheduler.max_chunk_tokens, 256);
  EXPECT_LE(plan.scheduler.max_chunk_tokens, 1024);
  ASSERT_THAT(plan.choices, SizeIs(2));
  EXPECT_THAT(plan.choices[0], HasSubstr("8192 tokens alone take"));
  // The KV cache holds 44 requests of 8,320 tokens, 15 a micro-batch.
  EXPECT_EQ(plan.kv_tokens() / 8320, 44);
  EXPECT_THAT(plan.choices[1], StartsWith("3 micro-batches in flight over 3 stages, 15 decodes"));
  EXPECT_EQ(ToProto(plan, topology).choices_size(), 2);
  // Both give way to numbers.
  options.auto_in_flight = false;
  options.auto_chunk = false;
  options.max_in_flight = 6;
  options.max_chunk_tokens = 1000;
  const Plan given = MustPlan(topology, model, options);
  EXPECT_EQ(given.scheduler.max_in_flight, 6);
  EXPECT_EQ(given.scheduler.max_chunk_tokens, 1000);
  EXPECT_TRUE(given.choices.empty());
}

TEST(AutoTest, AChunkIsNoLongerThanABatch) {
  PlanOptions options;
  options.auto_chunk = true;
  options.max_batch_tokens = 300;
  EXPECT_LE(MustPlan(Cluster("h200_x4"), ModelOf(k405bInt4), options).scheduler.max_chunk_tokens,
            300);
}

TEST(TensorParallelTest, AllReducesArePricedByTheTopology) {
  const Topology topology = Cluster("rtx_pro_6000_x8");
  const Model model = ModelOf(k405bInt4);
  PlanOptions options;
  options.stages = 4;
  options.tensor_parallel = {2};
  const Plan two = MustPlan(topology, model, options);
  options.tensor_parallel = {1};
  const Plan one = MustPlan(topology, model, options);
  const ComputeTime shared = MakeStageCost(topology, model, two, 1).Explain(kDecode);
  const ComputeTime alone = MakeStageCost(topology, model, one, 1).Explain(kDecode);
  EXPECT_DOUBLE_EQ(shared.weight_read_s(), alone.weight_read_s() / 2);
  EXPECT_EQ(alone.collective_s(), 0);
  EXPECT_GT(shared.collective_s(), 0);
}

TEST(TensorParallelTest, TwoGpusOverNvlinkSumInTheirStagesGraph) {
  const Topology topology = Cluster("h200_x2");
  PlanOptions options;
  options.tensor_parallel = {2};
  const Plan plan = MustPlan(topology, ModelOf(k405bInt4), options);
  // 126 layers, two sums each of 16,384 x 4 B: 3.4 us (benchmarks/results/h200_pair_sums.csv). The
  // logits' all-gather comes on top.
  const double seconds = MakeStageCost(topology, ModelOf(k405bInt4), plan, 0)
                             .Explain(BatchShape::Decode(1, 1024))
                             .collective_s();
  EXPECT_GT(seconds, 252 * 3.4e-6);
  EXPECT_LT(seconds, 252 * 3.4e-6 + 100e-6);
}

TEST(TensorParallelTest, AGroupAcrossHostsIsRefused) {
  PlanOptions options;
  options.tensor_parallel = {16};
  EXPECT_THAT(Refusal(Cluster("leaf_spine_16"), ModelOf(k405bInt4), options,
                      absl::StatusCode::kInvalidArgument),
              AllOf(StartsWith("stage 0 would split its layers over node0.gpu0 and node1.gpu0, "
                               "which are in two hosts"),
                    HasSubstr("reorder `ranks`")));
}

TEST(TensorParallelTest, AGroupComputesAtThePaceOfItsSlowestGpu) {
  const auto cluster = [](const std::string& first, const std::string& second) {
    absl::StatusOr<Topology> topology = Topology::Parse(
        "pair.txtpb", absl::StrCat("name: \"pair\" hosts { name: \"a\" spec: \"trinity_host_a\"\n"
                                   "  gpus { name: \"gpu0\" spec: \"rtx_pro_6000_blackwell_",
                                   first, "\" slot: \"slot1\" }\n  gpus { name: \"gpu1\" spec: ",
                                   "\"rtx_pro_6000_blackwell_", second, "\" slot: \"slot2\" } }"));
    if (!topology.ok()) ADD_FAILURE() << topology.status();
    return *std::move(topology);
  };
  const Model model = ModelOf("llama-3.1-70b-instruct");
  PlanOptions options;
  options.tensor_parallel = {2};
  const auto chunk_s = [&](const Topology& topology) {
    return SlowestSeconds(topology, model, MustPlan(topology, model, options), kPrefill);
  };
  const double slow_s = chunk_s(cluster("max_q", "max_q"));
  const double fast_s = chunk_s(cluster("workstation", "workstation"));
  EXPECT_LT(fast_s, 0.9 * slow_s);
  // Both have the same memory; the Max-Q computes slower, whichever place it has.
  EXPECT_NEAR(chunk_s(cluster("workstation", "max_q")), slow_s, 1e-9 * slow_s);
  EXPECT_NEAR(chunk_s(cluster("max_q", "workstation")), slow_s, 1e-9 * slow_s);
  // The Server Edition reads slowest (1,597 GB/s), the Max-Q computes slowest: the group does both.
  const double mixed_s = chunk_s(cluster("server", "max_q"));
  EXPECT_GE(mixed_s, slow_s);
}

TEST(TiedEmbeddingsTest, AreOneTableOnOneStageAndTwoOnSeveral) {
  const Model model = ModelOf(k1b);
  ASSERT_TRUE(model.tied_embeddings);
  // 128,256 x 2,048 x 2 B.
  ASSERT_EQ(model.lm_head_bytes, 525'336'576);
  PlanOptions options;
  for (int stages : {1, 2, 3}) {
    options.stages = stages;
    const Plan plan = MustPlan(Cluster("trinity_200g"), model, options);
    int64_t sum = 0;
    for (const Stage& stage : plan.stages) sum += stage.memory.weights;
    EXPECT_EQ(sum, model.weight_bytes() + (stages > 1 ? 525'336'576 : 0)) << stages << " stages";
  }
}

TEST(LongestContextTest, RequestsShareTheBlocksUpToTheModelsLimit) {
  const Model model = ModelOf(k405bInt4);
  const Plan plan = MustPlan(Cluster("trinity_200g"), model);
  // 7,024 blocks of 16 tokens: 7,024, 878 and 219 (219.5) blocks each.
  EXPECT_EQ(LongestContext(plan, model, 1), 112'384);
  EXPECT_EQ(LongestContext(plan, model, 8), 14'048);
  EXPECT_EQ(LongestContext(plan, model, 32), 3'504);
  EXPECT_EQ(LongestContext(plan, model, 8000), 0);
  // Four H200 have room for more than the model's 131,072 tokens.
  const Plan roomy = MustPlan(Cluster("h200_x4"), model);
  EXPECT_GT(roomy.kv_tokens(), 131'072);
  EXPECT_EQ(LongestContext(roomy, model, 1), 131'072);
}

// Runs `requests` equal requests through the scheduler of `plan`; the most that ran at once, and
// preemptions.
std::pair<int64_t, int64_t> RunRequests(const Plan& plan, int64_t requests, int64_t prompt,
                                        int64_t output) {
  Scheduler scheduler(plan.scheduler);
  std::deque<MicroBatchId> launched;
  const auto collect = [&](absl::Span<const Action> actions) {
    for (const Action& action : actions) {
      EXPECT_NE(action.kind, Action::Kind::kReject) << action.error;
      if (action.kind == Action::Kind::kLaunch) launched.push_back(action.micro_batch.id);
    }
  };
  for (int64_t id = 0; id < requests; ++id) collect(scheduler.RequestArrived(id, prompt, output));
  int64_t most = 0;
  while (!launched.empty()) {
    const MicroBatchId id = launched.front();
    launched.pop_front();
    collect(scheduler.FirstStageDone(id));
    collect(scheduler.MicroBatchCompleted(id));
    most = std::max(most, scheduler.running());
  }
  EXPECT_TRUE(scheduler.idle());
  return {most, scheduler.preemptions()};
}

TEST(LongestContextTest, IsWhatTheSchedulerCanRunAtATimeAndNoMore) {
  const Model model = ModelOf(k405bInt4);
  const Plan plan = MustPlan(Cluster("trinity_200g"), model);
  for (int64_t requests : {8, 32}) {
    const int64_t context = LongestContext(plan, model, requests);
    // Outputs long enough that no request ends before the last prompt is in.
    EXPECT_EQ(RunRequests(plan, requests, context / 4, context - context / 4),
              std::pair(requests, int64_t{0}));
    // A block or two more each, and some request has to wait or to go.
    const auto [most, preemptions] =
        RunRequests(plan, requests, context / 4, context - context / 4 + 2 * 16);
    EXPECT_TRUE(most < requests || preemptions > 0) << requests << " requests";
  }
}

TEST(ToProtoTest, CarriesStagesAndMemoryByGpu) {
  const Topology topology = Cluster("rtx_pro_6000_x8");
  PlanOptions options;
  options.tensor_parallel = {2};
  options.stages = 3;
  const Plan plan = MustPlan(topology, ModelOf(k405bInt4), options);
  const PlanResult result = ToProto(plan, topology);
  EXPECT_EQ(result.tensor_parallel(), 2);
  EXPECT_EQ(result.max_in_flight(), 3);
  EXPECT_EQ(result.kv_blocks(), plan.scheduler.kv_blocks);
  ASSERT_EQ(result.stages_size(), 3);
  EXPECT_THAT(result.stages(2).gpus(), ElementsAre("node_a.gpu4", "node_a.gpu5"));
  EXPECT_EQ(result.stages(2).first_layer(), 84);
  EXPECT_EQ(result.stages(2).num_layers(), 42);
  EXPECT_TRUE(result.stages(2).lm_head());
  EXPECT_TRUE(result.stages(0).embedding());
  // One entry a GPU, whose parts add up.
  ASSERT_EQ(result.memory_size(), 6);
  EXPECT_EQ(result.memory(5).gpu(), "node_a.gpu5");
  for (const GpuMemory& memory : result.memory()) {
    EXPECT_EQ(memory.weight_bytes() + memory.activation_bytes() + memory.reserve_bytes() +
                  memory.kv_cache_bytes(),
              memory.capacity_bytes());
  }
}

TEST(PricesTest, ACalibrationWithoutTheModelsFormatIsNamed) {
  SpecLibrary specs = SpecLibrary::Bundled();
  ASSERT_TRUE(specs
                  .AddText("k.txtpb",
                           "# proto-message: fabricast.KernelCalibration\nname: \"bf16_only\"\n"
                           "gemms { weight_format: \"bf16\" points { x: 1 efficiency: 1 } }\n"
                           "decode_attention { points { x: 1 efficiency: 1 } }\n"
                           "prefill_attention { points { x: 1 efficiency: 1 } }\n"
                           "elementwise_efficiency: 1\n")
                  .ok());
  const absl::StatusOr<Topology> topology =
      Topology::Parse("t.txtpb", Topology::BundledText("trinity_200g"),
                      {{"node_b.gpu0.calibration", "bf16_only"}}, specs);
  ASSERT_TRUE(topology.ok()) << topology.status();
  EXPECT_THAT(Refusal(*topology, ModelOf(k405bInt4), {}, absl::StatusCode::kNotFound),
              HasSubstr("calibration bf16_only: no curve for int4 weights"));
}

TEST(ExpertsPlanTest, AllExpertsOfAStageAreInItsMemory) {
  const Plan plan = MustPlan(Cluster("trinity_200g"), ModelOf("qwen3-235b-a22b-awq-int4"));
  EXPECT_THAT(LayersOf(plan), ElementsAre(32, 31, 31));
  // A layer: 128 x 9,805,824 of experts, 37,044,224 of attention, 1,048,576 of the router and
  // 16,896 of norms.
  EXPECT_EQ(plan.stages[1].memory.weights, 31 * int64_t{1'293'255'168});
  // 4 x 4,096 elements and down's both sides for each of 8 experts, 8 x (1,536 + 4,096): 61,440 x
  // 2 B a token.
  EXPECT_EQ(plan.stages[1].memory.activations, 2048 * 122'880);
}

TEST(ExpertsPlanTest, ASplitThatFitsIsFoundByTheHeaviestLayers) {
  const absl::StatusOr<Model> model = ParseModelConfig("mixed.json", R"({
      "architectures": ["Qwen3MoeForCausalLM"], "hidden_size": 8192, "intermediate_size": 8192,
      "num_hidden_layers": 20, "num_attention_heads": 64, "num_key_value_heads": 8,
      "vocab_size": 32000, "max_position_embeddings": 4096, "num_experts": 128,
      "num_experts_per_tok": 8, "moe_intermediate_size": 2048,
      "mlp_only_layers": [0, 1, 2, 3, 4, 5, 6, 7]})");
  ASSERT_TRUE(model.ok()) << model.status();
  // A layer of experts takes 13.2 GB, a dense one 0.7: an H200 holds 10 of the former. The last 15
  // layers have 12 of them.
  PlanOptions options = WithSplit("5,15");
  options.stages = 2;
  EXPECT_THAT(Refusal(Cluster("h200_x4"), *model, options, absl::StatusCode::kResourceExhausted),
              HasSubstr("The nearest that fits: --split 10,10"));
  options = WithSplit("10,10");
  options.stages = 2;
  EXPECT_GT(MustPlan(Cluster("h200_x4"), *model, options).stages[1].memory.left(), 0);
}

TEST(LocalCpuPlanTest, ActivationsAndKvCacheAreFloat32) {
  const Topology topology = Cluster("local_cpu");
  const Model model = ModelOf(k1b);
  const Plan plan = MustPlan(topology, model);
  EXPECT_THAT(LayersOf(plan), ElementsAre(6, 5, 5));
  EXPECT_EQ(plan.boundary_bytes_per_token, 2048 * 4);
  // 2 x 8 KV heads x 64 x 4 B a layer.
  EXPECT_EQ(plan.stages[1].memory.kv_bytes_per_token, 5 * 4096);
  // (4 x 2,048 + 2,048 + 2 x 8,192) elements a token.
  EXPECT_EQ(plan.stages[1].memory.activations, 2048 * 26'624 * 4);
  EXPECT_EQ(plan.stages[1].memory.capacity, 8'000'000'000);
  // The same model in BF16 on GPUs.
  const Plan gpus = MustPlan(Cluster("trinity_200g"), model);
  EXPECT_EQ(gpus.boundary_bytes_per_token, 2048 * 2);
  EXPECT_EQ(gpus.stages[1].memory.kv_bytes_per_token, 5 * 2048);
  // The price, too.
  const StageCostOptions options{.first_layer = 6, .num_layers = 5};
  const auto seconds = [](const StageCost& cost) {
    return TotalSeconds(cost.Explain(BatchShape::Decode(4, 1000)));
  };
  const double made = seconds(MakeStageCost(topology, model, plan, 1));
  const GpuSpec& spec = topology.gpus()[1].spec;
  EXPECT_EQ(made,
            seconds(StageCost(WithActivationBytes(model, 4), spec, topology.kernels(1), options)));
  EXPECT_GT(made, seconds(StageCost(model, spec, topology.kernels(1), options)));
}

TEST(LocalCpuPlanTest, ProcessorsAndGpusDoNotShareAPipeline) {
  const absl::StatusOr<Topology> mixed = Topology::Parse("mixed.txtpb", R"(
      name: "mixed"
      hosts {
        name: "a"
        spec: "trinity_host_a"
        gpus { name: "gpu0" spec: "rtx_5090" slot: "slot1" }
        gpus { name: "cpu0" spec: "cpu_x86" }
      })");
  ASSERT_TRUE(mixed.ok()) << mixed.status();
  EXPECT_EQ(Refusal(*mixed, ModelOf(k1b), {}, absl::StatusCode::kInvalidArgument),
            "mixed: activations are 2 bytes an element on a.gpu0 (rtx_5090) and 4 on a.cpu0 "
            "(cpu_x86), and stages pass them on as they are: leave processors or GPUs out of "
            "`ranks`");
  // One stage is one or the other.
  PlanOptions one;
  one.stages = 1;
  EXPECT_EQ(MustPlan(*mixed, ModelOf(k1b), one).boundary_bytes_per_token, 4096);
}

}  // namespace
}  // namespace fabricast
