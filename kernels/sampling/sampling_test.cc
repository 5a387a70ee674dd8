// Needs a GPU: tools/gpu_tests runs it.

#include "kernels/sampling/sampling.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_format.h"
#include "absl/types/span.h"
#include "gtest/gtest.h"
#include "kernels/sampling/philox.h"
#include "kernels/sampling/sampling_reference.h"
#include "kernels/timing/device_array.h"

namespace fabricast {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
// Weights are within 2 units in the last place (CUDA's expf), 2^-22 of them, and so are their sums:
// a quotient of two sums is within 2^-21. Cutting off at 2^-44 a token is less than 2^-25 of a sum.
constexpr double kRounding = 0x1p-20;

template <typename T>
DeviceArray<T> CopyOrDie(const std::vector<T>& values) {
  absl::StatusOr<DeviceArray<T>> array = DeviceArray<T>::CopyOf(values);
  EXPECT_TRUE(array.ok()) << array.status();
  return *std::move(array);
}

// Rows of logits, `padding` elements between them.
struct Rows {
  Rows(int vocabulary, int padding) : vocabulary(vocabulary), stride(vocabulary + padding) {}

  void Add(const std::vector<float>& row, const GpuSamplingRow& parameter) {
    logits.insert(logits.end(), row.begin(), row.end());
    logits.resize(logits.size() + static_cast<size_t>(stride - vocabulary), std::nanf(""));
    parameters.push_back(parameter);
  }
  absl::Span<const float> Logits(size_t row) const {
    return absl::MakeConstSpan(logits).subspan(row * static_cast<size_t>(stride),
                                               static_cast<size_t>(vocabulary));
  }

