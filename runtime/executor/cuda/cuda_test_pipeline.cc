#include "runtime/executor/cuda/cuda_test_pipeline.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <filesystem>
#include <iostream>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/types/span.h"
#include "gtest/gtest.h"
#include "runtime/executor/cuda/tensor_parallel_executor.h"
#include "runtime/weights/checkpoint_writer.h"

namespace fabricast {
namespace {

constexpr double kWorstPosition = 3;
constexpr double kWorst = 10;

double MeanTolerance(int64_t layers) {
  return 4 * std::exp2(-10) * std::sqrt(7.0 * static_cast<double>(layers) + 2);
}

}  // namespace

GpuStageOptions TestStageOptions() {
  GpuStageOptions options;
  options.name = "stage";
  options.kv_block_tokens = 16;
  options.kv_blocks = 256;
  options.max_batch_tokens = 256;
  options.max_running = 64;
  return options;
}

CudaPipeline::CudaPipeline(int64_t hidden, std::vector<std::unique_ptr<StageExecutor>> stages)
    : hidden_(hidden), stages_(std::move(stages)) {}

CudaPipeline::CudaPipeline(const DecoderConfig& config,
                           const std::shared_ptr<const Checkpoint>& checkpoint,
                           const std::vector<int64_t>& layers, const GpuStageOptions& options,
                           const std::vector<std::vector<int>>& devices)
    : hidden_(config.hidden) {
  int64_t first = 0;
  for (size_t stage = 0; stage < layers.size(); ++stage) {
    GpuStageOptions own = options;
    if (!devices.empty()) own.devices = devices[stage];
    const StageShare share = {.first_layer = first,
                              .num_layers = layers[stage],
                              .embedding = stage == 0,
                              .lm_head = stage + 1 == layers.size()};
    stages_.push_back(Sure(MakeTensorParallelExecutor(
        config, Sure(FindStageWeights(checkpoint, config, share)), own)));
    first += layers[stage];
  }
}

CudaPipeline::CudaPipeline(const DecoderConfig& config, const StageWeights& weights,
                           const GpuStageOptions& options)
    : hidden_(config.hidden) {
  stages_.push_back(Sure(MakeTensorParallelExecutor(config, weights, options)));
}

absl::StatusOr<std::vector<SampledToken>> CudaPipeline::TryRun(const Step& step) {
  std::vector<SampledToken> sampled;
  std::vector<std::byte> input;
  for (size_t stage = 0; stage < stages_.size(); ++stage) {
    const bool last = stage + 1 == stages_.size();
    std::vector<std::byte> output(last ? 0 : step.tokens.size() * hidden_ * 2, std::byte{0xFF});
    const absl::Status status = stages_[stage]->Run(step, input, absl::MakeSpan(output), sampled);
    if (!status.ok()) return status;
    input = std::move(output);
  }
  return sampled;
}

void CudaPipeline::Reset() {
  for (const auto& stage : stages_) stage->Reset();
}

Comparison::Comparison(std::string name, int64_t layers)
    : name_(std::move(name)), layers_(layers) {}

Comparison::~Comparison() {
  const double mean = std::sqrt(square_sum_ / std::max<int64_t>(1, rows_));
  EXPECT_LE(mean, MeanTolerance(layers_)) << name_;
  std::cout << absl::StrFormat(
      "%s: %d rows; off by %.2e of the logits' deviation in the mean, %.2e at worst (tolerances "
      "%.2e, %.2e); %d of %d greedy choices equal, %d where the gap is above the tolerance\n",
      name_, rows_, mean, worst_, MeanTolerance(layers_), kWorst * MeanTolerance(layers_), equal_,
      rows_, decided_);
}

void Comparison::Expect(const SampledToken& gpu, const SampledToken& cpu,
                        const std::string& where) {
  ASSERT_EQ(gpu.top.size(), cpu.top.size()) << where;
  const std::vector<float> actual = Logprobs(gpu);
  const std::vector<float> expected = Logprobs(cpu);
  const double count = static_cast<double>(expected.size());
  double mean = 0;
  for (const float value : expected) mean += value / count;
  double variance = 0;
  for (const float value : expected) variance += (value - mean) * (value - mean) / count;
  const double deviation = std::sqrt(variance);
  double square = 0;
  double worst = 0;
  size_t worst_token = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    const double error = std::abs(double{actual[i]} - expected[i]) / deviation;
    square += error * error / count;
    if (!(error <= worst)) {
      worst = error;
      worst_token = i;
    }
  }
  ++rows_;
  square_sum_ += square;
  worst_ = std::max(worst_, worst);
  const double tolerance = kWorst * MeanTolerance(layers_);
  EXPECT_LE(worst, tolerance) << name_ << " " << where << ": token " << worst_token << " has "
                              << actual[worst_token] << ", not " << expected[worst_token];
  EXPECT_LE(std::sqrt(square), kWorstPosition * MeanTolerance(layers_)) << name_ << " " << where;
  if (gpu.token == cpu.token) ++equal_;
  // Both of the two most likely are off, independently.
  const double gap = (double{cpu.top[0].logprob} - cpu.top[1].logprob) / deviation;
  if (gap <= std::sqrt(2.0) * tolerance) return;
  ++decided_;
  EXPECT_EQ(gpu.token, cpu.token) << name_ << " " << where << ": gap " << gap;
}

