#include "runtime/model/decoder_shape.h"

#include <algorithm>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"

namespace fabricast {
namespace {

using Json = nlohmann::json;

// Head sizes as the classes of Hugging Face have them.
constexpr Architecture kArchitectures[] = {
    {.name = "LlamaForCausalLM", .reads_bias_fields = true, .mlp_bias = true, .runs = true},
    {.name = "MistralForCausalLM"},
    {.name = "Qwen2ForCausalLM", .qkv_bias = true},
    {.name = "Qwen3ForCausalLM",
     .reads_bias_fields = true,
     .qk_norm = true,
     .head_dim = 128,
     .runs = true},
    {.name = "Qwen3MoeForCausalLM",
     .reads_bias_fields = true,
     .qk_norm = true,
     .experts = true,
     .runs = true},
};

std::string KnownArchitectures(bool runs) {
  std::vector<absl::string_view> names;
  for (const Architecture& known : kArchitectures) {
    if (known.runs || !runs) names.push_back(known.name);
  }
  return absl::StrJoin(names, ", ");
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

void CheckActivation(ConfigFields& config) {
  if (config.TextOr("hidden_act", "silu") != "silu") {
    config.Unimplemented("hidden_act", "only silu, as SwiGLU, is modelled");
  }
}

int64_t ReadHeadDim(const Architecture& architecture, int64_t hidden, int64_t heads,
                    ConfigFields& config) {
  if (config.Find("head_dim") != nullptr) return config.Whole("head_dim", 1, kMaxHeadDim);
  if (architecture.head_dim > 0) return architecture.head_dim;
  const int64_t head_dim = hidden / heads;
  if (hidden % heads != 0 || head_dim > kMaxHeadDim) {
    config.Invalid("head_dim", absl::StrFormat("hidden_size %d over %d attention heads is not a "
                                               "whole number up to %d: give head_dim",
                                               hidden, heads, kMaxHeadDim));
  }
  return head_dim;
}

// A layer has experts unless mlp_only_layers names it or decoder_sparse_step skips it. Defaults are
// those of Qwen3MoeConfig; the numbers of experts have none here.
void ReadExperts(ConfigFields& config, DecoderConfig& shape) {
  const int64_t step = config.WholeOr("decoder_sparse_step", 1, kMaxLayers, 1);
  const std::vector<int64_t> dense = config.WholesOr("mlp_only_layers", 0, shape.layers - 1);
  ExpertsConfig experts;
  experts.experts = config.Whole("num_experts", 0, kMaxExperts);
  if (experts.experts == 0) return;
  experts.per_token = config.Whole("num_experts_per_tok", 1, kMaxExperts);
  if (experts.per_token > experts.experts) {
    config.Invalid("num_experts_per_tok",
                   absl::StrFormat("give at most the %d experts there are", experts.experts));
  }
  experts.ffn = config.Whole("moe_intermediate_size", 1, kMaxFfn);
  if (experts.experts * experts.ffn > kMaxExpertsFfn) {
    config.Invalid("moe_intermediate_size",
                   absl::StrFormat("times %d experts is more than %d: no such model is known",
                                   experts.experts, kMaxExpertsFfn));
  }
  experts.normalize = config.BoolOr("norm_topk_prob", false);
  for (int64_t i = step - 1; i < shape.layers; i += step) shape.has_experts[i] = true;
  for (int64_t i : dense) shape.has_experts[i] = false;
  const bool some = std::find(shape.has_experts.begin(), shape.has_experts.end(), true) !=
                    shape.has_experts.end();
  if (some) shape.experts = experts;
}

}  // namespace

const Architecture* FindArchitecture(bool runs, ConfigFields& config) {
  const Json* names = config.Find("architectures");
  if (names == nullptr || !names->is_array() || names->empty() || !(*names)[0].is_string()) {
    config.Invalid("architectures",
                   absl::StrCat("give a list with one of ", KnownArchitectures(runs)));
    return nullptr;
  }
  for (const Architecture& known : kArchitectures) {
    const bool candidate = known.runs || !runs;
    if (candidate && (*names)[0].get_ref<const std::string&>() == known.name) return &known;
  }
  config.Unimplemented("architectures",
                       absl::StrCat(runs ? "cannot be run: use a model of "
                                         : "not a known architecture: use a model of ",
                                    KnownArchitectures(runs)));
  return nullptr;
}

DecoderConfig ReadDecoderShape(const Architecture& architecture, ConfigFields& config) {
  DecoderConfig s;
  s.architecture = std::string(architecture.name);
  s.vocabulary = config.Whole("vocab_size", 1, kMaxVocabulary);
  s.max_context = config.Whole("max_position_embeddings", 1, kMaxContext);
  s.tied_embeddings = config.BoolOr("tie_word_embeddings", false);
  s.layers = config.Whole("num_hidden_layers", 1, kMaxLayers);
  s.hidden = config.Whole("hidden_size", 1, kMaxHidden);
  s.ffn = config.Whole("intermediate_size", 1, kMaxFfn);
  s.heads = config.Whole("num_attention_heads", 1, kMaxHeads);
  s.kv_heads = config.WholeOr("num_key_value_heads", 1, kMaxHeads, s.heads);
  if (s.heads % s.kv_heads != 0) {
    config.Invalid("num_key_value_heads",
                   absl::StrFormat("give a divisor of the %d attention heads", s.heads));
  }
  s.head_dim = ReadHeadDim(architecture, s.hidden, s.heads, config);
  const bool attention_bias =
      architecture.reads_bias_fields && config.BoolOr("attention_bias", false);
  s.qkv_bias = architecture.qkv_bias || attention_bias;
  s.o_bias = attention_bias;
  s.mlp_bias = architecture.mlp_bias && config.BoolOr("mlp_bias", false);
  s.qk_norm = architecture.qk_norm;
  s.has_experts.assign(s.layers, false);
  if (architecture.experts) ReadExperts(config, s);
  CheckActivation(config);
  CheckSlidingWindow(architecture, s.max_context, config);
  return s;
}

}  // namespace fabricast
