#include "runtime/model/decoder_config.h"

#include <filesystem>
#include <optional>
#include <string>
#include <system_error>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"
#include "nlohmann/json.hpp"
#include "runtime/model/catalogue.h"
#include "runtime/model/config_fields.h"
#include "runtime/model/decoder_shape.h"

namespace fabricast {
namespace {

namespace fs = std::filesystem;

using Json = nlohmann::json;

// Defaults of LlamaConfig, Qwen3Config and Qwen3MoeConfig in Hugging Face's transformers.
constexpr double kDefaultEpsilon = 1e-6;
constexpr double kDefaultRopeTheta = 10'000;

constexpr double kMaxTheta = 1e12;
constexpr double kMaxRopeFactor = 1e6;

void CheckFullAttention(ConfigFields& config) {
  for (const std::string& type : config.TextsOr("layer_types")) {
    if (type == "full_attention") continue;
    config.Unimplemented("layer_types", "only full_attention runs");
    return;
  }
}

// Of newer configs, in either place where one may stand.
void CheckWholeRotation(ConfigFields& config) {
  if (config.NumberOr("partial_rotary_factor", 0, 1, 1) != 1) {
    config.Unimplemented("partial_rotary_factor", "only 1, all of a head rotated, runs");
  }
}

// `rope` is rope_scaling, which says `type` in older configs, or rope_parameters.
std::optional<Llama3RopeScaling> ReadRopeScaling(ConfigFields rope) {
  const bool old_name = rope.Find("rope_type") == nullptr && rope.Find("type") != nullptr;
  const absl::string_view field = old_name ? "type" : "rope_type";
  const std::string type = rope.TextOr(field, "");
  if (!old_name && rope.TextOr("type", type) != type) {
    rope.Invalid("type", absl::StrCat("rope_type is \"", type, "\": give one of the two"));
  }
  CheckWholeRotation(rope);
  if (type == "default") return std::nullopt;
  if (type != "llama3") {
    rope.Unimplemented(field, "only \"default\" and \"llama3\" run");
    return std::nullopt;
  }
  Llama3RopeScaling scaling;
  scaling.factor = rope.Number("factor", 1, kMaxRopeFactor);
  scaling.low_freq_factor = rope.Number("low_freq_factor", 1e-6, kMaxRopeFactor);
  scaling.high_freq_factor = rope.Number("high_freq_factor", 1e-6, kMaxRopeFactor);
  scaling.original_context = rope.Whole("original_max_position_embeddings", 1, kMaxContext);
  if (scaling.high_freq_factor <= scaling.low_freq_factor) {
    rope.Invalid("high_freq_factor",
                 absl::StrFormat("give more than low_freq_factor %g", scaling.low_freq_factor));
  }
  return scaling;
}

// Older configs have rope_theta and rope_scaling, newer ones rope_parameters with both.
void ReadRope(ConfigFields& config, DecoderConfig& result) {
  result.rope_theta = config.NumberOr("rope_theta", 1, kMaxTheta, kDefaultRopeTheta);
  CheckWholeRotation(config);
  if (config.Find("rope_parameters") == nullptr) {
    if (config.Find("rope_scaling") != nullptr) {
      result.rope_scaling = ReadRopeScaling(config.Object("rope_scaling"));
    }
    return;
  }
  ConfigFields rope = config.Object("rope_parameters");
  const double theta = rope.Number("rope_theta", 1, kMaxTheta);
  if (config.Find("rope_theta") != nullptr && theta != result.rope_theta) {
    config.Invalid("rope_theta", absl::StrFormat("rope_parameters.rope_theta is %g: give one of "
                                                 "the two",
                                                 theta));
  }
  if (config.Find("rope_scaling") != nullptr &&
      *config.Find("rope_scaling") != *config.Find("rope_parameters")) {
    config.Invalid("rope_scaling", "rope_parameters says otherwise: give one of the two");
  }
  result.rope_theta = theta;
  result.rope_scaling = ReadRopeScaling(rope);
}

}  // namespace

const std::string* AwqConfig::KeptDenseBy(absl::string_view module) const {
  const std::string dotted = absl::StrCat(".", module, ".");
  for (const std::string& entry : not_converted) {
    const std::string whole =
        absl::StrCat(".", absl::StripPrefix(absl::StripSuffix(entry, "."), "."), ".");
    if (absl::StrContains(dotted, whole)) return &entry;
  }
  return nullptr;
}

namespace {

// "bits" and "group_size" are "w_bit" and "q_group_size" in AutoAWQ's own, older files.
AwqConfig ReadAwq(ConfigFields quantization) {
  AwqConfig awq;
  const std::string method = quantization.TextOr("quant_method", "");
  if (method != "awq") {
    quantization.Unimplemented("quant_method",
                               "only awq (4 bits, version gemm) and unquantised checkpoints run");
    return awq;
  }
  const bool old = quantization.Find("bits") == nullptr && quantization.Find("w_bit") != nullptr;
  const absl::string_view bits = old ? "w_bit" : "bits";
  const absl::string_view group = old ? "q_group_size" : "group_size";
  if (quantization.Whole(bits, 1, 16) != 4) quantization.Unimplemented(bits, "only 4 bits run");
  awq.group_size = quantization.Whole(group, -1, kMaxFfn);
  if (awq.group_size != 32 && awq.group_size != 64 && awq.group_size != 128) {
    quantization.Unimplemented(group, "only groups of 32, 64 and 128 run");
    awq.group_size = 128;
  }
  if (absl::AsciiStrToLower(quantization.TextOr("version", "gemm")) != "gemm") {
    quantization.Unimplemented("version", "only gemm runs");
  }
  if (!quantization.BoolOr("zero_point", true)) {
    quantization.Unimplemented("zero_point", "only weights with zero points run");
  }
  awq.not_converted = quantization.TextsOr("modules_to_not_convert");
  for (const std::string& part : awq.not_converted) {
    if (!part.empty()) continue;
    quantization.Invalid("modules_to_not_convert", "take out the empty name, which is in all");
  }
  return awq;
}

// A number, a list of them or none.
std::vector<int32_t> ReadEndOfSequence(int64_t vocabulary, ConfigFields& config) {
  const Json* value = config.Find("eos_token_id");
  if (value == nullptr) return {};
  if (!value->is_array()) {
    return {static_cast<int32_t>(config.Whole("eos_token_id", 0, vocabulary - 1))};
  }
  const std::vector<int64_t> ids = config.WholesOr("eos_token_id", 0, vocabulary - 1);
  return {ids.begin(), ids.end()};
}

}  // namespace

absl::StatusOr<DecoderConfig> ParseDecoderConfig(absl::string_view file, absl::string_view json) {
  const absl::StatusOr<Json> parsed = ParseConfigObject(file, json);
  if (!parsed.ok()) return parsed.status();
  absl::Status status;
  ConfigFields config(std::string(file), "", *parsed, &status);
  const Architecture* architecture = FindArchitecture(/*runs=*/true, config);
  if (architecture == nullptr) return status;

  DecoderConfig result = ReadDecoderShape(*architecture, config);
  result.file = std::string(file);
  if (result.head_dim % 2 != 0) {
    config.Invalid("head_dim", absl::StrFormat("%d is odd, and RoPE rotates pairs: give an even "
                                               "number",
                                               result.head_dim));
  }
  CheckFullAttention(config);
  result.rms_norm_eps = config.NumberOr("rms_norm_eps", 0, 1, kDefaultEpsilon);
  ReadRope(config, result);
  if (config.Find("quantization_config") != nullptr) {
    result.awq = ReadAwq(config.Object("quantization_config"));
  }
  result.end_of_sequence = ReadEndOfSequence(result.vocabulary, config);
  if (config.Find("bos_token_id") != nullptr) {
    result.begin_of_sequence =
        static_cast<int32_t>(config.Whole("bos_token_id", 0, result.vocabulary - 1));
  }
  if (!status.ok()) return status;
  return result;
}

absl::StatusOr<DecoderConfig> LoadDecoderConfig(const std::string& folder) {
  if (const std::optional<absl::string_view> bundled = CatalogueConfig(folder);
      bundled.has_value()) {
    return ParseDecoderConfig(absl::StrCat(folder, ".json"), *bundled);
  }
  const std::string config_file = (fs::path(folder) / "config.json").string();
  const absl::StatusOr<std::string> text = ReadConfigFile(config_file);
  if (!text.ok()) return text.status();
  absl::StatusOr<DecoderConfig> result = ParseDecoderConfig(config_file, *text);
  if (!result.ok()) return result;

  const std::string generation_file = (fs::path(folder) / "generation_config.json").string();
  const absl::StatusOr<std::string> generation_text = ReadConfigFile(generation_file);
  if (absl::IsNotFound(generation_text.status())) return result;
  if (!generation_text.ok()) return generation_text.status();
  const absl::StatusOr<Json> parsed = ParseConfigObject(generation_file, *generation_text);
  if (!parsed.ok()) return parsed.status();
  absl::Status status;
  ConfigFields generation(generation_file, "", *parsed, &status);
  if (generation.Find("eos_token_id") != nullptr) {
    result->end_of_sequence = ReadEndOfSequence(result->vocabulary, generation);
  }
  if (!status.ok()) return status;
  return result;
}

}  // namespace fabricast