void ExpectSameText(const DecoderConfig& config, const RunStep& cpu, CudaPipeline& gpu,
                    const std::vector<std::vector<int32_t>>& prompts, int64_t chunk, int outputs,
                    Comparison& comparison) {
  struct Request {
    std::vector<int32_t> tokens;
    int64_t done = 0;
    int64_t prompt = 0;
  };
  std::vector<Request> requests;
  for (const std::vector<int32_t>& prompt : prompts) {
    requests.push_back({.tokens = prompt, .prompt = static_cast<int64_t>(prompt.size())});
  }
  for (;;) {
    std::vector<TestEntry> entries;
    for (size_t r = 0; r < requests.size(); ++r) {
      Request& request = requests[r];
      const int64_t known = static_cast<int64_t>(request.tokens.size());
      if (known >= request.prompt + outputs) continue;
      // Later requests begin later, so that chunks and decodes share steps.
      if (r > 0 && requests[r - 1].done == 0) continue;
      const int64_t count = std::min(chunk, known - request.done);
      TestEntry entry = {.request = static_cast<RequestId>(r),
                         .first_token = request.done,
                         .tokens = {request.tokens.begin() + request.done,
                                    request.tokens.begin() + request.done + count},
                         .samples = request.done + count == known,
                         .sampling = Greedy(config)};
      entries.push_back(std::move(entry));
    }
    if (entries.empty()) return;
    const Step step = MakeStep(entries);
    const std::vector<SampledToken> expected = cpu(step);
    const absl::StatusOr<std::vector<SampledToken>> actual = gpu.TryRun(step);
    ASSERT_TRUE(actual.ok()) << actual.status();
    ASSERT_EQ(actual->size(), expected.size());
    size_t sampled = 0;
    for (const TestEntry& entry : entries) {
      Request& request = requests[entry.request];
      request.done += static_cast<int64_t>(entry.tokens.size());
      if (!entry.samples) continue;
      ASSERT_NO_FATAL_FAILURE(
          comparison.Expect((*actual)[sampled], expected[sampled],
                            absl::StrCat("request ", entry.request, " position ", request.done)));
      request.tokens.push_back(expected[sampled++].token);
    }
  }
}

std::vector<std::vector<int32_t>> PromptsOf(const Fixture& fixture) {
  std::vector<std::vector<int32_t>> prompts;
  for (const int tokens : {33, 1, 100, 7}) {
    prompts.push_back(fixture.Ids(absl::StrCat("prompt_", tokens, ".ids")));
  }
  return prompts;
}

ShippedModel::ShippedModel() {
  static constexpr char kFolder[] = "runtime/model/checkpoints/prose_16m";
  config = Sure(LoadDecoderConfig(kFolder));
  checkpoint = Sure(Checkpoint::Open(kFolder));
  const TemporaryFolder copy;
  std::filesystem::copy_file(absl::StrCat(kFolder, "/reference.safetensors"),
                             copy.PathOf("model.safetensors"));
  reference = Sure(Checkpoint::Open(copy.path()));
}

std::vector<std::vector<int32_t>> ShippedModel::Prompts() const {
  const auto ids = [this](const std::string& name) {
    const Tensor* tensor = reference->Find(name);
    FABRICAST_CHECK(tensor != nullptr) << name;
    std::vector<int32_t> ids(tensor->bytes.size() / sizeof(int32_t));
    std::memcpy(ids.data(), tensor->bytes.data(), tensor->bytes.size());
    return ids;
  };
  std::vector<std::vector<int32_t>> prompts;
  for (int k = 0; k < 3; ++k) prompts.push_back(ids(absl::StrCat("greedy_", k, ".prompt_ids")));
  prompts.push_back(ids("held_out.ids"));
  prompts.back().resize(200);
  return prompts;
}

