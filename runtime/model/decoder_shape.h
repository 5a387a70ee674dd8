// The part of a config.json that Model and DecoderConfig share: architecture and sizes.
#ifndef FABRICAST_RUNTIME_MODEL_DECODER_SHAPE_H_
#define FABRICAST_RUNTIME_MODEL_DECODER_SHAPE_H_

#include <cstdint>

#include "absl/strings/string_view.h"
#include "runtime/model/config_fields.h"
#include "runtime/model/decoder_config.h"

namespace fabricast {

// Bounds that every real model keeps by far, such that no sum or product in model.cc overflows 64
// bits: parameters are less than layers * hidden * (3 FFN + 4 heads head_dim) = 10^4 * 2^20 * (3 *
// 2^24 + 4 * 2^22) = 7.1e17, FFN being that of all experts of a layer together.
constexpr int64_t kMaxLayers = 10'000;
constexpr int64_t kMaxHidden = 1 << 20;
constexpr int64_t kMaxFfn = 1 << 22;
constexpr int64_t kMaxExpertsFfn = 1 << 24;
constexpr int64_t kMaxExperts = 1 << 16;
constexpr int64_t kMaxVocabulary = 1 << 26;
constexpr int64_t kMaxHeads = 1 << 12;
constexpr int64_t kMaxHeadDim = 1 << 10;
constexpr int64_t kMaxContext = 1 << 30;

// What tells the members of the family apart.
struct Architecture {
  absl::string_view name;
  bool qkv_bias = false;           // always, whatever the config says
  bool reads_bias_fields = false;  // attention_bias counts
  bool mlp_bias = false;           // mlp_bias counts
  bool qk_norm = false;            // RMSNorm of each head of Q and K
  bool experts = false;            // reads num_experts and its companions
  int64_t head_dim = 0;            // without `head_dim` in the config; 0: hidden / heads
  bool runs = false;               // DecoderConfig describes it
};

// The one that `config` names, among all or among those that run. Null on error, which lists the
// candidates.
const Architecture* FindArchitecture(bool runs, ConfigFields& config);

// Sizes, biases, experts and embeddings: all fields of DecoderConfig down to `has_experts` but
// rms_norm_eps and RoPE's. Refuses other activation functions than SiLU and attention windows.
DecoderConfig ReadDecoderShape(const Architecture& architecture, ConfigFields& config);

}  // namespace fabricast

#endif  // FABRICAST_RUNTIME_MODEL_DECODER_SHAPE_H_
