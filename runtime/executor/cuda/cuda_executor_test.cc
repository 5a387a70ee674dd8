// The GPU's executor against the CPU's, which computes the same in float32.
//
// Tolerance of logits. Weights are the same numbers on both sides (AWQ's INT4, BF16 and FP16 are
// exact in float32). The GPU rounds what enters and leaves matrix products to BF16 or FP16: of a
// layer the normed input, q k v, the weights of attention, its output, the normed input again, gate
// and up, and SwiGLU's output, which are 7 roundings; the last norm and, between stages, the hidden
// state are one each. Rounding to BF16 is off by at most 2^-8 of a number, and in the mean by about
// 2^-9.5 (FP16: an eighth of that). A sum of products with independent errors is off by the same
// share of its size, and a residual stream of L layers by at most sqrt(7 L + 2) times that; as it
// grows, an earlier layer's part of it shrinks, for which 2^-10 stands here. A score s of
// attention turns a relative error e into e |s| of a weight; the largest scores, which count, are
// about 4 here. So logits are off by
//   4 x 2^-10 x sqrt(7 L + 2)
// of their standard deviation, in the mean over tokens and positions. Positions differ: one that
// hangs on two keys of nearly the same score is off by more, 3 times that; and the worst of a
// thousand tokens by 3.3 deviations of its position's error. So a position is off by 3 times the
// mean at most, and a single logit by 10 times.

#include "runtime/executor/cuda/cuda_executor.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <limits>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/types/span.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "runtime/check.h"
#include "runtime/executor/cpu/cpu_executor.h"
#include "runtime/executor/cpu/test_pipeline.h"
#include "runtime/executor/cpu/test_weights.h"
#include "runtime/model/decoder_config.h"
#include "runtime/weights/checkpoint.h"
#include "runtime/weights/checkpoint_writer.h"

namespace fabricast {
namespace {

using ::testing::HasSubstr;

constexpr double kWorstPosition = 3;
constexpr double kWorst = 10;

double MeanTolerance(int64_t layers) {
  return 4 * std::exp2(-10) * std::sqrt(7.0 * static_cast<double>(layers) + 2);
}

template <typename T>
T Sure(absl::StatusOr<T> value) {
  FABRICAST_CHECK(value.ok()) << value.status().ToString();
  return *std::move(value);
}

GpuStageOptions Options() {
  GpuStageOptions options;
  options.name = "stage";
  options.kv_block_tokens = 16;
  options.kv_blocks = 256;
  options.max_batch_tokens = 256;
  options.max_running = 64;
  return options;
}

// Stages on one GPU, in a row.
class CudaPipeline {
 public:
  CudaPipeline(int64_t hidden, std::vector<std::unique_ptr<StageExecutor>> stages)
      : hidden_(hidden), stages_(std::move(stages)) {}

  CudaPipeline(const DecoderConfig& config, const std::shared_ptr<const Checkpoint>& checkpoint,
               const std::vector<int64_t>& layers, const GpuStageOptions& options = Options())
      : hidden_(config.hidden) {
    int64_t first = 0;
    for (size_t stage = 0; stage < layers.size(); ++stage) {
      stages_.push_back(
          Sure(MakeCudaExecutor(config,
                                Sure(FindStageWeights(checkpoint, config,
                                                      {.first_layer = first,
                                                       .num_layers = layers[stage],
                                                       .embedding = stage == 0,
                                                       .lm_head = stage + 1 == layers.size()})),
                                options)));
      first += layers[stage];
    }
  }

  absl::StatusOr<std::vector<SampledToken>> TryRun(const Step& step) {
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
  std::vector<SampledToken> Run(const Step& step) { return Sure(TryRun(step)); }
  void Reset() {
    for (const auto& stage : stages_) stage->Reset();
  }

 private:
  int64_t hidden_;
  std::vector<std::unique_ptr<StageExecutor>> stages_;
};

// Compares log-probabilities of the whole vocabulary, and remembers how far they were off.
class Comparison {
 public:
  Comparison(std::string name, int64_t layers) : name_(std::move(name)), layers_(layers) {}
  ~Comparison() {
    const double mean = std::sqrt(square_sum_ / std::max<int64_t>(1, rows_));
    EXPECT_LE(mean, MeanTolerance(layers_)) << name_;
    std::cout << absl::StrFormat(
        "%s: %d rows; off by %.2e of the logits' deviation in the mean, %.2e at worst (tolerances "
        "%.2e, %.2e); %d of %d greedy choices equal, %d where the gap is above the tolerance\n",
        name_, rows_, mean, worst_, MeanTolerance(layers_), kWorst * MeanTolerance(layers_), equal_,
        rows_, decided_);
  }

