// The weights of one pipeline stage, found in a checkpoint and checked against the model's
// configuration: what an executor, on whatever device, starts from.
#ifndef FABRICAST_RUNTIME_WEIGHTS_STAGE_WEIGHTS_H_
#define FABRICAST_RUNTIME_WEIGHTS_STAGE_WEIGHTS_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "absl/status/statusor.h"
#include "runtime/model/decoder_config.h"
#include "runtime/weights/checkpoint.h"
#include "runtime/weights/tensor.h"

namespace fabricast {

// AutoAWQ's GEMM layout: w[in, out] = (q - z) * s, s and z of the group of `group_size` inputs that
// `in` belongs to. Bits 4i ... 4i+3 of a word of 8 outputs c hold output 8c + [0,2,4,6,1,3,5,7][i].
struct AwqWeights {
  Tensor qweight;  // I32 [in, out / 8]
  Tensor qzeros;   // I32 [in / group_size, out / 8]
  Tensor scales;   // F16 (or BF16, F32) [in / group_size, out]
  int64_t group_size = 0;
};

// y[out] = W x[in] + bias.
struct LinearWeights {
  int64_t in = 0;
  int64_t out = 0;
  std::optional<Tensor> dense;    // BF16, F16 or F32 [out, in]; else:
  std::optional<AwqWeights> awq;  // exactly one of the two
  std::optional<Tensor> bias;     // [out]
};

// down(silu(gate(x)) * up(x)).
struct FeedForwardWeights {
  LinearWeights gate;  // [ffn, hidden]
  LinearWeights up;
  LinearWeights down;  // [hidden, ffn]
};

struct LayerWeights {
  Tensor input_norm;  // gain, [hidden]
  LinearWeights q;    // [heads * head_dim, hidden]
  LinearWeights k;    // [kv_heads * head_dim, hidden]
  LinearWeights v;
  std::optional<Tensor> q_norm;  // gain, [head_dim]
  std::optional<Tensor> k_norm;
  LinearWeights o;  // [hidden, heads * head_dim]
  Tensor post_attention_norm;
  // Dense layers have `feed_forward`, mixtures of experts `router` ([experts, hidden]) and
  // `experts`.
  std::optional<FeedForwardWeights> feed_forward;
  std::optional<LinearWeights> router;
  std::vector<FeedForwardWeights> experts;
};

struct StageWeights {
  std::shared_ptr<const Checkpoint> checkpoint;  // keeps the tensors' bytes alive
  std::optional<Tensor> embedding;               // [vocabulary, hidden]; first stage
  std::vector<LayerWeights> layers;
  std::optional<Tensor> final_norm;      // [hidden]; last stage
  std::optional<LinearWeights> lm_head;  // [vocabulary, hidden], the embedding if tied; last stage

  int64_t bytes() const;  // of all tensors above, each counted once
};

struct StageShare {
  int64_t first_layer = 0;
  int64_t num_layers = 0;
  bool embedding = false;
  bool lm_head = false;
};

// Touches no tensor's bytes. With AWQ, linear layers of `layers` are AWQ unless the configuration
// keeps them dense, routers too; the embedding and lm_head never are.
//
// kNotFound, naming folder and tensor, if one is missing; kInvalidArgument, naming file, tensor,
// what it is and what the configuration says, if shape or dtype are not as above, if it is dense
// where the configuration says AWQ or the reverse, or if there are biases or norms of heads that
// the configuration does not have. CHECKs that the layers exist.
absl::StatusOr<StageWeights> FindStageWeights(std::shared_ptr<const Checkpoint> checkpoint,
                                              const DecoderConfig& config, StageShare share);

}  // namespace fabricast

#endif  // FABRICAST_RUNTIME_WEIGHTS_STAGE_WEIGHTS_H_
