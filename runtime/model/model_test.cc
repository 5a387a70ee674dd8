#include "runtime/model/model.h"

#include <string>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace fabricast {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

Model Load(const std::string& name, const std::string& quantization = "") {
  absl::StatusOr<Model> model = LoadModel(name, quantization);
  if (!model.ok()) {
    ADD_FAILURE() << model.status();
    return {};
  }
  return *std::move(model);
}

std::vector<std::string> OperatorNames(const LayerKind& kind) {
  std::vector<std::string> names;
  for (const Operator& op : kind.operators) {
    if (const auto* linear = std::get_if<LinearOp>(&op)) names.push_back(linear->name);
    if (const auto* elementwise = std::get_if<ElementwiseOp>(&op)) {
      names.push_back(elementwise->name);
    }
    if (std::holds_alternative<AttentionOp>(op)) names.push_back("attention");
  }
  return names;
}

TEST(WeightBytesTest, CountsScalesAndZerosOfInt4) {
  EXPECT_EQ(WeightBytes(WeightFormat::kBf16, 256, 10), 5120);
  EXPECT_EQ(WeightBytes(WeightFormat::kFp8, 256, 10), 2560);
  // 2,560 weights at half a byte; 2 groups x 10 columns at 2.5 B.
  EXPECT_EQ(WeightBytes(WeightFormat::kInt4Group128, 256, 10), 1280 + 50);
  // A last group of 1 input is a group too: 129 / 2 -> 65 B, and 2 x 2.5 B.
  EXPECT_EQ(WeightBytes(WeightFormat::kInt4Group128, 129, 1), 65 + 5);
}

TEST(ModelTest, LayerIsInTheOrderOfExecution) {
  EXPECT_THAT(OperatorNames(Load("llama-3.1-8b-instruct").layer(0)),
              ElementsAre("input_norm", "qkv", "rope", "attention", "o", "post_attention_norm",
                          "gate_up", "swiglu", "down"));
  EXPECT_THAT(OperatorNames(Load("qwen3-32b").layer(0)),
              ElementsAre("input_norm", "qkv", "qk_norm", "rope", "attention", "o",
                          "post_attention_norm", "gate_up", "swiglu", "down"));
}

