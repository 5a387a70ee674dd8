// How the weights of a stage lie in a GPU's memory: which matrices become one, and in which format.
// Known from the configuration and the tensors' types, before anything is read.
#ifndef FABRICAST_RUNTIME_EXECUTOR_CUDA_STAGE_SHAPE_H_
#define FABRICAST_RUNTIME_EXECUTOR_CUDA_STAGE_SHAPE_H_

#include <cstdint>
#include <optional>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/elementwise/elementwise.h"
#include "runtime/model/decoder_config.h"
#include "runtime/weights/stage_weights.h"

namespace fabricast {

// One of the GPUs that share a stage (tensor parallelism). Heads, with their keys and values, and
// the feed-forward's width are divided among them evenly and in order: q, k, v, gate and up by
// outputs, o and down by inputs; the biases of the latter two are rank 0's. lm_head is divided by
// vocabulary if that is a multiple of `ranks`. All else is on every GPU.
struct TensorParallelRank {
  int rank = 0;
  int ranks = 1;
};

// Formats of matrices. AWQ in groups of 128 stays INT4. Dense weights are FP16 if the checkpoint's
// are, BF16 otherwise; AWQ that the INT4 kernels do not take is dequantised to FP16, as
// its scales are (BF16 if they are not). They take a rank's share if its inputs are a multiple of
// 128, its outputs of 8, and those of q, k and gate of 128.
enum class MatrixFormat { kInt4, kBf16, kF16 };

// Linear layers of the same input, one above the other.
struct MatrixShape {
  MatrixFormat format = MatrixFormat::kBf16;
  std::vector<int64_t> parts;  // outputs of each
  int64_t inputs = 0;
  bool bias = false;

  int64_t outputs() const;
  int64_t bytes() const;  // the bias, FP32, included
};

struct LayerShape {
  MatrixShape qkv;
  MatrixShape o;
  MatrixShape gate_up;
  MatrixShape down;

  int64_t bytes() const;
};

// Of one rank.
struct StageShape {
  TensorParallelRank rank;
  int64_t hidden = 0;
  int64_t heads = 0;
  int64_t kv_heads = 0;
  int64_t head_dim = 0;
  int64_t ffn = 0;
  int64_t vocabulary = 0;
  bool qk_norm = false;
  std::vector<LayerShape> layers;
  std::optional<ElementType> embedding;  // [vocabulary, hidden]
  std::optional<MatrixShape> lm_head;
  bool tied = false;  // lm_head is the embedding, which is there once

  // lm_head's outputs are a part of the vocabulary.
  bool vocabulary_divided() const { return lm_head && lm_head->outputs() < vocabulary; }
  int64_t weight_bytes() const;
  int64_t kv_bytes_per_token() const;  // BF16, of all layers
};

// Naming the configuration's field and the mend: kUnimplemented for a mixture of experts,
// kInvalidArgument if heads, KV heads or the feed-forward's width are not a multiple of the ranks.
absl::StatusOr<StageShape> ShapeOfStage(const DecoderConfig& config, const StageWeights& weights,
                                        const TensorParallelRank& rank = {});

// The shape that a checkpoint of `config` with AWQ, or else BF16 weights, has: for synthetic
// weights. kUnimplemented as well: AWQ in groups other than 128, or modules_to_not_convert.
absl::StatusOr<StageShape> ShapeOfSyntheticStage(const DecoderConfig& config,
                                                 const StageShare& share,
                                                 const TensorParallelRank& rank = {});

}  // namespace fabricast

#endif  // FABRICAST_RUNTIME_EXECUTOR_CUDA_STAGE_SHAPE_H_
