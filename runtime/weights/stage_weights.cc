#include "runtime/weights/stage_weights.h"

#include <string>
#include <utility>

#include "absl/container/flat_hash_set.h"
#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "runtime/check.h"
#include "runtime/weights/safetensors_header.h"

namespace fabricast {
namespace {

constexpr int64_t kOutputsPerWord = 8;  // of AWQ: 32 bits / 4

// A size that the configuration asks for, and how it does.
struct Dimension {
  int64_t size;
  std::string reason;  // "hidden_size 128"
};

// "the config's hidden_size 128 gives [128]".
std::string Wanted(const std::vector<Dimension>& shape) {
  std::vector<int64_t> sizes;
  std::vector<std::string> reasons;
  for (const Dimension& dimension : shape) {
    sizes.push_back(dimension.size);
    reasons.push_back(dimension.reason);
  }
  return absl::StrCat("the config's ", absl::StrJoin(reasons, " and "),
                      reasons.size() == 1 ? " gives " : " give ", ShapeText(sizes));
}

bool IsFloat(DType dtype) {
  return dtype == DType::kBf16 || dtype == DType::kF16 || dtype == DType::kF32;
}

// Looks the weights up. The first error is kept, and what is returned after it is no use.
class Finder {
 public:
  Finder(const Checkpoint& checkpoint, const DecoderConfig& config)
      : checkpoint_(checkpoint), config_(config) {}

  const absl::Status& status() const { return status_; }

  Tensor Embedding() { return Floats("model.embed_tokens.weight", {Vocabulary(), Hidden()}); }
  Tensor FinalNorm() { return Floats("model.norm.weight", {Hidden()}); }
  LinearWeights LmHead();
  LayerWeights Layer(int64_t layer);

 private:
  Dimension Vocabulary() const { return Of("vocab_size", config_.vocabulary); }
  Dimension Hidden() const { return Of("hidden_size", config_.hidden); }
  Dimension HeadDim() const { return Of("head_dim", config_.head_dim); }
  Dimension Heads(absl::string_view field, int64_t heads) const {
    return {heads * config_.head_dim,
            absl::StrCat(field, " ", heads, " x head_dim ", config_.head_dim)};
  }
  static Dimension Of(absl::string_view field, int64_t size) {
    return {size, absl::StrCat(field, " ", size)};
  }
  static Dimension Divided(const Dimension& dimension, int64_t by, absl::string_view what) {
    return {dimension.size / by, absl::StrCat(dimension.reason, " / ", what)};
  }

  FeedForwardWeights FeedForward(const std::string& module, const Dimension& ffn);
  LinearWeights Linear(const std::string& module, const Dimension& out, const Dimension& in,
                       bool bias);
  std::optional<AwqWeights> Awq(const std::string& module, const Dimension& out,
                                const Dimension& in);
  std::optional<Tensor> HeadNorm(const std::string& name);

  // A tensor of floats that must be there.
  Tensor Floats(const std::string& name, const std::vector<Dimension>& shape);
  Tensor Words(const std::string& name, const std::vector<Dimension>& shape);
  Tensor Find(const std::string& name, const std::vector<Dimension>& shape);
  // What the configuration says is not there must not be: the result would be wrong.
  void RefuseIfThere(const std::string& name, absl::string_view reason);

  // The part of the not_converted list that keeps `module` dense; null if none does.
  const std::string* NotConverted(absl::string_view module) const;

  void Invalid(const Tensor& tensor, absl::string_view found, absl::string_view wanted,
               absl::string_view mend);

