// What a model is made of: its layers as operators with shapes, and from them parameters, bytes,
// operations and KV cache.
//
// A model is a table of layer kinds and a sequence that says which kind each layer is. The dense
// Llama family has one kind, a mixture of experts one or two; latent attention and state-space
// layers are further operator types and kinds.
#ifndef FABRICAST_RUNTIME_MODEL_MODEL_H_
#define FABRICAST_RUNTIME_MODEL_MODEL_H_

#include <cstdint>
#include <string>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace fabricast {

enum class WeightFormat { kBf16, kFp8, kInt4Group128 };

// "bf16", "fp8", "int4".
absl::string_view WeightFormatName(WeightFormat format);

// Bytes of an [in, out] matrix with its scales and zeros. INT4 group 128: 4 bits a weight, an FP16
// scale and a 4-bit zero for each output column of each group of 128 inputs (the last group may be
// smaller): 4.15625 bits. FP8: 8 bits (the scale of a tensor is not counted).
int64_t WeightBytes(WeightFormat format, int64_t in, int64_t out);

// y[tokens, out] = x[tokens, in] W.
struct LinearOp {
  std::string name;  // "qkv", "o", "gate_up", "down"
  int64_t in = 0;
  int64_t out = 0;
  WeightFormat format = WeightFormat::kBf16;
  bool bias = false;
};

// Feed-forward networks of which a token goes through `per_token`, chosen by a router (a LinearOp
// of its own): for each of them down(silu(gate x) * up x), gate_up [in, 2 ffn], down [ffn, in].
struct RoutedExpertsOp {
  int64_t experts = 0;
  int64_t per_token = 0;
  int64_t in = 0;
  int64_t ffn = 0;  // of one expert
  WeightFormat format = WeightFormat::kBf16;
};

// Softmax attention over a KV cache, grouped queries.
struct AttentionOp {
  int64_t heads = 0;
  int64_t kv_heads = 0;
  int64_t head_dim = 0;
  int64_t kv_bytes_per_element = 2;
};

// Anything that streams activations: norms, rotary embedding, activation function, residual.
struct ElementwiseOp {
  std::string name;
  double elements_per_token = 0;  // of activations, read and written
  double weight_elements = 0;     // e.g. a norm's gain; BF16
};

using Operator = std::variant<LinearOp, RoutedExpertsOp, AttentionOp, ElementwiseOp>;

// Experts of which at least one of `tokens` tokens has need, if each token chooses `per_token` of
// `experts` uniformly and independently: E (1 - (1 - k/E)^n). Real routers are neither: tokens of
// one text prefer the same experts, so this is an upper bound in expectation, and unvalidated.
double ExpectedExpertsTouched(int64_t experts, int64_t per_token, double tokens);

// The bias of a LinearOp is BF16 whatever the format of its matrix.
int64_t Parameters(const Operator& op);
// Of those, what one token goes through: of routed experts `per_token`.
int64_t ActiveParameters(const Operator& op);
int64_t WeightBytes(const Operator& op);
// Of those, what `tokens` tokens read: all, of routed experts ExpectedExpertsTouched().
double WeightBytesRead(const Operator& op, double tokens);
int64_t KvBytesPerToken(const Operator& op);
// Multiply-adds count 2; biases, softmax and elementwise operators are not counted.
// LinearOp: 2 * in * out. RoutedExpertsOp: per_token * 2 * 3 * in * ffn. AttentionOp: 2 * heads *
// head_dim * context for Q K^T, as much for P V.
double FlopsPerToken(const Operator& op, int64_t context);
// Elements of activations read and written for one token, the KV cache apart.
// LinearOp: in + out. RoutedExpertsOp: those of its matrices, the SwiGLU between them apart.
// AttentionOp: Q in and the result out, heads * head_dim each.
double ActivationElementsPerToken(const Operator& op);

struct LayerKind {
  std::string name;  // "dense", "experts"
  std::vector<Operator> operators;
  int64_t activation_bytes = 2;  // of an element

  int64_t parameters() const;
  int64_t active_parameters() const;
  int64_t weight_bytes() const;
  int64_t kv_bytes_per_token() const;
  // As for Operator. `context`: tokens attended to, the token itself included.
  double flops_per_token(int64_t context) const;
  // Bytes moved to and from memory by one decode step of `requests` requests, each with `context`
  // tokens of KV cache: weights once (of routed experts those touched, WeightBytesRead()), KV of
  // each (its own token's written, the others' read), activations.
  double decode_bytes(int64_t requests, int64_t context) const;
};

