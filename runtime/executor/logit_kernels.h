// Passes over a vocabulary of logits.
//
// Sums are of 16 lanes in float32 over 1,024 elements, and of these in double: the same on every
// processor that fuses multiply and add, whatever the width of its vectors.
#ifndef FABRICAST_RUNTIME_EXECUTOR_LOGIT_KERNELS_H_
#define FABRICAST_RUNTIME_EXECUTOR_LOGIT_KERNELS_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/types/span.h"

namespace fabricast {

// Elements that are summed in float32.
inline constexpr size_t kLogitBlock = 1024;

struct LargestLogit {
  float value;
  bool valid;  // no element is NaN or +infinity, and not all are -infinity
};
LargestLogit FindLargest(absl::Span<const float> logits);

// weights[i] = exp((logits[i] - largest) / temperature), which may be in place, and their sums by
// block. Returns the sum of these. `largest` >= all logits; null `weights`: only the sum.
double Exponentials(absl::Span<const float> logits, float largest, float temperature,
                    float* weights, std::vector<double>& block_sums);

// Appends the indices of elements >= `threshold`, ascending.
void CollectAtLeast(absl::Span<const float> values, float threshold, std::vector<int32_t>& indices);

// The largest of each 128 elements.
inline constexpr size_t kMaximaBlock = 128;
void BlockMaxima(absl::Span<const float> values, std::vector<float>& maxima);

}  // namespace fabricast

#endif  // FABRICAST_RUNTIME_EXECUTOR_LOGIT_KERNELS_H_
