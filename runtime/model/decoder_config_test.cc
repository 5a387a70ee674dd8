#include "runtime/model/decoder_config.h"

#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "runtime/model/model.h"
#include "runtime/model/shared_data.h"

namespace fabricast {
namespace {

using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

namespace fs = std::filesystem;

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
          {"rms_norm_eps", "1e-05"},
          {"rope_theta", "500000.0"},
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

absl::StatusOr<DecoderConfig> Parse(const Fields& fields) {
  return ParseDecoderConfig("m/config.json", Config(fields));
}

DecoderConfig Sure(const Fields& fields) {
  absl::StatusOr<DecoderConfig> config = Parse(fields);
  if (!config.ok()) {
    ADD_FAILURE() << config.status();
    return {};
  }
  return *std::move(config);
}

std::string ErrorOf(const Fields& fields, absl::StatusCode code) {
  const absl::Status status = Parse(fields).status();
  EXPECT_EQ(status.code(), code) << status;
  return std::string(status.message());
}

std::string Invalid(const Fields& fields) {
  return ErrorOf(fields, absl::StatusCode::kInvalidArgument);
}

std::string Unimplemented(const Fields& fields) {
  return ErrorOf(fields, absl::StatusCode::kUnimplemented);
}

Fields Experts(const Fields& fields = {}) {
  Fields all = {{"architectures", R"(["Qwen3MoeForCausalLM"])"},
                {"num_experts", "16"},
                {"num_experts_per_tok", "4"},
                {"moe_intermediate_size", "256"},
                {"norm_topk_prob", "true"}};
  for (const auto& [field, text] : fields) all[field] = text;
  return all;
}

constexpr char kLlama3Rope[] =
    R"({"rope_type":"llama3","factor":32.0,"low_freq_factor":1.0,"high_freq_factor":4.0,
        "original_max_position_embeddings":2048})";

