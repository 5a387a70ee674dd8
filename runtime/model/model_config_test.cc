#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "runtime/model/model.h"
#include "runtime/model/shared_data.h"

namespace fabricast {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

// A config.json, as field -> JSON text.
using Fields = std::map<std::string, std::string>;

Fields Sound() {
  return {{"architectures", R"(["LlamaForCausalLM"])"},
          {"hidden_size", "1024"},
          {"intermediate_size", "2048"},
          {"num_hidden_layers", "4"},
          {"num_attention_heads", "8"},
          {"num_key_value_heads", "2"},
          {"vocab_size", "1000"},
          {"max_position_embeddings", "4096"},
          {"torch_dtype", R"("bfloat16")"}};
}

// `fields` replaced in or added to Sound(); an empty text takes the field away.
std::string Config(const Fields& fields) {
  Fields all = Sound();
  for (const auto& [field, text] : fields) all[field] = text;
  std::string json;
  for (const auto& [field, text] : all) {
    if (!text.empty()) absl::StrAppend(&json, json.empty() ? "{" : ",", "\"", field, "\":", text);
  }
  return json + "}";
}

absl::StatusOr<Model> Parse(const Fields& fields, const std::string& quantization = "") {
  return ParseModelConfig("m/config.json", Config(fields), quantization);
}

Model Sure(const Fields& fields, const std::string& quantization = "") {
  absl::StatusOr<Model> model = Parse(fields, quantization);
  if (!model.ok()) {
    ADD_FAILURE() << model.status();
    return {};
  }
  return *std::move(model);
}

Fields Experts(const Fields& fields = {}) {
  Fields all = {{"architectures", R"(["Qwen3MoeForCausalLM"])"},
                {"num_experts", "16"},
                {"num_experts_per_tok", "4"},
                {"moe_intermediate_size", "256"}};
  for (const auto& [field, text] : fields) all[field] = text;
  return all;
}

std::string ErrorOf(const Fields& fields, const std::string& quantization = "") {
  return std::string(Parse(fields, quantization).status().message());
}

const LinearOp& Linear(const Model& model, const std::string& name) {
  for (const Operator& op : model.kinds[0].operators) {
    const auto* linear = std::get_if<LinearOp>(&op);
    if (linear != nullptr && linear->name == name) return *linear;
  }
  ADD_FAILURE() << "no " << name;
  static const LinearOp none;
  return none;
}

TEST(ModelConfigTest, ReadsAConfig) {
  const Model model = Sure({});
  EXPECT_EQ(model.name, "m");
  EXPECT_EQ(model.source, "m/config.json");
  EXPECT_EQ(model.architecture, "LlamaForCausalLM");
  EXPECT_EQ(model.num_layers(), 4);
  EXPECT_EQ(model.max_context, 4096);
  EXPECT_FALSE(model.tied_embeddings);
  EXPECT_EQ(model.layer_format, WeightFormat::kBf16);
  EXPECT_EQ(Linear(model, "qkv").out, (8 + 2 * 2) * 128);  // head_dim = 1024 / 8
  EXPECT_EQ(Linear(model, "o").in, 8 * 128);
  EXPECT_EQ(Linear(model, "gate_up").out, 2 * 2048);
  EXPECT_EQ(Linear(model, "down").in, 2048);
}

TEST(ModelConfigTest, HeadDimNeedNotBeHiddenOverHeads) {
  EXPECT_EQ(Linear(Sure({{"head_dim", "256"}}), "qkv").out, (8 + 2 * 2) * 256);
  EXPECT_EQ(Linear(Sure({{"head_dim", "null"}}), "qkv").out, (8 + 2 * 2) * 128);
  EXPECT_THAT(
      ErrorOf({{"num_attention_heads", "6"}}),
      HasSubstr("m/config.json: head_dim: missing: hidden_size 1024 over 6 attention heads"));
}

TEST(ModelConfigTest, KeyValueHeadsDefaultToTheHeads) {
  EXPECT_EQ(Linear(Sure({{"num_key_value_heads", ""}}), "qkv").out, 3 * 1024);
}

TEST(ModelConfigTest, ArchitecturesDifferInBiasesAndNorms) {
  EXPECT_FALSE(Linear(Sure({}), "qkv").bias);
  const Model biased = Sure({{"attention_bias", "true"}, {"mlp_bias", "true"}});
  for (const char* name : {"qkv", "o", "gate_up", "down"}) EXPECT_TRUE(Linear(biased, name).bias);

  const Model qwen2 = Sure({{"architectures", R"(["Qwen2ForCausalLM"])"}});
  EXPECT_TRUE(Linear(qwen2, "qkv").bias);
  EXPECT_FALSE(Linear(qwen2, "o").bias);
  // A bias adds one element an output: (8 + 2 x 2) x 128.
  EXPECT_EQ(qwen2.parameters() - Sure({}).parameters(), 4 * 1536);
  EXPECT_EQ(qwen2.weight_bytes() - Sure({}).weight_bytes(), 4 * 1536 * 2);

  const Model qwen3 = Sure({{"architectures", R"(["Qwen3ForCausalLM"])"}});
  EXPECT_EQ(qwen3.parameters() - Sure({}).parameters(), 4 * 2 * 128);
}

TEST(ModelConfigTest, UnknownArchitecturesAreNamedBesideTheKnown) {
  const absl::Status status = Parse({{"architectures", R"(["MixtralForCausalLM"])"}}).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnimplemented);
  EXPECT_EQ(
      status.message(),
      R"(m/config.json: architectures: ["MixtralForCausalLM"]: not a known architecture: use a )"
      "model of LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM, "
      "Qwen3MoeForCausalLM");
  for (const char* text : {"", "null", "[]", "[1]", R"("LlamaForCausalLM")", "{}"}) {
    EXPECT_EQ(Parse({{"architectures", text}}).status().code(), absl::StatusCode::kInvalidArgument)
        << text;
  }
}

