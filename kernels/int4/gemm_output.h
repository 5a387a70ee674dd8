// Where a matrix product's results go.
#ifndef FABRICAST_KERNELS_INT4_GEMM_OUTPUT_H_
#define FABRICAST_KERNELS_INT4_GEMM_OUTPUT_H_

#include <cstdint>

namespace fabricast {

enum class OutputKind {
  kBf16,    // stores BF16
  kF32,     // stores FP32
  kAddF32,  // adds to the FP32 that is there: the residual stream
};

// [tokens, outputs], row-major with `stride` elements between rows (a multiple of 4; data 16-byte
// aligned).
struct GemmOutput {
  OutputKind kind = OutputKind::kBf16;
  void* data = nullptr;
  int64_t stride = 0;
};

}  // namespace fabricast

#endif  // FABRICAST_KERNELS_INT4_GEMM_OUTPUT_H_
