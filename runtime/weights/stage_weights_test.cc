#include "runtime/weights/stage_weights.h"

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "runtime/weights/checkpoint_writer.h"

namespace fabricast {
namespace {

using ::testing::EndsWith;
using ::testing::HasSubstr;
using ::testing::StartsWith;

using Shape = std::vector<int64_t>;

// 3 layers; hidden 64; 4 heads of 24, 2 for keys and values: Q [96, 64], K and V [48, 64].
DecoderConfig Llama() {
  DecoderConfig config;
  config.file = "config.json";
  config.architecture = "LlamaForCausalLM";
  config.vocabulary = 100;
  config.hidden = 64;
  config.layers = 3;
  config.heads = 4;
  config.kv_heads = 2;
  config.head_dim = 24;
  config.ffn = 160;
  config.has_experts = {false, false, false};
  return config;
}

TensorSpecs LlamaTensors() {
  TensorSpecs tensors = {{"model.embed_tokens.weight", {DType::kBf16, {100, 64}}},
                         {"model.norm.weight", {DType::kBf16, {64}}},
                         {"lm_head.weight", {DType::kBf16, {100, 64}}}};
  for (int layer = 0; layer < 3; ++layer) {
    const std::string prefix = absl::StrCat("model.layers.", layer, ".");
    tensors[prefix + "input_layernorm.weight"] = {DType::kBf16, {64}};
    tensors[prefix + "post_attention_layernorm.weight"] = {DType::kBf16, {64}};
    tensors[prefix + "self_attn.q_proj.weight"] = {DType::kBf16, {96, 64}};
    tensors[prefix + "self_attn.k_proj.weight"] = {DType::kBf16, {48, 64}};
    tensors[prefix + "self_attn.v_proj.weight"] = {DType::kBf16, {48, 64}};
    tensors[prefix + "self_attn.o_proj.weight"] = {DType::kBf16, {64, 96}};
    tensors[prefix + "mlp.gate_proj.weight"] = {DType::kBf16, {160, 64}};
    tensors[prefix + "mlp.up_proj.weight"] = {DType::kBf16, {160, 64}};
    tensors[prefix + "mlp.down_proj.weight"] = {DType::kBf16, {64, 160}};
  }
  return tensors;
}

// Elements of one layer: 2 norms, Q and O, K and V, three of the feed-forward layer.
constexpr int64_t kLayerElements = 2 * 64 + 2 * 96 * 64 + 2 * 48 * 64 + 3 * 160 * 64;

// Replaces the dense `module` of `tensors` by AWQ's three.
void Quantise(const std::string& module, int64_t group_size, TensorSpecs* tensors) {
  const Shape shape = tensors->at(module + ".weight").shape;  // [out, in]
  tensors->erase(module + ".weight");
  (*tensors)[module + ".qweight"] = {DType::kI32, {shape[1], shape[0] / 8}};
  (*tensors)[module + ".qzeros"] = {DType::kI32, {shape[1] / group_size, shape[0] / 8}};
  (*tensors)[module + ".scales"] = {DType::kF16, {shape[1] / group_size, shape[0]}};
}

TensorSpecs AwqTensors() {
  TensorSpecs tensors = LlamaTensors();
  for (int layer = 0; layer < 3; ++layer) {
    for (const char* module :
         {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
          "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"}) {
      Quantise(absl::StrCat("model.layers.", layer, ".", module), 32, &tensors);
    }
  }
  return tensors;
}

DecoderConfig AwqLlama() {
  DecoderConfig config = Llama();
  config.awq = AwqConfig{.group_size = 32, .not_converted = {}};
  return config;
}

// Layer 0 dense, 1 and 2 with 5 experts of 40.
DecoderConfig Qwen3Moe() {
  DecoderConfig config = Llama();
  config.architecture = "Qwen3MoeForCausalLM";
  config.qk_norm = true;
  config.experts = ExpertsConfig{.experts = 5, .per_token = 2, .ffn = 40, .normalize = true};
  config.has_experts = {false, true, true};
  return config;
}

TensorSpecs Qwen3MoeTensors() {
  TensorSpecs tensors = LlamaTensors();
  for (int layer = 0; layer < 3; ++layer) {
    const std::string prefix = absl::StrCat("model.layers.", layer, ".");
    tensors[prefix + "self_attn.q_norm.weight"] = {DType::kBf16, {24}};
    tensors[prefix + "self_attn.k_norm.weight"] = {DType::kBf16, {24}};
    if (layer == 0) continue;
    tensors[prefix + "mlp.gate.weight"] = {DType::kBf16, {5, 64}};
    for (const char* name : {"gate_proj", "up_proj", "down_proj"}) {
      tensors.erase(absl::StrCat(prefix, "mlp.", name, ".weight"));
      const Shape shape = std::string(name) == "down_proj" ? Shape{64, 40} : Shape{40, 64};
      for (int expert = 0; expert < 5; ++expert) {
        tensors[absl::StrCat(prefix, "mlp.experts.", expert, ".", name, ".weight")] = {DType::kBf16,
                                                                                       shape};
      }
    }
  }
  return tensors;
}

constexpr StageShare kAll = {.first_layer = 0, .num_layers = 3, .embedding = true, .lm_head = true};

class StageWeightsTest : public ::testing::Test {
 protected:
  absl::StatusOr<StageWeights> Find(const TensorSpecs& tensors, const DecoderConfig& config,
                                    StageShare share = kAll) {
    folder_.Write("model.safetensors", SafetensorsFile(tensors));
    absl::StatusOr<std::shared_ptr<const Checkpoint>> checkpoint = Checkpoint::Open(folder_.path());
    if (!checkpoint.ok()) return checkpoint.status();
    return FindStageWeights(*std::move(checkpoint), config, share);
  }

