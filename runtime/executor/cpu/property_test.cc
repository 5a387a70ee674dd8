// A request gets the same tokens, and every stage computes the same bits, whatever the schedule:
// random micro-batches, chunks, preemptions, splits into stages, threads and block sizes against
// each request alone, its prompt in one piece.

#include <algorithm>
#include <bit>
#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "runtime/executor/cpu/test_pipeline.h"
#include "runtime/executor/cpu/test_weights.h"

namespace fabricast {
namespace {

constexpr int kSchedules = 60;  // of each model
constexpr int64_t kOutputTokens = 6;

struct Request {
  std::vector<int32_t> prompt;
  SamplingParams sampling;

  // Alone:
  std::vector<int32_t> tokens;             // prompt and output
  std::vector<SampledToken> sampled;       // one an output token
  std::vector<std::vector<float>> hidden;  // before each layer and after the last: [tokens, hidden]
};

bool SameBits(absl::Span<const float> a, absl::Span<const float> b) {
  return a.size() == b.size() && std::equal(a.begin(), a.end(), b.begin(), [](float x, float y) {
           return std::bit_cast<uint32_t>(x) == std::bit_cast<uint32_t>(y);
         });
}

void ExpectSame(const SampledToken& actual, const SampledToken& expected) {
  EXPECT_EQ(actual.token, expected.token);
  EXPECT_TRUE(SameBits({actual.logprob}, {expected.logprob}))
      << actual.logprob << " " << expected.logprob;
  EXPECT_TRUE(SameBits(Logprobs(actual), Logprobs(expected)));
}

Request RandomRequest(RandomNormal& random, const DecoderConfig& config) {
  Request request;
  const int64_t tokens = random.Between(1, random.Between(0, 3) == 0 ? 140 : 30);
  for (int64_t i = 0; i < tokens; ++i) {
    request.prompt.push_back(static_cast<int32_t>(random.Between(0, config.vocabulary - 1)));
  }
  request.sampling = Greedy(config);
  if (random.Between(0, 1) == 0) {
    request.sampling.temperature = 0.25 * static_cast<double>(random.Between(1, 8));
    request.sampling.top_k = random.Between(0, 20);
    request.sampling.top_p = random.Between(0, 1) == 0 ? 1 : 0.8;
    request.sampling.seed = static_cast<uint64_t>(random.Between(0, 1000));
  }
  if (random.Between(0, 2) == 0) request.sampling.repetition_penalty = 1.3;
  return request;
}

// Fills in what it gets alone: one stage a layer, embedding and lm_head by themselves, one thread.
void RunAlone(const Fixture& fixture, Request& request) {
  std::vector<int64_t> layers(fixture.config.layers + 2, 1);
  layers.front() = layers.back() = 0;
  TestPipeline pipeline(fixture.config, fixture.checkpoint, layers,
                        {.threads = 1, .kv_block_tokens = 16, .kv_blocks = 100});
  request.hidden.resize(layers.size() - 1);
  std::vector<int32_t> next = request.prompt;
  for (int64_t i = 0; i < kOutputTokens; ++i) {
    const std::vector<SampledToken> sampled =
        pipeline.Run(MakeStep({{.request = 0,
                                .first_token = static_cast<int64_t>(request.tokens.size()),
                                .tokens = next,
                                .sampling = request.sampling}}));
    for (size_t stage = 0; stage + 1 < layers.size(); ++stage) {
      const absl::Span<const float> hidden = pipeline.Activations(stage);
      request.hidden[stage].insert(request.hidden[stage].end(), hidden.begin(), hidden.end());
    }
    request.tokens.insert(request.tokens.end(), next.begin(), next.end());
    request.sampled.push_back(sampled.at(0));
    next = {sampled[0].token};
  }
}

// Runs `requests` in random micro-batches until all have their output, and compares.
void RunTogether(const Fixture& fixture, const std::vector<Request>& requests,
                 RandomNormal& random) {
  const DecoderConfig& config = fixture.config;
  std::vector<int64_t> layers;
  for (int64_t left = config.layers; left > 0;) {
    layers.push_back(random.Between(random.Between(0, 3) == 0 ? 0 : 1, left));
    left -= layers.back();
  }
  if (random.Between(0, 5) == 0) layers.push_back(0);
  const CpuExecutorOptions options = {.threads = static_cast<int>(random.Between(1, 3)),
                                      .kv_block_tokens = random.Between(1, 40),
                                      .kv_blocks = 3000};
  SCOPED_TRACE(absl::StrCat(layers.size(), " stages, ", options.threads, " threads, blocks of ",
                            options.kv_block_tokens));
  TestPipeline pipeline(config, fixture.checkpoint, layers, options);

  std::vector<int64_t> computed(requests.size(), 0);  // tokens in the cache
  std::vector<int64_t> known;                         // tokens: prompt and output
  for (const Request& request : requests) {
    known.push_back(static_cast<int64_t>(request.prompt.size()));
  }
  const auto done = [&](size_t i) {
    return known[i] == static_cast<int64_t>(requests[i].prompt.size()) + kOutputTokens;
  };
  std::set<RequestId> released;
  for (;;) {
    std::vector<TestEntry> entries;
    bool all_done = true;
    for (size_t i = 0; i < requests.size(); ++i) {
      if (done(i)) continue;
      all_done = false;
      if (random.Between(0, 3) == 0) continue;
      if (computed[i] > 0 && random.Between(0, 12) == 0) {  // preempted
        computed[i] = 0;
        released.insert(static_cast<RequestId>(i));
        if (random.Between(0, 1) == 0) continue;
      }
      const int64_t left = known[i] - computed[i];
      const int64_t tokens = random.Between(0, 2) == 0 ? left : random.Between(1, left);
      const auto first = requests[i].tokens.begin() + computed[i];
      entries.push_back({.request = static_cast<RequestId>(i),
                         .first_token = computed[i],
                         .tokens = std::vector<int32_t>(first, first + tokens),
                         .samples = tokens == left,
                         .sampling = requests[i].sampling});
    }
    if (all_done) break;
    if (entries.empty()) continue;
    std::rotate(entries.begin(),
                entries.begin() + random.Between(0, static_cast<int64_t>(entries.size()) - 1),
                entries.end());

    const std::vector<SampledToken> sampled =
        pipeline.Run(MakeStep(entries, {released.begin(), released.end()}));
    released.clear();

    int64_t boundary = 0;
    for (size_t stage = 0; stage + 1 < layers.size(); ++stage) {
      boundary += layers[stage];
      const int64_t hidden = config.hidden;
      int64_t row = 0;
      for (const TestEntry& entry : entries) {
        const int64_t count = static_cast<int64_t>(entry.tokens.size()) * hidden;
        EXPECT_TRUE(SameBits(pipeline.Activations(stage).subspan(row, count),
                             absl::MakeConstSpan(requests[entry.request].hidden[boundary])
                                 .subspan(entry.first_token * hidden, count)))
            << "stage " << stage << " request " << entry.request;
        row += count;
      }
    }
    size_t at = 0;
    for (const TestEntry& entry : entries) {
      const Request& request = requests[entry.request];
      computed[entry.request] += static_cast<int64_t>(entry.tokens.size());
      if (!entry.samples) continue;
      ASSERT_LT(at, sampled.size());
      const size_t output = known[entry.request] - request.prompt.size();
      ExpectSame(sampled[at++], request.sampled[output]);
      ++known[entry.request];
    }
    EXPECT_EQ(at, sampled.size());
    if (testing::Test::HasFailure()) return;
  }
}

class PropertyTest : public testing::TestWithParam<std::string> {};

TEST_P(PropertyTest, ResultsAreTheSameBitsInAnySchedule) {
  const Fixture fixture = LoadFixture(GetParam());
  for (uint32_t seed = 1; seed <= kSchedules; ++seed) {
    SCOPED_TRACE(absl::StrCat("seed ", seed));
    RandomNormal random(seed);
    std::vector<Request> requests(random.Between(1, 7));
    for (Request& request : requests) {
      request = RandomRequest(random, fixture.config);
      RunAlone(fixture, request);
    }
    RunTogether(fixture, requests, random);
    if (HasFailure()) return;
  }
}

INSTANTIATE_TEST_SUITE_P(Models, PropertyTest, testing::ValuesIn(FixtureNames()),
                         [](const auto& info) { return info.param; });

}  // namespace
}  // namespace fabricast