struct Model {
  std::string name;
  std::string architecture;  // "LlamaForCausalLM"
  std::string source;        // file or publication of its facts
  int64_t hidden = 0;
  int64_t vocabulary = 0;
  int64_t max_context = 0;
  bool tied_embeddings = false;
  WeightFormat layer_format = WeightFormat::kBf16;
  std::vector<LayerKind> kinds;
  std::vector<int> layers;  // index into kinds, one a layer
  // Of an element of activations: 2, BF16, unless WithActivationBytes() says otherwise.
  int64_t activation_bytes = 2;
  // Embedding and lm_head are never quantised: AWQ, GPTQ and FP8 checkpoints leave them in BF16.
  int64_t embedding_bytes = 0;  // BF16 [vocabulary, hidden]; on the first stage
  // BF16 [hidden, vocabulary]; on the last stage (tied: a copy there if the stages differ).
  int64_t lm_head_bytes = 0;
  int64_t final_norm_elements = 0;  // gain of the RMSNorm before lm_head, BF16; on the last stage

  int num_layers() const { return static_cast<int>(layers.size()); }
  const LayerKind& layer(int i) const { return kinds[layers[i]]; }
  // Of the checkpoint: embedding, lm_head (tied: the same matrix, counted once) and final norm
  // included.
  int64_t parameters() const;
  int64_t active_parameters() const;  // all but the experts that a token does not go through
  int64_t weight_bytes() const;
  int64_t kv_bytes_per_token() const;
  double flops_per_token(int64_t context) const;  // lm_head included
  // Of one token between two stages: hidden elements.
  int64_t boundary_bytes_per_token() const { return hidden * activation_bytes; }

  // kInvalidArgument with the numbers if `tp` does not divide the heads and the FFN widths (of each
  // expert: all GPUs hold a slice of every expert), if it neither divides the KV heads nor is a
  // multiple of them, or if an INT4 matrix split by its inputs would not keep whole groups of 128:
  // "llama-…: 128 heads do not divide by 3: use 1, 2, 4 or 8". Suggests sizes up to 8.
  absl::Status CheckTensorParallel(int tp) const;
};

// `model` with activations and KV cache of that many bytes an element, as GpuSpec.activation_bytes
// says: 2 (BF16) on GPUs, 4 (float32) on processors. MakePlan and MakeStageCost do it themselves.
Model WithActivationBytes(Model model, int64_t bytes);

// `spec`: a name of the catalogue, a config.json of Hugging Face, or a folder that holds one; a
// name of the catalogue wins over a file of that name (write "./name" for the file).
// `quantization`: "", "bf16", "fp8", "int4" (AWQ or GPTQ, group 128); empty: the config's
// quantization_config, else BF16 (FP16 counts the same).
//
// Known architectures: LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM,
// Qwen3MoeForCausalLM; others are kUnimplemented and list these. So are sliding windows shorter
// than the model's context, activation functions other than SiLU, and quantisations that leave some
// layers or projections out, but for norms and the router of experts (BF16 here always): counting
// them as full attention or as uniform layers would be wrong without a word. kNotFound: neither a
// name nor a file. kInvalidArgument: not JSON, over 4 MB, nested deeper than 64, or a field that is
// missing or absurd, as "FILE: FIELD: VALUE: MEND".
absl::StatusOr<Model> LoadModel(absl::string_view spec, absl::string_view quantization = "");

// From the text of a config.json. `file` is for messages and names the model: "a/config.json" is
// "a", "b.json" is "b". Python's NaN, Infinity and -Infinity are understood where no number is
// needed.
absl::StatusOr<Model> ParseModelConfig(absl::string_view file, absl::string_view json,
                                       absl::string_view quantization = "");

struct CatalogueEntry {
  std::string name;
  std::string description;
  std::string source;
};
// The bundled models, sorted by name.
const std::vector<CatalogueEntry>& ModelCatalogue();

}  // namespace fabricast

#endif  // FABRICAST_RUNTIME_MODEL_MODEL_H_
