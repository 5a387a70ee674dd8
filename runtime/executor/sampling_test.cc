#include "runtime/executor/sampling.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <random>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "gtest/gtest.h"

namespace fabricast {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

SampledToken SampleOrDie(const SamplingParams& params, int64_t position, std::vector<float> logits,
                         std::vector<int32_t> history = {}) {
  absl::StatusOr<SampledToken> token = Sample(params, position, history, absl::MakeSpan(logits));
  EXPECT_TRUE(token.ok()) << token.status();
  return token.ok() ? *std::move(token) : SampledToken();
}

// What Hugging Face's processors make of the logits, one after the other, slowly and in double.
std::vector<double> Probabilities(const SamplingParams& params, absl::Span<const float> logits,
                                  absl::Span<const int32_t> history) {
  std::vector<double> scores(logits.begin(), logits.end());
  // RepetitionPenaltyLogitsProcessor.
  for (size_t i = 0; i < scores.size(); ++i) {
    if (std::find(history.begin(), history.end(), static_cast<int32_t>(i)) == history.end()) {
      continue;
    }
    scores[i] = scores[i] < 0 ? scores[i] * params.repetition_penalty
                              : scores[i] / params.repetition_penalty;
  }
  for (double& score : scores) score /= params.temperature;
  // TopKLogitsWarper.
  if (params.top_k > 0 && params.top_k < static_cast<int64_t>(scores.size())) {
    std::vector<double> sorted = scores;
    std::sort(sorted.rbegin(), sorted.rend());
    for (double& score : scores) {
      if (score < sorted[params.top_k - 1]) score = -kInfinity;
    }
  }
  const auto softmax = [&] {
    std::vector<double> p;
    const double largest = *std::max_element(scores.begin(), scores.end());
    for (const double score : scores) p.push_back(std::exp(score - largest));
    const double sum = std::accumulate(p.begin(), p.end(), 0.0);
    for (double& x : p) x /= sum;
    return p;
  };
  // TopPLogitsWarper.
  if (params.top_p < 1) {
    const std::vector<double> p = softmax();
    std::vector<size_t> order(p.size());
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return p[a] > p[b]; });
    double sum = 0;
    for (const size_t i : order) {
      if (sum >= params.top_p) scores[i] = -kInfinity;
      sum += p[i];
    }
  }
  return softmax();
}

// Pearson's statistic of n draws exceeds df + 2 sqrt(df t) + 2 t with a probability of at most
// e^-t, if it is chi-square distributed (Laurent and Massart 2000, lemma 1), which needs some five
// expected draws a bin: rarer tokens share one. t = 20: 2e-9.
void ExpectFrequencies(const SamplingParams& params, const std::vector<float>& logits,
                       const std::vector<int32_t>& history, int draws) {
  const std::vector<double> probabilities = Probabilities(params, logits, history);
  std::vector<int> counts(logits.size(), 0);
  for (int position = 0; position < draws; ++position) {
    const SampledToken token = SampleOrDie(params, position, logits, history);
    ASSERT_TRUE(token.token >= 0 && token.token < static_cast<int32_t>(logits.size()));
    ASSERT_GT(probabilities[token.token], 0) << "token " << token.token << " was filtered out";
    ++counts[token.token];
  }
  double statistic = 0;
  int bins = 0;
  double rare_expected = 0;
  int rare_count = 0;
  for (size_t i = 0; i < logits.size(); ++i) {
    const double expected = probabilities[i] * draws;
    if (expected < 5) {
      rare_expected += expected;
      rare_count += counts[i];
      continue;
    }
    statistic += (counts[i] - expected) * (counts[i] - expected) / expected;
    ++bins;
  }
  if (rare_expected >= 5) {
    statistic += (rare_count - rare_expected) * (rare_count - rare_expected) / rare_expected;
    ++bins;
  }
  const double df = std::max(1, bins - 1);
  constexpr double kT = 20;
  EXPECT_LE(statistic, df + 2 * std::sqrt(df * kT) + 2 * kT) << bins << " bins";
}

std::vector<float> RandomLogits(uint32_t seed, size_t count, double deviation) {
  std::mt19937 generator(seed);
  std::vector<float> logits;
  for (size_t i = 0; i < count; ++i) {
    double sum = -6;  // of 12 uniforms: variance 1
    for (int j = 0; j < 12; ++j) sum += generator() / 4294967296.0;
    logits.push_back(static_cast<float>(deviation * sum));
  }
  return logits;
}

TEST(SamplingTest, GreedyTakesTheLowestOfEqualLogits) {
  EXPECT_EQ(SampleOrDie({}, 0, {1, 3, 2, 3, -kInfinity}).token, 1);
  EXPECT_EQ(SampleOrDie({.top_p = 0.1, .top_k = 1}, 0, {1, 3, 2, 3}).token, 1);
  std::vector<float> logits(1000, -2);
  logits[997] = logits[998] = -1;
  EXPECT_EQ(SampleOrDie({}, 0, logits).token, 997);
}

