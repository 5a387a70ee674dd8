// The arithmetic of a stage: embedding, decoder layers, logits.
//
// A layer, on the hidden states h [rows, hidden] of a micro-batch's tokens:
//   q, k, v = W x + b of x = norm(h); with qk_norm each head of q and k is normalised
//   RoPE turns q and k by their position; k and v go to the cache
//   h += W_o attention(q)
//   h += feed forward, or mixture of experts, of norm(h)
#ifndef FABRICAST_RUNTIME_EXECUTOR_CPU_DECODER_H_
#define FABRICAST_RUNTIME_EXECUTOR_CPU_DECODER_H_

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "runtime/executor/cpu/attention.h"
#include "runtime/executor/cpu/float_matrix.h"
#include "runtime/executor/cpu/kv_cache.h"
#include "runtime/executor/cpu/linear.h"
#include "runtime/executor/cpu/matmul.h"
#include "runtime/executor/cpu/routing.h"
#include "runtime/executor/cpu/thread_pool.h"
#include "runtime/model/decoder_config.h"
#include "runtime/weights/stage_weights.h"

namespace fabricast {

// Consecutive rows that are consecutive tokens of one request.
struct RequestRows {
  RequestId request;
  int64_t first_position;
  int64_t first_row;
  int64_t rows;
};

// Not thread-safe; one owner. Computes with the threads of `pool`.
class Decoder {
 public:
  // Errors as Linear::Load.
  static absl::StatusOr<std::unique_ptr<Decoder>> Load(const DecoderConfig& config,
                                                       StageWeights weights, int64_t block_tokens,
                                                       ThreadPool* pool);

  const KvShape& kv_shape() const { return kv_shape_; }
  int64_t layers() const { return static_cast<int64_t>(layers_.size()); }
  bool has_embedding() const { return weights_.embedding.has_value(); }
  bool has_lm_head() const { return lm_head_.has_value(); }
  // As the checkpoint names it, "model.layers.7", if it does.
  std::string LayerName(int64_t layer) const;

  // The rows of `hidden` for `tokens`, which are in the vocabulary.
  void Embed(absl::Span<const int32_t> tokens, FloatMatrix& hidden);

  // To be called before the layers of a micro-batch, whose rows are `batch`'s in order.
  void SetBatch(absl::Span<const RequestRows> batch);

  // Keys and values of all rows go to `cache`. `hidden` becomes the layer's output for the rows of
  // `wanted`, one after another: a subset of the batch's, in its order. The rest of what the layer
  // would compute for the others is left out.
  //
  // Returns the first row of the batch whose keys or values are not finite, or -1.
  int64_t ComputeLayer(int64_t layer, absl::Span<const RequestRows> wanted, KvCache& cache,
                       FloatMatrix& hidden);

  // [rows of hidden, vocabulary].
  void ComputeLogits(const FloatMatrix& hidden, FloatMatrix& logits);

 private:
  struct FeedForward {
    Linear gate;
    Linear up;
    Linear down;
  };
  struct Layer {
    std::vector<float> input_norm;
    Linear q;
    Linear k;
    Linear v;
    std::vector<float> q_norm;  // empty: none
    std::vector<float> k_norm;
    Linear o;
    std::vector<float> post_attention_norm;
    // One, or one an expert.
    std::vector<FeedForward> feed_forward;
    std::optional<Linear> router;
  };

  Decoder(const DecoderConfig& config, StageWeights weights, int64_t block_tokens,
          ThreadPool* pool);

  absl::Status LoadLayer(const LayerWeights& weights, Layer& layer);
  absl::StatusOr<FeedForward> LoadFeedForward(const FeedForwardWeights& weights);

  // Calls compute(row) for all rows, some of them at a time by each thread.
  template <typename Compute>
  void ForRows(int64_t rows, const Compute& compute);

  void NormRows(const FloatMatrix& input, absl::Span<const float> gain, FloatMatrix& output);
  // Normalises if `gain` is not empty, turns by the angles of batch row `row`, and scales.
  void FinishHeads(int64_t heads, absl::Span<const float> gain, int64_t row, float scale,
                   float* values) const;
  int64_t StoreKeysAndValues(const Layer& layer, int64_t index, KvCache& cache);
  void ComputeAttention(int64_t index, absl::Span<const RequestRows> wanted, KvCache& cache);
  // Add to `hidden` what they compute of normed_.
  void AddDense(const FeedForward& feed_forward, FloatMatrix& hidden);
  void AddExperts(const Layer& layer, FloatMatrix& hidden);
  void SiluMultiplyRows(FloatMatrix& gate, const FloatMatrix& up);

  DecoderConfig config_;
  StageWeights weights_;  // keeps the checkpoint mapped
  KvShape kv_shape_;
  ThreadPool* pool_;
  MatMul matmul_;
  Attention attention_;
  std::vector<float> rope_frequencies_;
  std::vector<Layer> layers_;
  std::vector<float> final_norm_;
  std::optional<Linear> lm_head_;

  // Of the micro-batch.
  std::vector<RequestRows> batch_;
  FloatMatrix cosines_;  // [rows, head_dim / 2]
  FloatMatrix sines_;

  // Scratch.
  FloatMatrix normed_;
  FloatMatrix wanted_normed_;
  FloatMatrix wanted_hidden_;
  std::vector<int64_t> wanted_rows_;  // of the batch, by row of the output
  FloatMatrix queries_;
  FloatMatrix keys_;
  FloatMatrix values_;
  FloatMatrix attended_;
  FloatMatrix gate_;
  FloatMatrix up_;
  FloatMatrix router_logits_;
  FloatMatrix expert_input_;
  FloatMatrix expert_gate_;
  FloatMatrix expert_up_;
  FloatMatrix expert_output_;
  FloatMatrix expert_sum_;
  std::vector<ExpertChoice> choices_;
  ExpertRows expert_rows_;
  std::vector<Product> products_;
};

}  // namespace fabricast

#endif  // FABRICAST_RUNTIME_EXECUTOR_CPU_DECODER_H_
