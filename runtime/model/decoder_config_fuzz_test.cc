// Any text is a configuration that keeps its promises, or a refusal.
#include <cmath>
#include <cstdint>
#include <cstdlib>

#include "runtime/model/decoder_config.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const absl::string_view text(reinterpret_cast<const char*>(data), size);
  const absl::StatusOr<fabricast::DecoderConfig> c =
      fabricast::ParseDecoderConfig("config.json", text);
  if (!c.ok()) return 0;
  bool sound = c->layers > 0 && c->heads % c->kv_heads == 0 && c->head_dim % 2 == 0 &&
               std::isfinite(c->rope_theta) && std::isfinite(c->rms_norm_eps) &&
               static_cast<int64_t>(c->has_experts.size()) == c->layers;
  bool some = false;
  for (bool experts : c->has_experts) some = some || experts;
  sound = sound && some == c->experts.has_value();
  if (some) sound = sound && c->experts->per_token <= c->experts->experts && c->experts->ffn > 0;
  if (c->rope_scaling.has_value()) {
    sound = sound && c->rope_scaling->high_freq_factor > c->rope_scaling->low_freq_factor;
  }
  for (int32_t id : c->end_of_sequence) sound = sound && id >= 0 && id < c->vocabulary;
  if (!sound) abort();
  return 0;
}