  const Checkpoint& checkpoint_;
  const DecoderConfig& config_;
  absl::Status status_;
};

constexpr char kOneModel[] = "give the weights and the config.json of one model";

LinearWeights Finder::LmHead() {
  // AutoAWQ converts what is in the layers only.
  return {
      config_.hidden, config_.vocabulary,
      config_.tied_embeddings ? Embedding() : Floats("lm_head.weight", {Vocabulary(), Hidden()}),
      std::nullopt, std::nullopt};
}

LayerWeights Finder::Layer(int64_t layer) {
  const std::string prefix = absl::StrCat("model.layers.", layer, ".");
  const std::string attention = prefix + "self_attn.";
  const std::string mlp = prefix + "mlp";
  const Dimension heads = Heads("num_attention_heads", config_.heads);
  const Dimension kv_heads = Heads("num_key_value_heads", config_.kv_heads);
  LayerWeights weights;
  weights.input_norm = Floats(prefix + "input_layernorm.weight", {Hidden()});
  weights.q = Linear(attention + "q_proj", heads, Hidden(), config_.qkv_bias);
  weights.k = Linear(attention + "k_proj", kv_heads, Hidden(), config_.qkv_bias);
  weights.v = Linear(attention + "v_proj", kv_heads, Hidden(), config_.qkv_bias);
  weights.q_norm = HeadNorm(attention + "q_norm.weight");
  weights.k_norm = HeadNorm(attention + "k_norm.weight");
  weights.o = Linear(attention + "o_proj", Hidden(), heads, config_.o_bias);
  weights.post_attention_norm = Floats(prefix + "post_attention_layernorm.weight", {Hidden()});
  if (!config_.experts || !config_.has_experts[layer]) {
    weights.feed_forward = FeedForward(mlp, Of("intermediate_size", config_.ffn));
    return weights;
  }
  const int64_t experts = config_.experts->experts;
  weights.router = Linear(mlp + ".gate", Of("num_experts", experts), Hidden(), /*bias=*/false);
  const Dimension ffn = Of("moe_intermediate_size", config_.experts->ffn);
  for (int64_t expert = 0; expert < experts && status_.ok(); ++expert) {
    weights.experts.push_back(FeedForward(absl::StrCat(mlp, ".experts.", expert), ffn));
  }
  return weights;
}

FeedForwardWeights Finder::FeedForward(const std::string& module, const Dimension& ffn) {
  return {Linear(module + ".gate_proj", ffn, Hidden(), config_.mlp_bias),
          Linear(module + ".up_proj", ffn, Hidden(), config_.mlp_bias),
          Linear(module + ".down_proj", Hidden(), ffn, config_.mlp_bias)};
}

LinearWeights Finder::Linear(const std::string& module, const Dimension& out, const Dimension& in,
                             bool bias) {
  LinearWeights weights = {in.size, out.size, std::nullopt, std::nullopt, std::nullopt};
  const Tensor* const dense = checkpoint_.Find(module + ".weight");
  const Tensor* const qweight = checkpoint_.Find(module + ".qweight");
  const std::string* const kept = NotConverted(module);
  if (config_.awq && kept == nullptr) {
    if (qweight == nullptr && dense != nullptr) {
      Invalid(*dense, "dense",
              "the config's quantization_config says AWQ, and its modules_to_not_convert does not "
              "name this layer",
              kOneModel);
    }
    weights.awq = Awq(module, out, in);
  } else {
    if (dense == nullptr && qweight != nullptr) {
      Invalid(*qweight, "quantised",
              kept == nullptr
                  ? "the config has no quantization_config"
                  : absl::StrCat("the config's modules_to_not_convert keeps \"", *kept, "\" dense"),
              kOneModel);
    }
    weights.dense = Floats(module + ".weight", {out, in});
  }
  if (bias) {
    weights.bias = Floats(module + ".bias", {out});
  } else {
    RefuseIfThere(module + ".bias", "the config says that this layer has no bias");
  }
  return weights;
}

std::optional<AwqWeights> Finder::Awq(const std::string& module, const Dimension& out,
                                      const Dimension& in) {
  const int64_t group_size = config_.awq->group_size;
  if (group_size <= 0 || in.size % group_size != 0 || out.size % kOutputsPerWord != 0) {
    status_.Update(absl::InvalidArgumentError(absl::StrCat(
        config_.file, ": ", module, ": AWQ of ", in.reason, " inputs and ", out.reason,
        " outputs, and group_size ", group_size, " must divide the inputs, ", kOutputsPerWord,
        " the outputs: add it to modules_to_not_convert if it is dense")));
    return std::nullopt;
  }
  const Dimension words = Divided(out, kOutputsPerWord, "8 to a word");
  const Dimension groups = Divided(in, group_size, absl::StrCat("group_size ", group_size));
  return AwqWeights{Words(module + ".qweight", {in, words}),
                    Words(module + ".qzeros", {groups, words}),
                    Floats(module + ".scales", {groups, out}), group_size};
}

std::optional<Tensor> Finder::HeadNorm(const std::string& name) {
  if (config_.qk_norm) return Floats(name, {HeadDim()});
  RefuseIfThere(name, absl::StrCat(config_.architecture, " does not normalise heads"));
  return std::nullopt;
}

Tensor Finder::Floats(const std::string& name, const std::vector<Dimension>& shape) {
  Tensor tensor = Find(name, shape);
  if (status_.ok() && !IsFloat(tensor.dtype)) {
    Invalid(tensor, absl::StrCat("dtype ", DTypeName(tensor.dtype)), "BF16, F16 and F32 are read",
            "convert it to one of them");
  }
  return tensor;
}

Tensor Finder::Words(const std::string& name, const std::vector<Dimension>& shape) {
  Tensor tensor = Find(name, shape);
  if (status_.ok() && tensor.dtype != DType::kI32) {
    Invalid(tensor, absl::StrCat("dtype ", DTypeName(tensor.dtype)), "AWQ packs into I32",
            kOneModel);
  }
  return tensor;
}

Tensor Finder::Find(const std::string& name, const std::vector<Dimension>& shape) {
  const Tensor* const tensor = checkpoint_.Find(name);
  if (tensor == nullptr) {
    status_.Update(absl::NotFoundError(absl::StrCat(
        checkpoint_.folder(), ": ", name, ": missing, and ", Wanted(shape), ": ", kOneModel)));
    return {};
  }
  bool same = tensor->shape.size() == shape.size();
  for (size_t i = 0; same && i < shape.size(); ++i) same = tensor->shape[i] == shape[i].size;
  if (!same) {
    Invalid(*tensor, absl::StrCat("shape ", ShapeText(tensor->shape)), Wanted(shape), kOneModel);
  }
  return *tensor;
}

void Finder::RefuseIfThere(const std::string& name, absl::string_view reason) {
  const Tensor* const tensor = checkpoint_.Find(name);
  if (tensor != nullptr) Invalid(*tensor, "present", reason, kOneModel);
}

const std::string* Finder::NotConverted(absl::string_view module) const {
  return config_.awq.has_value() ? config_.awq->KeptDenseBy(module) : nullptr;
}

void Finder::Invalid(const Tensor& tensor, absl::string_view found, absl::string_view wanted,
                     absl::string_view mend) {
  status_.Update(absl::InvalidArgumentError(absl::StrCat(
      checkpoint_.FileOf(tensor), ": ", tensor.name, ": ", found, ", and ", wanted, ": ", mend)));
}

// Adds tensors up, each once: tied embeddings are one tensor with two uses.
class ByteCounter {
 public:
  int64_t bytes() const { return bytes_; }

