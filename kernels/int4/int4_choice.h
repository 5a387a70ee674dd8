// Which of the INT4 matrix products to run: the crossovers, in one place.
#ifndef FABRICAST_KERNELS_INT4_INT4_CHOICE_H_
#define FABRICAST_KERNELS_INT4_INT4_CHOICE_H_

#include <cstdint>

#include "kernels/int4/activations.h"

namespace fabricast {

enum class Int4Kind {
  kMma,         // Int4GemmMma
  kWgmma,       // Int4GemmWgmma
  kManyTokens,  // Int4ManyTokens
};

// What a product's input must be in.
inline ActivationFormat FormatFor(Int4Kind kind) {
  switch (kind) {
    case Int4Kind::kMma:
      return ActivationFormat::kMma;
    case Int4Kind::kWgmma:
      return ActivationFormat::kWgmma;
    case Int4Kind::kManyTokens:
      break;
  }
  return ActivationFormat::kBf16Rows;
}

// `compute_capability`: 10 x major + minor. A choice depends on the shape and the GPU alone, so
// that one layer's products, and one token's sums, are the same from run to run.
//
// Measured on an H200 (docs/kernels.md): mma.sync is as fast as memory up to 16 tokens, then bound
// by power; wgmma is the fastest from there on for all shapes of Llama 3.1, and beyond 2,048 tokens
// still ahead of dequantising for cuBLASLt.
inline Int4Kind ChooseInt4(int tokens, [[maybe_unused]] int64_t outputs,
                           [[maybe_unused]] int64_t inputs, int compute_capability) {
  constexpr int kMmaTokensWhereWgmma = 16;
  constexpr int kMmaTokens = 64;
  if (compute_capability == 90) {
    return tokens <= kMmaTokensWhereWgmma ? Int4Kind::kMma : Int4Kind::kWgmma;
  }
  return tokens <= kMmaTokens ? Int4Kind::kMma : Int4Kind::kManyTokens;
}

}  // namespace fabricast

#endif  // FABRICAST_KERNELS_INT4_INT4_CHOICE_H_