RandomModel::RandomModel(const ModelSizes& sizes, bool awq) {
  constexpr int64_t kVocabulary = 1000;
  constexpr int64_t kLayers = 2;
  const int64_t hidden = sizes.hidden;
  const int64_t q = sizes.heads * sizes.head_dim;
  const int64_t kv = sizes.kv_heads * sizes.head_dim;
  config_.file = "config.json";
  config_.architecture = "LlamaForCausalLM";
  config_.vocabulary = kVocabulary;
  config_.hidden = hidden;
  config_.layers = kLayers;
  config_.heads = sizes.heads;
  config_.kv_heads = sizes.kv_heads;
  config_.head_dim = sizes.head_dim;
  config_.ffn = sizes.ffn;
  config_.max_context = 2048;
  config_.rms_norm_eps = 1e-5;
  config_.rope_theta = 10000;
  config_.has_experts.assign(kLayers, false);
  if (awq) {
    config_.awq.emplace();
  } else {
    config_.qkv_bias = config_.o_bias = config_.mlp_bias = true;
  }
  const DType dense = awq ? DType::kF16 : DType::kBf16;
  RandomNormal random(5);
  const auto linear = [&](int64_t in, int64_t out) {
    return awq ? MakeAwq(store_, random, in, out, 128).weights
               : MakeDense(store_, random, in, out, dense, /*bias=*/true).weights;
  };
  const auto gain = [&](const std::string& name) {
    std::vector<float> values(hidden);
    for (float& value : values) value = 1 + 0.1f * random();
    return store_.AddFloats(name, dense, {hidden}, values);
  };
  std::vector<float> embedding(kVocabulary * hidden);
  for (float& value : embedding) value = random();
  weights_.embedding =
      store_.AddFloats("model.embed_tokens.weight", dense, {kVocabulary, hidden}, embedding);
  for (int64_t i = 0; i < kLayers; ++i) {
    const std::string layer = absl::StrCat("model.layers.", i, ".");
    LayerWeights& w = weights_.layers.emplace_back();
    w.input_norm = gain(layer + "input_layernorm.weight");
    w.post_attention_norm = gain(layer + "post_attention_layernorm.weight");
    w.q = linear(hidden, q);
    w.k = linear(hidden, kv);
    w.v = linear(hidden, kv);
    w.o = linear(q, hidden);
    w.feed_forward.emplace();
    w.feed_forward->gate = linear(hidden, sizes.ffn);
    w.feed_forward->up = linear(hidden, sizes.ffn);
    w.feed_forward->down = linear(sizes.ffn, hidden);
  }
  weights_.final_norm = gain("model.norm.weight");
  weights_.lm_head = MakeDense(store_, random, hidden, kVocabulary, dense).weights;
}

OneCpuStage::OneCpuStage(const RandomModel& model)
    : stage_(Sure(MakeCpuExecutor(model.config(), model.weights(), kTestCpuOptions))) {}

std::vector<SampledToken> OneCpuStage::Run(const Step& step) {
  std::vector<SampledToken> sampled;
  const absl::Status status = stage_->Run(step, {}, {}, sampled);
  FABRICAST_CHECK(status.ok()) << status.ToString();
  return sampled;
}

Step OneStep(const std::vector<std::vector<int32_t>>& prompts, const SamplingParams& sampling) {
  std::vector<TestEntry> entries;
  for (size_t i = 0; i < prompts.size(); ++i) {
    entries.push_back({.request = static_cast<RequestId>(i),
                       .first_token = 0,
                       .tokens = prompts[i],
                       .sampling = sampling});
    entries.back().sampling.seed += i;
  }
  return MakeStep(entries);
}

// Prompts, then `steps` decodes of all of them, each of its own last token.
std::vector<std::vector<SampledToken>> Generate(CudaPipeline& gpu,
                                                const std::vector<std::vector<int32_t>>& prompts,
                                                const SamplingParams& sampling, int steps) {
  std::vector<std::vector<SampledToken>> all = {gpu.Run(OneStep(prompts, sampling))};
  std::vector<int64_t> length;
  for (const std::vector<int32_t>& prompt : prompts) length.push_back(prompt.size());
  for (int s = 0; s < steps; ++s) {
    std::vector<TestEntry> entries;
    for (size_t i = 0; i < prompts.size(); ++i) {
      entries.push_back({.request = static_cast<RequestId>(i),
                         .first_token = length[i]++,
                         .tokens = {all.back()[i].token},
                         .sampling = sampling});
      entries.back().sampling.seed += i;
    }
    all.push_back(gpu.Run(MakeStep(entries)));
  }
  return all;
}

void ExpectSame(const std::vector<std::vector<SampledToken>>& a,
                const std::vector<std::vector<SampledToken>>& b, bool logprobs,
                const std::string& what) {
  ASSERT_EQ(a.size(), b.size());
  for (size_t s = 0; s < a.size(); ++s) {
    ASSERT_EQ(a[s].size(), b[s].size());
    for (size_t i = 0; i < a[s].size(); ++i) {
      EXPECT_EQ(a[s][i].token, b[s][i].token) << what << " step " << s << " request " << i;
      if (!logprobs) continue;
      EXPECT_EQ(Logprobs(a[s][i]), Logprobs(b[s][i])) << what << " step " << s << " request " << i;
    }
  }
}

}  // namespace fabricast