  void Add(const Tensor& tensor) {
    if (counted_.insert(tensor.name).second) bytes_ += static_cast<int64_t>(tensor.bytes.size());
  }
  void Add(const AwqWeights& weights) {
    Add(weights.qweight);
    Add(weights.qzeros);
    Add(weights.scales);
  }
  void Add(const LinearWeights& weights) {
    Add(weights.dense);
    Add(weights.awq);
    Add(weights.bias);
  }
  void Add(const FeedForwardWeights& weights) {
    Add(weights.gate);
    Add(weights.up);
    Add(weights.down);
  }
  void Add(const LayerWeights& weights) {
    Add(weights.input_norm);
    for (const LinearWeights* linear : {&weights.q, &weights.k, &weights.v, &weights.o}) {
      Add(*linear);
    }
    Add(weights.q_norm);
    Add(weights.k_norm);
    Add(weights.post_attention_norm);
    Add(weights.feed_forward);
    Add(weights.router);
    for (const FeedForwardWeights& expert : weights.experts) Add(expert);
  }
  template <typename T>
  void Add(const std::optional<T>& weights) {
    if (weights) Add(*weights);
  }

 private:
  int64_t bytes_ = 0;
  absl::flat_hash_set<std::string> counted_;
};

}  // namespace

int64_t StageWeights::bytes() const {
  ByteCounter counter;
  counter.Add(embedding);
  for (const LayerWeights& layer : layers) counter.Add(layer);
  counter.Add(final_norm);
  counter.Add(lm_head);
  return counter.bytes();
}

absl::StatusOr<StageWeights> FindStageWeights(std::shared_ptr<const Checkpoint> checkpoint,
                                              const DecoderConfig& config, StageShare share) {
  FABRICAST_CHECK(checkpoint != nullptr);
  FABRICAST_CHECK(0 <= share.first_layer && 0 <= share.num_layers &&
                  share.first_layer <= config.layers - share.num_layers)
      << "first_layer=" << share.first_layer << " num_layers=" << share.num_layers << " of "
      << config.layers;
  FABRICAST_CHECK(!config.experts ||
                  config.has_experts.size() == static_cast<size_t>(config.layers))
      << "has_experts=" << config.has_experts.size() << " layers=" << config.layers;
  Finder finder(*checkpoint, config);
  StageWeights weights;
  if (share.embedding) weights.embedding = finder.Embedding();
  for (int64_t i = 0; i < share.num_layers && finder.status().ok(); ++i) {
    weights.layers.push_back(finder.Layer(share.first_layer + i));
  }
  if (share.lm_head) {
    weights.final_norm = finder.FinalNorm();
    weights.lm_head = finder.LmHead();
  }
  if (!finder.status().ok()) return finder.status();
  weights.checkpoint = std::move(checkpoint);
  return weights;
}

}  // namespace fabricast
