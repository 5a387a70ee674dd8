// ParseModelConfig: from a config.json of Hugging Face to a Model.
#include <algorithm>
#include <cstdint>
#include <optional>
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
#include "runtime/model/decoder_shape.h"
#include "runtime/model/model.h"

namespace fabricast {
namespace {

using Json = nlohmann::json;

constexpr int64_t kInt4Group = 128;
constexpr int64_t kBf16Bytes = 2;

// One decoder layer in the order of execution, its feed-forward part dense or of experts. Elements
// that elementwise operators read and write for a token:
//   norm     residual += x, then RMSNorm: reads both, writes the residual and the normed tensor: 4
//            hidden
//   qk_norm  reads and writes Q and K in place: 2 (heads + kv_heads) head_dim
//   rope     the same
//   swiglu   reads gate and up, writes their product: 3 FFN, for each expert of the token
//   top_k    reads the router's logits
//   combine  reads what the token's experts gave, writes their weighted sum: (per_token + 1) hidden
LayerKind DecoderLayer(const DecoderConfig& s, WeightFormat format, bool experts) {
  const double norm = 4.0 * s.hidden;
  const double qk = 2.0 * (s.heads + s.kv_heads) * s.head_dim;
  LayerKind kind;
  kind.name = experts ? "experts" : "dense";
  std::vector<Operator>& ops = kind.operators;
  ops.push_back(ElementwiseOp{"input_norm", norm, static_cast<double>(s.hidden)});
  ops.push_back(
      LinearOp{"qkv", s.hidden, (s.heads + 2 * s.kv_heads) * s.head_dim, format, s.qkv_bias});
  if (s.qk_norm) ops.push_back(ElementwiseOp{"qk_norm", qk, 2.0 * s.head_dim});
  ops.push_back(ElementwiseOp{"rope", qk, 0});
  ops.push_back(AttentionOp{s.heads, s.kv_heads, s.head_dim, kBf16Bytes});
  ops.push_back(LinearOp{"o", s.heads * s.head_dim, s.hidden, format, s.o_bias});
  ops.push_back(ElementwiseOp{"post_attention_norm", norm, static_cast<double>(s.hidden)});
  if (experts) {
    const ExpertsConfig& e = *s.experts;
    ops.push_back(LinearOp{"router", s.hidden, e.experts, WeightFormat::kBf16, false});
    ops.push_back(ElementwiseOp{"top_k", static_cast<double>(e.experts), 0});
    ops.push_back(RoutedExpertsOp{e.experts, e.per_token, s.hidden, e.ffn, format});
    ops.push_back(ElementwiseOp{"swiglu", 3.0 * e.per_token * e.ffn, 0});
    ops.push_back(ElementwiseOp{"combine", (e.per_token + 1.0) * s.hidden, 0});
    return kind;
  }
  ops.push_back(LinearOp{"gate_up", s.hidden, 2 * s.ffn, format, s.mlp_bias});
  ops.push_back(ElementwiseOp{"swiglu", 3.0 * s.ffn, 0});
  ops.push_back(LinearOp{"down", s.ffn, s.hidden, format, s.mlp_bias});
  return kind;
}

// "a/b/config.json" and "a/b": "b"; "a/llama.json": "llama".
std::string NameOf(absl::string_view file) {
  std::vector<absl::string_view> parts = absl::StrSplit(file, '/', absl::SkipEmpty());
  if (parts.size() > 1 && parts.back() == "config.json") parts.pop_back();
  if (parts.empty()) return std::string(file);
  return std::string(absl::StripSuffix(parts.back(), ".json"));
}

// Whether a module that stays as it is counts as BF16 here anyway: embedding, lm_head, norms and
// the router of experts.
bool AlwaysBf16(absl::string_view module) {
  return absl::StrContains(module, "lm_head") || absl::StrContains(module, "embed") ||
         absl::EndsWith(module, "norm") || absl::EndsWith(module, "mlp.gate");
}

// Entries of modules_to_not_convert and its synonyms must not name the layers' matrices: a layer is
// of one format here.
void CheckNothingLeftOut(absl::string_view field, ConfigFields& quantization) {
  const Json* modules = quantization.Find(field);
  if (modules == nullptr) return;
  if (!modules->is_array()) {
    quantization.Invalid(field, "give a list of module names");
    return;
  }
  for (const Json& module : *modules) {
    if (!module.is_string() || !AlwaysBf16(module.get_ref<const std::string&>())) {
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
void CheckInt4Inputs(absl::string_view field, int64_t inputs, ConfigFields& config) {
  if (inputs % kInt4Group != 0) {
    config.Invalid(field, absl::StrFormat("%d inputs are not whole INT4 groups of %d: use another "
                                          "--quantization",
                                          inputs, kInt4Group));
  }
}

void CheckInt4Groups(const DecoderConfig& shape, ConfigFields& config) {
  CheckInt4Inputs("hidden_size", shape.hidden, config);
  CheckInt4Inputs("num_attention_heads", shape.heads * shape.head_dim, config);
  const bool dense = std::find(shape.has_experts.begin(), shape.has_experts.end(), false) !=
                     shape.has_experts.end();
  if (dense) CheckInt4Inputs("intermediate_size", shape.ffn, config);
  if (shape.experts.has_value()) {
    CheckInt4Inputs("moe_intermediate_size", shape.experts->ffn, config);
  }
}

}  // namespace

absl::StatusOr<Model> ParseModelConfig(absl::string_view file, absl::string_view json,
                                       absl::string_view quantization) {
  const absl::StatusOr<Json> parsed = ParseConfigObject(file, json);
  if (!parsed.ok()) return parsed.status();
  absl::Status status;
  ConfigFields config(std::string(file), "", *parsed, &status);
  const Architecture* architecture = FindArchitecture(/*runs=*/false, config);
  if (architecture == nullptr) return status;

  Model model;
  model.name = NameOf(file);
  model.architecture = std::string(architecture->name);
  model.source = config.TextOr("_source", file);
  const DecoderConfig shape = ReadDecoderShape(*architecture, config);
  model.layer_format = LayerFormat(quantization, config, &status);
  if (model.layer_format == WeightFormat::kInt4Group128) CheckInt4Groups(shape, config);
  if (!status.ok()) return status;

  model.vocabulary = shape.vocabulary;
  model.max_context = shape.max_context;
  model.tied_embeddings = shape.tied_embeddings;
  model.hidden = shape.hidden;
  std::optional<int> kind_of[2];  // dense, experts
  for (bool experts : shape.has_experts) {
    std::optional<int>& kind = kind_of[experts ? 1 : 0];
    if (!kind.has_value()) {
      kind = static_cast<int>(model.kinds.size());
      model.kinds.push_back(DecoderLayer(shape, model.layer_format, experts));
    }
    model.layers.push_back(*kind);
  }
  model.embedding_bytes = kBf16Bytes * model.vocabulary * model.hidden;
  model.lm_head_bytes = model.embedding_bytes;
  model.final_norm_elements = model.hidden;
  return model;
}

}  // namespace fabricast
