#include "benchmarks/engine/random_stage.h"

#include <algorithm>
#include <utility>

#include "benchmarks/engine/measure.h"
#include "runtime/check.h"
#include "runtime/executor/cpu/cpu_executor.h"

namespace fabricast {
namespace {

constexpr int64_t kBlockTokens = 16;
constexpr int64_t kGroup = 128;

DecoderConfig ConfigOf(const LayerShape& shape) {
  DecoderConfig config;
  config.architecture = "LlamaForCausalLM";
  config.vocabulary = 32;
  config.hidden = shape.hidden;
  config.layers = shape.layers;
  config.heads = shape.heads;
  config.kv_heads = shape.kv_heads;
  config.head_dim = shape.head_dim;
  config.ffn = shape.ffn;
  config.max_context = 131072;
  config.rms_norm_eps = 1e-5;
  config.rope_theta = 500000;
  config.has_experts.assign(shape.layers, false);
  return config;
}

}  // namespace

Tensor RandomStage::Store(DType dtype, std::vector<int64_t> shape, uint32_t mask, uint32_t base) {
  Tensor tensor{.name = "random", .dtype = dtype, .shape = std::move(shape), .bytes = {}};
  size_t bytes = static_cast<size_t>(DTypeBytes(dtype));
  for (const int64_t dimension : tensor.shape) bytes *= static_cast<size_t>(dimension);
  std::vector<uint32_t>& words = words_.emplace_back((bytes + 3) / 4);
  for (uint32_t& word : words) {
    // xorshift64.
    state_ ^= state_ << 13;
    state_ ^= state_ >> 7;
    state_ ^= state_ << 17;
    word = (static_cast<uint32_t>(state_ >> 20) & mask) | base;
  }
  tensor.bytes = {reinterpret_cast<const std::byte*>(words.data()), bytes};
  return tensor;
}

LinearWeights RandomStage::Linear(int64_t in, int64_t out) {
  LinearWeights linear;
  linear.in = in;
  linear.out = out;
  if (!shape_.int4) {
    // BF16 pairs of either sign in [2^-6, 2^-5): exponent 121.
    linear.dense = Store(DType::kBf16, {out, in}, 0x807f807f, 0x3c803c80);
    return linear;
  }
  AwqWeights& awq = linear.awq.emplace();
  awq.group_size = kGroup;
  awq.qweight = Store(DType::kI32, {in, out / 8}, 0xffffffff, 0);
  awq.qzeros = Store(DType::kI32, {in / kGroup, out / 8}, 0x77777777, 0);
  // F16 pairs in [2^-9, 2^-8): exponent 6.
  awq.scales = Store(DType::kF16, {in / kGroup, out}, 0x03ff03ff, 0x18001800);
  return linear;
}

RandomStage::RandomStage(const LayerShape& shape, int threads, int64_t kv_tokens)
    : shape_(shape), threads_(threads) {
  StageWeights weights;
  for (int layer = 0; layer < shape.layers; ++layer) {
    LayerWeights& of_layer = weights.layers.emplace_back();
    of_layer.input_norm = Store(DType::kF32, {shape.hidden}, 0, 0x3f800000);  // 1.0
    of_layer.post_attention_norm = Store(DType::kF32, {shape.hidden}, 0, 0x3f800000);
    of_layer.q = Linear(shape.hidden, shape.heads * shape.head_dim);
    of_layer.k = Linear(shape.hidden, shape.kv_heads * shape.head_dim);
    of_layer.v = Linear(shape.hidden, shape.kv_heads * shape.head_dim);
    of_layer.o = Linear(shape.heads * shape.head_dim, shape.hidden);
    FeedForwardWeights& feed_forward = of_layer.feed_forward.emplace();
    feed_forward.gate = Linear(shape.hidden, shape.ffn);
    feed_forward.up = Linear(shape.hidden, shape.ffn);
    feed_forward.down = Linear(shape.ffn, shape.hidden);
  }
  absl::StatusOr<std::unique_ptr<StageExecutor>> executor =
      MakeCpuExecutor(ConfigOf(shape), std::move(weights),
                      {.threads = threads,
                       .kv_block_tokens = kBlockTokens,
                       .kv_blocks = kv_tokens / kBlockTokens + 1});
  FABRICAST_CHECK(executor.ok()) << executor.status().ToString();
  executor_ = *std::move(executor);
}

double RandomStage::Run(RequestId first, RequestId last, int64_t first_token, int64_t tokens,
                        std::vector<RequestId> released) {
  Step step;
  for (RequestId request = first; request < last; ++request) {
    step.micro_batch.entries.push_back({.request = request,
                                        .first_token = first_token,
                                        .tokens = tokens,
                                        .decode = tokens == 1,
                                        .samples = false});
  }
  const size_t all = static_cast<size_t>((last - first) * tokens);
  step.tokens.resize(all);
  step.sampling.resize(step.micro_batch.entries.size());
  step.released = std::move(released);
  const size_t values = all * static_cast<size_t>(shape_.hidden);
  while (input_.size() < values) {
    input_.push_back(static_cast<float>(input_.size() % 17) * 0.125f - 1);
  }
  output_.resize(std::max(output_.size(), values));
  std::vector<SampledToken> sampled;
  const double start = CpuSeconds();
  const absl::Status status = executor_->Run(
      step, {reinterpret_cast<const std::byte*>(input_.data()), values * sizeof(float)},
      {reinterpret_cast<std::byte*>(output_.data()), values * sizeof(float)}, sampled);
  const double seconds = (CpuSeconds() - start) / threads_;
  FABRICAST_CHECK(status.ok()) << status.ToString();
  return seconds;
}

double RandomStage::Time(int64_t requests, int64_t context, int64_t tokens, int repeats) {
  constexpr int64_t kChunk = 512;
  std::vector<double> seconds;
  const auto fill = [&](std::vector<RequestId> released) {
    const RequestId first = next_;
    next_ += requests;
    for (RequestId request = first; request < next_; ++request) {
      for (int64_t at = 0; at < context; at += kChunk) {
        Run(request, request + 1, at, std::min(kChunk, context - at), std::move(released));
        released.clear();
      }
    }
    return first;
  };
  const auto all_since = [&](RequestId first) {
    std::vector<RequestId> released;
    for (RequestId request = first; request < next_; ++request) released.push_back(request);
    return released;
  };
  RequestId first = fill({});
  int64_t at = context;
  std::vector<RequestId> released;
  for (int repeat = 0; repeat < repeats; ++repeat) {
    // A few decodes more change the context by little; a chunk would not.
    if (repeat > 0 && (tokens > 1 || at > context + context / 16)) {
      released = all_since(first);
      first = fill(context > 0 ? std::move(released) : std::vector<RequestId>());
      if (context > 0) released.clear();
      at = context;
    }
    seconds.push_back(Run(first, first + requests, at, tokens, std::move(released)));
    released.clear();
    at += tokens;
  }
  // Leaves an empty cache: the next step of another request frees this one's blocks.
  Run(next_, next_ + 1, 0, 1, all_since(first));
  Run(next_ + 1, next_ + 2, 0, 1, {next_});
  next_ += 2;
  return Undisturbed(seconds);
}

}  // namespace fabricast
