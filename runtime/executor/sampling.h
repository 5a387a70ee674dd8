// From logits to a token.
#ifndef FABRICAST_RUNTIME_EXECUTOR_SAMPLING_H_
#define FABRICAST_RUNTIME_EXECUTOR_SAMPLING_H_

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"

namespace fabricast {

// So that what a token brings fits into one message of a stage.
constexpr int kMaxLogprobs = 4000;

struct SamplingParams {
  double temperature = 0;  // 0: greedy (the lowest id of equal logits)
  double top_p = 1;   // (0, 1]: the fewest most likely tokens whose sum reaches it, low ids first
  int64_t top_k = 0;  // 0: all; those that equal the k-th stay too
  double repetition_penalty = 1;  // > 0; on tokens of the prompt and the output, as Hugging Face
  uint64_t seed = 0;
  // Alternatives whose log-probabilities are reported beside the chosen token's, kMaxLogprobs at
  // most; -1: none of these.
  int logprobs = -1;
};

// kInvalidArgument naming the parameter and its range.
absl::Status Validate(const SamplingParams& params);

struct TokenLogprob {
  int32_t token = 0;
  float logprob = 0;
};

struct SampledToken {
  int32_t token = 0;
  float logprob = 0;              // if asked for; of the model itself: before all of the above
  std::vector<TokenLogprob> top;  // as many as asked for, the most likely first
};

// Draws the token at `position` of a request: of those kept, in the order of their ids, the first
// at which the sum of probabilities exceeds a uniform random number. That is Philox's
// (kernels/sampling/philox.h) for `position` under the key `seed`, so that a request gets the same
// tokens whatever it is batched with, also when it is computed again. `history`: its tokens so far,
// prompt included, read only for the repetition penalty. `logits` is scratch afterwards.
// Thread-safe. kInternal if a logit is NaN or all are -infinity.
//
// Order, as Hugging Face: repetition penalty, temperature, top-k, top-p. Not finite is an error, so
// that a broken kernel does not look like a model that talks nonsense.
absl::StatusOr<SampledToken> Sample(const SamplingParams& params, int64_t position,
                                    absl::Span<const int32_t> history, absl::Span<float> logits);

}  // namespace fabricast

#endif  // FABRICAST_RUNTIME_EXECUTOR_SAMPLING_H_
