// What transformers computes from the same checkpoints, in float32: runtime/executor/testdata.
//
// Tolerance. Both sides round, in another order. A sum of K products is off by about sqrt(K) u of
// its size, u = 2^-24 (rounding errors are as good as independent: Higham and Mary 2019); K <= 384
// gives 20 u = 1.2e-6. A layer has some 8 such steps one after another, the deepest model 3 layers:
// with embedding, norm and lm_head 26 steps, on two sides, whose errors add up as independent ones:
// sqrt(52) x 1.2e-6 = 8.4e-6, if a step passes the relative error of its input on as it is. They
// do, but for attention: a score of size s turns a relative error e into e s of a weight, and
// RoPE's angle at position 100, in float32, is off by up to 100 u = 6e-6 on either side. So 2e-5 of
// the largest of hidden states and logits. A wrong epsilon, scale or angle is off by 1e-3 or more.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "runtime/executor/cpu/test_pipeline.h"

namespace fabricast {
namespace {

constexpr double kTolerance = 2e-5;

constexpr CpuExecutorOptions kOptions = {.threads = 2, .kv_block_tokens = 16, .kv_blocks = 64};

double Largest(absl::Span<const float> values) {
  double largest = 0;
  for (const float value : values) largest = std::max(largest, std::abs(double{value}));
  return largest;
}

// Log-probabilities, in double.
std::vector<double> LogSoftmax(absl::Span<const float> logits) {
  double sum = 0;
  const double largest = *std::max_element(logits.begin(), logits.end());
  for (const float logit : logits) sum += std::exp(logit - largest);
  std::vector<double> logprobs;
  for (const float logit : logits) logprobs.push_back(logit - largest - std::log(sum));
  return logprobs;
}

class ReferenceTest : public testing::TestWithParam<std::string> {
 protected:
  ReferenceTest() : fixture_(LoadFixture(GetParam())) {}

  std::vector<int32_t> Prompt(int64_t tokens) const {
    return fixture_.Ids(absl::StrCat("prompt_", tokens, ".ids"));
  }

  // Reports the largest difference as a property of the test, in units of the largest logit.
  void ExpectLogits(const SampledToken& token, int64_t position, absl::Span<const float> logits) {
    const int64_t vocabulary = fixture_.config.vocabulary;
    const absl::Span<const float> expected = logits.subspan(position * vocabulary, vocabulary);
    const std::vector<double> logprobs = LogSoftmax(expected);
    const std::vector<float> actual = Logprobs(token);
    ASSERT_EQ(actual.size(), logprobs.size());
    const double unit = Largest(expected);
    for (size_t i = 0; i < actual.size(); ++i) {
      const double error = std::abs(actual[i] - logprobs[i]) / unit;
      ASSERT_LE(error, kTolerance) << "token " << i << " at position " << position;
      largest_error_ = std::max(largest_error_, error);
    }
  }

  ~ReferenceTest() override { RecordProperty("largest_error", absl::StrCat(largest_error_)); }

  Fixture fixture_;
  double largest_error_ = 0;
};

TEST_P(ReferenceTest, HiddenStatesAfterEachLayer) {
  const std::vector<int32_t> prompt = Prompt(33);
  // A stage a layer: what it hands on is what that layer computed.
  TestPipeline pipeline(fixture_.config, fixture_.checkpoint,
                        std::vector<int64_t>(fixture_.config.layers, 1), kOptions);
  pipeline.Run(MakeStep({{.request = 0, .first_token = 0, .tokens = prompt}}));
  for (int64_t layer = 0; layer + 1 < fixture_.config.layers; ++layer) {
    const std::vector<float> expected = fixture_.Floats(absl::StrCat("prompt_33.layer_", layer));
    const absl::Span<const float> actual = pipeline.Activations(layer);
    ASSERT_EQ(actual.size(), expected.size());
    const double unit = Largest(expected);
    for (size_t i = 0; i < expected.size(); ++i) {
      const double error = std::abs(double{actual[i]} - expected[i]) / unit;
      ASSERT_LE(error, kTolerance) << "layer " << layer << " element " << i;
      largest_error_ = std::max(largest_error_, error);
    }
  }
}

TEST_P(ReferenceTest, LogitsAtEachPositionTokenByToken) {
  TestPipeline pipeline(fixture_.config, fixture_.checkpoint, {fixture_.config.layers}, kOptions);
  for (const int64_t tokens : {1, 7, 33, 100}) {
    const std::vector<int32_t> prompt = Prompt(tokens);
    const std::vector<float> logits = fixture_.Floats(absl::StrCat("prompt_", tokens, ".logits"));
    for (int64_t position = 0; position < tokens; ++position) {
      const std::vector<SampledToken> sampled =
          pipeline.Run(MakeStep({{.request = tokens,
                                  .first_token = position,
                                  .tokens = {prompt[position]},
                                  .sampling = Greedy(fixture_.config)}}));
      ASSERT_NO_FATAL_FAILURE(ExpectLogits(sampled.at(0), position, logits));
    }
  }
}

TEST_P(ReferenceTest, LogitsAtTheEndOfAPrompt) {
  TestPipeline pipeline(fixture_.config, fixture_.checkpoint, {fixture_.config.layers}, kOptions);
  for (const int64_t tokens : {1, 7, 33, 100}) {
    const std::vector<float> logits = fixture_.Floats(absl::StrCat("prompt_", tokens, ".logits"));
    const std::vector<SampledToken> sampled =
        pipeline.Run(MakeStep({{.request = tokens,
                                .first_token = 0,
                                .tokens = Prompt(tokens),
                                .sampling = Greedy(fixture_.config)}}));
    ASSERT_NO_FATAL_FAILURE(ExpectLogits(sampled.at(0), tokens - 1, logits));
  }
}

TEST_P(ReferenceTest, GreedyContinuations) {
  TestPipeline pipeline(fixture_.config, fixture_.checkpoint, {fixture_.config.layers}, kOptions);
  for (const int64_t tokens : {1, 7, 33, 100}) {
    std::vector<int32_t> next = Prompt(tokens);
    int64_t position = 0;
    std::vector<int32_t> continuation;
    const std::vector<int32_t> expected =
        fixture_.Ids(absl::StrCat("prompt_", tokens, ".greedy_ids"));
    while (continuation.size() < expected.size()) {
      const std::vector<SampledToken> sampled =
          pipeline.Run(MakeStep({{.request = tokens, .first_token = position, .tokens = next}}));
      position += static_cast<int64_t>(next.size());
      next = {sampled.at(0).token};
      continuation.push_back(next[0]);
    }
    EXPECT_EQ(continuation, expected) << tokens << " tokens";
  }
}

INSTANTIATE_TEST_SUITE_P(Models, ReferenceTest, testing::ValuesIn(FixtureNames()),
                         [](const auto& info) { return info.param; });

}  // namespace
}  // namespace fabricast
