#include "runtime/executor/cpu/cpu_executor.h"

#include <algorithm>
#include <cstdint>
#include <limits>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "runtime/executor/cpu/test_pipeline.h"
#include "runtime/executor/cpu/test_weights.h"

namespace fabricast {
namespace {

constexpr CpuExecutorOptions kOptions = {.threads = 1, .kv_block_tokens = 4, .kv_blocks = 10};

// Two layers, one stage.
class SmallModel {
 public:
  SmallModel() {
    config_.architecture = "LlamaForCausalLM";
    config_.vocabulary = 50;
    config_.hidden = 32;
    config_.layers = 2;
    config_.heads = 4;
    config_.kv_heads = 2;
    config_.head_dim = 16;
    config_.ffn = 48;
    config_.rms_norm_eps = 1e-5;
    config_.rope_theta = 10000;
    config_.has_experts = {false, false};
    RandomNormal random(1);
    const auto linear = [&](const std::string& name, int64_t in, int64_t out) {
      RandomLinear made = MakeDense(store_, random, in, out, DType::kF32);
      values_[name] = std::move(made.values);
      LinearWeights weights;
      weights.in = in;
      weights.out = out;
      weights.dense = Borrow(name, {out, in});
      return weights;
    };
    const auto gain = [&](const std::string& name) {
      values_[name].assign(32, 1.0f);
      return Borrow(name, {32});
    };
    linear("embedding", 32, 50);
    weights_.embedding = Borrow("embedding", {50, 32});
    for (int i = 0; i < 2; ++i) {
      const std::string layer = absl::StrCat("model.layers.", i, ".");
      LayerWeights& w = weights_.layers.emplace_back();
      w.input_norm = gain(layer + "input_layernorm.weight");
      w.post_attention_norm = gain(layer + "post_attention_layernorm.weight");
      w.q = linear(layer + "q", 32, 64);
      w.k = linear(layer + "k", 32, 32);
      w.v = linear(layer + "v", 32, 32);
      w.o = linear(layer + "o", 64, 32);
      w.feed_forward.emplace();
      w.feed_forward->gate = linear(layer + "gate", 32, 48);
      w.feed_forward->up = linear(layer + "up", 32, 48);
      w.feed_forward->down = linear(layer + "down", 48, 32);
    }
    weights_.final_norm = gain("final_norm");
    weights_.lm_head = linear("lm_head", 32, 50);
  }

  const DecoderConfig& config() const { return config_; }
  StageWeights weights() const { return weights_; }
  // Change them before an executor is made: norms are copied then.
  std::vector<float>& values(const std::string& name) { return values_.at(name); }

  std::unique_ptr<StageExecutor> Make(const CpuExecutorOptions& options = kOptions) const {
    absl::StatusOr<std::unique_ptr<StageExecutor>> executor =
        MakeCpuExecutor(config_, weights_, options);
    EXPECT_TRUE(executor.ok()) << executor.status();
    return *std::move(executor);
  }

 private:
  Tensor Borrow(const std::string& name, std::vector<int64_t> shape) {
    const std::vector<float>& values = values_.at(name);
    return {.name = name,
            .dtype = DType::kF32,
            .shape = std::move(shape),
            .bytes = {reinterpret_cast<const std::byte*>(values.data()),
                      values.size() * sizeof(float)}};
  }