  void Expect(const SampledToken& gpu, const SampledToken& cpu, const std::string& where) {
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

 private:
  const std::string name_;
  const int64_t layers_;
  int64_t rows_ = 0;
  int64_t equal_ = 0;
  int64_t decided_ = 0;
  double square_sum_ = 0;
  double worst_ = 0;
};

// A prompt in chunks, then greedy decoding, of several requests at a time: the CPU's tokens go into
// both.
template <typename Cpu>
void ExpectSameText(const DecoderConfig& config, Cpu& cpu, CudaPipeline& gpu,
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
    const std::vector<SampledToken> expected = cpu.Run(step);
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

constexpr CpuExecutorOptions kCpu = {.threads = 4, .kv_block_tokens = 16, .kv_blocks = 256};

class CudaExecutorTest : public testing::TestWithParam<std::string> {};

TEST_P(CudaExecutorTest, TextIsTheCpusInChunksAndMixedBatchesAndStages) {
  const Fixture fixture = LoadFixture(GetParam());
  const int64_t layers = fixture.config.layers;
  Comparison comparison(GetParam(), layers);
  for (const int64_t chunk : {128, 33, 7, 1}) {
    TestPipeline cpu(fixture.config, fixture.checkpoint, {layers}, kCpu);
    std::vector<int64_t> split = {layers};
    if (chunk == 33) split = {1, layers - 1};
    CudaPipeline gpu(fixture.config, fixture.checkpoint, split);
    ASSERT_NO_FATAL_FAILURE(ExpectSameText(fixture.config, cpu, gpu, PromptsOf(fixture), chunk,
                                           /*outputs=*/12, comparison));
  }
}

INSTANTIATE_TEST_SUITE_P(Models, CudaExecutorTest,
                         testing::Values("llama", "llama_tied", "qwen3", "llama_awq", "qwen3_awq"),
                         [](const auto& info) { return info.param; });

TEST(CudaExecutorTest, MixturesOfExpertsAreRefused) {
  for (const char* name : {"qwen3_moe", "qwen3_moe_awq"}) {
    const Fixture fixture = LoadFixture(name);
    const absl::Status status =
        MakeCudaExecutor(fixture.config,
                         Sure(FindStageWeights(fixture.checkpoint, fixture.config,
                                               {.first_layer = 0,
                                                .num_layers = fixture.config.layers,
                                                .embedding = true,
                                                .lm_head = true})),
                         Options())
            .status();
    EXPECT_EQ(status.code(), absl::StatusCode::kUnimplemented);
    EXPECT_THAT(std::string(status.message()),
                HasSubstr("num_experts: 6: mixtures of experts run on the processor only so far"));
  }
}

// The model that is shipped: trained, so that its greedy choices are wide apart.
class ShippedModelTest : public testing::Test {
 protected:
  static constexpr char kFolder[] = "runtime/model/checkpoints/prose_16m";

  ShippedModelTest()
      : config_(Sure(LoadDecoderConfig(kFolder))), checkpoint_(Sure(Checkpoint::Open(kFolder))) {
    const TemporaryFolder copy;
    std::filesystem::copy_file(absl::StrCat(kFolder, "/reference.safetensors"),
                               copy.PathOf("model.safetensors"));
    reference_ = Sure(Checkpoint::Open(copy.path()));
  }

  std::vector<int32_t> Ids(const std::string& name) const {
    const Tensor* tensor = reference_->Find(name);
    FABRICAST_CHECK(tensor != nullptr) << name;
    std::vector<int32_t> ids(tensor->bytes.size() / sizeof(int32_t));
    std::memcpy(ids.data(), tensor->bytes.data(), tensor->bytes.size());
    return ids;
  }

  std::vector<std::vector<int32_t>> Prompts() const {
    std::vector<std::vector<int32_t>> prompts;
    for (int k = 0; k < 3; ++k) prompts.push_back(Ids(absl::StrCat("greedy_", k, ".prompt_ids")));
    prompts.push_back(Ids("held_out.ids"));
    prompts.back().resize(200);
    return prompts;
  }

  const DecoderConfig config_;
  const std::shared_ptr<const Checkpoint> checkpoint_;
  std::shared_ptr<const Checkpoint> reference_;
};

TEST_F(ShippedModelTest, GreedyTextIsTheCpus) {
  Comparison comparison("prose_16m", config_.layers);
  for (const int64_t chunk : {256, 48}) {
    TestPipeline cpu(config_, checkpoint_, {config_.layers}, kCpu);
    CudaPipeline gpu(config_, checkpoint_,
                     chunk == 48 ? std::vector<int64_t>{4, 3, 2} : std::vector<int64_t>{9});
    ASSERT_NO_FATAL_FAILURE(
        ExpectSameText(config_, cpu, gpu, Prompts(), chunk, /*outputs=*/48, comparison));
  }
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

TEST_F(ShippedModelTest, TheSameStepsGiveTheSameBitsWithAndWithoutGraphs) {
  SamplingParams sampling = Greedy(config_);
  GpuStageOptions options = Options();
  CudaPipeline with(config_, checkpoint_, {9}, options);
  options.graphs = false;
  CudaPipeline without(config_, checkpoint_, {9}, options);
  // Numbers of requests for which there is a graph, so that nothing is padded.
  for (const size_t requests : {1, 2, 4}) {
    std::vector<std::vector<int32_t>> prompts = Prompts();
    prompts.resize(requests);
    prompts.back().resize(20);
    const auto first = Generate(with, prompts, sampling, 10);
    with.Reset();
    ExpectSame(Generate(with, prompts, sampling, 10), first, true, "again");
    with.Reset();
    ExpectSame(Generate(without, prompts, sampling, 10), first, true, "without graphs");
    without.Reset();
  }
}

TEST_F(ShippedModelTest, TokensAreSampledAsOnTheHost) {
  CudaPipeline gpu(config_, checkpoint_, {9});
  const std::vector<SamplingParams> kinds = {
      {.temperature = 0, .repetition_penalty = 1.3},
      {.temperature = 0.7, .seed = 11},
      {.temperature = 1, .top_k = 50, .seed = 7},
      {.temperature = 1.2, .top_p = 0.9, .seed = 3},
      {.temperature = 1, .top_p = 0.95, .top_k = 100, .repetition_penalty = 1.1, .seed = 5},
      {.temperature = 0},
  };
  int64_t tokens = 0;
  int64_t different = 0;
  for (const SamplingParams& kind : kinds) {
    std::vector<std::vector<int32_t>> prompts;
    for (int i = 0; i < 16; ++i) prompts.push_back(Prompts()[i % 3]);
    // The host samples what the GPU computes of the same steps, until the two first differ.
    const auto on_gpu = Generate(gpu, prompts, kind, 20);
    gpu.Reset();
    SamplingParams host_kind = kind;
    host_kind.logprobs = 0;
    const auto on_host = Generate(gpu, prompts, host_kind, 20);
    gpu.Reset();
    for (size_t i = 0; i < prompts.size(); ++i) {
      for (size_t s = 0; s < on_gpu.size(); ++s) {
        ++tokens;
        if (on_gpu[s][i].token == on_host[s][i].token) continue;
        ++different;
        break;
      }
    }
  }
  std::cout << different << " of " << tokens << " tokens are sampled otherwise than on the host\n";
  // A draw that falls on a boundary of probabilities, which both sum in float, is decided by
  // rounding: of 4,096 boundaries each is uncertain by 2^-24 or so, 2^-12 a draw.
  EXPECT_LE(different, 2);
}

TEST_F(ShippedModelTest, AReleasedRequestsBlocksServeOthers) {
  GpuStageOptions options = Options();
  options.kv_blocks = 20;  // the four prompts take 17
  CudaPipeline gpu(config_, checkpoint_, {9}, options);
  const SamplingParams sampling = Greedy(config_);
  std::vector<std::vector<int32_t>> prompts = Prompts();
  prompts[3].resize(180);
  const std::vector<SampledToken> first = gpu.Run(OneStep(prompts, sampling));
  // Preempted, and computed again from its first token, in other blocks' places.
  for (int round = 0; round < 3; ++round) {
    Step again = OneStep(prompts, sampling);
    again.released = {3, 1, 0, 2};
    std::rotate(again.released.begin(), again.released.begin() + round, again.released.end());
    const std::vector<SampledToken> second = gpu.Run(again);
    ASSERT_EQ(second.size(), first.size());
    for (size_t i = 0; i < first.size(); ++i) {
      EXPECT_EQ(Logprobs(second[i]), Logprobs(first[i])) << "round " << round << " request " << i;
    }
  }
  const absl::Status status =
      gpu.TryRun(MakeStep({{.request = 9, .first_token = 0, .tokens = prompts[3]}})).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(status.message()), HasSubstr("all 20 of this stage are taken"));
  gpu.Reset();
  EXPECT_TRUE(gpu.TryRun(MakeStep({{.request = 9, .first_token = 0, .tokens = prompts[3]}})).ok());
}

TEST_F(ShippedModelTest, MemoryIsTakenWhileLoadingOnly) {
  GpuStageOptions options = Options();
  options.figures = std::make_shared<GpuStageFigures>();
  options.log = [](absl::string_view line) { std::cout << line << "\n"; };
  CudaPipeline gpu(config_, checkpoint_, {9}, options);
  size_t free_before = 0;
  size_t free_after = 0;
  size_t total = 0;
  ASSERT_EQ(cudaMemGetInfo(&free_before, &total), cudaSuccess);
  for (const int64_t chunk : {200, 64, 3}) {
    std::vector<std::vector<int32_t>> prompts = Prompts();
    for (auto& prompt : prompts) prompt.resize(std::min<size_t>(prompt.size(), chunk));
    if (chunk == 200) prompts.erase(prompts.begin(), prompts.begin() + 3);
    Generate(gpu, prompts, {.temperature = 1, .repetition_penalty = 1.2, .seed = 1}, 20);
    gpu.Reset();
  }
  ASSERT_EQ(cudaMemGetInfo(&free_after, &total), cudaSuccess);
  EXPECT_EQ(free_after, free_before);
  const GpuStageFigures::Values figures = options.figures->Get();
  EXPECT_GT(figures.graph_buckets, 0);
  EXPECT_GT(figures.decode_steps, 30);
  EXPECT_GT(figures.decode_seconds, figures.idle_seconds);
  EXPECT_GE(figures.used_bytes, figures.planned_bytes);
}

TEST_F(ShippedModelTest, AStageThatDoesNotFitIsRefusedAtOnce) {
  GpuStageOptions options = Options();
  options.kv_blocks = int64_t{1} << 26;
  const absl::Status status =
      MakeCudaExecutor(
          config_,
          Sure(FindStageWeights(
              checkpoint_, config_,
              {.first_layer = 0, .num_layers = 9, .embedding = true, .lm_head = true})),
          options)
          .status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(status.message()), HasSubstr("GB short. --kv-blocks "));
}

TEST_F(ShippedModelTest, AHiddenStateThatIsNotFiniteIsTracedToItsLayer) {
  StageWeights weights = Sure(
      FindStageWeights(checkpoint_, config_,
                       {.first_layer = 0, .num_layers = 9, .embedding = true, .lm_head = true}));
  // The gain of the fifth layer's second norm, in FP16.
  Tensor& gain = weights.layers[4].post_attention_norm;
  std::vector<std::byte> bytes(gain.bytes.begin(), gain.bytes.end());
  const uint16_t not_a_number = 0x7E00;
  std::memcpy(bytes.data() + 10, &not_a_number, sizeof(not_a_number));
  gain.bytes = bytes;
  std::unique_ptr<StageExecutor> stage = Sure(MakeCudaExecutor(config_, weights, Options()));
  std::vector<SampledToken> sampled;
  const absl::Status status = stage->Run(
      MakeStep({{.request = 77, .first_token = 0, .tokens = {1, 2, 3}}}), {}, {}, sampled);
  EXPECT_EQ(status.code(), absl::StatusCode::kInternal);
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("request 77: the hidden state at position 0 is not finite after layer 5 of "
                        "this stage's 9 (model.layers.4): are the weights?"));
}

// Large enough for all three kernels of INT4 matrix products, and their borders.
class AwqModel {
 public:
  AwqModel() {
    config_.file = "config.json";
    config_.architecture = "LlamaForCausalLM";
    config_.vocabulary = 1000;
    config_.hidden = 512;
    config_.layers = 2;
    config_.heads = 8;
    config_.kv_heads = 2;
    config_.head_dim = 64;
    config_.ffn = 1152;
    config_.max_context = 2048;
    config_.rms_norm_eps = 1e-5;
    config_.rope_theta = 10000;
    config_.has_experts = {false, false};
    config_.awq.emplace();
    RandomNormal random(5);
    const auto awq = [&](int64_t in, int64_t out) {
      return MakeAwq(store_, random, in, out, 128).weights;
    };
    const auto gain = [&](const std::string& name) {
      std::vector<float> values(512);
      for (float& value : values) value = 1 + 0.1f * random();
      return store_.AddFloats(name, DType::kF16, {512}, values);
    };
    std::vector<float> embedding(1000 * 512);
    for (float& value : embedding) value = random();
    weights_.embedding =
        store_.AddFloats("model.embed_tokens.weight", DType::kF16, {1000, 512}, embedding);
    for (int i = 0; i < 2; ++i) {
      const std::string layer = absl::StrCat("model.layers.", i, ".");
      LayerWeights& w = weights_.layers.emplace_back();
      w.input_norm = gain(layer + "input_layernorm.weight");
      w.post_attention_norm = gain(layer + "post_attention_layernorm.weight");
      w.q = awq(512, 512);
      w.k = awq(512, 128);
      w.v = awq(512, 128);
      w.o = awq(512, 512);
      w.feed_forward.emplace();
      w.feed_forward->gate = awq(512, 1152);
      w.feed_forward->up = awq(512, 1152);
      w.feed_forward->down = awq(1152, 512);
    }
    weights_.final_norm = gain("model.norm.weight");
    weights_.lm_head = MakeDense(store_, random, 512, 1000, DType::kF16).weights;
  }

