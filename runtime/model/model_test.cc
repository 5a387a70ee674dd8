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
    if (std::holds_alternative<RoutedExpertsOp>(op)) names.push_back("experts");
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

constexpr char kMixture[] = "qwen3-235b-a22b";

TEST(ExpertsTest, ALayerRoutesToItsExperts) {
  EXPECT_THAT(
      OperatorNames(Load(kMixture).layer(0)),
      ElementsAre("input_norm", "qkv", "qk_norm", "rope", "attention", "o", "post_attention_norm",
                  "router", "top_k", "experts", "swiglu", "combine"));
}

TEST(ExpertsTest, Qwen3235BHasThePublishedParameters) {
  const Model model = Load(kMixture);
  ASSERT_EQ(model.num_layers(), 94);
  // qkv      4,096 x (64 + 2 x 4) x 128 =    37,748,736
  // o        8,192 x 4,096              =    33,554,432
  // router   4,096 x 128                =       524,288
  // experts  128 x 3 x 4,096 x 1,536    = 2,415,919,104
  // norms    2 x 4,096 + 2 x 128        =         8,448
  EXPECT_EQ(model.layer(0).parameters(), 2'487'755'008);
  // 94 x 2,487,755,008 + 2 x 151,936 x 4,096 + 4,096: "235B".
  EXPECT_EQ(model.parameters(), 235'093'634'560);
  EXPECT_EQ(model.weight_bytes(), 2 * model.parameters());
}

TEST(ExpertsTest, ATokenGoesThrough22BOfThem) {
  const Model model = Load(kMixture);
  // 8 experts of 18,874,368 in place of 128; the rest as above.
  EXPECT_EQ(model.layer(0).active_parameters(), 71'303'168 + 524'288 + 150'994'944 + 8'448);
  // 94 x 222,830,848 + 1,244,659,712 + 4,096: "22B activated".
  EXPECT_EQ(model.active_parameters(), 22'190'763'520);
  // Two operations for each of them but norms and the embedding, which is looked up.
  EXPECT_EQ(model.flops_per_token(0), 2.0 * (94 * (222'830'848.0 - 8'448) + 622'329'856));
  // Dense models use all they have.
  EXPECT_EQ(Load("qwen3-32b").active_parameters(), Load("qwen3-32b").parameters());
}

TEST(ExpertsTest, Int4QuantizesExpertsAndAttentionButNotTheRouter) {
  const Model model = Load("qwen3-235b-a22b-awq-int4");
  EXPECT_EQ(model.layer_format, WeightFormat::kInt4Group128);
  // An expert: 18,874,368 weights / 128 = 147,456 groups of 66.5 B = 9,805,824 B. Attention:
  // 71,303,168 weights: 37,044,224 B. Router 524,288 x 2 B, norms 8,448 x 2 B.
  EXPECT_EQ(model.layer(0).weight_bytes(), 128 * 9'805'824 + 37'044'224 + 1'048'576 + 16'896);
  // 94 x 1,293,255,168 + 2 x 1,244,659,712 + 8,192: 124 GB, as the checkpoint has on disk.
  EXPECT_EQ(model.weight_bytes(), 124'055'313'408);
  EXPECT_EQ(Load(kMixture, "int4").weight_bytes(), model.weight_bytes());
}

TEST(ExpertsTest, MoreTokensTouchMoreExperts) {
  // E (1 - (1 - k/E)^n): 4 (1 - 1/2) = 2, 4 (1 - 1/4) = 3, 4 (1 - 1/8) = 3.5.
  EXPECT_EQ(ExpectedExpertsTouched(4, 2, 1), 2);
  EXPECT_EQ(ExpectedExpertsTouched(4, 2, 2), 3);
  EXPECT_EQ(ExpectedExpertsTouched(4, 2, 3), 3.5);
  EXPECT_EQ(ExpectedExpertsTouched(4, 2, 0), 0);
  EXPECT_EQ(ExpectedExpertsTouched(4, 4, 1), 4);
  EXPECT_EQ(ExpectedExpertsTouched(1, 1, 7), 1);  // a dense matrix
  // 128 (1 - 0.9375^16) = 128 x 0.64393; all of them in the end.
  EXPECT_NEAR(ExpectedExpertsTouched(128, 8, 16), 82.423, 0.001);
  EXPECT_NEAR(ExpectedExpertsTouched(128, 8, 2048), 128, 1e-9);
}

TEST(ExpertsTest, DecodeReadsTheExpertsTouched) {
  const Model model = Load(kMixture);
  // Two tokens touch 128 (1 - (15/16)^2) = 15.5 experts of 37,748,736 B; what all tokens go through
  // is 2 x 71,835,904 B. Activations of a token, in elements:
  //   norms            2 x 4 x 4,096            =  32,768
  //   qkv              4,096 + 9,216            =  13,312
  //   qk_norm, rope    2 x 2 x (64 + 4) x 128   =  34,816
  //   attention        2 x 64 x 128             =  16,384
  //   o                8,192 + 4,096            =  12,288
  //   router, top_k    4,096 + 128 + 128        =   4,352
  //   experts          8 x (2 x 4,096 + 3 x 1,536) = 102,400
  //   swiglu           8 x 3 x 1,536            =  36,864
  //   combine          (8 + 1) x 4,096          =  36,864
  // together 290,048 x 2 B; KV of a token: 2 x 4 x 128 x 2 B = 2,048 B.
  EXPECT_EQ(model.layer(0).decode_bytes(2, 1000),
            2 * 71'835'904.0 + 15.5 * 37'748'736 + 2 * (580'096.0 + 1000 * 2048));
}

TEST(ExpertsTest, TensorParallelismSlicesEveryExpert) {
  const Model model = Load("qwen3-235b-a22b-awq-int4");
  for (int tp : {1, 2, 4}) EXPECT_TRUE(model.CheckTensorParallel(tp).ok()) << tp;
  // 1,536 / 8 = 192 = 1.5 groups.
  EXPECT_EQ(model.CheckTensorParallel(8).message(),
            "qwen3-235b-a22b-awq-int4: an expert's 1536 inputs over 8 GPUs are 192 each, which "
            "cuts an INT4 group of 128: use 1, 2 or 4");
  EXPECT_TRUE(Load(kMixture).CheckTensorParallel(8).ok());
}

TEST(ActivationBytesTest, Float32DoublesActivationsAndCacheAndLeavesWeights) {
  for (const char* name : {"llama-3.1-8b-instruct", kMixture}) {
    const Model half = Load(name);
    const Model full = WithActivationBytes(half, 4);
    EXPECT_EQ(half.activation_bytes, 2);
    EXPECT_EQ(full.activation_bytes, 4);
    EXPECT_EQ(full.boundary_bytes_per_token(), 4 * half.hidden);
    EXPECT_EQ(full.kv_bytes_per_token(), 2 * half.kv_bytes_per_token());
    EXPECT_EQ(full.weight_bytes(), half.weight_bytes());
    // What is not weights doubles.
    const double weights = WithActivationBytes(half, 0).layer(0).decode_bytes(3, 100);
    EXPECT_EQ(full.layer(0).decode_bytes(3, 100) - weights,
              2 * (half.layer(0).decode_bytes(3, 100) - weights));
  }
}

}  // namespace
}  // namespace fabricast