  DecoderConfig config_;
  TensorStore store_;
  std::map<std::string, std::vector<float>> values_;
  StageWeights weights_;
};

absl::Status RunStep(StageExecutor& executor, const Step& step) {
  std::vector<SampledToken> sampled;
  return executor.Run(step, {}, {}, sampled);
}

TEST(CpuExecutorTest, OptionsMustBePositive) {
  const SmallModel model;
  const auto message = [&](CpuExecutorOptions options) {
    const absl::Status status = MakeCpuExecutor(model.config(), model.weights(), options).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    return std::string(status.message());
  };
  EXPECT_EQ(message({.threads = 0, .kv_blocks = 1}), "threads is 0; give 1 or more");
  EXPECT_EQ(message({.kv_block_tokens = -1, .kv_blocks = 1}),
            "kv_block_tokens is -1; give 1 or more");
  EXPECT_EQ(message({}), "kv_blocks is 0; give 1 or more");
}

TEST(CpuExecutorTest, ActivationsAreFloats) {
  EXPECT_EQ(SmallModel().Make()->activation_bytes_per_token(), 32 * 4);
}

TEST(CpuExecutorTest, SamplesForThoseEntriesThatAskInTheirOrder) {
  const SmallModel model;
  const std::unique_ptr<StageExecutor> executor = model.Make();
  std::vector<SampledToken> sampled = {SampledToken()};
  ASSERT_TRUE(
      executor
          ->Run(MakeStep({{.request = 1, .first_token = 0, .tokens = {1, 2, 3}, .samples = false},
                          {.request = 2, .first_token = 0, .tokens = {4}, .samples = false}}),
                {}, {}, sampled)
          .ok());
  EXPECT_TRUE(sampled.empty());  // the set may be empty
  ASSERT_TRUE(executor
                  ->Run(MakeStep({{.request = 3, .first_token = 0, .tokens = {4, 5}},
                                  {.request = 1, .first_token = 3, .tokens = {7}, .samples = false},
                                  {.request = 2, .first_token = 1, .tokens = {5}}}),
                        {}, {}, sampled)
                  .ok());
  ASSERT_EQ(sampled.size(), 2);
  EXPECT_EQ(sampled[0].token, sampled[1].token);  // both follow 4, 5
}

// 10 blocks of 4 tokens: 37 tokens take them all.
TEST(CpuExecutorTest, SaysSoWhenKvBlocksRunOut) {
  const SmallModel model;
  const std::unique_ptr<StageExecutor> executor = model.Make();
  ASSERT_TRUE(
      RunStep(*executor,
              MakeStep({{.request = 1, .first_token = 0, .tokens = std::vector<int32_t>(37, 1)}}))
          .ok());
  ASSERT_TRUE(
      RunStep(*executor, MakeStep({{.request = 1, .first_token = 37, .tokens = {2, 2, 2}}})).ok());
  const absl::Status status =
      RunStep(*executor, MakeStep({{.request = 8, .first_token = 0, .tokens = {1}}}));
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_NE(status.message().find("request 8 needs 1 KV blocks"), absl::string_view::npos)
      << status;
}

TEST(CpuExecutorTest, ReleasedBlocksAreFreeInTheSameStep) {
  const SmallModel model;
  const std::unique_ptr<StageExecutor> executor = model.Make();
  const std::vector<int32_t> prompt(40, 1);
  ASSERT_TRUE(
      RunStep(*executor, MakeStep({{.request = 1, .first_token = 0, .tokens = prompt}})).ok());
  ASSERT_TRUE(
      RunStep(*executor, MakeStep({{.request = 2, .first_token = 0, .tokens = prompt}}, {1})).ok());
  // And the released one may come again.
  ASSERT_TRUE(
      RunStep(*executor, MakeStep({{.request = 1, .first_token = 0, .tokens = prompt}}, {2})).ok());
}

TEST(CpuExecutorTest, TokensOutsideTheVocabularyAreNamed) {
  const SmallModel model;
  const std::unique_ptr<StageExecutor> executor = model.Make();
  for (const int32_t token : {50, -1}) {
    const absl::Status status =
        RunStep(*executor, MakeStep({{.request = 6, .first_token = 0, .tokens = {1, token}}}));
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_EQ(status.message(), absl::StrCat("request 6: token ", token,
                                             " at position 1 is not in the vocabulary of "
                                             "50: use the model's own tokenizer"));
  }
}

// Weights that are NaN, in each place, and what the error names.
TEST(CpuExecutorTest, NanIsFoundAndLocated) {
  const std::vector<std::pair<std::string, std::string>> places = {
      {"embedding", "the hidden state at position 1 is not finite after the embedding"},
      {"model.layers.0.input_layernorm.weight",
       "the keys or values at position 0 are not finite in layer 1 of this stage's 2 "
       "(model.layers.0)"},
      {"model.layers.0.q",
       "the hidden state at position 0 is not finite after layer 1 of this stage's 2 "
       "(model.layers.0)"},
      {"model.layers.0.k", "the keys or values at position 0 are not finite in layer 1"},
      {"model.layers.1.v", "the keys or values at position 0 are not finite in layer 2"},
      {"model.layers.0.o", "the hidden state at position 0 is not finite after layer 1"},
      {"model.layers.0.gate", "the hidden state at position 0 is not finite after layer 1"},
      {"model.layers.0.up", "the hidden state at position 0 is not finite after layer 1"},
      {"model.layers.0.down", "the hidden state at position 0 is not finite after layer 1"},
      // Only the last row of the last layer is computed.
      {"model.layers.1.down", "the hidden state at position 2 is not finite after layer 2"},
      {"final_norm", "look at final norm and lm_head"},
      {"lm_head", "look at final norm and lm_head"}};
  for (const auto& [name, message] : places) {
    SmallModel model;
    // Row 9 of the embedding is token 9's, at position 1.
    model.values(name)[name == "embedding" ? 9 * 32 + 5 : 7] =
        std::numeric_limits<float>::quiet_NaN();
    const absl::Status status =
        RunStep(*model.Make(), MakeStep({{.request = 77, .first_token = 0, .tokens = {3, 9, 4}}}));
    EXPECT_EQ(status.code(), absl::StatusCode::kInternal) << name << ": " << status;
    EXPECT_NE(status.message().find("request 77: "), absl::string_view::npos) << status;
    EXPECT_NE(status.message().find(message), absl::string_view::npos) << name << ": " << status;
  }
}

// 1e38 squared is infinite.
TEST(CpuExecutorTest, OverflowIsFound) {
  SmallModel model;
  for (float& value : model.values("model.layers.1.down")) value = 3e38f;
  const absl::Status status =
      RunStep(*model.Make(), MakeStep({{.request = 1, .first_token = 0, .tokens = {3}}}));
  EXPECT_EQ(status.code(), absl::StatusCode::kInternal) << status;
}

TEST(CpuExecutorTest, ItNamesTheRequestAmongOthers) {
  SmallModel model;
  model.values("embedding")[9 * 32] = std::numeric_limits<float>::infinity();
  const absl::Status status =
      RunStep(*model.Make(),
              MakeStep({{.request = 1, .first_token = 0, .tokens = {3, 4}, .samples = false},
                        {.request = 2, .first_token = 0, .tokens = {3, 9}, .samples = false}}));
  EXPECT_NE(status.message().find("request 2: the hidden state at position 1"),
            absl::string_view::npos)
      << status;
}

// Penalised by so much that nothing comes twice.
TEST(CpuExecutorTest, TheRepetitionPenaltySeesPromptAndOutput) {
  const SmallModel model;
  const std::unique_ptr<StageExecutor> executor = model.Make();
  const SamplingParams sampling = {.repetition_penalty = 1e6};
  std::vector<int32_t> seen = {3, 9, 4};
  std::vector<SampledToken> sampled;
  ASSERT_TRUE(executor
                  ->Run(MakeStep({{.request = 1,
                                   .first_token = 0,
                                   .tokens = {3, 9},
                                   .samples = false,
                                   .sampling = sampling}}),
                        {}, {}, sampled)
                  .ok());
  int64_t position = 2;
  for (int i = 0; i < 20; ++i) {
    ASSERT_TRUE(executor
                    ->Run(MakeStep({{.request = 1,
                                     .first_token = position,
                                     .tokens = {seen.back()},
                                     .sampling = sampling}}),
                          {}, {}, sampled)
                    .ok());
    ++position;
    EXPECT_EQ(std::count(seen.begin(), seen.end(), sampled.at(0).token), 0) << i;
    seen.push_back(sampled[0].token);
  }
}

// Ten tokens after a prompt, with all log-probabilities and what histories are for.
std::vector<SampledToken> Generate(StageExecutor& executor, const DecoderConfig& config) {
  SamplingParams sampling = Greedy(config);
  sampling.repetition_penalty = 1.3;
  std::vector<SampledToken> tokens;
  std::vector<int32_t> next = {3, 9, 4};
  for (int64_t position = 0; tokens.size() < 10;) {
    std::vector<SampledToken> sampled;
    EXPECT_TRUE(executor
                    .Run(MakeStep({{.request = 1,
                                    .first_token = position,
                                    .tokens = next,
                                    .sampling = sampling}}),
                         {}, {}, sampled)
                    .ok());
    position += static_cast<int64_t>(next.size());
    next = {sampled.at(0).token};
    tokens.push_back(sampled[0]);
  }
  return tokens;
}

TEST(CpuExecutorTest, ResetForgetsAllRequests) {
  const SmallModel model;
  const std::unique_ptr<StageExecutor> executor = model.Make();
  const std::vector<SampledToken> expected = Generate(*executor, model.config());
  // Where a Run failed: for a lack of blocks, after the first entry took some, or for a bad token.
  const std::vector<int32_t> many(20, 1);
  const Step too_long = MakeStep({{.request = 2, .first_token = 0, .tokens = many},
                                  {.request = 3, .first_token = 0, .tokens = many}});
  const Step bad = MakeStep({{.request = 4, .first_token = 0, .tokens = {50}}});
  for (const Step* failing : {&too_long, &bad}) {
    EXPECT_FALSE(RunStep(*executor, *failing).ok());
    executor->Reset();
    const std::vector<SampledToken> again = Generate(*executor, model.config());
    ASSERT_EQ(again.size(), expected.size());
    for (size_t i = 0; i < again.size(); ++i) {
      EXPECT_EQ(again[i].token, expected[i].token);
      EXPECT_EQ(Logprobs(again[i]), Logprobs(expected[i]));
    }
  }
  executor->Reset();
  // All ten blocks are free.
  EXPECT_TRUE(
      RunStep(*executor,
              MakeStep({{.request = 5, .first_token = 0, .tokens = std::vector<int32_t>(40, 1)}}))
          .ok());
}

// Weights that overflow for one token fail in the middle of a step.
TEST(CpuExecutorTest, ResetForgetsAStepThatFailedInALayer) {
  SmallModel model;
  model.values("embedding")[9 * 32] = std::numeric_limits<float>::infinity();
  const std::unique_ptr<StageExecutor> executor = model.Make();
  const Step good = MakeStep(
      {{.request = 1, .first_token = 0, .tokens = {3, 4, 5}, .sampling = Greedy(model.config())}});
  std::vector<SampledToken> expected, again;
  ASSERT_TRUE(executor->Run(good, {}, {}, expected).ok());
  EXPECT_FALSE(
      RunStep(*executor, MakeStep({{.request = 2, .first_token = 0, .tokens = {3, 9}}})).ok());
  executor->Reset();
  ASSERT_TRUE(executor->Run(good, {}, {}, again).ok());
  EXPECT_EQ(Logprobs(again.at(0)), Logprobs(expected.at(0)));
}

TEST(CpuExecutorDeathTest, ProtocolErrorsEndTheProgram) {
  const SmallModel model;
  const std::unique_ptr<StageExecutor> executor = model.Make();
  EXPECT_DEATH(
      (void)RunStep(*executor, MakeStep({{.request = 1, .first_token = 1, .tokens = {3}}})),
      "request 1 continues at token 1, but its context is 0 tokens long");
  Step step = MakeStep({{.request = 1, .first_token = 0, .tokens = {3, 4}}});
  step.tokens.pop_back();
  EXPECT_DEATH((void)RunStep(*executor, step), "1 token ids for 2 tokens");
  std::vector<std::byte> bytes(32 * 4);
  std::vector<SampledToken> sampled;
  EXPECT_DEATH((void)executor->Run(MakeStep({{.request = 1, .first_token = 0, .tokens = {3}}}),
                                   bytes, {}, sampled),
               "input has 128 bytes");
  EXPECT_DEATH((void)executor->Run(MakeStep({{.request = 1, .first_token = 0, .tokens = {3}}}), {},
                                   absl::MakeSpan(bytes), sampled),
               "output has 128 bytes");
  ASSERT_TRUE(RunStep(*executor, MakeStep({{.request = 2, .first_token = 0, .tokens = {3}}})).ok());
  EXPECT_DEATH((void)RunStep(*executor, MakeStep({{.request = 2,
                                                   .first_token = 1,
                                                   .tokens = {3},
                                                   .sampling = {.repetition_penalty = 2}}})),
               "has a repetition penalty at token 1, but not at all tokens before");
}

}  // namespace
}  // namespace fabricast