// 3 / 2 < 2, and -1 x 2 < -1.5. A token that is there twice is penalised once: 3 / 2 > 1.
TEST(SamplingTest, RepetitionPenaltyDividesPositiveAndMultipliesNegativeLogitsOnce) {
  const SamplingParams params = {.repetition_penalty = 2};
  EXPECT_EQ(SampleOrDie(params, 0, {3, 2, 0}, {0}).token, 1);
  EXPECT_EQ(SampleOrDie(params, 0, {-1, -1.5}, {0}).token, 1);
  EXPECT_EQ(SampleOrDie(params, 0, {3, 1}, {0, 0, 0}).token, 0);
  EXPECT_EQ(SampleOrDie({.repetition_penalty = 0.5}, 0, {3, 2, 0}, {1}).token, 1);
}

TEST(SamplingTest, LogprobsAreTheModelsOwn) {
  const SamplingParams params = {
      .temperature = 0.1, .top_k = 1, .repetition_penalty = 4, .logprobs = 2};
  // exp(2), exp(1), 1: their sum is 11.107.
  const SampledToken token = SampleOrDie(params, 0, {2, 1, 0}, {0});
  EXPECT_EQ(token.token, 1);  // 2 / 4 < 1
  EXPECT_NEAR(token.logprob, 1 - std::log(11.10734), 1e-6);
  ASSERT_EQ(token.top.size(), 2);
  EXPECT_EQ(token.top[0].token, 0);
  EXPECT_NEAR(token.top[0].logprob, 2 - std::log(11.10734), 1e-6);
  EXPECT_EQ(token.top[1].token, 1);
  EXPECT_NEAR(token.top[1].logprob, token.logprob, 0);
}

TEST(SamplingTest, AsManyAlternativesAsThereAreInOrder) {
  const std::vector<float> logits = RandomLogits(1, 2000, 2);
  for (const int count : {0, 1, 5, 300, 2000, 5000}) {
    const SampledToken token = SampleOrDie({.logprobs = count}, 0, logits);
    ASSERT_EQ(token.top.size(), std::min(count, 2000));
    std::vector<int32_t> order(2000);
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(),
                     [&](int32_t a, int32_t b) { return logits[a] > logits[b]; });
    for (size_t i = 0; i < token.top.size(); ++i) EXPECT_EQ(token.top[i].token, order[i]);
  }
  EXPECT_TRUE(SampleOrDie({}, 0, logits).top.empty());
}

TEST(SamplingTest, FrequenciesAreTheProbabilities) {
  const std::vector<float> logits = RandomLogits(2, 40, 1.5);
  const std::vector<int32_t> history = {1, 5, 5, 39, 7};
  for (const double temperature : {0.3, 1.0, 3.0}) {
    for (const double top_p : {1.0, 0.9, 0.3}) {
      for (const int64_t top_k : {0, 1, 7, 39, 1000}) {
        for (const double penalty : {1.0, 1.3}) {
          ASSERT_NO_FATAL_FAILURE(ExpectFrequencies({.temperature = temperature,
                                                     .top_p = top_p,
                                                     .top_k = top_k,
                                                     .repetition_penalty = penalty,
                                                     .seed = 17},
                                                    logits, history, 1000))
              << temperature << " " << top_p << " " << top_k << " " << penalty;
        }
      }
    }
  }
}

// More than one block of the kernels, and a flat distribution for top-p.
TEST(SamplingTest, FrequenciesOfALargeVocabulary) {
  const std::vector<float> logits = RandomLogits(3, 2100, 0.5);
  for (const double top_p : {1.0, 0.9, 0.2}) {
    ASSERT_NO_FATAL_FAILURE(
        ExpectFrequencies({.temperature = 1, .top_p = top_p, .seed = 5}, logits, {}, 10000))
        << top_p;
  }
}

// What is kept is not a matter of chance: draw until all of it was seen.
TEST(SamplingTest, TopPKeepsTheFewestTokensThatReachIt) {
  // Probabilities 1/2, 1/4, 1/8, 1/8.
  const std::vector<float> logits = {std::log(2.0f), std::log(8.0f), std::log(4.0f),
                                     std::log(2.0f)};
  const auto kept = [&](double top_p) {
    std::vector<bool> seen(4, false);
    for (int i = 0; i < 300; ++i) {
      seen[SampleOrDie({.temperature = 1, .top_p = top_p}, i, logits).token] = true;
    }
    return seen;
  };
  EXPECT_EQ(kept(1e-9), (std::vector<bool>{false, true, false, false}));
  EXPECT_EQ(kept(0.49), (std::vector<bool>{false, true, false, false}));
  EXPECT_EQ(kept(0.51), (std::vector<bool>{false, true, true, false}));
  EXPECT_EQ(kept(0.74), (std::vector<bool>{false, true, true, false}));
  EXPECT_EQ(kept(0.76), (std::vector<bool>{true, true, true, false}));  // the lower id of equals
  EXPECT_EQ(kept(0.88), (std::vector<bool>{true, true, true, true}));
}