TEST(DecoderConfigTest, ReadsALlama) {
  const DecoderConfig c = Sure({{"bos_token_id", "1"}, {"eos_token_id", "2"}});
  EXPECT_EQ(c.file, "m/config.json");
  EXPECT_EQ(c.architecture, "LlamaForCausalLM");
  EXPECT_EQ(c.vocabulary, 1000);
  EXPECT_EQ(c.hidden, 1024);
  EXPECT_EQ(c.layers, 4);
  EXPECT_EQ(c.heads, 8);
  EXPECT_EQ(c.kv_heads, 2);
  EXPECT_EQ(c.head_dim, 128);  // 1024 / 8
  EXPECT_EQ(c.ffn, 2048);
  EXPECT_EQ(c.max_context, 4096);
  EXPECT_EQ(c.rms_norm_eps, 1e-5);
  EXPECT_EQ(c.rope_theta, 500'000);
  EXPECT_FALSE(c.rope_scaling.has_value());
  EXPECT_FALSE(c.qkv_bias || c.o_bias || c.mlp_bias || c.qk_norm || c.tied_embeddings);
  EXPECT_FALSE(c.experts.has_value());
  EXPECT_THAT(c.has_experts, ElementsAre(false, false, false, false));
  EXPECT_FALSE(c.awq.has_value());
  EXPECT_THAT(c.end_of_sequence, ElementsAre(2));
  EXPECT_EQ(c.begin_of_sequence, 1);
}

TEST(DecoderConfigTest, ArchitecturesDifferInBiasesAndNorms) {
  const DecoderConfig llama = Sure({{"attention_bias", "true"}, {"mlp_bias", "true"}});
  EXPECT_TRUE(llama.qkv_bias && llama.o_bias && llama.mlp_bias);
  EXPECT_TRUE(Sure({{"tie_word_embeddings", "true"}}).tied_embeddings);

  const DecoderConfig qwen3 =
      Sure({{"architectures", R"(["Qwen3ForCausalLM"])"}, {"mlp_bias", "true"}});
  EXPECT_TRUE(qwen3.qk_norm);
  EXPECT_FALSE(qwen3.mlp_bias);  // Llama's alone
  // Qwen3Config's default is 128 whatever the hidden size is; Qwen3MoeConfig has none.
  EXPECT_EQ(Sure({{"architectures", R"(["Qwen3ForCausalLM"])"}, {"hidden_size", "512"}}).head_dim,
            128);
  EXPECT_EQ(Sure(Experts({{"hidden_size", "512"}})).head_dim, 64);
}

TEST(DecoderConfigTest, WhatDoesNotRunIsRefusedBesideWhatDoes) {
  EXPECT_EQ(Unimplemented({{"architectures", R"(["MistralForCausalLM"])"}}),
            R"(m/config.json: architectures: ["MistralForCausalLM"]: cannot be run: use a model )"
            "of LlamaForCausalLM, Qwen3ForCausalLM, Qwen3MoeForCausalLM");
  Unimplemented({{"architectures", R"(["GPT2LMHeadModel"])"}});
  Invalid({{"architectures", ""}});
  Unimplemented({{"hidden_act", R"("gelu")"}});
  Unimplemented({{"architectures", R"(["Qwen3ForCausalLM"])"},
                 {"use_sliding_window", "true"},
                 {"sliding_window", "1024"}});
  EXPECT_THAT(Unimplemented({{"layer_types", R"(["full_attention", "sliding_attention"])"}}),
              HasSubstr("layer_types: "));
  EXPECT_TRUE(Parse({{"layer_types", R"(["full_attention", "full_attention"])"}}).ok());
}

TEST(DecoderConfigTest, AbsurdNumbersNameFileFieldValueAndMend) {
  EXPECT_EQ(Invalid({{"rope_theta", "0"}}),
            "m/config.json: rope_theta: 0: give a number from 1 to 1e+12");
  for (const char* field : {"hidden_size", "num_hidden_layers", "rope_theta", "rms_norm_eps",
                            "eos_token_id", "bos_token_id"}) {
    for (const char* text : {"-1", "1e300", "18446744073709551615", "NaN", "Infinity", "\"8\"",
                             "true", "[[1]]", "{}"}) {
      EXPECT_THAT(Invalid({{field, text}}), HasSubstr(absl::StrCat("m/config.json: ", field, ": ")))
          << text;
    }
  }
  EXPECT_THAT(Invalid({{"head_dim", "63"}}), HasSubstr("head_dim: 63: 63 is odd"));
  EXPECT_THAT(Invalid({{"num_key_value_heads", "3"}}), HasSubstr("a divisor of the 8"));
}

TEST(DecoderConfigTest, DefaultsAreThoseOfHuggingFace) {
  const DecoderConfig c = Sure({{"rms_norm_eps", ""}, {"rope_theta", ""}});
  EXPECT_EQ(c.rms_norm_eps, 1e-6);
  EXPECT_EQ(c.rope_theta, 10'000);
  EXPECT_THAT(c.end_of_sequence, IsEmpty());
  EXPECT_FALSE(c.begin_of_sequence.has_value());
}

TEST(DecoderConfigTest, ReadsLlama3RopeScaling) {
  const DecoderConfig c = Sure({{"rope_scaling", kLlama3Rope}});
  ASSERT_TRUE(c.rope_scaling.has_value());
  EXPECT_EQ(c.rope_scaling->factor, 32);
  EXPECT_EQ(c.rope_scaling->low_freq_factor, 1);
  EXPECT_EQ(c.rope_scaling->high_freq_factor, 4);
  EXPECT_EQ(c.rope_scaling->original_context, 2048);
  EXPECT_FALSE(Sure({{"rope_scaling", "null"}}).rope_scaling.has_value());
  EXPECT_FALSE(Sure({{"rope_scaling", R"({"type":"default"})"}}).rope_scaling.has_value());
}

TEST(DecoderConfigTest, NewerConfigsHaveRopeParameters) {
  const Fields newer = {{"rope_theta", ""},
                        {"rope_parameters", R"({"rope_type":"llama3","rope_theta":250000,
                            "factor":8,"low_freq_factor":1,"high_freq_factor":4,
                            "original_max_position_embeddings":8192})"}};
  EXPECT_EQ(Sure(newer).rope_theta, 250'000);
  EXPECT_EQ(Sure(newer).rope_scaling->factor, 8);
  const std::string plain = R"({"rope_type":"default","rope_theta":500000})";
  EXPECT_EQ(Sure({{"rope_parameters", plain}}).rope_theta, 500'000);
  EXPECT_FALSE(Sure({{"rope_parameters", plain}}).rope_scaling.has_value());
  // Both places, and not alike.
  EXPECT_EQ(Invalid({{"rope_theta", "10000"}, {"rope_parameters", plain}}),
            "m/config.json: rope_theta: 10000: rope_parameters.rope_theta is 500000: give one of "
            "the two");
  EXPECT_THAT(Invalid({{"rope_scaling", kLlama3Rope}, {"rope_parameters", plain}}),
              HasSubstr("rope_parameters says otherwise"));
  EXPECT_THAT(Invalid({{"rope_parameters", R"({"rope_type":"default"})"}}),
              HasSubstr("rope_parameters.rope_theta: missing"));
  EXPECT_THAT(Invalid({{"rope_parameters", "7"}}), HasSubstr("rope_parameters: 7: give an object"));
}

TEST(DecoderConfigTest, OtherRopesAreRefused) {
  EXPECT_THAT(Unimplemented({{"rope_scaling", R"({"type":"linear","factor":2.0})"}}),
              HasSubstr(R"(rope_scaling.type: "linear": only "default" and "llama3" run)"));
  EXPECT_THAT(Unimplemented({{"rope_scaling", R"({"rope_type":"yarn","factor":4.0})"}}),
              HasSubstr(R"(rope_scaling.rope_type: "yarn")"));
  EXPECT_THAT(Unimplemented({{"rope_scaling", "{}"}}), HasSubstr("rope_type: missing"));
  EXPECT_THAT(Invalid({{"rope_scaling", R"({"rope_type":"default","type":"linear"})"}}),
              HasSubstr(R"(rope_scaling.type: "linear": rope_type is "default")"));
  Unimplemented({{"partial_rotary_factor", "0.5"}});
  Unimplemented({{"rope_parameters",
                  R"({"rope_type":"default","rope_theta":500000,"partial_rotary_factor":0.25})"}});
}

TEST(DecoderConfigTest, RopeScalingMustNotContradictItself) {
  const auto with = [](absl::string_view low, absl::string_view high) {
    return Fields{
        {"rope_scaling", absl::StrCat(R"({"rope_type":"llama3","factor":8,"low_freq_factor":)", low,
                                      R"(,"high_freq_factor":)", high,
                                      R"(,"original_max_position_embeddings":8192})")}};
  };
  EXPECT_TRUE(Parse(with("1", "4")).ok());
  EXPECT_THAT(Invalid(with("4", "4")), HasSubstr("high_freq_factor: 4: give more than "));
  Invalid(with("4", "1"));
  Invalid(with("0", "4"));
  EXPECT_THAT(Invalid({{"rope_scaling", R"({"rope_type":"llama3"})"}}),
              HasSubstr("rope_scaling.factor: missing"));
}

TEST(DecoderConfigTest, ReadsExperts) {
  const DecoderConfig c = Sure(Experts());
  ASSERT_TRUE(c.experts.has_value());
  EXPECT_EQ(c.experts->experts, 16);
  EXPECT_EQ(c.experts->per_token, 4);
  EXPECT_EQ(c.experts->ffn, 256);
  EXPECT_TRUE(c.experts->normalize);
  EXPECT_TRUE(c.qk_norm);
  EXPECT_THAT(c.has_experts, Each(true));
  EXPECT_FALSE(Sure(Experts({{"norm_topk_prob", ""}})).experts->normalize);
}

TEST(DecoderConfigTest, SomeLayersOfAMixtureAreDense) {
  // Layer i has experts if (i + 1) % step == 0.
  EXPECT_THAT(Sure(Experts({{"decoder_sparse_step", "2"}})).has_experts,
              ElementsAre(false, true, false, true));
  EXPECT_THAT(Sure(Experts({{"mlp_only_layers", "[0, 3]"}})).has_experts,
              ElementsAre(false, true, true, false));
  EXPECT_THAT(Sure(Experts({{"decoder_sparse_step", "2"}, {"mlp_only_layers", "[1]"}})).has_experts,
              ElementsAre(false, false, false, true));
  for (const Fields& none :
       {Experts({{"num_experts", "0"}}), Experts({{"decoder_sparse_step", "5"}}),
        Experts({{"mlp_only_layers", "[0,1,2,3]"}})}) {
    EXPECT_FALSE(Sure(none).experts.has_value());
    EXPECT_THAT(Sure(none).has_experts, ElementsAre(false, false, false, false));
  }
}

TEST(DecoderConfigTest, AbsurdExpertsAreRefused) {
  EXPECT_THAT(Invalid(Experts({{"num_experts_per_tok", "17"}})),
              HasSubstr("num_experts_per_tok: 17: give at most the 16 experts there are"));
  EXPECT_THAT(Invalid(Experts({{"num_experts", ""}})), HasSubstr("num_experts: missing"));
  EXPECT_THAT(Invalid(Experts({{"num_experts_per_tok", "0"}})), HasSubstr("num_experts_per_tok"));
  EXPECT_THAT(Invalid(Experts({{"mlp_only_layers", "[4]"}})),
              HasSubstr("mlp_only_layers: [4]: give a list of whole numbers from 0 to 3"));
  for (const char* text : {"3", "{}", "[1.5]", "[\"1\"]", "[[0]]"}) {
    EXPECT_THAT(Invalid(Experts({{"mlp_only_layers", text}})), HasSubstr("mlp_only_layers"));
  }
  EXPECT_THAT(Invalid(Experts({{"num_experts", "65536"}, {"moe_intermediate_size", "4194304"}})),
              HasSubstr("moe_intermediate_size: 4194304: times 65536 experts"));
  // A dense model has none, whatever it says.
  EXPECT_FALSE(Sure({{"num_experts", "16"}}).experts.has_value());
}

Fields Awq(const std::string& quantization, Fields fields = {}) {
  fields["quantization_config"] = quantization;
  return fields;
}

TEST(DecoderConfigTest, ReadsAwq) {
  const DecoderConfig c =
      Sure(Awq(R"({"quant_method":"awq","bits":4,"group_size":64,"zero_point":true,
                   "version":"gemm","modules_to_not_convert":["lm_head","mlp.gate"]})"));
  ASSERT_TRUE(c.awq.has_value());
  EXPECT_EQ(c.awq->group_size, 64);
  EXPECT_THAT(c.awq->not_converted, ElementsAre("lm_head", "mlp.gate"));
  // AutoAWQ's own names, its older spelling of the version, and nothing left out.
  EXPECT_EQ(Sure(Awq(R"({"quant_method":"awq","w_bit":4,"q_group_size":32,"version":"GEMM",
                         "modules_to_not_convert":null})"))
                .awq->group_size,
            32);
  EXPECT_FALSE(Sure(Awq("null")).awq.has_value());
}

TEST(DecoderConfigTest, OtherQuantisationsNameWhatRuns) {
  EXPECT_EQ(Unimplemented(Awq(R"({"quant_method":"gptq","bits":4,"group_size":128})")),
            "m/config.json: quantization_config.quant_method: \"gptq\": only awq (4 bits, version "
            "gemm) and unquantised checkpoints run");
  const auto error = [](absl::string_view extra) {
    return Unimplemented(Awq(absl::StrCat(R"({"quant_method":"awq",)", extra, "}")));
  };
  EXPECT_THAT(error(R"("bits":8,"group_size":128)"), HasSubstr("bits: 8: only 4 bits"));
  EXPECT_THAT(error(R"("bits":4,"group_size":16)"), HasSubstr("groups of 32, 64 and 128"));
  EXPECT_THAT(error(R"("bits":4,"group_size":-1)"), HasSubstr("group_size: -1"));
  EXPECT_THAT(error(R"("bits":4,"group_size":128,"version":"gemv")"), HasSubstr("only gemm"));
  EXPECT_THAT(error(R"("bits":4,"group_size":128,"zero_point":false)"), HasSubstr("zero_point"));
  EXPECT_THAT(Unimplemented(Awq("{}")), HasSubstr("quant_method: missing"));
  EXPECT_THAT(Invalid(Awq("3")), HasSubstr("quantization_config: 3: give an object"));
  EXPECT_THAT(Invalid(Awq(R"({"quant_method":"awq","group_size":128})")),
              HasSubstr("quantization_config.bits: missing"));
  EXPECT_THAT(Invalid(Awq(R"({"quant_method":"awq","bits":4,"group_size":128,
                              "modules_to_not_convert":"lm_head"})")),
              HasSubstr("give a list of strings"));
  EXPECT_THAT(Invalid(Awq(R"({"quant_method":"awq","bits":4,"group_size":128,
                              "modules_to_not_convert":[""]})")),
              HasSubstr("empty name"));
}

TEST(DecoderConfigTest, ModulesStayDenseByWholePartsOfTheirNames) {
  const AwqConfig awq = {.group_size = 128,
                         .not_converted = {"lm_head", "mlp.gate", "model.layers.3.", "up_proj"}};
  const auto kept = [&awq](absl::string_view module) {
    const std::string* by = awq.KeptDenseBy(module);
    return by == nullptr ? "" : *by;
  };
  EXPECT_EQ(kept("lm_head"), "lm_head");
  EXPECT_EQ(kept("model.layers.0.mlp.gate"), "mlp.gate");
  EXPECT_EQ(kept("model.layers.0.mlp.gate_proj"), "");
  EXPECT_EQ(kept("model.layers.0.mlp.experts.7.gate_proj"), "");
  EXPECT_EQ(kept("model.layers.0.mlp.experts.7.up_proj"), "up_proj");
  EXPECT_EQ(kept("model.layers.3.mlp.down_proj"), "model.layers.3.");
  EXPECT_EQ(kept("model.layers.33.mlp.down_proj"), "");
}

TEST(DecoderConfigTest, EndOfSequenceIsANumberOrAList) {
  EXPECT_THAT(Sure({{"eos_token_id", "[2, 7]"}}).end_of_sequence, ElementsAre(2, 7));
  EXPECT_THAT(Sure({{"eos_token_id", "null"}}).end_of_sequence, IsEmpty());
  EXPECT_THAT(Sure({{"eos_token_id", "999"}}).end_of_sequence, ElementsAre(999));
  EXPECT_EQ(Invalid({{"eos_token_id", "1000"}}),
            "m/config.json: eos_token_id: 1000: give a whole number from 0 to 999");
  EXPECT_THAT(Invalid({{"eos_token_id", "[2, 1000]"}}), HasSubstr("a list of whole numbers"));
  EXPECT_THAT(Invalid({{"bos_token_id", "1000"}}), HasSubstr("bos_token_id: 1000"));
}

TEST(DecoderConfigTest, WhatIsNotAConfigIsRefused) {
  for (const std::string& text : {std::string(), std::string("{"), std::string("[]"),
                                  std::string(3'000'000, '['), std::string(4'000'001, ' ')}) {
    EXPECT_EQ(ParseDecoderConfig("f.json", text).status().code(),
              absl::StatusCode::kInvalidArgument);
  }
}

class LoadDecoderConfigTest : public ::testing::Test {
 protected:
  LoadDecoderConfigTest()
      : folder_(fs::path(::testing::TempDir()) /
                ::testing::UnitTest::GetInstance()->current_test_info()->name()) {
    fs::remove_all(folder_);
    fs::create_directories(folder_);
  }
  ~LoadDecoderConfigTest() override { fs::remove_all(folder_); }

  void Write(const std::string& name, const std::string& text) {
    std::ofstream(folder_ / name, std::ios::binary) << text;
  }
  absl::StatusOr<DecoderConfig> Load() { return LoadDecoderConfig(folder_.string()); }

  const fs::path folder_;
};

TEST_F(LoadDecoderConfigTest, GenerationConfigsEndOfSequenceWins) {
  Write("config.json", Config({{"eos_token_id", "2"}}));
  EXPECT_THAT(Load()->end_of_sequence, ElementsAre(2));
  EXPECT_EQ(Load()->file, (folder_ / "config.json").string());
  Write("generation_config.json", R"({"eos_token_id": [3, 4], "temperature": 0.6})");
  EXPECT_THAT(Load()->end_of_sequence, ElementsAre(3, 4));
  Write("generation_config.json", R"({"eos_token_id": null})");
  EXPECT_THAT(Load()->end_of_sequence, ElementsAre(2));
  Write("generation_config.json", "{}");
  EXPECT_THAT(Load()->end_of_sequence, ElementsAre(2));
}

TEST_F(LoadDecoderConfigTest, ABadGenerationConfigIsNamed) {
  Write("config.json", Config({}));
  Write("generation_config.json", R"({"eos_token_id": 1000})");
  EXPECT_EQ(Load().status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(Load().status().message()),
              HasSubstr("generation_config.json: eos_token_id: 1000"));
  Write("generation_config.json", "[]");
  EXPECT_EQ(Load().status().code(), absl::StatusCode::kInvalidArgument);
  fs::remove(folder_ / "generation_config.json");
  fs::create_directories(folder_ / "generation_config.json");
  EXPECT_EQ(Load().status().code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(LoadDecoderConfigTest, WhatIsNotThereIsNotFound) {
  EXPECT_EQ(Load().status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(Load().status().message()), HasSubstr("config.json: no such file"));
  EXPECT_EQ(LoadDecoderConfig("/no/such/folder").status().code(), absl::StatusCode::kNotFound);
}

TEST(BundledConfigTest, ModelsThatRunHaveAllThatTheyCompute) {
  int run = 0;
  for (const CatalogueEntry& entry : ModelCatalogue()) {
    const absl::StatusOr<DecoderConfig> config = LoadDecoderConfig(entry.name);
    if (!config.ok()) {  // another architecture or quantisation
      EXPECT_EQ(config.status().code(), absl::StatusCode::kUnimplemented) << config.status();
      continue;
    }
    ++run;
    EXPECT_EQ(config->file, entry.name + ".json");
    EXPECT_TRUE(config->rms_norm_eps == 1e-5 || config->rms_norm_eps == 1e-6) << entry.name;
    EXPECT_GE(config->rope_theta, 500'000) << entry.name;
    EXPECT_EQ(config->rope_scaling.has_value(), config->architecture == "LlamaForCausalLM");
    EXPECT_TRUE(config->begin_of_sequence.has_value()) << entry.name;
    EXPECT_FALSE(config->end_of_sequence.empty()) << entry.name;
  }
  // All but 405B in FP8, Mistral and Qwen2.5.
  EXPECT_EQ(run, 11);
}

TEST(BundledConfigTest, The405BIsThePublishedOneInAwq) {
  const absl::StatusOr<DecoderConfig> config =
      LoadDecoderConfig("llama-3.1-405b-instruct-awq-int4");
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->layers, 126);
  EXPECT_EQ(config->hidden, 16'384);
  EXPECT_EQ(config->head_dim, 128);
  EXPECT_EQ(config->max_context, 131'072);
  EXPECT_EQ(config->rope_theta, 500'000);
  EXPECT_EQ(config->rope_scaling->factor, 8);
  EXPECT_EQ(config->rope_scaling->original_context, 8192);
  EXPECT_EQ(config->awq->group_size, 128);
  EXPECT_THAT(config->end_of_sequence, ElementsAre(128'001, 128'008, 128'009));
}

// The published configs, where they are at hand.
TEST(DecoderConfigTest, PublishedConfigsParseOrAreRefusedByArchitecture) {
  const std::string folder = SharedDataFolder();
  if (folder.empty()) GTEST_SKIP() << "no folder of published configs";
  int parsed = 0;
  for (const auto& entry : fs::directory_iterator(folder + "/model_configs")) {
    std::ifstream in(entry.path());
    const std::string text(std::istreambuf_iterator<char>(in), {});
    const absl::StatusOr<DecoderConfig> config =
        ParseDecoderConfig(entry.path().filename().string(), text);
    const std::string stem = entry.path().stem().string();
    SCOPED_TRACE(stem);
    if (absl::StartsWith(stem, "llama-3.1-")) {
      ASSERT_TRUE(config.ok()) << config.status();
      EXPECT_EQ(config->rope_theta, 500'000);
      ASSERT_TRUE(config->rope_scaling.has_value());
      EXPECT_EQ(config->rope_scaling->factor, 8);
      EXPECT_EQ(config->rope_scaling->original_context, 8192);
      EXPECT_EQ(config->rms_norm_eps, 1e-5);
      EXPECT_EQ(config->begin_of_sequence, 128'000);
      EXPECT_FALSE(config->end_of_sequence.empty());
      ++parsed;
    } else if (stem == "qwen3-235b-a22b") {
      ASSERT_TRUE(config.ok()) << config.status();
      EXPECT_EQ(config->experts->experts, 128);
      EXPECT_EQ(config->experts->per_token, 8);
      EXPECT_EQ(config->experts->ffn, 1536);
      EXPECT_TRUE(config->experts->normalize && config->qk_norm);
      EXPECT_EQ(config->has_experts.size(), 94u);
      EXPECT_THAT(config->has_experts, Each(true));
      EXPECT_EQ(config->rope_theta, 1'000'000);
      EXPECT_THAT(config->end_of_sequence, ElementsAre(151'645));
      ++parsed;
    } else {
      EXPECT_EQ(config.status().code(), absl::StatusCode::kUnimplemented) << config.status();
    }
  }
  EXPECT_GE(parsed, 4);
}

}  // namespace
}  // namespace fabricast
