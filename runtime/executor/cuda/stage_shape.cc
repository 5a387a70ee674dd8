#include "runtime/executor/cuda/stage_shape.h"

#include <algorithm>
#include <initializer_list>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "absl/types/span.h"
#include "kernels/int4/int4_matrix.h"
#include "runtime/check.h"

namespace fabricast {
namespace {

constexpr int64_t kF32Bytes = 4;
constexpr int64_t kHalfBytes = 2;  // of BF16 and FP16

bool IsInt4(const LinearWeights& weights) {
  return weights.awq.has_value() && weights.awq->group_size == kInt4GroupInputs &&
         weights.awq->scales.dtype == DType::kF16 && weights.in % kInt4GroupInputs == 0 &&
         weights.out % 8 == 0;
}

bool IsF16(const LinearWeights& weights) {
  return (weights.awq ? weights.awq->scales : *weights.dense).dtype == DType::kF16;
}

MatrixFormat FormatOf(absl::Span<const LinearWeights* const> parts) {
  bool int4 = true;
  bool f16 = true;
  for (size_t i = 0; i < parts.size(); ++i) {
    // A part begins with a block of rows.
    const bool fits = i + 1 == parts.size() || parts[i]->out % kInt4BlockRows == 0;
    int4 = int4 && fits && IsInt4(*parts[i]);
    f16 = f16 && IsF16(*parts[i]);
  }
  return int4 ? MatrixFormat::kInt4 : f16 ? MatrixFormat::kF16 : MatrixFormat::kBf16;
}

MatrixShape ShapeOf(std::initializer_list<const LinearWeights*> parts) {
  MatrixShape shape;
  shape.format = FormatOf({parts.begin(), parts.size()});
  shape.inputs = (*parts.begin())->in;
  for (const LinearWeights* part : parts) {
    shape.parts.push_back(part->out);
    shape.bias = shape.bias || part->bias.has_value();
  }
  return shape;
}

absl::Status CheckSupported(const DecoderConfig& config) {
  if (!config.experts) return absl::OkStatus();
  return absl::UnimplementedError(
      absl::StrCat(config.file, ": num_experts: ", config.experts->experts,
                   ": mixtures of experts run on the processor only so far: --topology local_cpu"));
}

StageShape SizesOf(const DecoderConfig& config) {
  StageShape shape;
  shape.hidden = config.hidden;
  shape.heads = config.heads;
  shape.kv_heads = config.kv_heads;
  shape.head_dim = config.head_dim;
  shape.ffn = config.ffn;
  shape.vocabulary = config.vocabulary;
  shape.qk_norm = config.qk_norm;
  return shape;
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

absl::StatusOr<StageShape> ShapeOfStage(const DecoderConfig& config, const StageWeights& weights) {
  if (absl::Status status = CheckSupported(config); !status.ok()) return status;
  StageShape shape = SizesOf(config);
  for (const LayerWeights& layer : weights.layers) {
    const FeedForwardWeights& feed_forward = *layer.feed_forward;
    shape.layers.push_back({.qkv = ShapeOf({&layer.q, &layer.k, &layer.v}),
                            .o = ShapeOf({&layer.o}),
                            .gate_up = ShapeOf({&feed_forward.gate, &feed_forward.up}),
                            .down = ShapeOf({&feed_forward.down})});
  }
  if (weights.embedding) shape.embedding = TypeOf(*weights.embedding);
  if (weights.lm_head) {
    shape.lm_head = ShapeOf({&*weights.lm_head});
    shape.tied = weights.embedding.has_value() && shape.embedding != ElementType::kF32 &&
                 weights.embedding->name == weights.lm_head->dense->name;
  }
  return shape;
}

absl::StatusOr<StageShape> ShapeOfSyntheticStage(const DecoderConfig& config,
                                                 const StageShare& share) {
  if (absl::Status status = CheckSupported(config); !status.ok()) return status;
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
  StageShape shape = SizesOf(config);
  const int64_t q = config.heads * config.head_dim;
  const int64_t kv = config.kv_heads * config.head_dim;
  const LayerShape layer = {
      .qkv = matrix({q, kv, kv}, config.hidden, config.qkv_bias),
      .o = matrix({config.hidden}, q, config.o_bias),
      .gate_up = matrix({config.ffn, config.ffn}, config.hidden, config.mlp_bias),
      .down = matrix({config.hidden}, config.ffn, config.mlp_bias)};
  shape.layers.assign(share.num_layers, layer);
  const bool f16 = config.awq.has_value();  // as AutoAWQ leaves them
  if (share.embedding) shape.embedding = f16 ? ElementType::kF16 : ElementType::kBf16;
  if (share.lm_head) {
    shape.lm_head = MatrixShape{.format = f16 ? MatrixFormat::kF16 : MatrixFormat::kBf16,
                                .parts = {config.vocabulary},
                                .inputs = config.hidden};
    shape.tied = config.tied_embeddings && share.embedding;
  }
  return shape;
}

}  // namespace fabricast
