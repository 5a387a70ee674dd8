// What a layer computes beside matrix products and attention. All pointers are in the GPU's memory.
// Where data and rows are 16-byte aligned, they are read and written as such; they need not be.
//
// Weights (gain, bias, frequencies) are read before earlier kernels of the stream have ended: what
// wrote them must have ended before the kernel that is before this one in the stream began.
//
// The residual stream h is FP32 [rows, hidden], row-major; between stages it is BF16.
#ifndef FABRICAST_KERNELS_ELEMENTWISE_ELEMENTWISE_H_
#define FABRICAST_KERNELS_ELEMENTWISE_ELEMENTWISE_H_

#include <cstdint>

#include "absl/status/status.h"
#include "kernels/attention/kv_cache.h"
#include "kernels/gpu/gpu_stream.h"
#include "kernels/int4/activations.h"

namespace fabricast {

enum class ElementType { kBf16, kF16, kF32 };

// h[r] = table[tokens[r]]; table [vocabulary, hidden].
absl::Status Embed(const void* table, ElementType type, const int32_t* tokens, int rows, int hidden,
                   float* h, const LaunchOptions& options);

// Between stages.
absl::Status FromBf16(const void* bf16, int64_t count, float* f32, const LaunchOptions& options);
absl::Status ToBf16(const float* f32, int64_t count, void* bf16, const LaunchOptions& options);

// output row r = gain * (h[s] / sqrt(mean(h[s]^2) + epsilon)), s = source_rows[r], or r if it is
// null. output.layout.inputs is hidden. A row's result is the same to the last bit whatever the
// other rows are and however many.
absl::Status RmsNorm(const float* h, const int32_t* source_rows, const float* gain, float epsilon,
                     const Activations& output, const LaunchOptions& options);

// output[r][i] = silu(g) * u of g = gate_up[r][i], u = gate_up[r][ffn + i] (BF16, `stride` elements
// a row); output.layout.inputs is ffn.
absl::Status SwiGlu(const void* gate_up, int64_t stride, const Activations& output,
                    const LaunchOptions& options);

// BF16 rows (`stride` elements) into another layout: what attention wrote, for the product that
// follows.
absl::Status PackRows(const void* rows, int64_t stride, const Activations& output,
                      const LaunchOptions& options);

// Queries, keys and values of rows of a fused product, [heads + 2 kv_heads] x head_dim BF16, q, k,
// v in that order: adds `bias` (null: none), normalises each head of q and k by the gains (null:
// none), turns q and k by RoPE (pairs i, i + head_dim / 2; angle positions[r] * frequencies[i], in
// FP32), writes q back in place and k and v to the cache.
struct RopeArguments {
  void* qkv = nullptr;
  int64_t stride = 0;  // elements a row
  int rows = 0;
  int heads = 0;
  const int32_t* positions = nullptr;    // [rows]
  const int32_t* cache_slots = nullptr;  // [rows]: block * 16 + token in it; < 0: nothing is cached
  const float* frequencies = nullptr;    // [head_dim / 2]
  const float* bias = nullptr;           // [(heads + 2 kv_heads) * head_dim]
  const float* q_gain = nullptr;         // [head_dim]
  const float* k_gain = nullptr;
  float epsilon = 0;
  KvCacheView cache;
};
absl::Status RopeAndAppend(const RopeArguments& arguments, const LaunchOptions& options);

// Lowers *first_bad_row (INT32_MAX before) to the first of `rows` that holds a value which is not
// finite.
absl::Status FindNotFinite(const float* h, int rows, int hidden, int32_t* first_bad_row,
                           const LaunchOptions& options);

}  // namespace fabricast

#endif  // FABRICAST_KERNELS_ELEMENTWISE_ELEMENTWISE_H_
