#include "runtime/executor/cuda/stage_shape.h"

#include <algorithm>
#include <initializer_list>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "kernels/int4/int4_matrix.h"
#include "runtime/check.h"

namespace fabricast {
namespace {

constexpr int64_t kF32Bytes = 4;
constexpr int64_t kHalfBytes = 2;  // of BF16 and FP16

// Which side of a matrix is divided.
enum class DividedBy { kOutputs, kInputs };

bool IsInt4(const LinearWeights& weights, int64_t inputs, int64_t outputs) {
  return weights.awq.has_value() && weights.awq->group_size == kInt4GroupInputs &&
         weights.awq->scales.dtype == DType::kF16 && inputs % kInt4GroupInputs == 0 &&
         outputs % 8 == 0;
}

bool IsF16(const LinearWeights& weights) {
  return (weights.awq ? weights.awq->scales : *weights.dense).dtype == DType::kF16;
}

MatrixShape ShapeOf(std::initializer_list<const LinearWeights*> linears, DividedBy by,
                    const TensorParallelRank& rank) {
  MatrixShape shape;
  const int64_t inputs = (*linears.begin())->in;
  shape.inputs = by == DividedBy::kInputs ? inputs / rank.ranks : inputs;
  bool int4 = true;
  bool f16 = true;
  for (const LinearWeights* linear : linears) {
    const int64_t outputs = by == DividedBy::kOutputs ? linear->out / rank.ranks : linear->out;
    // A part begins with a block of rows.
    int4 = int4 && shape.outputs() % kInt4BlockRows == 0 && IsInt4(*linear, shape.inputs, outputs);
    f16 = f16 && IsF16(*linear);
    shape.parts.push_back(outputs);
    shape.bias =
        shape.bias || (linear->bias.has_value() && (by == DividedBy::kOutputs || rank.rank == 0));
  }
  shape.format = int4 ? MatrixFormat::kInt4 : f16 ? MatrixFormat::kF16 : MatrixFormat::kBf16;
  return shape;
}

absl::Status CheckSupported(const DecoderConfig& config, const TensorParallelRank& rank) {
  FABRICAST_CHECK(0 <= rank.rank && rank.rank < rank.ranks) << rank.rank << " of " << rank.ranks;
  if (config.experts) {
    return absl::UnimplementedError(absl::StrCat(
        config.file, ": num_experts: ", config.experts->experts,
        ": mixtures of experts run on the processor only so far: --topology local_cpu"));
  }
  const struct {
    const char* field;
    int64_t value;
  } divided[] = {{"num_attention_heads", config.heads},
                 {"num_key_value_heads", config.kv_heads},
                 {"intermediate_size", config.ffn}};
  for (const auto& [field, value] : divided) {
    if (value % rank.ranks == 0) continue;
    return absl::InvalidArgumentError(
        absl::StrCat(config.file, ": ", field, ": ", value, " cannot be divided among ", rank.ranks,
                     " GPUs: give --tensor-parallel a divisor of it"));
  }
  return absl::OkStatus();
}

StageShape SizesOf(const DecoderConfig& config, const TensorParallelRank& rank) {
  StageShape shape;
  shape.rank = rank;
  shape.hidden = config.hidden;
  shape.heads = config.heads / rank.ranks;
  shape.kv_heads = config.kv_heads / rank.ranks;
  shape.head_dim = config.head_dim;
  shape.ffn = config.ffn / rank.ranks;
  shape.vocabulary = config.vocabulary;
  shape.qk_norm = config.qk_norm;
  return shape;
}

// Of how many ranks each has a part of lm_head.
int RanksOfVocabulary(const DecoderConfig& config, const TensorParallelRank& rank) {
  return config.vocabulary % rank.ranks == 0 ? rank.ranks : 1;
}

ElementType TypeOf(const Tensor& tensor) {
  switch (tensor.dtype) {
    case DType::kBf16:
      return ElementType::kBf16;
    case DType::kF16:
      return ElementType::kF16;
    default:
      FABRICAST_CHECK(tensor.dtype == DType::kF32) << tensor.name;
      return ElementType::kF32;
  }
}

}  // namespace

int64_t MatrixShape::outputs() const {
  return std::accumulate(parts.begin(), parts.end(), int64_t{0});
}

int64_t MatrixShape::bytes() const {
  const int64_t bias_bytes = bias ? outputs() * kF32Bytes : 0;
  if (format != MatrixFormat::kInt4) return outputs() * inputs * kHalfBytes + bias_bytes;
  Int4Matrix matrix;
  matrix.outputs = outputs();
  matrix.inputs = inputs;
  return matrix.bytes() + bias_bytes;
}

int64_t LayerShape::bytes() const {
  return qkv.bytes() + o.bytes() + gate_up.bytes() + down.bytes();
}

int64_t StageShape::weight_bytes() const {
  int64_t bytes = 0;
  for (const LayerShape& layer : layers) {
    bytes += layer.bytes() + (2 * hidden + (qk_norm ? 2 * head_dim : 0)) * kF32Bytes;
  }
  if (embedding) {
    bytes += vocabulary * hidden * (*embedding == ElementType::kF32 ? kF32Bytes : kHalfBytes);
  }
  if (lm_head) bytes += hidden * kF32Bytes + (tied ? 0 : lm_head->bytes());
  return bytes;
}

int64_t StageShape::kv_bytes_per_token() const {
  return static_cast<int64_t>(layers.size()) * kv_heads * 2 * head_dim * kHalfBytes;
}

absl::StatusOr<StageShape> ShapeOfStage(const DecoderConfig& config, const StageWeights& weights,
                                        const TensorParallelRank& rank) {
  if (absl::Status status = CheckSupported(config, rank); !status.ok()) return status;
  StageShape shape = SizesOf(config, rank);
  for (const LayerWeights& layer : weights.layers) {
    const FeedForwardWeights& feed_forward = *layer.feed_forward;
    shape.layers.push_back(
        {.qkv = ShapeOf({&layer.q, &layer.k, &layer.v}, DividedBy::kOutputs, rank),
         .o = ShapeOf({&layer.o}, DividedBy::kInputs, rank),
         .gate_up = ShapeOf({&feed_forward.gate, &feed_forward.up}, DividedBy::kOutputs, rank),
         .down = ShapeOf({&feed_forward.down}, DividedBy::kInputs, rank)});
  }
  if (weights.embedding) shape.embedding = TypeOf(*weights.embedding);
  if (weights.lm_head) {
    shape.lm_head = ShapeOf({&*weights.lm_head}, DividedBy::kOutputs,
                            {.rank = rank.rank, .ranks = RanksOfVocabulary(config, rank)});
    shape.tied = weights.embedding.has_value() && shape.embedding != ElementType::kF32 &&
                 weights.embedding->name == weights.lm_head->dense->name;
  }
  return shape;
}

absl::StatusOr<StageShape> ShapeOfSyntheticStage(const DecoderConfig& config,
                                                 const StageShare& share,
                                                 const TensorParallelRank& rank) {
  if (absl::Status status = CheckSupported(config, rank); !status.ok()) return status;
  if (config.awq && config.awq->group_size != kInt4GroupInputs) {
    return absl::UnimplementedError(
        absl::StrCat(config.file, ": quantization_config.group_size: ", config.awq->group_size,
                     ": synthetic weights are of groups of ", kInt4GroupInputs, ": use that"));
  }
  if (config.awq && !config.awq->not_converted.empty()) {
    return absl::UnimplementedError(
        absl::StrCat(config.file,
                     ": quantization_config.modules_to_not_convert: synthetic weights are all of "
                     "one format: leave it out"));
  }
  const auto matrix = [&](std::vector<int64_t> parts, int64_t inputs, bool bias) {
    bool int4 = config.awq.has_value() && inputs % kInt4GroupInputs == 0;
    for (size_t i = 0; i + 1 < parts.size(); ++i) int4 = int4 && parts[i] % kInt4BlockRows == 0;
    return MatrixShape{.format = int4         ? MatrixFormat::kInt4
                                 : config.awq ? MatrixFormat::kF16
                                              : MatrixFormat::kBf16,
                       .parts = std::move(parts),
                       .inputs = inputs,
                       .bias = bias};
  };
  StageShape shape = SizesOf(config, rank);
  const int64_t q = shape.heads * shape.head_dim;
  const int64_t kv = shape.kv_heads * shape.head_dim;
  const bool adds_bias = rank.rank == 0;
  const LayerShape layer = {
      .qkv = matrix({q, kv, kv}, config.hidden, config.qkv_bias),
      .o = matrix({config.hidden}, q, config.o_bias && adds_bias),
      .gate_up = matrix({shape.ffn, shape.ffn}, config.hidden, config.mlp_bias),
      .down = matrix({config.hidden}, shape.ffn, config.mlp_bias && adds_bias)};
  shape.layers.assign(share.num_layers, layer);
  const bool f16 = config.awq.has_value();  // as AutoAWQ leaves them
  if (share.embedding) shape.embedding = f16 ? ElementType::kF16 : ElementType::kBf16;
  if (share.lm_head) {
    shape.lm_head = MatrixShape{.format = f16 ? MatrixFormat::kF16 : MatrixFormat::kBf16,
                                .parts = {config.vocabulary / RanksOfVocabulary(config, rank)},
                                .inputs = config.hidden};
    shape.tied = config.tied_embeddings && share.embedding;
  }
  return shape;
}

}  // namespace fabricast