TEST(ModelTest, Llama405BHasThePublishedParameters) {
  const Model model = Load("llama-3.1-405b-instruct-awq-int4");
  ASSERT_EQ(model.num_layers(), 126);
  // qkv       16,384 x (128 + 2 x 8) x 128 =   301,989,888
  // o         16,384 x 16,384              =   268,435,456
  // gate_up   16,384 x 2 x 53,248          = 1,744,830,464
  // down      53,248 x 16,384              =   872,415,232
  // together                                 3,187,671,040
  // two norms 2 x 16,384                   =        32,768
  EXPECT_EQ(model.layer(0).parameters(), 3'187'671'040 + 32'768);
  // 126 x 3,187,703,808        = 401,650,679,808
  // embedding and lm_head
  //   2 x 128,256 x 16,384     =   4,202,692,608
  // final norm                 =          16,384
  EXPECT_EQ(model.parameters(), 405'853'388'800);
}

TEST(ModelTest, Llama405BInInt4Takes1656MegabytesALayer) {
  const Model model = Load("llama-3.1-405b-instruct-awq-int4");
  EXPECT_EQ(model.layer_format, WeightFormat::kInt4Group128);
  // 3,187,671,040 weights / 128 = 24,903,680 groups of 64 + 2 + 0.5 B = 1,656,094,720 B; norms 2 x
  // 16,384 x 2 B.
  EXPECT_EQ(model.layer(0).weight_bytes(), 1'656'094'720 + 65'536);
  // 128,256 x 16,384 x 2 B.
  EXPECT_EQ(model.embedding_bytes, 4'202'692'608);
  EXPECT_EQ(model.lm_head_bytes, 4'202'692'608);
  // 126 x 1,656,160,256 + 2 x 4,202,692,608 + 32,768: 217 GB, 72.4 GB a GPU of three.
  EXPECT_EQ(model.weight_bytes(), 217'081'610'240);
}

TEST(ModelTest, Llama405BKeeps516KilobytesOfKvAToken) {
  const Model model = Load("llama-3.1-405b-instruct-awq-int4");
  EXPECT_EQ(model.layer(0).kv_bytes_per_token(), 2 * 8 * 128 * 2);  // K and V: 4,096 B
  EXPECT_EQ(model.kv_bytes_per_token(), 126 * 4096);                // 516,096 B
  EXPECT_EQ(model.boundary_bytes_per_token(), 32'768);
}

TEST(ModelTest, FlopsAreTwoAParameterPlusAttention) {
  const Model model = Load("llama-3.1-405b-instruct-awq-int4");
  // 2 x 3,187,671,040, and 4 x 128 x 128 = 65,536 for each token of context.
  EXPECT_EQ(model.layer(0).flops_per_token(0), 6'375'342'080.0);
  EXPECT_EQ(model.layer(0).flops_per_token(8192), 6'375'342'080.0 + 65'536.0 * 8192);
  // lm_head: 2 x 128,256 x 16,384 = 4,202,692,608.
  EXPECT_EQ(model.flops_per_token(8192),
            126 * (6'375'342'080.0 + 65'536.0 * 8192) + 4'202'692'608.0);
}

TEST(ModelTest, DecodeReadsWeightsOnceAndEachRequestsCacheAndActivations) {
  const Model model = Load("llama-3.1-405b-instruct-awq-int4");
  // Activations of one token, in elements:
  //   two norms        2 x 4 x 16,384                 = 131,072
  //   rope             2 x (128 + 8) x 128            =  34,816
  //   attention        2 x 128 x 128                  =  32,768
  //   qkv              16,384 + 18,432                =  34,816
  //   o                16,384 + 16,384                =  32,768
  //   gate_up          16,384 + 106,496               = 122,880
  //   swiglu           3 x 53,248                     = 159,744
  //   down             53,248 + 16,384                =  69,632
  // together 618,496 x 2 B                            = 1,236,992 B
  // KV of 8,192 tokens: 8,192 x 4,096 B               = 33,554,432 B
  EXPECT_EQ(model.layer(0).decode_bytes(1, 8192), 1'656'160'256.0 + 33'554'432 + 1'236'992);
  EXPECT_EQ(model.layer(0).decode_bytes(16, 8192),
            1'656'160'256.0 + 16.0 * (33'554'432 + 1'236'992));
}

// The counts that the publishers give on Hugging Face ("Model size", safetensors).
TEST(ModelTest, CatalogueHasThePublishedParameters) {
  EXPECT_EQ(Load("llama-3.1-405b-instruct").parameters(), 405'853'388'800);
  EXPECT_EQ(Load("llama-3.1-405b-instruct-fp8").parameters(), 405'853'388'800);
  EXPECT_EQ(Load("llama-3.1-70b-instruct").parameters(), 70'553'706'496);
  EXPECT_EQ(Load("llama-3.1-70b-instruct-awq-int4").parameters(), 70'553'706'496);
  EXPECT_EQ(Load("llama-3.3-70b-instruct").parameters(), 70'553'706'496);
  EXPECT_EQ(Load("llama-3.1-8b-instruct").parameters(), 8'030'261'248);
  EXPECT_EQ(Load("llama-3.2-1b-instruct").parameters(), 1'235'814'400);  // tied: counted once
  EXPECT_EQ(Load("llama-3.2-3b-instruct").parameters(), 3'212'749'824);
  EXPECT_EQ(Load("mistral-7b-instruct-v0.3").parameters(), 7'248'023'552);
  // With biases of q, k and v: 10,240 a layer.
  EXPECT_EQ(Load("qwen2.5-72b-instruct").parameters(), 72'706'203'648);
  // With norms of Q and K: 2 x 128 a layer.
  EXPECT_EQ(Load("qwen3-32b").parameters(), 32'762'123'264);
}

TEST(ModelTest, TiedEmbeddingsAreOneMatrixOfTheCheckpointAndTwoOfAPipeline) {
  const Model model = Load("llama-3.2-1b-instruct");
  EXPECT_TRUE(model.tied_embeddings);
  EXPECT_EQ(model.embedding_bytes, 128'256 * 2048 * 2);
  EXPECT_EQ(model.lm_head_bytes, model.embedding_bytes);
  // All BF16: 2 B a parameter.
  EXPECT_EQ(model.weight_bytes(), 2 * model.parameters());
}

TEST(ModelTest, QuantizationLeavesEmbeddingsAndNormsAlone) {
  const Model bf16 = Load("llama-3.1-8b-instruct");
  const Model fp8 = Load("llama-3.1-8b-instruct", "fp8");
  EXPECT_EQ(fp8.layer_format, WeightFormat::kFp8);
  EXPECT_EQ(fp8.parameters(), bf16.parameters());
  EXPECT_EQ(fp8.embedding_bytes, bf16.embedding_bytes);
  // Matrices of a layer: 4096 x (6144 + 4096 + 28,672) + 14,336 x 4096 = 218,103,808; one byte less
  // each, 32 layers.
  EXPECT_EQ(bf16.weight_bytes() - fp8.weight_bytes(), 32 * 218'103'808LL);
}

TEST(TensorParallelTest, ThreeGpusCannotShareThe405BsHeads) {
  const absl::Status status = Load("llama-3.1-405b-instruct-awq-int4").CheckTensorParallel(3);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(status.message(),
            "llama-3.1-405b-instruct-awq-int4: 128 heads do not divide by 3: use 1, 2, 4 or 8");
}

TEST(TensorParallelTest, PowersOfTwoFitThe405B) {
  const Model model = Load("llama-3.1-405b-instruct-awq-int4");
  for (int tp : {1, 2, 4, 8}) EXPECT_TRUE(model.CheckTensorParallel(tp).ok()) << tp;
  // 16 GPUs: each KV head on two of them.
  EXPECT_TRUE(model.CheckTensorParallel(16).ok());
  // 53,248 / 64 = 832 = 6.5 groups.
  EXPECT_THAT(std::string(model.CheckTensorParallel(64).message()),
              HasSubstr("down's 53248 inputs over 64 GPUs are 832 each, which cuts an INT4 group"));
}

TEST(TensorParallelTest, KvHeadsMustDivideOrBeDivided) {
  // 24 heads divide by 3 and by 6; 8 KV heads do not, nor does 8 divide them.
  const absl::Status status = Load("llama-3.2-3b-instruct").CheckTensorParallel(3);
  EXPECT_EQ(
      status.message(),
      "llama-3.2-3b-instruct: 8 KV heads neither divide by 3 nor divide it: use 1, 2, 4 or 8");
}

TEST(TensorParallelTest, SizesBelowOneAreRefused) {
  for (int tp : {0, -2}) {
    EXPECT_EQ(Load("llama-3.1-8b-instruct").CheckTensorParallel(tp).code(),
              absl::StatusCode::kInvalidArgument);
  }
}

// Qwen's own AWQ checkpoint pads 29,568 to 29,696 for the same reason.
TEST(TensorParallelTest, SplitsMustKeepInt4GroupsWhole) {
  EXPECT_TRUE(Load("qwen2.5-72b-instruct").CheckTensorParallel(2).ok());
  // 29,568 / 2 = 14,784 = 115.5 groups.
  EXPECT_EQ(Load("qwen2.5-72b-instruct", "int4").CheckTensorParallel(2).message(),
            "qwen2.5-72b-instruct: down's 29568 inputs over 2 GPUs are 14784 each, which cuts an "
            "INT4 group of 128: use 1");
}

}  // namespace
}  // namespace fabricast