TEST(ModelConfigTest, AbsurdNumbersNameFileFieldValueAndMend) {
  EXPECT_EQ(ErrorOf({{"num_hidden_layers", "0"}}),
            "m/config.json: num_hidden_layers: 0: give a whole number from 1 to 10000");
  EXPECT_EQ(ErrorOf({{"num_hidden_layers", ""}}),
            "m/config.json: num_hidden_layers: missing: give a whole number from 1 to 10000");
  for (const char* field :
       {"hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
        "num_key_value_heads", "head_dim", "vocab_size", "max_position_embeddings"}) {
    for (const char* text : {"0", "-1", "1.5", "1e3", "4294967297", "9223372036854775807",
                             "18446744073709551615", "123456789012345678901234567890", "NaN",
                             "Infinity", "-Infinity", "\"8\"", "true", "[]", "[[1]]", "{}"}) {
      const absl::Status status = Parse({{field, text}}).status();
      EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << field << " " << text;
      EXPECT_THAT(std::string(status.message()),
                  HasSubstr(absl::StrCat("m/config.json: ", field, ": ")))
          << text;
    }
  }
}

TEST(ModelConfigTest, TenThousandLayersAreTheMost) {
  EXPECT_EQ(Sure({{"num_hidden_layers", "10000"}}).num_layers(), 10'000);
  EXPECT_FALSE(Parse({{"num_hidden_layers", "10001"}}).ok());
}

TEST(ModelConfigTest, TheLargestSizesDoNotOverflow) {
  const Model model = Sure({{"hidden_size", "1048576"},
                            {"intermediate_size", "4194304"},
                            {"num_hidden_layers", "10000"},
                            {"num_attention_heads", "4096"},
                            {"num_key_value_heads", "4096"},
                            {"head_dim", "1024"},
                            {"vocab_size", "67108864"}});
  // 10^4 x 2^20 x (4 x 2^22 + 3 x 2^22) + smaller ones: 3.1e17.
  EXPECT_GT(model.parameters(), 300'000'000'000'000'000);
  EXPECT_GT(model.weight_bytes(), 2 * 300'000'000'000'000'000);
  const Model experts = Sure(Experts({{"hidden_size", "1048576"},
                                      {"num_hidden_layers", "10000"},
                                      {"num_attention_heads", "4096"},
                                      {"num_key_value_heads", "4096"},
                                      {"head_dim", "1024"},
                                      {"num_experts", "65536"},
                                      {"num_experts_per_tok", "65536"},
                                      {"moe_intermediate_size", "256"},
                                      {"vocab_size", "67108864"}}));
  // 10^4 x 2^20 x (4 x 2^22 + 3 x 2^24) + smaller ones: 7.0e17.
  EXPECT_GT(experts.parameters(), 700'000'000'000'000'000);
  EXPECT_GT(experts.weight_bytes(), 2 * 700'000'000'000'000'000);
  EXPECT_GT(WithActivationBytes(experts, 4).kv_bytes_per_token(), 0);
}

TEST(ModelConfigTest, KeyValueHeadsMustDivideTheHeads) {
  EXPECT_EQ(ErrorOf({{"num_key_value_heads", "3"}}),
            "m/config.json: num_key_value_heads: 3: give a divisor of the 8 attention heads");
}

TEST(ModelConfigTest, WrongTypesOfSwitchesAreNamed) {
  EXPECT_EQ(ErrorOf({{"tie_word_embeddings", "1"}}),
            "m/config.json: tie_word_embeddings: 1: give true or false");
  EXPECT_EQ(ErrorOf({{"torch_dtype", "16"}}), "m/config.json: torch_dtype: 16: give a string");
}

TEST(ModelConfigTest, SixteenBitFloatsCountAsBf16AndFloat32IsRefused) {
  EXPECT_EQ(Sure({{"torch_dtype", R"("float16")"}}).layer_format, WeightFormat::kBf16);
  EXPECT_EQ(Sure({{"torch_dtype", ""}, {"dtype", R"("bfloat16")"}}).layer_format,
            WeightFormat::kBf16);
  EXPECT_EQ(Sure({{"torch_dtype", ""}}).layer_format, WeightFormat::kBf16);
  EXPECT_THAT(ErrorOf({{"torch_dtype", R"("float32")"}}),
              HasSubstr(R"(torch_dtype: "float32": only bfloat16 and float16)"));
  EXPECT_EQ(Sure({{"torch_dtype", R"("float32")"}}, "bf16").layer_format, WeightFormat::kBf16);
}

TEST(ModelConfigTest, ReadsTheQuantizationConfig) {
  const auto format = [](const std::string& quantization) {
    return Sure({{"quantization_config", quantization}}).layer_format;
  };
  EXPECT_EQ(format(R"({"quant_method":"awq","bits":4,"group_size":128})"),
            WeightFormat::kInt4Group128);
  EXPECT_EQ(format(R"({"quant_method":"awq","w_bit":4,"q_group_size":128})"),
            WeightFormat::kInt4Group128);
  EXPECT_EQ(format(R"({"quant_method":"gptq","bits":4,"group_size":128,"desc_act":true})"),
            WeightFormat::kInt4Group128);
  EXPECT_EQ(format(R"({"quant_method":"fp8","weight_block_size":[128,128]})"), WeightFormat::kFp8);
  EXPECT_EQ(format(R"({"quant_method":"fp8","ignored_layers":["lm_head"]})"), WeightFormat::kFp8);
  EXPECT_EQ(format(R"({"quant_method":"modelopt","quant_algo":"FP8"})"), WeightFormat::kFp8);
  EXPECT_EQ(format(R"({"quant_method":"compressed-tensors","ignore":["lm_head"],"config_groups":
                       {"group_0":{"weights":{"num_bits":8,"type":"float"}}}})"),
            WeightFormat::kFp8);
  EXPECT_EQ(format(R"({"quant_method":"compressed-tensors","config_groups":
                       {"group_0":{"weights":{"num_bits":4,"type":"int","group_size":128}}}})"),
            WeightFormat::kInt4Group128);
  EXPECT_EQ(format("null"), WeightFormat::kBf16);
}

TEST(ModelConfigTest, OtherQuantizationsNameTheFieldAndTheFlag) {
  const auto error = [](const std::string& quantization) {
    return ErrorOf({{"quantization_config", quantization}});
  };
  EXPECT_THAT(error(R"({"quant_method":"awq","bits":8,"group_size":128})"),
              HasSubstr("m/config.json: quantization_config.bits: 8: only 4 bits"));
  EXPECT_THAT(error(R"({"quant_method":"awq","bits":4,"group_size":64})"),
              HasSubstr("quantization_config.group_size: 64: only groups of 128"));
  EXPECT_THAT(error(R"({"quant_method":"gptq","bits":4,"group_size":-1})"),
              HasSubstr("quantization_config.group_size: -1: only groups of 128"));
  EXPECT_THAT(error(R"({"quant_method":"gptq","bits":4})"),
              HasSubstr("quantization_config.group_size: missing"));
  EXPECT_THAT(error(R"({"quant_method":"bitsandbytes"})"),
              HasSubstr("quantization_config.quant_method: \"bitsandbytes\": known are awq"));
  EXPECT_THAT(error(R"({"quant_method":"modelopt","quant_algo":"NVFP4"})"),
              HasSubstr("quantization_config.quant_method: \"modelopt\": known are"));
  EXPECT_THAT(error("{}"), HasSubstr("quantization_config.quant_method: missing"));
  EXPECT_THAT(error("\"awq\""), HasSubstr("quantization_config: \"awq\": give an object"));
  EXPECT_THAT(error(R"({"quant_method":"compressed-tensors"})"),
              HasSubstr("quantization_config.config_groups: missing: give an object"));
  EXPECT_THAT(
      error(R"({"quant_method":"compressed-tensors","config_groups":
                        {"g":{"weights":{"num_bits":8,"type":"int"}}}})"),
      HasSubstr("quantization_config.config_groups.g.weights.num_bits: 8: of type \"int\""));
  EXPECT_THAT(error(R"({"quant_method":"compressed-tensors","config_groups":{"a":{},"b":{}}})"),
              HasSubstr("exactly one group"));
  // As Meta's FP8 405B has it: attention stays in BF16.
  EXPECT_THAT(error(R"({"quant_method":"fbgemm_fp8",
                        "modules_to_not_convert":["model.layers.0.self_attn.q_proj"]})"),
              HasSubstr("modules_to_not_convert: [\"model.layers.0.self_attn.q_proj\"]: layers of "
                        "mixed formats are not modelled"));
}

TEST(ModelConfigTest, TheFlagWinsOverTheConfig) {
  const Fields awq = {
      {"quantization_config", R"({"quant_method":"awq","bits":4,"group_size":128})"}};
  EXPECT_EQ(Sure(awq, "fp8").layer_format, WeightFormat::kFp8);
  EXPECT_EQ(Sure(awq, "bf16").layer_format, WeightFormat::kBf16);
  EXPECT_EQ(Sure({}, "int4").layer_format, WeightFormat::kInt4Group128);
  EXPECT_EQ(Sure({{"quantization_config", R"({"quant_method":"exotic"})"}}, "int4").layer_format,
            WeightFormat::kInt4Group128);
  EXPECT_EQ(ErrorOf({}, "int3"), "quantization: int3: give bf16, fp8 or int4");
}

TEST(ModelConfigTest, Int4NeedsWholeGroups) {
  EXPECT_THAT(ErrorOf({{"intermediate_size", "2000"}}, "int4"),
              HasSubstr("intermediate_size: 2000: 2000 inputs are not whole INT4 groups of 128"));
  EXPECT_TRUE(Parse({{"intermediate_size", "2000"}}, "fp8").ok());
}

TEST(ModelConfigTest, ShortSlidingWindowsAreRefused) {
  const std::string mistral = R"(["MistralForCausalLM"])";
  EXPECT_TRUE(Parse({{"architectures", mistral}, {"sliding_window", "null"}}).ok());
  EXPECT_TRUE(Parse({{"architectures", mistral}, {"sliding_window", "4096"}}).ok());
  const absl::Status status =
      Parse({{"architectures", mistral}, {"sliding_window", "1024"}}).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnimplemented);
  EXPECT_THAT(std::string(status.message()), HasSubstr("sliding_window: 1024: attention windows"));
  EXPECT_THAT(ErrorOf({{"architectures", mistral}}), HasSubstr("sliding_window: missing"));

  const std::string qwen2 = R"(["Qwen2ForCausalLM"])";
  EXPECT_TRUE(Parse({{"architectures", qwen2}, {"sliding_window", "1024"}}).ok());
  EXPECT_FALSE(
      Parse({{"architectures", qwen2}, {"sliding_window", "1024"}, {"use_sliding_window", "true"}})
          .ok());
}