  // The message after "FOLDER/model.safetensors: "; "" if there is no error.
  std::string Invalid(const TensorSpecs& tensors, const DecoderConfig& config,
                      StageShare share = kAll) {
    const absl::Status status = Find(tensors, config, share).status();
    if (status.ok()) return "";
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
    const std::string prefix = folder_.PathOf("model.safetensors") + ": ";
    EXPECT_THAT(std::string(status.message()), StartsWith(prefix));
    return std::string(status.message().substr(prefix.size()));
  }

  const TemporaryFolder folder_;
};

TEST_F(StageWeightsTest, OneStageHasAllOfTheModel) {
  const auto weights = Find(LlamaTensors(), Llama());
  ASSERT_TRUE(weights.ok()) << weights.status();
  EXPECT_EQ(weights->embedding->name, "model.embed_tokens.weight");
  EXPECT_EQ(weights->final_norm->name, "model.norm.weight");
  EXPECT_EQ(weights->lm_head->dense->name, "lm_head.weight");
  EXPECT_EQ(weights->lm_head->in, 64);
  EXPECT_EQ(weights->lm_head->out, 100);
  ASSERT_EQ(weights->layers.size(), 3u);
  for (int i = 0; i < 3; ++i) {
    const LayerWeights& layer = weights->layers[i];
    const std::string prefix = absl::StrCat("model.layers.", i, ".");
    EXPECT_EQ(layer.input_norm.name, prefix + "input_layernorm.weight");
    EXPECT_EQ(layer.post_attention_norm.name, prefix + "post_attention_layernorm.weight");
    EXPECT_EQ(layer.q.dense->name, prefix + "self_attn.q_proj.weight");
    EXPECT_EQ(layer.k.dense->name, prefix + "self_attn.k_proj.weight");
    EXPECT_EQ(layer.v.dense->name, prefix + "self_attn.v_proj.weight");
    EXPECT_EQ(layer.o.dense->name, prefix + "self_attn.o_proj.weight");
    EXPECT_EQ(layer.feed_forward->gate.dense->name, prefix + "mlp.gate_proj.weight");
    EXPECT_EQ(layer.feed_forward->up.dense->name, prefix + "mlp.up_proj.weight");
    EXPECT_EQ(layer.feed_forward->down.dense->name, prefix + "mlp.down_proj.weight");
    EXPECT_EQ(layer.q.out, 96);
    EXPECT_EQ(layer.q.in, 64);
    EXPECT_EQ(layer.k.out, 48);
    EXPECT_EQ(layer.o.out, 64);
    EXPECT_EQ(layer.o.in, 96);
    EXPECT_EQ(layer.feed_forward->down.in, 160);
    EXPECT_EQ(layer.q.dense->shape, (Shape{96, 64}));
    EXPECT_FALSE(layer.q.awq || layer.q.bias || layer.q_norm || layer.k_norm || layer.router);
    EXPECT_TRUE(layer.experts.empty());
  }
  // Two bytes an element.
  EXPECT_EQ(weights->bytes(), 2 * (2 * 100 * 64 + 64 + 3 * kLayerElements));
  EXPECT_EQ(weights->bytes(), weights->checkpoint->total_bytes());
}

TEST_F(StageWeightsTest, AStageHasItsShareAndNoMore) {
  const auto weights = Find(LlamaTensors(), Llama(), {.first_layer = 1, .num_layers = 1});
  ASSERT_TRUE(weights.ok()) << weights.status();
  EXPECT_FALSE(weights->embedding || weights->final_norm || weights->lm_head);
  ASSERT_EQ(weights->layers.size(), 1u);
  EXPECT_EQ(weights->layers[0].input_norm.name, "model.layers.1.input_layernorm.weight");
  EXPECT_EQ(weights->bytes(), 2 * kLayerElements);
}

TEST_F(StageWeightsTest, TheSharesOfAllStagesAreTheModel) {
  const StageShare shares[] = {{.first_layer = 0, .num_layers = 2, .embedding = true},
                               {.first_layer = 2, .num_layers = 1},
                               {.first_layer = 3, .num_layers = 0, .lm_head = true}};
  int64_t bytes = 0;
  for (const StageShare& share : shares) {
    const auto weights = Find(LlamaTensors(), Llama(), share);
    ASSERT_TRUE(weights.ok()) << weights.status();
    bytes += weights->bytes();
  }
  EXPECT_EQ(bytes, 2 * (2 * 100 * 64 + 64 + 3 * kLayerElements));
}

TEST_F(StageWeightsTest, OnlyTheSharesTensorsMustBeThere) {
  TensorSpecs tensors = LlamaTensors();
  tensors.erase("model.layers.0.mlp.up_proj.weight");
  tensors.erase("model.embed_tokens.weight");
  EXPECT_TRUE(Find(tensors, Llama(), {.first_layer = 1, .num_layers = 2, .lm_head = true}).ok());
  EXPECT_EQ(Find(tensors, Llama(), {.first_layer = 0, .num_layers = 1}).status(),
            absl::NotFoundError(absl::StrCat(
                folder_.path(),
                ": model.layers.0.mlp.up_proj.weight: missing, and the config's intermediate_size "
                "160 and hidden_size 64 give [160, 64]: give the weights and the config.json of "
                "one model")));
}

TEST_F(StageWeightsTest, EveryTensorMustBeThereInItsShapeAndType) {
  for (const auto& [tensors, config] :
       {std::pair(LlamaTensors(), Llama()), std::pair(AwqTensors(), AwqLlama()),
        std::pair(Qwen3MoeTensors(), Qwen3Moe())}) {
    ASSERT_EQ(Invalid(tensors, config), "");
    for (const auto& [name, spec] : tensors) {
      // Layer 2 is as 1, and experts 2 to 4 as 0 and 1; each pass writes files.
      if (absl::StrContains(name, ".layers.2.") || absl::StrContains(name, ".experts.2.") ||
          absl::StrContains(name, ".experts.3.") || absl::StrContains(name, ".experts.4.")) {
        continue;
      }
      TensorSpecs missing = tensors;
      missing.erase(name);
      const absl::Status status = Find(missing, config).status();
      EXPECT_EQ(status.code(), absl::StatusCode::kNotFound) << name;
      EXPECT_THAT(std::string(status.message()), HasSubstr(name + ": missing, and the config's "));

      for (size_t i = 0; i <= spec.shape.size(); ++i) {
        TensorSpecs other = tensors;
        if (i < spec.shape.size()) {
          ++other[name].shape[i];
        } else {
          other[name].shape.push_back(1);
        }
        EXPECT_THAT(Invalid(other, config), StartsWith(name + ": shape ["));
      }
      TensorSpecs other = tensors;
      other[name].dtype = DType::kU32;
      EXPECT_THAT(Invalid(other, config), StartsWith(name + ": dtype U32, and "));
    }
  }
}

TEST_F(StageWeightsTest, AWrongShapeSaysWhichFieldsWantWhich) {
  TensorSpecs tensors = LlamaTensors();
  tensors["model.layers.1.self_attn.q_proj.weight"].shape = {64, 64};
  EXPECT_EQ(
      Invalid(tensors, Llama()),
      "model.layers.1.self_attn.q_proj.weight: shape [64, 64], and the config's "
      "num_attention_heads 4 x head_dim 24 and hidden_size 64 give [96, 64]: give the weights "
      "and the config.json of one model");
  tensors = LlamaTensors();
  tensors["model.norm.weight"].shape = {32, 2};
  EXPECT_EQ(
      Invalid(tensors, Llama()),
      "model.norm.weight: shape [32, 2], and the config's hidden_size 64 gives [64]: give the "
      "weights and the config.json of one model");
  tensors = AwqTensors();
  tensors["model.layers.0.self_attn.k_proj.qzeros"].shape = {1, 6};
  EXPECT_EQ(Invalid(tensors, AwqLlama()),
            "model.layers.0.self_attn.k_proj.qzeros: shape [1, 6], and the config's hidden_size 64 "
            "/ group_size 32 and num_key_value_heads 2 x head_dim 24 / 8 to a word give [2, 6]: "
            "give the weights and the config.json of one model");
}

TEST_F(StageWeightsTest, FloatsMayBeOfThreeTypes) {
  for (DType dtype : {DType::kBf16, DType::kF16, DType::kF32}) {
    TensorSpecs tensors = LlamaTensors();
    for (auto& [name, spec] : tensors) spec.dtype = dtype;
    const auto weights = Find(tensors, Llama());
    ASSERT_TRUE(weights.ok()) << weights.status();
    EXPECT_EQ(weights->layers[0].q.dense->dtype, dtype);
  }
  TensorSpecs tensors = LlamaTensors();
  tensors["model.layers.2.mlp.up_proj.weight"].dtype = DType::kF8E4M3;
  EXPECT_EQ(Invalid(tensors, Llama()),
            "model.layers.2.mlp.up_proj.weight: dtype F8_E4M3, and BF16, F16 and F32 are read: "
            "convert it to one of them");
}

TEST_F(StageWeightsTest, TiedEmbeddingsAreOneTensorWithTwoUses) {
  DecoderConfig config = Llama();
  config.tied_embeddings = true;
  TensorSpecs tensors = LlamaTensors();
  for (const bool present : {true, false}) {
    if (!present) tensors.erase("lm_head.weight");
    const auto weights = Find(tensors, config);
    ASSERT_TRUE(weights.ok()) << weights.status();
    EXPECT_EQ(weights->lm_head->dense->name, "model.embed_tokens.weight");
    EXPECT_EQ(weights->lm_head->dense->bytes.data(), weights->embedding->bytes.data());
    EXPECT_EQ(weights->lm_head->out, 100);
    EXPECT_EQ(weights->bytes(), 2 * (100 * 64 + 64 + 3 * kLayerElements));
  }
  // The last stage alone has it too.
  const auto last = Find(tensors, config, {.first_layer = 3, .num_layers = 0, .lm_head = true});
  ASSERT_TRUE(last.ok()) << last.status();
  EXPECT_EQ(last->bytes(), 2 * (100 * 64 + 64));
}

TEST_F(StageWeightsTest, BiasesAreFoundWhereTheConfigHasThem) {
  TensorSpecs tensors = LlamaTensors();
  for (int layer = 0; layer < 3; ++layer) {
    const std::string prefix = absl::StrCat("model.layers.", layer, ".");
    tensors[prefix + "self_attn.q_proj.bias"] = {DType::kBf16, {96}};
    tensors[prefix + "self_attn.k_proj.bias"] = {DType::kBf16, {48}};
    tensors[prefix + "self_attn.v_proj.bias"] = {DType::kBf16, {48}};
  }
  EXPECT_EQ(Invalid(tensors, Llama()),
            "model.layers.0.self_attn.q_proj.bias: present, and the config says that this layer "
            "has no bias: give the weights and the config.json of one model");
  DecoderConfig config = Llama();
  config.qkv_bias = true;
  auto weights = Find(tensors, config);
  ASSERT_TRUE(weights.ok()) << weights.status();
  EXPECT_EQ(weights->layers[2].q.bias->name, "model.layers.2.self_attn.q_proj.bias");
  EXPECT_EQ(weights->layers[2].v.bias->shape, Shape{48});
  EXPECT_FALSE(weights->layers[2].o.bias);

  config.o_bias = config.mlp_bias = true;
  for (int layer = 0; layer < 3; ++layer) {
    const std::string prefix = absl::StrCat("model.layers.", layer, ".");
    tensors[prefix + "self_attn.o_proj.bias"] = {DType::kBf16, {64}};
    tensors[prefix + "mlp.gate_proj.bias"] = {DType::kBf16, {160}};
    tensors[prefix + "mlp.up_proj.bias"] = {DType::kBf16, {160}};
    tensors[prefix + "mlp.down_proj.bias"] = {DType::kBf16, {64}};
  }
  weights = Find(tensors, config);
  ASSERT_TRUE(weights.ok()) << weights.status();
  EXPECT_EQ(weights->layers[0].o.bias->shape, Shape{64});
  EXPECT_EQ(weights->layers[0].feed_forward->gate.bias->shape, Shape{160});
  EXPECT_EQ(weights->layers[0].feed_forward->down.bias->shape, Shape{64});
  EXPECT_EQ(weights->bytes(), weights->checkpoint->total_bytes());
  tensors.erase("model.layers.1.mlp.down_proj.bias");
  EXPECT_THAT(std::string(Find(tensors, config).status().message()),
              HasSubstr("model.layers.1.mlp.down_proj.bias: missing"));
}

TEST_F(StageWeightsTest, NormsOfHeadsAreFoundWhereTheConfigHasThem) {
  DecoderConfig config = Llama();
  config.architecture = "Qwen3ForCausalLM";
  config.qk_norm = true;
  TensorSpecs tensors = LlamaTensors();
  for (int layer = 0; layer < 3; ++layer) {
    const std::string prefix = absl::StrCat("model.layers.", layer, ".self_attn.");
    tensors[prefix + "q_norm.weight"] = {DType::kBf16, {24}};
    tensors[prefix + "k_norm.weight"] = {DType::kBf16, {24}};
  }
  const auto weights = Find(tensors, config);
  ASSERT_TRUE(weights.ok()) << weights.status();
  EXPECT_EQ(weights->layers[1].q_norm->name, "model.layers.1.self_attn.q_norm.weight");
  EXPECT_EQ(weights->layers[1].k_norm->name, "model.layers.1.self_attn.k_norm.weight");
  EXPECT_EQ(Invalid(tensors, Llama()),
            "model.layers.0.self_attn.q_norm.weight: present, and LlamaForCausalLM does not "
            "normalise heads: give the weights and the config.json of one model");
}

TEST_F(StageWeightsTest, AwqLayersAreFoundInTheirThreeTensors) {
  const auto weights = Find(AwqTensors(), AwqLlama());
  ASSERT_TRUE(weights.ok()) << weights.status();
  const LinearWeights& down = weights->layers[1].feed_forward->down;
  EXPECT_FALSE(down.dense);
  EXPECT_EQ(down.in, 160);
  EXPECT_EQ(down.out, 64);
  EXPECT_EQ(down.awq->group_size, 32);
  EXPECT_EQ(down.awq->qweight.name, "model.layers.1.mlp.down_proj.qweight");
  EXPECT_EQ(down.awq->qweight.shape, (Shape{160, 8}));  // [in, out / 8]
  EXPECT_EQ(down.awq->qzeros.name, "model.layers.1.mlp.down_proj.qzeros");
  EXPECT_EQ(down.awq->qzeros.shape, (Shape{5, 8}));  // [in / 32, out / 8]
  EXPECT_EQ(down.awq->scales.name, "model.layers.1.mlp.down_proj.scales");
  EXPECT_EQ(down.awq->scales.shape, (Shape{5, 64}));  // [in / 32, out]
  EXPECT_TRUE(weights->layers[1].q.awq && weights->layers[1].o.awq);
  EXPECT_TRUE(weights->lm_head->dense);  // never converted
  EXPECT_EQ(weights->bytes(), weights->checkpoint->total_bytes());
}

TEST_F(StageWeightsTest, ModulesThatAreNotConvertedAreDense) {
  DecoderConfig config = AwqLlama();
  config.awq->not_converted = {"layers.0.", "mlp.up_proj"};
  TensorSpecs tensors = LlamaTensors();
  for (int layer = 1; layer < 3; ++layer) {
    for (const char* module : {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj",
                               "self_attn.o_proj", "mlp.gate_proj", "mlp.down_proj"}) {
      Quantise(absl::StrCat("model.layers.", layer, ".", module), 32, &tensors);
    }
  }
  const auto weights = Find(tensors, config);
  ASSERT_TRUE(weights.ok()) << weights.status();
  EXPECT_TRUE(weights->layers[0].q.dense);
  EXPECT_TRUE(weights->layers[1].q.awq);
  EXPECT_TRUE(weights->layers[1].feed_forward->up.dense);
  EXPECT_TRUE(weights->layers[1].feed_forward->down.awq);
}

TEST_F(StageWeightsTest, DenseWhereTheConfigSaysAwqIsTold) {
  TensorSpecs tensors = AwqTensors();
  tensors["model.layers.1.mlp.up_proj.weight"] = {DType::kBf16, {160, 64}};
  EXPECT_EQ(Invalid(tensors, AwqLlama()), "");  // both: the config decides
  tensors.erase("model.layers.1.mlp.up_proj.qweight");
  EXPECT_EQ(Invalid(tensors, AwqLlama()),
            "model.layers.1.mlp.up_proj.weight: dense, and the config's quantization_config says "
            "AWQ, and its modules_to_not_convert does not name this layer: give the weights and "
            "the config.json of one model");
}

TEST_F(StageWeightsTest, AwqWhereTheConfigSaysDenseIsTold) {
  EXPECT_EQ(Invalid(AwqTensors(), Llama()),
            "model.layers.0.self_attn.q_proj.qweight: quantised, and the config has no "
            "quantization_config: give the weights and the config.json of one model");
  DecoderConfig config = AwqLlama();
  config.awq->not_converted = {"mlp.up_proj"};
  EXPECT_EQ(
      Invalid(AwqTensors(), config),
      "model.layers.0.mlp.up_proj.qweight: quantised, and the config's "
      "modules_to_not_convert keeps \"mlp.up_proj\" dense: give the weights and the config.json "
      "of one model");
}

TEST_F(StageWeightsTest, AwqPacksIntoWordsAndScalesAreFloats) {
  TensorSpecs tensors = AwqTensors();
  tensors["model.layers.0.self_attn.q_proj.qweight"].dtype = DType::kF32;
  EXPECT_EQ(Invalid(tensors, AwqLlama()),
            "model.layers.0.self_attn.q_proj.qweight: dtype F32, and AWQ packs into I32: give the "
            "weights and the config.json of one model");
  for (DType dtype : {DType::kBf16, DType::kF32}) {
    tensors = AwqTensors();
    tensors["model.layers.0.self_attn.q_proj.scales"].dtype = dtype;
    EXPECT_EQ(Invalid(tensors, AwqLlama()), "");
  }
}

TEST_F(StageWeightsTest, GroupsMustDivideTheInputsAndWordsTheOutputs) {
  DecoderConfig config = AwqLlama();
  for (const int64_t group_size : {0, -1, 48}) {  // 64 inputs
    config.awq->group_size = group_size;
    const absl::Status status = Find(AwqTensors(), config).status();
    EXPECT_EQ(status,
              absl::InvalidArgumentError(absl::StrCat(
                  "config.json: model.layers.0.self_attn.q_proj: AWQ of hidden_size 64 inputs and "
                  "num_attention_heads 4 x head_dim 24 outputs, and group_size ",
                  group_size,
                  " must divide the inputs, 8 the outputs: add it to modules_to_not_convert if it "
                  "is dense")));
  }
  config = AwqLlama();
  config.heads = 3;
  config.head_dim = 22;  // 66 outputs
  EXPECT_THAT(std::string(Find(AwqTensors(), config).status().message()),
              HasSubstr("num_attention_heads 3 x head_dim 22 outputs"));
}

TEST_F(StageWeightsTest, MixturesOfExpertsHaveARouterAndTheirExperts) {
  const auto weights = Find(Qwen3MoeTensors(), Qwen3Moe());
  ASSERT_TRUE(weights.ok()) << weights.status();
  EXPECT_TRUE(weights->layers[0].feed_forward);
  EXPECT_FALSE(weights->layers[0].router);
  EXPECT_TRUE(weights->layers[0].experts.empty());
  const LayerWeights& layer = weights->layers[2];
  EXPECT_FALSE(layer.feed_forward);
  EXPECT_EQ(layer.router->dense->name, "model.layers.2.mlp.gate.weight");
  EXPECT_EQ(layer.router->out, 5);
  EXPECT_EQ(layer.router->in, 64);
  ASSERT_EQ(layer.experts.size(), 5u);
  for (int expert = 0; expert < 5; ++expert) {
    const std::string prefix = absl::StrCat("model.layers.2.mlp.experts.", expert, ".");
    EXPECT_EQ(layer.experts[expert].gate.dense->name, prefix + "gate_proj.weight");
    EXPECT_EQ(layer.experts[expert].up.dense->name, prefix + "up_proj.weight");
    EXPECT_EQ(layer.experts[expert].down.dense->name, prefix + "down_proj.weight");
    EXPECT_EQ(layer.experts[expert].down.in, 40);
  }
  EXPECT_EQ(weights->bytes(), weights->checkpoint->total_bytes());
}

TEST_F(StageWeightsTest, ARouterIsKeptDenseByNameAndItsExpertsAreNot) {
  DecoderConfig config = Qwen3Moe();
  config.has_experts = {true, true, true};
  // As published AWQ checkpoints of Qwen3 say it.
  config.awq = AwqConfig{.group_size = 8, .not_converted = {"mlp.gate", "lm_head"}};
  TensorSpecs tensors = Qwen3MoeTensors();
  for (int layer = 1; layer < 3; ++layer) {
    const std::string prefix = absl::StrCat("model.layers.", layer, ".");
    for (const char* name : {"q_proj", "k_proj", "v_proj", "o_proj"}) {
      Quantise(absl::StrCat(prefix, "self_attn.", name), 8, &tensors);
    }
    for (int expert = 0; expert < 5; ++expert) {
      for (const char* name : {"gate_proj", "up_proj", "down_proj"}) {
        Quantise(absl::StrCat(prefix, "mlp.experts.", expert, ".", name), 8, &tensors);
      }
    }
  }
  const auto weights = Find(tensors, config, {.first_layer = 1, .num_layers = 2, .lm_head = true});
  ASSERT_TRUE(weights.ok()) << weights.status();
  EXPECT_TRUE(weights->layers[0].router->dense);
  EXPECT_TRUE(weights->layers[0].experts[4].gate.awq);
  EXPECT_EQ(weights->layers[0].experts[4].down.awq->qweight.shape, (Shape{40, 8}));
}

using StageWeightsDeathTest = StageWeightsTest;

TEST_F(StageWeightsDeathTest, TheLayersOfTheShareMustExist) {
  for (const StageShare& share : {StageShare{.first_layer = 2, .num_layers = 2},
                                  StageShare{.first_layer = -1, .num_layers = 1},
                                  StageShare{.first_layer = 0, .num_layers = -1}}) {
    EXPECT_DEATH(Find(LlamaTensors(), Llama(), share).status().IgnoreError(), "check failed.*of 3");
  }
}

}  // namespace
}  // namespace fabricast