TEST(SamplingTest, TopKKeepsAllThatEqualTheLast) {
  std::vector<bool> seen(5, false);
  for (int i = 0; i < 300; ++i) {
    seen[SampleOrDie({.temperature = 1, .top_k = 2}, i, {1, 2, 0, 1, 1}).token] = true;
  }
  EXPECT_EQ(seen, (std::vector<bool>{true, true, false, true, true}));
}

TEST(SamplingTest, DependsOnSeedAndPositionAlone) {
  const std::vector<float> logits = RandomLogits(4, 1000, 1);
  const SamplingParams params = {.temperature = 1, .seed = 9};
  std::vector<int32_t> tokens;
  for (int position = 0; position < 50; ++position) {
    tokens.push_back(SampleOrDie(params, position, logits).token);
  }
  for (int position = 49; position >= 0; --position) {
    EXPECT_EQ(SampleOrDie(params, position, logits).token, tokens[position]);
  }
  int equal = 0;
  for (int position = 0; position < 50; ++position) {
    equal +=
        SampleOrDie({.temperature = 1, .seed = 10}, position, logits).token == tokens[position];
  }
  EXPECT_LT(equal, 5);
}

TEST(SamplingTest, ATinyTemperatureIsGreedyAndAHugeOneUniform) {
  const std::vector<float> logits = {1, 2, 1.999f};
  for (int i = 0; i < 50; ++i) {
    EXPECT_EQ(SampleOrDie({.temperature = 1e-300}, i, logits).token, 1);
  }
  ExpectFrequencies({.temperature = 1e30}, logits, {}, 3000);
}

TEST(SamplingTest, TokensOfNoProbabilityAreNotDrawn) {
  std::vector<float> logits(3000, -kInfinity);
  logits[2999] = 1;
  logits[5] = 1;
  for (const double top_p : {1.0, 0.999}) {
    for (int i = 0; i < 100; ++i) {
      const int32_t token = SampleOrDie({.temperature = 1, .top_p = top_p}, i, logits).token;
      EXPECT_TRUE(token == 5 || token == 2999) << token;
    }
  }
}

TEST(SamplingTest, LogitsThatAreNotFiniteAreAnError) {
  const float nan = std::nanf("");
  for (const double temperature : {0.0, 1.0}) {
    for (std::vector<float> logits :
         {std::vector<float>{1, nan, 2}, {nan}, {-kInfinity, -kInfinity}, {1, kInfinity}}) {
      const absl::StatusOr<SampledToken> token =
          Sample({.temperature = temperature}, 12, {}, absl::MakeSpan(logits));
      EXPECT_EQ(token.status().code(), absl::StatusCode::kInternal);
      EXPECT_NE(token.status().message().find("the logits at position 12 are not finite"),
                absl::string_view::npos)
          << token.status();
    }
    // Anywhere in a vector or behind the last.
    for (size_t i = 0; i < 100; ++i) {
      std::vector<float> logits(100, 1);
      logits[i] = nan;
      EXPECT_FALSE(Sample({.temperature = temperature}, 0, {}, absl::MakeSpan(logits)).ok()) << i;
    }
  }
}

TEST(SamplingTest, ValidateNamesTheParameterAndItsRange) {
  EXPECT_TRUE(Validate({}).ok());
  EXPECT_TRUE(Validate({.temperature = 2,
                        .top_p = 0.1,
                        .top_k = 5,
                        .repetition_penalty = 0.5,
                        .seed = 1,
                        .logprobs = 20})
                  .ok());
  const double nan = std::nan("");
  EXPECT_EQ(Validate({.temperature = -1}).message(), "temperature is -1; give 0 (greedy) or more");
  EXPECT_EQ(Validate({.temperature = nan}).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(Validate({.temperature = INFINITY}).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(Validate({.top_p = 0}).message(), "top_p is 0; give more than 0 and at most 1");
  EXPECT_EQ(Validate({.top_p = 1.5}).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(Validate({.top_p = nan}).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(Validate({.top_k = -1}).message(), "top_k is -1; give 0 (all tokens) or more");
  EXPECT_EQ(Validate({.repetition_penalty = 0}).message(),
            "repetition_penalty is 0; give more than 0");
  EXPECT_EQ(Validate({.logprobs = -2}).message(), "logprobs is -2; give -1 (none) to 4000");
}

}  // namespace
}  // namespace fabricast