  const DecoderConfig& config() const { return config_; }
  const StageWeights& weights() const { return weights_; }

 private:
  TensorStore store_;
  DecoderConfig config_;
  StageWeights weights_;
};

// As TestPipeline, of one stage.
class OneCpuStage {
 public:
  explicit OneCpuStage(const AwqModel& model)
      : stage_(Sure(MakeCpuExecutor(model.config(), model.weights(), kCpu))) {}
  std::vector<SampledToken> Run(const Step& step) {
    std::vector<SampledToken> sampled;
    const absl::Status status = stage_->Run(step, {}, {}, sampled);
    FABRICAST_CHECK(status.ok()) << status.ToString();
    return sampled;
  }

 private:
  std::unique_ptr<StageExecutor> stage_;
};

TEST(AwqModelTest, TextIsTheCpusForEachKernelOfInt4Products) {
  const AwqModel model;
  Comparison comparison("AWQ 512", 2);
  GpuStageOptions options = Options();
  options.max_batch_tokens = 1024;
  for (const int tokens : {1, 8, 9, 16, 17, 33, 64, 65, 100, 512, 513, 700}) {
    OneCpuStage cpu(model);
    std::vector<std::unique_ptr<StageExecutor>> stages;
    stages.push_back(Sure(MakeCudaExecutor(model.config(), model.weights(), options)));
    CudaPipeline gpu(512, std::move(stages));
    RandomNormal random(tokens);
    std::vector<std::vector<int32_t>> prompts(1);
    for (int i = 0; i < tokens; ++i) {
      prompts[0].push_back(static_cast<int32_t>(random.Between(0, 999)));
    }
    ASSERT_NO_FATAL_FAILURE(
        ExpectSameText(model.config(), cpu, gpu, prompts, 1024, /*outputs=*/2, comparison));
  }
  // Decodes of many requests, in graphs and beyond.
  for (const int requests : {3, 8, 13, 16, 30, 64}) {
    OneCpuStage cpu(model);
    std::vector<std::unique_ptr<StageExecutor>> stages;
    stages.push_back(Sure(MakeCudaExecutor(model.config(), model.weights(), options)));
    CudaPipeline gpu(512, std::move(stages));
    std::vector<std::vector<int32_t>> prompts;
    for (int r = 0; r < requests; ++r) prompts.push_back({r, 2 * r, 3 * r + 1});
    ASSERT_NO_FATAL_FAILURE(
        ExpectSameText(model.config(), cpu, gpu, prompts, 1024, /*outputs=*/3, comparison));
  }
}

TEST(SyntheticStageTest, WeightsAreAFunctionOfTheSeed) {
  const AwqModel model;
  const auto tokens = [&](uint64_t seed) {
    std::vector<std::unique_ptr<StageExecutor>> stages;
    stages.push_back(Sure(MakeSyntheticCudaExecutor(
        model.config(), {.first_layer = 0, .num_layers = 2, .embedding = true, .lm_head = true},
        seed, Options())));
    CudaPipeline gpu(512, std::move(stages));
    return Generate(gpu, {{1, 2, 3}, {500, 600}}, Greedy(model.config()), 8);
  };
  const auto first = tokens(1);
  ExpectSame(tokens(1), first, true, "the same seed");
  EXPECT_NE(Logprobs(tokens(2)[0][0]), Logprobs(first[0][0]));
}

}  // namespace
}  // namespace fabricast
