// From logits to tokens on the GPU: what runtime/executor/sampling.h computes on the CPU, in its
// order (repetition penalty, temperature, top-k, top-p, draw in the order of ids), with its random
// numbers. The two differ only where a rounding decides.
#ifndef FABRICAST_KERNELS_SAMPLING_SAMPLING_H_
#define FABRICAST_KERNELS_SAMPLING_SAMPLING_H_

#include <cstdint>

#include "absl/status/status.h"
#include "kernels/gpu/gpu_stream.h"

namespace fabricast {

// Of one row of logits. In the GPU's memory, so that a graph can be replayed with others.
struct GpuSamplingRow {
  float temperature = 0;  // 0: greedy
  float top_p = 1;
  int32_t top_k = 0;  // 0: all
  float repetition_penalty = 1;
  uint64_t seed = 0;
  int64_t position = 0;
  int32_t history = -1;  // index of the row's bitmap of seen tokens; < 0: no penalty
  int32_t skip = 0;      // not 0: the row is not sampled
};

struct GpuSampledToken {
  int32_t token = 0;  // 0 if it is not valid
  int32_t valid = 0;  // 0: a logit is NaN or +infinity, or all are -infinity
  float largest = 0;  // of the logits, before the penalty
};

constexpr int kMaxSampledVocabulary = 1 << 19;

constexpr int64_t HistoryWords(int64_t vocabulary) { return (vocabulary + 31) / 32; }

// `logits`: FP32 [rows, vocabulary], `stride` elements between rows; scratch afterwards.
// `histories`: bitmaps of HistoryWords(vocabulary) words, bit t % 32 of word t / 32: token t was
// seen. Few rows are shared by up to 8 blocks each (compute capability 9.0 and later), but sums are
// of integers, so that a token depends on its own logits and parameters alone. `sampled` of a row
// that is skipped stays as it is.
//
// kInvalidArgument if a row has no logits, or more than kMaxSampledVocabulary, or rows overlap.
absl::Status SampleTokens(float* logits, int64_t stride, int rows, int vocabulary,
                          const GpuSamplingRow* parameters, const uint32_t* histories,
                          GpuSampledToken* sampled, const LaunchOptions& options);

// Sets the bits of tokens[i] in bitmap history[i], i < count, where history[i] >= 0.
absl::Status RecordHistory(const int32_t* tokens, const int32_t* history, int count, int vocabulary,
                           uint32_t* histories, const LaunchOptions& options);

}  // namespace fabricast

#endif  // FABRICAST_KERNELS_SAMPLING_SAMPLING_H_
