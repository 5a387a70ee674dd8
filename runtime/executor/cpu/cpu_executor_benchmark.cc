// What one layer costs, beside what the machine could do.
//
// Model: Llama, hidden 2,048, FFN 5,632, 32 heads and 8 KV heads of 64, one layer, no embedding and
// no lm_head: q and o 2 x 2,048^2, k and v 2 x 2,048 x 512, three of 2,048 x 5,632: 45.1e6 weights,
// 90 MB as BF16, 24 MB as AWQ (4 + 16 / 128 + 8 / 128 bits each).
//
// Floor: a step reads all weights once and multiplies and adds each once a token:
//   time >= max(bytes / rate of memory, operations / rate of operations)
// Attention adds the keys and values of the context, 4 KB a token (512 tokens of each request in a
// decode), read once, and 4 operations a dimension, head and pair of tokens.
// The rates are measured in the same run with the same threads: Stream reads floats and sums them;
// MultiplyAdd is a loop of independent fused multiply-adds in registers. "of_floor" is the floor's
// share of the time: 1 is perfect. All that is elementwise is beyond the floor.
//
// Every model's result is verified first: a decode of a batch is the same bits as alone.
//
// Take Stream's number with care where the weights fit the last cache: AWQ's 24 MB may.

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <memory>
#include <utility>
#include <vector>

#include "benchmark/benchmark.h"
#include "runtime/check.h"
#include "runtime/executor/cpu/cpu_executor.h"
#include "runtime/executor/cpu/linear.h"
#include "runtime/executor/cpu/matmul.h"
#include "runtime/executor/cpu/roofline_loops.h"
#include "runtime/executor/cpu/test_weights.h"
#include "runtime/executor/cpu/thread_pool.h"
#include "runtime/executor/sampling.h"

namespace fabricast {
namespace {

constexpr int64_t kHidden = 2048;
constexpr int64_t kFfn = 5632;
constexpr int64_t kHeads = 32;
constexpr int64_t kKvHeads = 8;
constexpr int64_t kHeadDim = 64;
constexpr double kAwqBytes = (4 + 24.0 / 128) / 8;  // of a weight: scale and zero of 128
constexpr int64_t kContext = 512;                   // of each request that decodes

DecoderConfig Config() {
  DecoderConfig config;
  config.architecture = "LlamaForCausalLM";
  config.vocabulary = 32;
  config.hidden = kHidden;
  config.layers = 1;
  config.heads = kHeads;
  config.kv_heads = kKvHeads;
  config.head_dim = kHeadDim;
  config.ffn = kFfn;
  config.rms_norm_eps = 1e-5;
  config.rope_theta = 500000;
  config.has_experts = {false};
  return config;
}

struct Model {
  TensorStore store;
  StageWeights weights;
  double values = 0;  // weights
  double bytes = 0;   // as they are read
};

const Model& GetModel(bool awq) {
  static Model* models[2] = {};
  Model*& model = models[awq ? 1 : 0];
  if (model != nullptr) return *model;
  model = new Model;
  RandomNormal random(1);
  const auto linear = [&](int64_t in, int64_t out) {
    model->values += static_cast<double>(in * out);
    model->bytes += static_cast<double>(in * out) * (awq ? kAwqBytes : 2);
    return (awq ? MakeAwq(model->store, random, in, out, 128)
                : MakeDense(model->store, random, in, out, DType::kBf16))
        .weights;
  };
  const Tensor ones = model->store.AddFloats("model.layers.0.input_layernorm.weight", DType::kF32,
                                             {kHidden}, std::vector<float>(kHidden, 1.0f));
  LayerWeights& layer = model->weights.layers.emplace_back();
  layer.input_norm = ones;
  layer.post_attention_norm = ones;
  layer.q = linear(kHidden, kHeads * kHeadDim);
  layer.k = linear(kHidden, kKvHeads * kHeadDim);
  layer.v = linear(kHidden, kKvHeads * kHeadDim);
  layer.o = linear(kHeads * kHeadDim, kHidden);
  layer.feed_forward.emplace();
  layer.feed_forward->gate = linear(kHidden, kFfn);
  layer.feed_forward->up = linear(kHidden, kFfn);
  layer.feed_forward->down = linear(kFfn, kHidden);
  return *model;
}

// A context of 512 grows by 6 % meanwhile.
constexpr int64_t kDecodes = 32;

// Gigabytes and 1e9 operations a second.
struct Rates {
  double bytes;
  double operations;
};

const Rates& MachineRates(int threads) {
  static Rates rates[65] = {};
  Rates& of_threads = rates[threads];
  if (of_threads.bytes == 0) {
    ThreadPool pool(threads);
    of_threads = {.bytes = StreamRate(pool), .operations = MultiplyAddRate(pool)};
  }
  return of_threads;
}

class Stage {
 public:
  Stage(bool awq, int threads) : input_(std::max<int64_t>(64, kContext) * kHidden) {
    absl::StatusOr<std::unique_ptr<StageExecutor>> executor = MakeCpuExecutor(
        Config(), GetModel(awq).weights,
        {.threads = threads, .kv_block_tokens = 16, .kv_blocks = 70 * (kContext + 512) / 16});
    FABRICAST_CHECK(executor.ok()) << executor.status().ToString();
    executor_ = *std::move(executor);
    RandomNormal random(5);
    for (float& value : input_) value = random();
    output_.resize(input_.size());
  }

