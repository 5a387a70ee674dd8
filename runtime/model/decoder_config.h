// What a decoder-only transformer computes: every number of a config.json that changes its output.
//
// Model (model.h) counts bytes and operations and may know architectures that no executor runs;
// this is what executors run. Names follow Hugging Face's configs.
#ifndef FABRICAST_RUNTIME_MODEL_DECODER_CONFIG_H_
#define FABRICAST_RUNTIME_MODEL_DECODER_CONFIG_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace fabricast {

// RoPE scaling of Llama 3.1: wavelengths longer than original_context / low_freq_factor are
// stretched by `factor`, those shorter than original_context / high_freq_factor are kept, between
// the two the frequencies are interpolated.
struct Llama3RopeScaling {
  double factor = 1;
  double low_freq_factor = 1;
  double high_freq_factor = 4;
  int64_t original_context = 8192;
};

// A layer's mixture of experts: softmax over all router logits in float, the `per_token` largest,
// their weights divided by their sum if `normalize`.
struct ExpertsConfig {
  int64_t experts = 0;
  int64_t per_token = 0;
  int64_t ffn = 0;
  bool normalize = true;
};

// AutoAWQ's GEMM layout, 4 bits.
struct AwqConfig {
  int64_t group_size = 128;  // inputs that share a scale and a zero; divides every `in`
  // modules_to_not_convert.
  std::vector<std::string> not_converted;

  // The entry of not_converted that keeps `module` dense, null if none does: one that is in its
  // name as whole parts, as "mlp.gate" is in "model.layers.0.mlp.gate" but not in
  // "model.layers.0.mlp.gate_proj".
  const std::string* KeptDenseBy(absl::string_view module) const;
};

struct DecoderConfig {
  std::string file;          // for messages
  std::string architecture;  // "LlamaForCausalLM", "Qwen3ForCausalLM" or "Qwen3MoeForCausalLM"
  int64_t vocabulary = 0;
  int64_t hidden = 0;
  int64_t layers = 0;
  int64_t heads = 0;
  int64_t kv_heads = 0;  // divides heads
  int64_t head_dim = 0;  // even
  int64_t ffn = 0;       // of dense layers
  int64_t max_context = 0;
  double rms_norm_eps = 0;
  double rope_theta = 0;
  std::optional<Llama3RopeScaling> rope_scaling;
  bool qkv_bias = false;
  bool o_bias = false;
  bool mlp_bias = false;
  bool qk_norm = false;  // RMSNorm of each head of Q and K, before RoPE
  bool tied_embeddings = false;
  std::optional<ExpertsConfig> experts;
  std::vector<bool> has_experts;         // one a layer
  std::optional<AwqConfig> awq;          // absent: dense weights
  std::vector<int32_t> end_of_sequence;  // eos_token_id; generation_config.json's win
  std::optional<int32_t> begin_of_sequence;
};

// From the text of a config.json; `file` is for messages. kUnimplemented, naming the field, what is
// supported and the mend: other architectures, quantisations, activations, RoPE scalings or
// attention windows. kInvalidArgument: not JSON, or a field that is missing or absurd.
absl::StatusOr<DecoderConfig> ParseDecoderConfig(absl::string_view file, absl::string_view json);

// The config of a bundled model, by name (catalogue.h), or config.json of a checkpoint folder and,
// where there is one, generation_config.json (its eos_token_id replaces the config's). kNotFound if
// there is no such folder or no config.json.
absl::StatusOr<DecoderConfig> LoadDecoderConfig(const std::string& folder);

}  // namespace fabricast

#endif  // FABRICAST_RUNTIME_MODEL_DECODER_CONFIG_H_