TEST(ModelConfigTest, OtherActivationFunctionsAreRefused) {
  EXPECT_EQ(Parse({{"hidden_act", R"("gelu")"}}).status().code(), absl::StatusCode::kUnimplemented);
}

TEST(ModelConfigTest, AMixtureOfExpertsMayHaveDenseLayers) {
  const Model all = Sure(Experts());
  ASSERT_EQ(all.kinds.size(), 1u);
  EXPECT_EQ(all.kinds[0].name, "experts");
  const Model mixed = Sure(Experts({{"decoder_sparse_step", "2"}}));
  ASSERT_EQ(mixed.kinds.size(), 2u);
  EXPECT_EQ(mixed.layer(0).name, "dense");
  EXPECT_EQ(mixed.layer(1).name, "experts");
  EXPECT_EQ(mixed.layers, (std::vector<int>{0, 1, 0, 1}));
  // 3 x 1,024 x 2,048 in place of 16 x 3 x 1,024 x 256 and a router of 1,024 x 16, in two layers.
  EXPECT_EQ(all.parameters() - mixed.parameters(),
            2 * (16 * 3 * 1024 * 256 + 1024 * 16 - 3 * 1024 * 2048));
}

TEST(ModelConfigTest, Int4NeedsWholeGroupsInExperts) {
  EXPECT_TRUE(Parse(Experts({{"intermediate_size", "2000"}}), "int4").ok());
  EXPECT_THAT(ErrorOf(Experts({{"moe_intermediate_size", "192"}}), "int4"),
              HasSubstr("moe_intermediate_size: 192: 192 inputs are not whole INT4 groups"));
  EXPECT_THAT(ErrorOf(Experts({{"intermediate_size", "2000"}, {"mlp_only_layers", "[2]"}}), "int4"),
              HasSubstr("intermediate_size: 2000"));
}

