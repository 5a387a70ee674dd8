#include "runtime/executor/sampling.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>

#include "absl/strings/str_cat.h"
#include "kernels/sampling/philox.h"
#include "runtime/check.h"
#include "runtime/executor/logit_kernels.h"

namespace fabricast {
namespace {

absl::Status OutOfRange(absl::string_view name, double value, absl::string_view range) {
  return absl::InvalidArgumentError(absl::StrCat(name, " is ", value, "; give ", range));
}

// What a call needs beside the logits; kept, so that no call allocates but the first few.
struct Scratch {
  std::vector<double> block_sums;
  std::vector<float> maxima;
  std::vector<float> raw;  // the logits as they came
  std::vector<int32_t> candidates;
  std::vector<uint64_t> seen;  // a bit a token, all zero between calls
};

Scratch& ThreadScratch() {
  static thread_local Scratch scratch;
  return scratch;
}

// By value, largest first; the lowest index of equal ones first.
struct Before {
  const float* values;
  bool operator()(int32_t a, int32_t b) const {
    return values[a] != values[b] ? values[a] > values[b] : a < b;
  }
};

// Each token of the history once, however often it is in there.
void Penalize(double penalty, absl::Span<const int32_t> history, absl::Span<float> logits,
              Scratch& scratch) {
  const float factor = static_cast<float>(penalty);
  scratch.seen.resize(std::max(scratch.seen.size(), (logits.size() + 63) / 64), 0);
  for (const int32_t token : history) {
    FABRICAST_CHECK(token >= 0 && static_cast<size_t>(token) < logits.size())
        << "token=" << token << " vocabulary=" << logits.size();
    uint64_t& word = scratch.seen[token / 64];
    const uint64_t bit = uint64_t{1} << (token % 64);
    if ((word & bit) != 0) continue;
    word |= bit;
    float& logit = logits[token];
    logit = logit < 0 ? logit * factor : logit / factor;
  }
  for (const int32_t token : history) scratch.seen[token / 64] = 0;
}

// The k-th largest of `values`, 0 < k <= their number. The k-th largest of the blocks' maxima is
// a bound: k elements are at least as large. So few remain to be looked at.
float KthLargest(absl::Span<const float> values, size_t k, Scratch& scratch) {
  BlockMaxima(values, scratch.maxima);
  float bound = -std::numeric_limits<float>::infinity();
  if (k <= scratch.maxima.size()) {
    std::nth_element(scratch.maxima.begin(), scratch.maxima.begin() + (k - 1), scratch.maxima.end(),
                     std::greater<float>());
    bound = scratch.maxima[k - 1];
  }
  scratch.candidates.clear();
  CollectAtLeast(values, bound, scratch.candidates);
  std::nth_element(scratch.candidates.begin(), scratch.candidates.begin() + (k - 1),
                   scratch.candidates.end(), Before{values.data()});
  return values[scratch.candidates[k - 1]];
}

// The k most likely tokens, in order.
void MostLikely(absl::Span<const float> logits, size_t k, Scratch& scratch,
                std::vector<TokenLogprob>& top) {
  top.clear();
  if (k == 0) return;
  const float bound = KthLargest(logits, k, scratch);
  scratch.candidates.clear();
  CollectAtLeast(logits, bound, scratch.candidates);
  std::sort(scratch.candidates.begin(), scratch.candidates.end(), Before{logits.data()});
  for (size_t i = 0; i < k; ++i) {
    top.push_back({.token = scratch.candidates[i], .logprob = logits[scratch.candidates[i]]});
  }
}

double SumOf(absl::Span<const int32_t> tokens, absl::Span<const float> weights) {
  double sum = 0;
  for (const int32_t token : tokens) sum += weights[token];
  return sum;
}

// Moves the fewest largest weights whose sum reaches `mass` to the front of `tokens`, in any order,
// and returns how many they are: quickselect, but by weight.
size_t SmallestPrefix(std::vector<int32_t>& tokens, absl::Span<const float> weights, double mass) {
  const Before before{weights.data()};
  size_t first = 0;  // those before are in
  size_t last = tokens.size();
  while (last - first > 32) {
    const size_t middle = first + (last - first) / 2;
    std::nth_element(tokens.begin() + first, tokens.begin() + middle, tokens.begin() + last,
                     before);
    const double half = SumOf(absl::MakeConstSpan(tokens).subspan(first, middle - first), weights);
    if (half >= mass) {
      last = middle;
    } else {
      mass -= half;
      first = middle;
    }
  }
  std::sort(tokens.begin() + first, tokens.begin() + last, before);
  for (; first < last; ++first) {
    mass -= weights[tokens[first]];
    if (mass <= 0) return first + 1;
  }
  return last;
}

// Leaves in `candidates` the tokens that top-p keeps, ascending. `weights` sum to `sum`; those that
// are 0 are out already. `candidates_known`: `candidates` holds all others.
void KeepTopP(double top_p, double sum, absl::Span<const float> weights, bool candidates_known,
              std::vector<int32_t>& candidates) {
  const double mass = top_p * sum;
  if (!candidates_known) {
    // The largest weight is 1. Most models put most of the mass on few tokens; a token 2^-k of the
    // likeliest is rarely needed.
    for (float threshold = 0x1p-4f;; threshold *= 0x1p-8f) {
      candidates.clear();
      const bool all = threshold < 0x1p-80f;
      CollectAtLeast(weights, all ? std::numeric_limits<float>::denorm_min() : threshold,
                     candidates);
      if (all || SumOf(candidates, weights) >= mass) break;
    }
  }
  candidates.resize(SmallestPrefix(candidates, weights, mass));
  std::sort(candidates.begin(), candidates.end());
}

// Of `tokens`, ascending: the first at which the sum of weights exceeds uniform * sum.
int32_t Draw(double uniform, absl::Span<const int32_t> tokens, absl::Span<const float> weights) {
  const double target = uniform * SumOf(tokens, weights);
  double sum = 0;
  for (const int32_t token : tokens) {
    sum += weights[token];
    if (sum > target) return token;
  }
  return tokens.back();  // rounding
}

// Of all tokens, by blocks.
int32_t DrawOfAll(double uniform, double sum, absl::Span<const double> block_sums,
                  absl::Span<const float> weights) {
  const double target = uniform * sum;
  double before = 0;
  size_t block = 0;
  while (block + 1 < block_sums.size() && before + block_sums[block] <= target) {
    before += block_sums[block++];
  }
  int32_t last = -1;  // of positive weight: the answer if rounding leads past the end
  for (size_t i = block * kLogitBlock; i < std::min(weights.size(), (block + 1) * kLogitBlock);
       ++i) {
    if (weights[i] == 0) continue;
    last = static_cast<int32_t>(i);
    before += weights[i];
    if (before > target) return last;
  }
  if (last >= 0) return last;
  return static_cast<int32_t>(std::max_element(weights.begin(), weights.end()) - weights.begin());
}

int32_t SampleToken(const SamplingParams& params, int64_t position, float largest,
                    absl::Span<float> logits, Scratch& scratch) {
  const size_t vocabulary = logits.size();
  if (params.temperature == 0) {
    return static_cast<int32_t>(std::find(logits.begin(), logits.end(), largest) - logits.begin());
  }
  const double uniform = UniformAt(params.seed, static_cast<uint64_t>(position));
  // (l - max) / T instead of l / T - max / T: a small T must not make infinities.
  const float temperature =
      std::max(static_cast<float>(params.temperature), std::numeric_limits<float>::min());

  if (params.top_k > 0 && static_cast<uint64_t>(params.top_k) < vocabulary) {
    // As Hugging Face keeps them: all that equal the k-th too.
    const float kth = KthLargest(logits, static_cast<size_t>(params.top_k), scratch);
    std::vector<int32_t>& kept = scratch.candidates;
    kept.clear();
    CollectAtLeast(logits, kth, kept);
    for (const int32_t token : kept) {
      logits[token] = std::exp((logits[token] - largest) / temperature);
    }
    if (params.top_p < 1) KeepTopP(params.top_p, SumOf(kept, logits), logits, true, kept);
    return Draw(uniform, kept, logits);
  }

  const double sum = Exponentials(logits, largest, temperature, logits.data(), scratch.block_sums);
  if (params.top_p < 1) {
    KeepTopP(params.top_p, sum, logits, false, scratch.candidates);
    return Draw(uniform, scratch.candidates, logits);
  }
  return DrawOfAll(uniform, sum, scratch.block_sums, logits);
}

}  // namespace

absl::Status Validate(const SamplingParams& params) {
  if (!(params.temperature >= 0) || std::isinf(params.temperature)) {
    return OutOfRange("temperature", params.temperature, "0 (greedy) or more");
  }
  if (!(params.top_p > 0 && params.top_p <= 1)) {
    return OutOfRange("top_p", params.top_p, "more than 0 and at most 1");
  }
  if (params.top_k < 0) {
    return OutOfRange("top_k", static_cast<double>(params.top_k), "0 (all tokens) or more");
  }
  if (!(params.repetition_penalty > 0) || std::isinf(params.repetition_penalty)) {
    return OutOfRange("repetition_penalty", params.repetition_penalty, "more than 0");
  }
  if (params.logprobs < -1 || params.logprobs > kMaxLogprobs) {
    return OutOfRange("logprobs", params.logprobs, absl::StrCat("-1 (none) to ", kMaxLogprobs));
  }
  return absl::OkStatus();
}

absl::StatusOr<SampledToken> Sample(const SamplingParams& params, int64_t position,
                                    absl::Span<const int32_t> history, absl::Span<float> logits) {
  FABRICAST_CHECK(!logits.empty());
  Scratch& scratch = ThreadScratch();
  LargestLogit largest = FindLargest(logits);
  const auto not_finite = [&] {
    return absl::InternalError(absl::StrCat("the logits at position ", position,
                                            " are not finite (the largest is ", largest.value,
                                            ")"));
  };
  if (!largest.valid) return not_finite();

  SampledToken sampled;
  double log_sum = 0;  // of the exponentials of the model's own logits
  if (params.logprobs >= 0) {
    log_sum = largest.value +
              std::log(Exponentials(logits, largest.value, 1.0f, nullptr, scratch.block_sums));
    MostLikely(logits, std::min(static_cast<size_t>(params.logprobs), logits.size()), scratch,
               sampled.top);
    for (TokenLogprob& top : sampled.top) top.logprob = static_cast<float>(top.logprob - log_sum);
    scratch.raw.assign(logits.begin(), logits.end());
  }
  if (params.repetition_penalty != 1) {
    Penalize(params.repetition_penalty, history, logits, scratch);
    largest = FindLargest(logits);
    if (!largest.valid) return not_finite();
  }
  sampled.token = SampleToken(params, position, largest.value, logits, scratch);
  if (params.logprobs >= 0) {
    sampled.logprob = static_cast<float>(scratch.raw[sampled.token] - log_sum);
  }
  return sampled;
}

}  // namespace fabricast
