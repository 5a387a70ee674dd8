// ParseModelConfig: from a config.json of Hugging Face to a Model.
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"
#include "nlohmann/json.hpp"
#include "runtime/model/config_fields.h"
#include "runtime/model/model.h"

namespace fabricast {
namespace {

using Json = nlohmann::json;

// Bounds that every real model keeps by far, such that no sum or product in model.cc overflows 64
// bits: parameters are less than layers * hidden * (3 FFN + 4 heads head_dim) = 10^4 * 2^20 * (3 *
// 2^22 + 4 * 2^22) = 3.1e17.
constexpr int64_t kMaxLayers = 10'000;
constexpr int64_t kMaxHidden = 1 << 20;
constexpr int64_t kMaxFfn = 1 << 22;
constexpr int64_t kMaxVocabulary = 1 << 26;
constexpr int64_t kMaxHeads = 1 << 12;
constexpr int64_t kMaxHeadDim = 1 << 10;
constexpr int64_t kMaxContext = 1 << 30;

constexpr int64_t kInt4Group = 128;
constexpr int64_t kBf16Bytes = 2;
constexpr int64_t kQwen3HeadDim = 128;  // Qwen3Config's default; the others' is hidden / heads

// What tells the members of the family apart.
struct Architecture {
  absl::string_view name;
  bool qkv_bias;           // always, whatever the config says
  bool reads_bias_fields;  // attention_bias (and mlp_bias) count
  bool qk_norm;            // RMSNorm of each head of Q and K
};
constexpr Architecture kArchitectures[] = {
    {.name = "LlamaForCausalLM", .qkv_bias = false, .reads_bias_fields = true, .qk_norm = false},
    {.name = "MistralForCausalLM", .qkv_bias = false, .reads_bias_fields = false, .qk_norm = false},
    {.name = "Qwen2ForCausalLM", .qkv_bias = true, .reads_bias_fields = false, .qk_norm = false},
    {.name = "Qwen3ForCausalLM", .qkv_bias = false, .reads_bias_fields = true, .qk_norm = true},
};

std::string KnownArchitectures() {
  return absl::StrJoin(kArchitectures, ", ", [](std::string* out, const Architecture& a) {
    absl::StrAppend(out, a.name);
  });
}

// The sizes of one dense layer.
struct DenseShape {
  int64_t hidden;
  int64_t ffn;
  int64_t heads;
  int64_t kv_heads;
  int64_t head_dim;
  bool qkv_bias;
  bool o_bias;
  bool mlp_bias;
  bool qk_norm;
  WeightFormat format;
};

// One decoder layer in the order of execution. Bytes of the elementwise operators, BF16:
//   norm    residual += x, then RMSNorm: reads both, writes the residual and the normed tensor: 4
//   hidden qk_norm reads and writes Q and K in place: 2 (heads + kv_heads) head_dim rope    the
//   same swiglu  reads gate and up, writes their product: 3 FFN
LayerKind DenseLayer(const DenseShape& s) {
  const double norm_bytes = kBf16Bytes * 4.0 * s.hidden;
  const double qk_bytes = kBf16Bytes * 2.0 * (s.heads + s.kv_heads) * s.head_dim;
  LayerKind kind;
  kind.name = "dense";
  std::vector<Operator>& ops = kind.operators;
  ops.push_back(ElementwiseOp{"input_norm", norm_bytes, static_cast<double>(s.hidden)});
  ops.push_back(
      LinearOp{"qkv", s.hidden, (s.heads + 2 * s.kv_heads) * s.head_dim, s.format, s.qkv_bias});
  if (s.qk_norm) ops.push_back(ElementwiseOp{"qk_norm", qk_bytes, 2.0 * s.head_dim});
  ops.push_back(ElementwiseOp{"rope", qk_bytes, 0});
  ops.push_back(AttentionOp{s.heads, s.kv_heads, s.head_dim, kBf16Bytes});
  ops.push_back(LinearOp{"o", s.heads * s.head_dim, s.hidden, s.format, s.o_bias});
  ops.push_back(ElementwiseOp{"post_attention_norm", norm_bytes, static_cast<double>(s.hidden)});
  ops.push_back(LinearOp{"gate_up", s.hidden, 2 * s.ffn, s.format, s.mlp_bias});
  ops.push_back(ElementwiseOp{"swiglu", kBf16Bytes * 3.0 * s.ffn, 0});
  ops.push_back(LinearOp{"down", s.ffn, s.hidden, s.format, s.mlp_bias});
  return kind;
}

// "a/b/config.json" and "a/b": "b"; "a/llama.json": "llama".
std::string NameOf(absl::string_view file) {
  std::vector<absl::string_view> parts = absl::StrSplit(file, '/', absl::SkipEmpty());
  if (parts.size() > 1 && parts.back() == "config.json") parts.pop_back();
  if (parts.empty()) return std::string(file);
  return std::string(absl::StripSuffix(parts.back(), ".json"));
}

const Architecture* FindArchitecture(ConfigFields& config) {
  const Json* names = config.Find("architectures");
  if (names == nullptr || !names->is_array() || names->empty() || !(*names)[0].is_string()) {
    config.Invalid("architectures", absl::StrCat("give a list with one of ", KnownArchitectures()));
    return nullptr;
  }
  for (const Architecture& known : kArchitectures) {
    if ((*names)[0].get_ref<const std::string&>() == known.name) return &known;
  }
  config.Unimplemented("architectures", absl::StrCat("not a known architecture: use a model of ",
                                                     KnownArchitectures()));
  return nullptr;
}

// Full attention only: a window at least as long as the context is none.
void CheckSlidingWindow(const Architecture& architecture, int64_t max_context,
                        ConfigFields& config) {
  const bool mistral = architecture.name == "MistralForCausalLM";
  if (!mistral && !config.BoolOr("use_sliding_window", false)) return;
  constexpr absl::string_view kMend =
      "attention windows are not modelled: set sliding_window to null to count full attention, or "
      "max_position_embeddings to no more than the window";
  if (mistral && !config.json().contains("sliding_window")) {
    config.Invalid("sliding_window",
                   "Hugging Face takes 4096 then: write null if attention is full");
    return;
  }
  if (config.Find("sliding_window") == nullptr) return;
  if (config.Whole("sliding_window", 1, kMaxContext) < max_context) {
    config.Unimplemented("sliding_window", kMend);
  }
}

// Entries of modules_to_not_convert and its synonyms must not name layers: a layer is of one format
// here.
void CheckNothingLeftOut(absl::string_view field, ConfigFields& quantization) {
  const Json* modules = quantization.Find(field);
  if (modules == nullptr) return;
  if (!modules->is_array()) {
    quantization.Invalid(field, "give a list of module names");
    return;
  }
  for (const Json& module : *modules) {
    const bool outside_layers =
        module.is_string() && (absl::StrContains(module.get_ref<const std::string&>(), "lm_head") ||
                               absl::StrContains(module.get_ref<const std::string&>(), "embed"));
    if (!outside_layers) {
      quantization.Unimplemented(
          field, absl::StrCat("layers of mixed formats are not modelled: give --quantization to "
                              "count every layer alike"));
      return;
    }
  }
}

void CheckInt4(absl::string_view bits_field, absl::string_view group_field,
               ConfigFields& quantization) {
  if (quantization.Whole(bits_field, 1, 16) != 4) {
    quantization.Invalid(bits_field, "only 4 bits are modelled: give --quantization to override");
  }
  if (quantization.Whole(group_field, -1, kMaxFfn) != kInt4Group) {
    quantization.Invalid(
        group_field, "only groups of 128 are modelled: give --quantization int4 to count as such");
  }
}

// llm-compressor's format: groups of modules, each with num_bits and type of its weights.
WeightFormat CompressedTensorsFormat(ConfigFields& quantization) {
  WeightFormat format = WeightFormat::kBf16;
  ConfigFields groups = quantization.Object("config_groups");
  if (groups.json().size() != 1) {
    quantization.Unimplemented("config_groups",
                               "exactly one group is modelled: give --quantization");
    return format;
  }
  ConfigFields weights = groups.Object(groups.json().begin().key()).Object("weights");
  const std::string type = weights.TextOr("type", "");
  if (type == "float" && weights.Whole("num_bits", 1, 16) == 8) return WeightFormat::kFp8;
  if (type == "int" && weights.Whole("num_bits", 1, 16) == 4) {
    CheckInt4("num_bits", "group_size", weights);
    return WeightFormat::kInt4Group128;
  }
  weights.Unimplemented(
      "num_bits", absl::StrCat("of type \"", type.substr(0, 20),
                               "\": only 8-bit float and 4-bit int in groups of 128 are modelled: "
                               "give --quantization to override"));
  return format;
}

WeightFormat FormatOfQuantization(ConfigFields quantization) {
  for (absl::string_view field : {"modules_to_not_convert", "ignored_layers", "ignore"}) {
    CheckNothingLeftOut(field, quantization);
  }
  const std::string method = quantization.TextOr("quant_method", "");
  if (method == "awq" || method == "gptq") {
    const bool short_names = quantization.Find("bits") == nullptr && quantization.Find("w_bit");
    CheckInt4(short_names ? "w_bit" : "bits", short_names ? "q_group_size" : "group_size",
              quantization);
    return WeightFormat::kInt4Group128;
  }
  if (method == "fp8" || method == "fbgemm_fp8") return WeightFormat::kFp8;
  if (method == "modelopt" && quantization.TextOr("quant_algo", "") == "FP8") {
    return WeightFormat::kFp8;
  }
  if (method == "compressed-tensors") return CompressedTensorsFormat(quantization);
  quantization.Unimplemented(
      "quant_method",
      "known are awq, gptq, fp8, fbgemm_fp8, compressed-tensors and modelopt "
      "(quant_algo FP8): give --quantization to override");
  return WeightFormat::kBf16;
}

// Of a model without quantization_config. Newer configs say dtype for torch_dtype.
void CheckSixteenBits(ConfigFields& config) {
  const absl::string_view field = config.Find("torch_dtype") != nullptr ? "torch_dtype" : "dtype";
  const std::string dtype = config.TextOr(field, "bfloat16");
  if (dtype != "bfloat16" && dtype != "float16") {
    config.Invalid(field,
                   "only bfloat16 and float16 are modelled: give --quantization bf16 to "
                   "count its weights as BF16");
  }
}

WeightFormat LayerFormat(absl::string_view quantization, ConfigFields& config,
                         absl::Status* status) {
  for (WeightFormat format :
       {WeightFormat::kBf16, WeightFormat::kFp8, WeightFormat::kInt4Group128}) {
    if (quantization == WeightFormatName(format)) return format;
  }
  if (!quantization.empty()) {
    status->Update(absl::InvalidArgumentError(
        absl::StrCat("quantization: ", absl::CHexEscape(quantization.substr(0, 80)),
                     ": give bf16, fp8 or int4")));
    return WeightFormat::kBf16;
  }
  if (config.Find("quantization_config") != nullptr) {
    return FormatOfQuantization(config.Object("quantization_config"));
  }
  CheckSixteenBits(config);
  return WeightFormat::kBf16;
}

// Groups of an INT4 matrix run along its inputs.
void CheckInt4Groups(absl::string_view field, int64_t inputs, ConfigFields& config) {
  if (inputs % kInt4Group != 0) {
    config.Invalid(field, absl::StrFormat("%d inputs are not whole INT4 groups of %d: use another "
                                          "--quantization",
                                          inputs, kInt4Group));
  }
}

DenseShape ReadShape(const Architecture& architecture, ConfigFields& config) {
  DenseShape s = {};
  s.hidden = config.Whole("hidden_size", 1, kMaxHidden);
  s.ffn = config.Whole("intermediate_size", 1, kMaxFfn);
  s.heads = config.Whole("num_attention_heads", 1, kMaxHeads);
  s.kv_heads = config.WholeOr("num_key_value_heads", 1, kMaxHeads, s.heads);
  if (s.heads % s.kv_heads != 0) {
    config.Invalid("num_key_value_heads",
                   absl::StrFormat("give a divisor of the %d attention heads", s.heads));
  }
  if (config.Find("head_dim") != nullptr) {
    s.head_dim = config.Whole("head_dim", 1, kMaxHeadDim);
  } else if (architecture.qk_norm) {
    s.head_dim = kQwen3HeadDim;
  } else {
    s.head_dim = s.hidden / s.heads;
    if (s.hidden % s.heads != 0 || s.head_dim > kMaxHeadDim) {
      config.Invalid("head_dim", absl::StrFormat("hidden_size %d over %d attention heads is not a "
                                                 "whole number up to %d: give head_dim",
                                                 s.hidden, s.heads, kMaxHeadDim));
    }
  }
  const bool attention_bias =
      architecture.reads_bias_fields && config.BoolOr("attention_bias", false);
  s.qkv_bias = architecture.qkv_bias || attention_bias;
  s.o_bias = attention_bias;
  s.mlp_bias = architecture.name == "LlamaForCausalLM" && config.BoolOr("mlp_bias", false);
  s.qk_norm = architecture.qk_norm;
  return s;
}

void CheckActivation(ConfigFields& config) {
  if (config.TextOr("hidden_act", "silu") != "silu") {
    config.Unimplemented("hidden_act", "only silu, as SwiGLU, is modelled");
  }
}

}  // namespace

absl::StatusOr<Model> ParseModelConfig(absl::string_view file, absl::string_view json,
                                       absl::string_view quantization) {
  if (json.size() > kMaxConfigBytes) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "%s: %d bytes, and a config.json has at most %d: give a config.json of Hugging Face", file,
        json.size(), kMaxConfigBytes));
  }
  const absl::StatusOr<Json> parsed = ParsePythonJson(file, json);
  if (!parsed.ok()) return parsed.status();
  if (!parsed->is_object()) {
    return absl::InvalidArgumentError(absl::StrCat(file, ": holds a JSON ", parsed->type_name(),
                                                   ", not an object: give a config.json of "
                                                   "Hugging Face"));
  }

  absl::Status status;
  ConfigFields config(std::string(file), "", *parsed, &status);
  const Architecture* architecture = FindArchitecture(config);
  if (architecture == nullptr) return status;

  Model model;
  model.name = NameOf(file);
  model.architecture = std::string(architecture->name);
  model.source = config.TextOr("_source", file);
  model.vocabulary = config.Whole("vocab_size", 1, kMaxVocabulary);
  model.max_context = config.Whole("max_position_embeddings", 1, kMaxContext);
  model.tied_embeddings = config.BoolOr("tie_word_embeddings", false);
  const int64_t layers = config.Whole("num_hidden_layers", 1, kMaxLayers);
  DenseShape shape = ReadShape(*architecture, config);
  CheckActivation(config);
  CheckSlidingWindow(*architecture, model.max_context, config);
  shape.format = LayerFormat(quantization, config, &status);
  if (shape.format == WeightFormat::kInt4Group128) {
    CheckInt4Groups("hidden_size", shape.hidden, config);
    CheckInt4Groups("num_attention_heads", shape.heads * shape.head_dim, config);
    CheckInt4Groups("intermediate_size", shape.ffn, config);
  }
  if (!status.ok()) return status;

  model.hidden = shape.hidden;
  model.layer_format = shape.format;
  model.kinds.push_back(DenseLayer(shape));
  model.layers.assign(layers, 0);
  model.embedding_bytes = kBf16Bytes * model.vocabulary * model.hidden;
  model.lm_head_bytes = model.embedding_bytes;
  model.final_norm_elements = model.hidden;
  return model;
}

}  // namespace fabricast