// As Qwen's FP8 checkpoints and AutoAWQ's list them: these count as BF16 anyway.
TEST(ModelConfigTest, NormsAndRoutersMayStayAsTheyAre) {
  EXPECT_EQ(Sure(Experts({{"quantization_config",
                           R"({"quant_method":"fp8","modules_to_not_convert":["lm_head",
                               "model.layers.0.input_layernorm","model.layers.0.mlp.gate"]})"}}))
                .layer_format,
            WeightFormat::kFp8);
  EXPECT_EQ(Parse(Experts({{"quantization_config",
                            R"({"quant_method":"awq","bits":4,"group_size":128,
                                "modules_to_not_convert":["gate_proj"]})"}}))
                .status()
                .code(),
            absl::StatusCode::kUnimplemented);
}

TEST(ModelConfigTest, PythonsNumbersAreUnderstoodWhereNoneIsNeeded) {
  EXPECT_TRUE(
      Parse({{"time_step_limit", "[0.0, Infinity, -Infinity, NaN]"}, {"x", R"("NaN \" Infinity")"}})
          .ok());
  EXPECT_EQ(ErrorOf({{"vocab_size", "NaN"}}),
            "m/config.json: vocab_size: \"NaN\": give a whole number from 1 to 67108864");
}

TEST(ModelConfigTest, WhatIsNotAConfigIsRefused) {
  for (const std::string& text :
       {std::string(), std::string(" \n"), std::string("{"), std::string("not json"),
        std::string("\x7f"
                    "ELF\0\1\2",
                    7),
        std::string("{\"a\": \"\xff\"}"), std::string("\""), std::string("\"\\"),
        std::string("{\"a\":1}}"), std::string("]]]]"), std::string("1e999")}) {
    const absl::Status status = ParseModelConfig("f.json", text).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << text;
    EXPECT_THAT(std::string(status.message()), HasSubstr("f.json: not JSON: "));
    EXPECT_THAT(std::string(status.message()), Not(HasSubstr("json.exception")));
  }
  EXPECT_EQ(ParseModelConfig("f.json", "[]").status().message(),
            "f.json: holds a JSON array, not an object: give a config.json of Hugging Face");
}

TEST(ModelConfigTest, DeepAndLargeTextsAreRefusedAtOnce) {
  EXPECT_THAT(
      std::string(ParseModelConfig("f.json", std::string(3'000'000, '[')).status().message()),
      HasSubstr("f.json: byte 64: nested more than 64 deep"));
  EXPECT_THAT(
      std::string(ParseModelConfig("f.json", std::string(4'000'001, ' ')).status().message()),
      HasSubstr("f.json: 4000001 bytes, and a config.json has at most 4000000"));
  // A long value is not repeated in full.
  EXPECT_LT(ErrorOf({{"vocab_size", absl::StrCat("\"", std::string(1'000'000, 'x'), "\"")}}).size(),
            200);
}

// The published configs, where they are at hand.
TEST(ModelConfigTest, PublishedConfigsParseOrAreRefusedByArchitecture) {
  const std::string folder = SharedDataFolder();
  if (folder.empty()) GTEST_SKIP() << "no folder of published configs";
  int parsed = 0;
  int refused = 0;
  for (const auto& entry : std::filesystem::directory_iterator(folder + "/model_configs")) {
    std::ifstream in(entry.path());
    const std::string text(std::istreambuf_iterator<char>(in), {});
    const absl::StatusOr<Model> model = ParseModelConfig(entry.path().string(), text);
    const std::string stem = entry.path().stem().string();
    const bool llama = absl::StartsWith(stem, "llama-3.1-");
    if (llama || stem == "qwen3-235b-a22b") {
      ASSERT_TRUE(model.ok()) << model.status();
      EXPECT_EQ(model->name, stem);
      const absl::StatusOr<Model> bundled = LoadModel(llama ? stem + "-instruct" : stem);
      ASSERT_TRUE(bundled.ok()) << bundled.status();
      EXPECT_EQ(model->parameters(), bundled->parameters()) << stem;
      EXPECT_EQ(model->weight_bytes(), bundled->weight_bytes()) << stem;
      ++parsed;
    } else {
      EXPECT_EQ(model.status().code(), absl::StatusCode::kUnimplemented) << model.status();
      EXPECT_THAT(std::string(model.status().message()),
                  HasSubstr("ForCausalLM\"]: not a known architecture"));
      ++refused;
    }
  }
  EXPECT_GE(parsed, 4);
  EXPECT_GE(refused, 1);
}

}  // namespace
}  // namespace fabricast
