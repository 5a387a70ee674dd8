// What a layer computes beside matrix products and attention, row by row.
//
// Sums run over 16 lanes, as in matmul.h. Pointers to rows may be unaligned; no row is read or
// written beyond its end.
#ifndef FABRICAST_RUNTIME_EXECUTOR_CPU_ELEMENTWISE_H_
#define FABRICAST_RUNTIME_EXECUTOR_CPU_ELEMENTWISE_H_

#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "runtime/model/decoder_config.h"

namespace fabricast {

// output = gain * (input / sqrt(mean(input^2) + epsilon)). May work in place.
void RmsNorm(const float* input, absl::Span<const float> gain, float epsilon, float* output);

// gate[i] = silu(gate[i]) * up[i], silu(x) = x / (1 + exp(-x)).
void SiluMultiply(int64_t count, const float* up, float* gate);

// sum[i] += x[i], and sum[i] += weight * x[i].
void AddTo(int64_t count, const float* x, float* sum);
void AddWeighted(int64_t count, float weight, const float* x, float* sum);

bool AllFinite(int64_t count, const float* x);

// The angle by which RoPE turns the pair (i, i + head_dim / 2) from one position to the next, for i
// in [0, head_dim / 2). In float32, operation by operation as transformers computes it
// (modeling_rope_utils.py): a longer context multiplies each rounding by its position.
std::vector<float> RopeFrequencies(const DecoderConfig& config);

// Cosines and sines at `position`.
void RopeAngles(absl::Span<const float> frequencies, int64_t position, float* cosines,
                float* sines);

// Turns the pairs (i, i + count) of `head`, which has 2 count elements.
void Rotate(int64_t count, const float* cosines, const float* sines, float* head);

}  // namespace fabricast

#endif  // FABRICAST_RUNTIME_EXECUTOR_CPU_ELEMENTWISE_H_