  // `tokens` more tokens of each of requests [first, last).
  void Run(RequestId first, RequestId last, int64_t first_token, int64_t tokens,
           std::vector<RequestId> released = {}) {
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
    const size_t bytes = all * kHidden * sizeof(float);
    std::vector<SampledToken> sampled;
    const absl::Status status =
        executor_->Run(step, {reinterpret_cast<const std::byte*>(input_.data()), bytes},
                       {reinterpret_cast<std::byte*>(output_.data()), bytes}, sampled);
    FABRICAST_CHECK(status.ok()) << status.ToString();
  }

  const float* output(int64_t row) const { return output_.data() + row * kHidden; }

 private:
  std::unique_ptr<StageExecutor> executor_;
  std::vector<float> input_;
  std::vector<float> output_;
};

// Row 0 has the same input and context in a batch and alone.
void Verify(bool awq) {
  Stage stage(awq, 2);
  for (const RequestId request : {0, 1, 2, 3, 4, 5, 6, 7, 8})
    stage.Run(request, request + 1, 0, 20);
  stage.Run(0, 8, 20, 1);
  const std::vector<float> together(stage.output(0), stage.output(1));
  stage.Run(8, 9, 20, 1);
  FABRICAST_CHECK(std::memcmp(together.data(), stage.output(0), kHidden * sizeof(float)) == 0);
}

// Runs `iteration` as often as `state` wants. Machines are shared: what is reported is the median
// and, against the best that the machine did, the best.
template <typename Iteration>
void Measure(benchmark::State& state, int threads, double bytes, double operations,
             const Iteration& iteration) {
  std::vector<double> seconds;
  for (auto _ : state) {
    const auto start = std::chrono::steady_clock::now();
    iteration();
    seconds.push_back(
        std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
    state.SetIterationTime(seconds.back());
  }
  std::sort(seconds.begin(), seconds.end());
  const double best = seconds.front();
  const Rates& rates = MachineRates(threads);
  state.counters["median_ms"] = seconds[seconds.size() / 2] * 1e3;
  state.counters["best_ms"] = best * 1e3;
  state.counters["GB/s"] = bytes / best / 1e9;
  state.counters["GFLOP/s"] = operations / best / 1e9;
  state.counters["of_floor"] =
      std::max(bytes / rates.bytes, operations / rates.operations) / 1e9 / best;
  state.counters["stream_GB/s"] = rates.bytes;
  state.counters["fma_GFLOP/s"] = rates.operations;
}

// Bytes that a layer reads and operations that it does for `tokens` tokens, which attend to `pairs`
// tokens in all and read those of `context` once.
struct LayerWork {
  double bytes;
  double operations;
};
LayerWork WorkOf(bool awq, double tokens, double pairs, double context) {
  const Model& model = GetModel(awq);
  // Score and value: a multiplication and an addition each.
  return {.bytes = model.bytes + 2 * kKvHeads * kHeadDim * 4 * context,
          .operations = 2 * model.values * tokens + 4 * kHeads * kHeadDim * pairs};
}

// One token of each of `batch` requests.
void BM_Decode(benchmark::State& state) {
  const bool awq = state.range(0) != 0;
  const int64_t batch = state.range(1);
  const int threads = static_cast<int>(state.range(2));
  Stage stage(awq, threads);
  for (int64_t request = 0; request < batch; ++request) {
    stage.Run(request, request + 1, 0, kContext);
  }
  int64_t position = kContext;
  const double pairs = static_cast<double>(batch * kContext);
  const LayerWork work = WorkOf(awq, static_cast<double>(batch), pairs, pairs);
  Measure(state, threads, work.bytes, work.operations, [&] {
    stage.Run(0, batch, position, 1);
    ++position;
  });
}

// A prompt's first chunk.
void BM_Prefill(benchmark::State& state) {
  const bool awq = state.range(0) != 0;
  const int64_t tokens = state.range(1);
  const int threads = static_cast<int>(state.range(2));
  Stage stage(awq, threads);
  RequestId request = 0;
  const double length = static_cast<double>(tokens);
  const LayerWork work = WorkOf(awq, length, length * (length + 1) / 2, length);
  Measure(state, threads, work.bytes, work.operations, [&] {
    stage.Run(request, request + 1, 0, tokens, {request - 1});
    ++request;
  });
}

// The largest matrix product of the layer alone.
void BM_MatMul(benchmark::State& state) {
  const bool awq = state.range(0) != 0;
  const int64_t rows = state.range(1);
  const int threads = static_cast<int>(state.range(2));
  ThreadPool pool(threads);
  MatMul matmul(&pool);
  const LinearWeights& weights = GetModel(awq).weights.layers[0].feed_forward->gate;
  const absl::StatusOr<Linear> linear = Linear::Load(weights, nullptr, pool);
  FABRICAST_CHECK(linear.ok());
  FloatMatrix input(kHidden);
  FloatMatrix output(kFfn);
  input.Resize(rows);
  output.Resize(rows);
  const double values = kHidden * kFfn;
  Measure(state, threads, values * (awq ? kAwqBytes : 2), 2 * values * static_cast<double>(rows),
          [&] {
            matmul.Run({{.weights = &*linear,
                         .rows = rows,
                         .input = input.row(0),
                         .input_stride = input.stride(),
                         .output = output.row(0),
                         .output_stride = output.stride()}});
          });
}

// A token of 128,256: as many as Llama 3 has.
void BM_Sample(benchmark::State& state) {
  constexpr size_t kVocabulary = 128256;
  SamplingParams params = {.temperature = 1};
  switch (state.range(0)) {
    case 0:
      params.temperature = 0;
      state.SetLabel("greedy");
      break;
    case 1:
      state.SetLabel("temperature 1");
      break;
    case 2:
      params.top_k = 50;
      state.SetLabel("top-k 50");
      break;
    case 3:
      params.top_p = 0.9;
      state.SetLabel("top-p 0.9");
      break;
    case 4:
      params.top_p = 0.9;
      params.temperature = 100;
      state.SetLabel("top-p 0.9, flat");
      break;
    default:
      params.logprobs = 20;
      state.SetLabel("20 logprobs");
      break;
  }
  RandomNormal random(3);
  std::vector<float> logits(kVocabulary);
  for (float& logit : logits) logit = 3 * random();
  std::vector<float> scratch(kVocabulary);
  int64_t position = 0;
  for (auto _ : state) {
    std::copy(logits.begin(), logits.end(), scratch.begin());
    const absl::StatusOr<SampledToken> token =
        Sample(params, position++, {}, absl::MakeSpan(scratch));
    FABRICAST_CHECK(token.ok());
    benchmark::DoNotOptimize(token->token);
  }
}

BENCHMARK(BM_Decode)
    ->ArgNames({"awq", "batch", "threads"})
    ->ArgsProduct({{0, 1}, {1, 8, 64}, {1, 2}})
    ->UseManualTime()
    ->Iterations(kDecodes)
    ->Unit(benchmark::kMillisecond);
BENCHMARK(BM_Prefill)
    ->ArgNames({"awq", "tokens", "threads"})
    ->ArgsProduct({{0, 1}, {128, 512}, {1, 2}})
    ->UseManualTime()
    ->Unit(benchmark::kMillisecond);
BENCHMARK(BM_MatMul)
    ->ArgNames({"awq", "rows", "threads"})
    ->ArgsProduct({{0, 1}, {1, 2, 4, 5, 8, 16, 64, 512}, {1, 2}})
    ->UseManualTime()
    ->Unit(benchmark::kMicrosecond);
BENCHMARK(BM_Sample)->DenseRange(0, 5)->Unit(benchmark::kMicrosecond);

}  // namespace
}  // namespace fabricast

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  fabricast::Verify(false);
  fabricast::Verify(true);
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}