  int vocabulary;
  int64_t stride;
  std::vector<float> logits;
  std::vector<GpuSamplingRow> parameters;
  std::vector<uint32_t> histories;
};

// `batch` rows at a time; 0: all at once.
std::vector<GpuSampledToken> SampleOrDie(const Rows& rows, int batch = 0) {
  const DeviceArray<float> logits = CopyOrDie(rows.logits);
  const DeviceArray<GpuSamplingRow> parameters = CopyOrDie(rows.parameters);
  const DeviceArray<uint32_t> histories = CopyOrDie(rows.histories);
  const std::vector<GpuSampledToken> poison(rows.parameters.size() + 1,
                                            {.token = -1, .valid = -1, .largest = -1});
  const DeviceArray<GpuSampledToken> sampled = CopyOrDie(poison);
  const int count = static_cast<int>(rows.parameters.size());
  if (batch == 0) batch = count;
  for (int first = 0; first < count; first += batch) {
    const absl::Status status = SampleTokens(
        logits.get() + first * rows.stride, rows.stride, std::min(batch, count - first),
        rows.vocabulary, parameters.get() + first, histories.get(), sampled.get() + first, {});
    EXPECT_TRUE(status.ok()) << status;
  }
  EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  absl::StatusOr<std::vector<GpuSampledToken>> tokens = sampled.ToHost();
  EXPECT_TRUE(tokens.ok()) << tokens.status();
  EXPECT_EQ(tokens->back().token, -1) << "written behind the last row";
  tokens->pop_back();
  const absl::StatusOr<std::vector<float>> after = logits.ToHost();
  EXPECT_TRUE(after.ok()) << after.status();
  for (size_t i = 0; i < after->size(); ++i) {
    if (static_cast<int64_t>(i) % rows.stride < rows.vocabulary) continue;
    EXPECT_TRUE(std::isnan((*after)[i])) << "written between rows, element " << i;
  }
  return *std::move(tokens);
}

std::string ToString(const GpuSamplingRow& row) {
  return absl::StrFormat(
      "temperature %g, top_p %g, top_k %d, penalty %g, seed %d, position %d, history %d",
      row.temperature, row.top_p, row.top_k, row.repetition_penalty, row.seed, row.position,
      row.history);
}

void ExpectAsReference(const Rows& rows) {
  const std::vector<GpuSampledToken> sampled = SampleOrDie(rows);
  // The fewer rows, the more blocks share one; tokens are the same.
  for (const int batch : {7, 32, 60}) {
    const std::vector<GpuSampledToken> again = SampleOrDie(rows, batch);
    for (size_t i = 0; i < sampled.size(); ++i) {
      ASSERT_EQ(again[i].token, sampled[i].token)
          << "row " << i << " of vocabulary " << rows.vocabulary << ", " << batch << " at a time, "
          << ToString(rows.parameters[i]);
      ASSERT_EQ(again[i].valid, sampled[i].valid) << i;
    }
  }
  int failures = 0;
  int rounded = 0;
  for (size_t i = 0; i < sampled.size(); ++i) {
    const GpuSamplingRow& row = rows.parameters[i];
    const size_t words = static_cast<size_t>(HistoryWords(rows.vocabulary));
    const SamplingReference reference(
        rows.Logits(i), row,
        row.history < 0 ? absl::Span<const uint32_t>()
                        : absl::MakeConstSpan(rows.histories)
                              .subspan(static_cast<size_t>(row.history) * words, words));
    const std::string name =
        absl::StrFormat("row %d of vocabulary %d, %s", i, rows.vocabulary, ToString(row));
    if (row.skip != 0) {
      EXPECT_EQ(sampled[i].token, -1) << name;
      continue;
    }
    EXPECT_EQ(sampled[i].valid, reference.valid() ? 1 : 0) << name;
    if (!reference.valid()) {
      EXPECT_EQ(sampled[i].token, 0) << name;
      continue;
    }
    EXPECT_EQ(sampled[i].largest, reference.largest()) << name;
    if (row.temperature == 0) {
      EXPECT_EQ(sampled[i].token, reference.greedy()) << name;
      continue;
    }
    const double uniform = UniformAt(row.seed, static_cast<uint64_t>(row.position));
    const int32_t expected = reference.Draw(uniform);
    bool may_be = sampled[i].token == expected;
    for (const double factor : {1 - kRounding, 1., 1 + kRounding}) {
      for (const double u : {uniform - kRounding, uniform, uniform + kRounding}) {
        if (!may_be && sampled[i].token == reference.Draw(u, factor)) {
          may_be = true;
          ++rounded;
        }
      }
    }
    if (!may_be) {
      ADD_FAILURE() << name << ": " << sampled[i].token << " is not " << expected << ", uniform "
                    << uniform;
      ASSERT_LT(++failures, 8);
    }
  }
  // Of 2^20 draws one or two may fall into the margin of a cut.
  EXPECT_LE(rounded, 1 + static_cast<int>(sampled.size() / 100));
}

std::vector<float> RandomLogits(std::mt19937& generator, int count, double deviation) {
  std::vector<float> logits;
  for (int i = 0; i < count; ++i) {
    double sum = -6;  // of 12 uniforms: variance 1
    for (int j = 0; j < 12; ++j) sum += generator() * 0x1p-32;
    logits.push_back(static_cast<float>(deviation * sum));
  }
  return logits;
}

// As models have them, peaked and flat; many that are equal; some or most that are masked; all
// equal; one that has all.
std::vector<float> LogitsOfKind(int kind, std::mt19937& generator, int count) {
  std::vector<float> logits = RandomLogits(generator, count, kind == 1 ? 0.05 : 3);
  switch (kind) {
    case 2:
      for (float& logit : logits) logit = std::round(logit * 2) / 2;
      break;
    case 3:
      for (float& logit : logits) {
        if (generator() % 8 != 0) logit = -kInfinity;
      }
      logits[generator() % logits.size()] = 1;
      break;
    case 4:
      for (float& logit : logits) logit = generator() % 2 == 0 ? 0.f : -0.f;
      break;
    case 5:
      logits[generator() % logits.size()] = 1000;
      break;
    default:
      break;
  }
  return logits;
}

// All combinations of parameters, `every`-th of them, for logits of all kinds.
void ExpectAllParametersAsReference(int vocabulary, int padding, int every) {
  std::mt19937 generator(static_cast<uint32_t>(vocabulary));
  Rows rows(vocabulary, padding);
  constexpr int kHistories = 3;
  for (int64_t i = 0; i < kHistories * HistoryWords(vocabulary); ++i) {
    rows.histories.push_back(generator() & generator());
  }
  int combination = 0;
  for (const float temperature : {0.f, 1e-30f, 0.3f, 1.f, 3.f, 1e30f}) {
    for (const float top_p : {1.f, 0.9999f, 0.9f, 0.5f, 1e-6f}) {
      for (const int top_k : {0, 1, 7, 200, vocabulary - 1, vocabulary + 1}) {
        for (const float penalty : {1.f, 1.3f, 0.7f}) {
          if (combination++ % every != 0) continue;
          GpuSamplingRow row = {.temperature = temperature,
                                .top_p = top_p,
                                .top_k = top_k,
                                .repetition_penalty = penalty,
                                .seed = uint64_t{generator()} << 32 | generator(),
                                .position = static_cast<int64_t>(generator()),
                                .history = static_cast<int32_t>(generator() % 4) - 1,
                                .skip = generator() % 16 == 0};
          rows.Add(LogitsOfKind(static_cast<int>(generator() % 6), generator, vocabulary), row);
        }
      }
    }
  }
  ExpectAsReference(rows);
}

TEST(SamplingTest, TokensOfSmallVocabulariesAreTheReferences) {
  for (const int vocabulary : {1, 2, 5, 31, 320}) {
    ExpectAllParametersAsReference(vocabulary, 3, 1);
  }
}

TEST(SamplingTest, TokensOfMediumVocabulariesAreTheReferences) {
  ExpectAllParametersAsReference(1023, 1, 1);
  ExpectAllParametersAsReference(4096, 0, 1);
  ExpectAllParametersAsReference(32 * 1024 + 1, 7, 11);
}

TEST(SamplingTest, TokensOfALargeVocabularyAreTheReferences) {
  ExpectAllParametersAsReference(128'256, 0, 11);
}

TEST(SamplingTest, TokensOfTheLargestVocabularyAreTheReferences) {
  ExpectAllParametersAsReference(kMaxSampledVocabulary, 0, 101);
}

// Many positions of one request.
TEST(SamplingTest, TokensOfManyPositionsAreTheReferences) {
  std::mt19937 generator(1);
  Rows rows(2000, 0);
  const std::vector<float> logits = RandomLogits(generator, 2000, 2);
  for (int position = 0; position < 3000; ++position) {
    rows.Add(logits, {.temperature = 0.8f,
                      .top_p = position % 3 == 0 ? 1 : 0.95f,
                      .top_k = position % 2 == 0 ? 0 : 100,
                      .seed = 42,
                      .position = position});
  }
  ExpectAsReference(rows);
}

TEST(SamplingTest, ATokenDependsOnItsOwnRowAlone) {
  std::mt19937 generator(2);
  const std::vector<float> logits = RandomLogits(generator, 50'000, 1);
  const GpuSamplingRow row = {.temperature = 1, .top_p = 0.9f, .top_k = 40'000, .seed = 3};
  Rows alone(50'000, 0);
  alone.Add(logits, row);
  const int32_t token = SampleOrDie(alone).front().token;
  Rows many(50'000, 64);
  for (int i = 0; i < 200; ++i) {
    if (i % 2 == 0) {
      many.Add(logits, row);
    } else {
      many.Add(RandomLogits(generator, 50'000, 1), {.temperature = 1, .seed = generator()});
    }
  }
  for (int run = 0; run < 2; ++run) {
    const std::vector<GpuSampledToken> sampled = SampleOrDie(many);
    for (size_t i = 0; i < sampled.size(); i += 2) EXPECT_EQ(sampled[i].token, token) << i;
  }
}

TEST(SamplingTest, LogitsThatAreNotFiniteAreNotValid) {
  for (const int vocabulary : {1, 100, 5000}) {
    Rows rows(vocabulary, 2);
    rows.histories.assign(static_cast<size_t>(HistoryWords(vocabulary)), 0xffffffff);
    for (const float temperature : {0.f, 1.f}) {
      for (int i = 0; i<vocabulary; i += vocabulary> 1000 ? 97 : 1) {
        std::vector<float> logits(static_cast<size_t>(vocabulary), 1);
        logits[static_cast<size_t>(i)] = std::nanf("");
        rows.Add(logits, {.temperature = temperature});
        logits[static_cast<size_t>(i)] = kInfinity;
        rows.Add(logits, {.temperature = temperature});
        // Infinite by its penalty.
        logits[static_cast<size_t>(i)] = 3e38f;
        rows.Add(logits, {.temperature = temperature, .repetition_penalty = 0.1f, .history = 0});
        logits[static_cast<size_t>(i)] = 1;
        rows.Add(logits, {.temperature = temperature});
      }
      rows.Add(std::vector<float>(static_cast<size_t>(vocabulary), -kInfinity),
               {.temperature = temperature});
    }
    ExpectAsReference(rows);
  }
}

TEST(SamplingTest, SizesThatItCannotSampleAreRefused) {
  for (const auto& [stride, vocabulary] : std::vector<std::pair<int64_t, int>>{
           {8, 0}, {7, 8}, {kMaxSampledVocabulary + 1, kMaxSampledVocabulary + 1}}) {
    EXPECT_EQ(SampleTokens(nullptr, stride, 1, vocabulary, nullptr, nullptr, nullptr, {}).code(),
              absl::StatusCode::kInvalidArgument);
  }
  EXPECT_TRUE(SampleTokens(nullptr, 8, 0, 8, nullptr, nullptr, nullptr, {}).ok());
}

TEST(RecordHistoryTest, SetsTheBitsOfTheTokensThatHaveAHistory) {
  constexpr int kVocabulary = 1000, kHistories = 5;
  std::mt19937 generator(4);
  for (const int count : {0, 1, 3, 700}) {
    std::vector<int32_t> tokens, history;
    const size_t words = static_cast<size_t>(HistoryWords(kVocabulary));
    std::vector<uint32_t> expected(kHistories * words + 1, 0);
    expected[3] = 0xf0;
    const DeviceArray<uint32_t> histories = CopyOrDie(expected);
    for (int i = 0; i < count; ++i) {
      tokens.push_back(static_cast<int32_t>(generator() % kVocabulary));
      history.push_back(static_cast<int32_t>(generator() % (kHistories + 1)) - 1);
      if (history.back() < 0) continue;
      expected[static_cast<size_t>(history.back()) * words +
               static_cast<size_t>(tokens.back()) / 32] |= 1u << (tokens.back() % 32);
    }
    const DeviceArray<int32_t> device_tokens = CopyOrDie(tokens),
                               device_history = CopyOrDie(history);
    ASSERT_TRUE(RecordHistory(device_tokens.get(), device_history.get(), count, kVocabulary,
                              histories.get(), {})
                    .ok());
    EXPECT_EQ(*histories.ToHost(), expected) << count;
  }
}

}  // namespace
}  // namespace fabricast
