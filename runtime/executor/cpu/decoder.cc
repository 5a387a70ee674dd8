#include "runtime/executor/cpu/decoder.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/string_view.h"
#include "runtime/check.h"
#include "runtime/executor/cpu/elementwise.h"

namespace fabricast {
namespace {

// Of a row operation that a thread takes at a time: enough to be worth a handover of some 100 ns,
// as a row of 2,048 takes about as long.
constexpr int64_t kRowsOfTask = 8;
// Exponentials that a thread takes at a time.
constexpr int64_t kSiluColumns = 2048;

absl::StatusOr<std::vector<float>> LoadVector(const Tensor& tensor, int64_t size) {
  if (absl::Status status = FormatOf(tensor).status(); !status.ok()) return status;
  FABRICAST_CHECK(tensor.elements() == size)
      << tensor.name << " has " << tensor.elements() << " elements, not " << size;
  std::vector<float> floats(size);
  ConvertToFloat(tensor, 0, size, floats.data());
  return floats;
}

Product MakeProduct(const Linear& weights, const FloatMatrix& input, FloatMatrix& output,
                    bool add = false) {
  return {.weights = &weights,
          .rows = input.rows(),
          .input = input.row(0),
          .input_stride = input.stride(),
          .output = output.row(0),
          .output_stride = output.stride(),
          .add = add};
}

// Sets `member` to the value of `expression`, or returns its error.
#define FABRICAST_ASSIGN(member, expression)             \
  do {                                                   \
    auto result = (expression);                          \
    if (!result.ok()) return std::move(result).status(); \
    member = *std::move(result);                         \
  } while (false)

}  // namespace

Decoder::Decoder(const DecoderConfig& config, StageWeights weights, int64_t block_tokens,
                 ThreadPool* pool)
    : config_(config),
      weights_(std::move(weights)),
      kv_shape_{.layers = static_cast<int64_t>(weights_.layers.size()),
                .kv_heads = config.kv_heads,
                .head_dim = config.head_dim,
                .block_tokens = block_tokens},
      pool_(pool),
      matmul_(pool),
      attention_(kv_shape_, config.heads, pool),
      rope_frequencies_(RopeFrequencies(config)),
      cosines_(config.head_dim / 2),
      sines_(config.head_dim / 2),
      normed_(config.hidden),
      wanted_normed_(config.hidden),
      wanted_hidden_(config.hidden),
      queries_(config.heads * config.head_dim),
      keys_(config.kv_heads * config.head_dim),
      values_(config.kv_heads * config.head_dim),
      attended_(config.heads * config.head_dim),
      gate_(config.ffn),
      up_(config.ffn) {
  if (config.experts) {
    router_logits_ = FloatMatrix(config.experts->experts);
    expert_input_ = FloatMatrix(config.hidden);
    expert_gate_ = FloatMatrix(config.experts->ffn);
    expert_up_ = FloatMatrix(config.experts->ffn);
    expert_output_ = FloatMatrix(config.hidden);
    expert_sum_ = FloatMatrix(config.hidden);
  }
}

absl::StatusOr<std::unique_ptr<Decoder>> Decoder::Load(const DecoderConfig& config,
                                                       StageWeights weights, int64_t block_tokens,
                                                       ThreadPool* pool) {
  FABRICAST_CHECK(weights.final_norm.has_value() == weights.lm_head.has_value());
  std::unique_ptr<Decoder> decoder(new Decoder(config, std::move(weights), block_tokens, pool));
  const StageWeights& stage = decoder->weights_;
  if (stage.embedding) {
    if (absl::Status status = FormatOf(*stage.embedding).status(); !status.ok()) return status;
    FABRICAST_CHECK(stage.embedding->elements() == config.vocabulary * config.hidden)
        << stage.embedding->name;
  }
  decoder->layers_.resize(stage.layers.size());
  for (size_t i = 0; i < stage.layers.size(); ++i) {
    absl::Status status = decoder->LoadLayer(stage.layers[i], decoder->layers_[i]);
    if (!status.ok()) return status;
  }
  if (stage.lm_head) {
    FABRICAST_ASSIGN(decoder->final_norm_, LoadVector(*stage.final_norm, config.hidden));
    FABRICAST_ASSIGN(decoder->lm_head_,
                     Linear::Load(*stage.lm_head, stage.checkpoint.get(), *pool));
    FABRICAST_CHECK(decoder->lm_head_->in == config.hidden &&
                    decoder->lm_head_->out == config.vocabulary);
  }
  return decoder;
}

absl::Status Decoder::LoadLayer(const LayerWeights& weights, Layer& layer) {
  const Checkpoint* checkpoint = weights_.checkpoint.get();
  FABRICAST_ASSIGN(layer.input_norm, LoadVector(weights.input_norm, config_.hidden));
  FABRICAST_ASSIGN(layer.post_attention_norm,
                   LoadVector(weights.post_attention_norm, config_.hidden));
  if (weights.q_norm) FABRICAST_ASSIGN(layer.q_norm, LoadVector(*weights.q_norm, config_.head_dim));
  if (weights.k_norm) FABRICAST_ASSIGN(layer.k_norm, LoadVector(*weights.k_norm, config_.head_dim));
  FABRICAST_ASSIGN(layer.q, Linear::Load(weights.q, checkpoint, *pool_));
  FABRICAST_ASSIGN(layer.k, Linear::Load(weights.k, checkpoint, *pool_));
  FABRICAST_ASSIGN(layer.v, Linear::Load(weights.v, checkpoint, *pool_));
  FABRICAST_ASSIGN(layer.o, Linear::Load(weights.o, checkpoint, *pool_));
  FABRICAST_CHECK(layer.q.in == config_.hidden && layer.q.out == queries_.columns() &&
                  layer.k.in == config_.hidden && layer.k.out == keys_.columns() &&
                  layer.v.in == config_.hidden && layer.v.out == keys_.columns() &&
                  layer.o.in == queries_.columns() && layer.o.out == config_.hidden)
      << weights.input_norm.name;
  FABRICAST_CHECK(weights.feed_forward.has_value() != weights.router.has_value());
  if (weights.feed_forward) {
    layer.feed_forward.resize(1);
    FABRICAST_ASSIGN(layer.feed_forward[0], LoadFeedForward(*weights.feed_forward));
    FABRICAST_CHECK(layer.feed_forward[0].gate.out == config_.ffn) << weights.input_norm.name;
    return absl::OkStatus();
  }
  FABRICAST_CHECK(config_.experts &&
                  static_cast<int64_t>(weights.experts.size()) == config_.experts->experts)
      << weights.experts.size();
  FABRICAST_ASSIGN(layer.router, Linear::Load(*weights.router, checkpoint, *pool_));
  layer.feed_forward.resize(weights.experts.size());
  for (size_t e = 0; e < weights.experts.size(); ++e) {
    FABRICAST_ASSIGN(layer.feed_forward[e], LoadFeedForward(weights.experts[e]));
    FABRICAST_CHECK(layer.feed_forward[e].gate.out == config_.experts->ffn)
        << weights.input_norm.name;
  }
  return absl::OkStatus();
}

absl::StatusOr<Decoder::FeedForward> Decoder::LoadFeedForward(const FeedForwardWeights& weights) {
  const Checkpoint* checkpoint = weights_.checkpoint.get();
  FeedForward feed_forward;
  FABRICAST_ASSIGN(feed_forward.gate, Linear::Load(weights.gate, checkpoint, *pool_));
  FABRICAST_ASSIGN(feed_forward.up, Linear::Load(weights.up, checkpoint, *pool_));
  FABRICAST_ASSIGN(feed_forward.down, Linear::Load(weights.down, checkpoint, *pool_));
  FABRICAST_CHECK(feed_forward.gate.in == config_.hidden && feed_forward.up.in == config_.hidden &&
                  feed_forward.up.out == feed_forward.gate.out &&
                  feed_forward.down.in == feed_forward.gate.out &&
                  feed_forward.down.out == config_.hidden);
  return feed_forward;
}

#undef FABRICAST_ASSIGN

std::string Decoder::LayerName(int64_t layer) const {
  absl::string_view name = weights_.layers[layer].input_norm.name;
  constexpr absl::string_view kSuffix = ".input_layernorm.weight";
  if (absl::EndsWith(name, kSuffix)) name.remove_suffix(kSuffix.size());
  return std::string(name);
}

template <typename Compute>
void Decoder::ForRows(int64_t rows, const Compute& compute) {
  pool_->Run((rows + kRowsOfTask - 1) / kRowsOfTask, [&](int64_t task, int) {
    const int64_t end = std::min(rows, (task + 1) * kRowsOfTask);
    for (int64_t row = task * kRowsOfTask; row < end; ++row) compute(row);
  });
}

void Decoder::Embed(absl::Span<const int32_t> tokens, FloatMatrix& hidden) {
  hidden.Resize(static_cast<int64_t>(tokens.size()));
  ForRows(hidden.rows(), [&](int64_t row) {
    ConvertToFloat(*weights_.embedding, tokens[row] * config_.hidden, config_.hidden,
                   hidden.row(row));
  });
}

void Decoder::SetBatch(absl::Span<const RequestRows> batch) {
  batch_.assign(batch.begin(), batch.end());
  int64_t rows = 0;
  for (const RequestRows& request : batch_) {
    FABRICAST_CHECK(request.first_row == rows)
        << "first_row=" << request.first_row << " rows=" << rows;
    rows += request.rows;
  }
  cosines_.Resize(rows);
  sines_.Resize(rows);
  for (const RequestRows& request : batch_) {
    ForRows(request.rows, [&](int64_t i) {
      RopeAngles(rope_frequencies_, request.first_position + i, cosines_.row(request.first_row + i),
                 sines_.row(request.first_row + i));
    });
  }
}

void Decoder::NormRows(const FloatMatrix& input, absl::Span<const float> gain,
                       FloatMatrix& output) {
  output.Resize(input.rows());
  const float epsilon = static_cast<float>(config_.rms_norm_eps);
  ForRows(input.rows(),
          [&](int64_t row) { RmsNorm(input.row(row), gain, epsilon, output.row(row)); });
}

void Decoder::FinishHeads(int64_t heads, absl::Span<const float> gain, int64_t row, float scale,
                          float* values) const {
  const int64_t head_dim = config_.head_dim;
  for (int64_t h = 0; h < heads; ++h) {
    float* head = values + h * head_dim;
    if (!gain.empty()) RmsNorm(head, gain, static_cast<float>(config_.rms_norm_eps), head);
    Rotate(head_dim / 2, cosines_.row(row), sines_.row(row), head);
    if (scale == 1.0f) continue;
    for (int64_t d = 0; d < head_dim; ++d) head[d] *= scale;
  }
}

int64_t Decoder::StoreKeysAndValues(const Layer& layer, int64_t index, KvCache& cache) {
  const int64_t head_dim = config_.head_dim;
  const int64_t rows = keys_.rows();
  std::atomic<int64_t> first_bad{rows};
  for (const RequestRows& request : batch_) {
    const KvSequence sequence = cache.Sequence(request.request, index);
    ForRows(request.rows, [&](int64_t i) {
      const int64_t row = request.first_row + i;
      const int64_t position = request.first_position + i;
      FinishHeads(config_.kv_heads, layer.k_norm, row, 1.0f, keys_.row(row));
      for (int64_t h = 0; h < config_.kv_heads; ++h) {
        const float* key = keys_.row(row) + h * head_dim;
        float* to = sequence.Key(h, position);
        for (int64_t d = 0; d < head_dim; ++d) to[d * kLanes] = key[d];
        std::memcpy(sequence.Value(h, position), values_.row(row) + h * head_dim,
                    head_dim * sizeof(float));
      }
      if (AllFinite(keys_.columns(), keys_.row(row)) &&
          AllFinite(values_.columns(), values_.row(row))) {
        return;
      }
      int64_t first = first_bad.load(std::memory_order_relaxed);
      while (row < first && !first_bad.compare_exchange_weak(first, row)) {
      }
    });
  }
  return first_bad == rows ? -1 : first_bad.load();
}

void Decoder::ComputeAttention(int64_t index, absl::Span<const RequestRows> wanted,
                               KvCache& cache) {
  const int64_t head_dim = config_.head_dim;
  attended_.Resize(queries_.rows());
  std::vector<AttentionQueries> requests;
  requests.reserve(wanted.size());
  int64_t row = 0;
  for (const RequestRows& request : wanted) {
    requests.push_back({.sequence = cache.Sequence(request.request, index),
                        .first_position = request.first_position,
                        .count = request.rows,
                        .queries = queries_.row(row),
                        .query_stride = queries_.stride(),
                        .output = attended_.row(row),
                        .output_stride = attended_.stride()});
    row += request.rows;
  }
  FABRICAST_CHECK(row == queries_.rows()) << row << " of " << queries_.rows();
  const float scale = 1.0f / std::sqrt(static_cast<float>(head_dim));
  const Layer& layer = layers_[index];
  ForRows(row, [&](int64_t i) {
    FinishHeads(config_.heads, layer.q_norm, wanted_rows_[i], scale, queries_.row(i));
  });
  attention_.Run(requests);
}

int64_t Decoder::ComputeLayer(int64_t index, absl::Span<const RequestRows> wanted, KvCache& cache,
                              FloatMatrix& hidden) {
  const Layer& layer = layers_[index];
  const int64_t rows = hidden.rows();
  NormRows(hidden, layer.input_norm, normed_);

  wanted_rows_.clear();
  for (const RequestRows& request : wanted) {
    for (int64_t i = 0; i < request.rows; ++i) wanted_rows_.push_back(request.first_row + i);
  }
  const int64_t wanted_rows = static_cast<int64_t>(wanted_rows_.size());
  const bool all = wanted_rows == rows;
  if (!all) {
    wanted_normed_.Resize(wanted_rows);
    wanted_hidden_.Resize(wanted_rows);
    for (int64_t i = 0; i < wanted_rows; ++i) {
      const size_t bytes = config_.hidden * sizeof(float);
      std::memcpy(wanted_normed_.row(i), normed_.row(wanted_rows_[i]), bytes);
      std::memcpy(wanted_hidden_.row(i), hidden.row(wanted_rows_[i]), bytes);
    }
    std::swap(hidden, wanted_hidden_);
  }

  queries_.Resize(wanted_rows);
  keys_.Resize(rows);
  values_.Resize(rows);
  matmul_.Run({MakeProduct(layer.q, all ? normed_ : wanted_normed_, queries_),
               MakeProduct(layer.k, normed_, keys_), MakeProduct(layer.v, normed_, values_)});
  const int64_t first_bad = StoreKeysAndValues(layer, index, cache);
  if (wanted_rows == 0) return first_bad;

  ComputeAttention(index, wanted, cache);
  matmul_.Run({MakeProduct(layer.o, attended_, hidden, /*add=*/true)});

  NormRows(hidden, layer.post_attention_norm, normed_);
  if (layer.router) {
    AddExperts(layer, hidden);
  } else {
    AddDense(layer.feed_forward[0], hidden);
  }
  return first_bad;
}

void Decoder::SiluMultiplyRows(FloatMatrix& gate, const FloatMatrix& up) {
  const int64_t parts = (gate.columns() + kSiluColumns - 1) / kSiluColumns;
  pool_->Run(gate.rows() * parts, [&](int64_t task, int) {
    const int64_t first = task % parts * kSiluColumns;
    const int64_t count = std::min(kSiluColumns, gate.columns() - first);
    SiluMultiply(count, up.row(task / parts) + first, gate.row(task / parts) + first);
  });
}

void Decoder::AddDense(const FeedForward& feed_forward, FloatMatrix& hidden) {
  gate_.Resize(normed_.rows());
  up_.Resize(normed_.rows());
  matmul_.Run(
      {MakeProduct(feed_forward.gate, normed_, gate_), MakeProduct(feed_forward.up, normed_, up_)});
  SiluMultiplyRows(gate_, up_);
  matmul_.Run({MakeProduct(feed_forward.down, gate_, hidden, /*add=*/true)});
}

void Decoder::AddExperts(const Layer& layer, FloatMatrix& hidden) {
  const ExpertsConfig& experts = *config_.experts;
  const int64_t rows = normed_.rows();
  router_logits_.Resize(rows);
  matmul_.Run({MakeProduct(*layer.router, normed_, router_logits_)});
  choices_.resize(rows * experts.per_token);
  ForRows(rows, [&](int64_t row) {
    ChooseExperts(experts, absl::MakeSpan(router_logits_.row(row), experts.experts),
                  absl::MakeSpan(choices_).subspan(row * experts.per_token, experts.per_token));
  });
  GatherByExpert(experts, choices_, expert_rows_);

  const int64_t gathered = static_cast<int64_t>(choices_.size());
  for (FloatMatrix* matrix : {&expert_input_, &expert_gate_, &expert_up_, &expert_output_}) {
    matrix->Resize(gathered);
  }
  ForRows(gathered, [&](int64_t row) {
    std::memcpy(expert_input_.row(row), normed_.row(expert_rows_.source[row]),
                config_.hidden * sizeof(float));
  });
  const auto products = [&](Linear FeedForward::*linear, const FloatMatrix& input,
                            FloatMatrix& output) {
    for (int64_t e = 0; e < experts.experts; ++e) {
      const int64_t first = expert_rows_.first_row[e];
      const int64_t count = expert_rows_.first_row[e + 1] - first;
      if (count == 0) continue;
      products_.push_back({.weights = &(layer.feed_forward[e].*linear),
                           .rows = count,
                           .input = input.row(first),
                           .input_stride = input.stride(),
                           .output = output.row(first),
                           .output_stride = output.stride()});
    }
  };
  products_.clear();
  products(&FeedForward::gate, expert_input_, expert_gate_);
  products(&FeedForward::up, expert_input_, expert_up_);
  matmul_.Run(products_);
  SiluMultiplyRows(expert_gate_, expert_up_);
  products_.clear();
  products(&FeedForward::down, expert_gate_, expert_output_);
  matmul_.Run(products_);

  // Expert after expert, as ChooseExperts has sorted them.
  expert_sum_.Resize(rows);
  ForRows(rows, [&](int64_t row) {
    float* sum = expert_sum_.row(row);
    std::fill(sum, sum + config_.hidden, 0.0f);
    for (int64_t i = row * experts.per_token; i < (row + 1) * experts.per_token; ++i) {
      AddWeighted(config_.hidden, choices_[i].weight, expert_output_.row(expert_rows_.gathered[i]),
                  sum);
    }
    AddTo(config_.hidden, sum, hidden.row(row));
  });
}

void Decoder::ComputeLogits(const FloatMatrix& hidden, FloatMatrix& logits) {
  NormRows(hidden, final_norm_, normed_);
  logits.Resize(hidden.rows());
  matmul_.Run({MakeProduct(*lm_head_, normed_, logits)});
}

}  // namespace fabricast
