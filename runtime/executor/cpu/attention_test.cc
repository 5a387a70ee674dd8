#include "runtime/executor/cpu/attention.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "gtest/gtest.h"
#include "runtime/executor/cpu/each_target.h"
#include "runtime/executor/cpu/test_weights.h"

namespace fabricast {
namespace {

// Queries, keys and values of `tokens` tokens, row-major.
struct Inputs {
  int64_t tokens;
  int64_t heads;
  int64_t kv_heads;
  int64_t head_dim;
  std::vector<float> queries;
  std::vector<float> keys;
  std::vector<float> values;
};

Inputs RandomInputs(uint32_t seed, int64_t tokens, int64_t heads, int64_t kv_heads,
                    int64_t head_dim) {
  RandomNormal random(seed);
  Inputs inputs = {tokens, heads, kv_heads, head_dim, {}, {}, {}};
  const auto fill = [&](int64_t count, float scale, std::vector<float>& values) {
    for (int64_t i = 0; i < count; ++i) values.push_back(scale * random());
  };
  // Scores of standard deviation 3: some weights are large, most are not.
  fill(tokens * heads * head_dim, 3 / std::sqrt(static_cast<float>(head_dim)), inputs.queries);
  fill(tokens * kv_heads * head_dim, 1, inputs.keys);
  fill(tokens * kv_heads * head_dim, 1, inputs.values);
  return inputs;
}

bool SameBits(const std::vector<float>& a, const std::vector<float>& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(), [](float x, float y) {
    return std::bit_cast<uint32_t>(x) == std::bit_cast<uint32_t>(y);
  });
}

// What Attention computes if the tokens come in chunks that end at `ends`, beside a second request
// that computes the same.
std::vector<float> Compute(const Inputs& inputs, int64_t block_tokens,
                           const std::vector<int64_t>& ends, int threads) {
  ThreadPool pool(threads);
  const KvShape shape = {.layers = 2,
                         .kv_heads = inputs.kv_heads,
                         .head_dim = inputs.head_dim,
                         .block_tokens = block_tokens};
  KvCache cache(shape, 1000);
  Attention attention(shape, inputs.heads, &pool);
  const int64_t row = inputs.heads * inputs.head_dim;
  std::vector<float> output(inputs.tokens * row, -7);
  std::vector<float> other_output(inputs.tokens * row, -7);
  int64_t first = 0;
  for (const int64_t end : ends) {
    std::vector<AttentionQueries> requests;
    for (const RequestId request : {5, 3}) {
      EXPECT_TRUE(cache.Extend(request, first, end - first).ok());
      const KvSequence sequence = cache.Sequence(request, 1);
      for (int64_t position = first; position < end; ++position) {
        for (int64_t h = 0; h < inputs.kv_heads; ++h) {
          const int64_t at = (position * inputs.kv_heads + h) * inputs.head_dim;
          for (int64_t d = 0; d < inputs.head_dim; ++d) {
            sequence.Key(h, position)[d * kLanes] = inputs.keys[at + d];
            sequence.Value(h, position)[d] = inputs.values[at + d];
          }
        }
      }
    }
    for (const RequestId request : {5, 3}) {
      requests.push_back({.sequence = cache.Sequence(request, 1),
                          .first_position = first,
                          .count = end - first,
                          .queries = inputs.queries.data() + first * row,
                          .query_stride = row,
                          .output = (request == 5 ? output : other_output).data() + first * row,
                          .output_stride = row});
    }
    attention.Run(requests);
    first = end;
  }
  EXPECT_TRUE(SameBits(output, other_output));
  return output;
}

void ExpectAttention(const Inputs& inputs, const std::vector<float>& output) {
  const int64_t group = inputs.heads / inputs.kv_heads;
  const int64_t head_dim = inputs.head_dim;
  for (int64_t position = 0; position < inputs.tokens; ++position) {
    for (int64_t h = 0; h < inputs.heads; ++h) {
      const float* q = inputs.queries.data() + (position * inputs.heads + h) * head_dim;
      std::vector<double> scores;
      double largest = -1e300;
      double score_size = 0;
      for (int64_t t = 0; t <= position; ++t) {
        const float* k = inputs.keys.data() + (t * inputs.kv_heads + h / group) * head_dim;
        double score = 0;
        double size = 0;
        for (int64_t d = 0; d < head_dim; ++d) {
          score += static_cast<double>(q[d]) * k[d];
          size += std::abs(static_cast<double>(q[d]) * k[d]);
        }
        scores.push_back(score);
        largest = std::max(largest, score);
        score_size = std::max(score_size, size);
      }
      double sum = 0;
      for (const double score : scores) sum += std::exp(score - largest);
      // With u = 2^-24: a score is off by 2 head_dim u of its size (a target that does not fuse),
      // in the exponent twice, the largest's too; exp by some 4 u and, as rescalings, once more a
      // tile; the sums of weights and of values by 2 u a token.
      const double context = static_cast<double>(position + 1);
      const double relative = (4 * static_cast<double>(head_dim) * score_size + 2 * score_size +
                               8 * (context / 64 + 1) + 4 * context + 8) *
                              0x1p-24;
      for (int64_t d = 0; d < head_dim; ++d) {
        double expected = 0;
        double size = 0;
        for (int64_t t = 0; t <= position; ++t) {
          const double v = inputs.values[(t * inputs.kv_heads + h / group) * head_dim + d];
          const double weight = std::exp(scores[t] - largest) / sum;
          expected += weight * v;
          size += weight * std::abs(v);
        }
        ASSERT_NEAR(output[(position * inputs.heads + h) * head_dim + d], expected,
                    2 * relative * size)
            << "position " << position << " head " << h << " dimension " << d;
      }
    }
  }
}

TEST(AttentionTest, IsSoftmaxOfScoresTimesValues) {
  ForEachTarget([](bool) {
    uint32_t seed = 1;
    for (const auto& [heads, kv_heads, head_dim] :
         std::vector<std::tuple<int64_t, int64_t, int64_t>>{{1, 1, 2},
                                                            {4, 4, 16},
                                                            {6, 3, 20},
                                                            {7, 1, 64},
                                                            {8, 1, 128},
                                                            {16, 2, 40},
                                                            {24, 1, 32}}) {
      for (const int64_t tokens : {1, 16, 65, 150}) {
        const Inputs inputs = RandomInputs(seed++, tokens, heads, kv_heads, head_dim);
        ASSERT_NO_FATAL_FAILURE(ExpectAttention(inputs, Compute(inputs, 16, {tokens}, 2)))
            << heads << " heads " << kv_heads << " " << head_dim;
      }
    }
  });
}

TEST(AttentionTest, AQueryIsTheSameBitsInAnyChunkBlockSizeAndTarget) {
  for (const auto& [heads, kv_heads, head_dim] :
       std::vector<std::tuple<int64_t, int64_t, int64_t>>{{3, 3, 24}, {8, 2, 64}, {9, 1, 16}}) {
    const Inputs inputs = RandomInputs(11, 200, heads, kv_heads, head_dim);
    std::vector<int64_t> one_by_one;
    for (int64_t i = 1; i <= 200; ++i) one_by_one.push_back(i);
    std::vector<float> expected;
    ForEachTarget([&](bool fuses) {
      if (!fuses) return;
      for (const std::vector<int64_t>& ends :
           {std::vector<int64_t>{200}, one_by_one, {1, 17, 64, 65, 130, 200}, {63, 199, 200}}) {
        for (const int64_t block_tokens : {16, 1, 5, 24, 64, 256}) {
          const std::vector<float> output =
              Compute(inputs, block_tokens, ends, static_cast<int>(ends.size() % 3) + 1);
          if (expected.empty()) expected = output;
          ASSERT_TRUE(SameBits(output, expected))
              << ends.size() << " chunks, blocks of " << block_tokens;
        }
      }
    });
  }
}

TEST(AttentionTest, ANanShows) {
  Inputs inputs = RandomInputs(1, 70, 2, 1, 16);
  inputs.keys[5 * 16 + 3] = std::nanf("");  // token 5
  const std::vector<float> output = Compute(inputs, 16, {70}, 1);
  for (int64_t position = 0; position < 70; ++position) {
    for (int64_t i = 0; i < 32; ++i) {
      EXPECT_EQ(std::isnan(output[position * 32 + i]), position >= 5) << position;
    }
  }
}

TEST(AttentionTest, LargeScoresDoNotOverflow) {
  Inputs inputs = RandomInputs(1, 130, 2, 1, 16);
  for (float& q : inputs.queries) q *= 1000;
  for (const float value : Compute(inputs, 16, {130}, 1)) EXPECT_TRUE(std::isfinite(value));
}

}  // namespace
}  // namespace fabricast
