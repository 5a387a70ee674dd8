// Products for the tests of the INT4 kernels: made on the CPU, multiplied on the GPU, compared with
// float64.
//
// Activations that a kernel must not use are NaN; what it must not write is poisoned, and is
// checked.
#ifndef FABRICAST_KERNELS_INT4_INT4_GEMM_CASE_H_
#define FABRICAST_KERNELS_INT4_INT4_GEMM_CASE_H_

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "kernels/gpu/gpu_stream.h"
#include "kernels/int4/activations.h"
#include "kernels/int4/gemm_output.h"
#include "kernels/int4/int4_matrix.h"
#include "kernels/int4/int4_matrix_reference.h"
#include "kernels/timing/device_array.h"

namespace fabricast {

struct Int4GemmKernel {
  ActivationFormat format;
  absl::Status (*multiply)(const Int4Matrix&, const Activations&, const GemmOutput&, void*,
                           const LaunchOptions&);
  int64_t (*workspace_bytes)();
  // Up to so many tokens weights are integers beside a bias, and a group's sum is scaled; beyond,
  // weights are scaled, and rounded to FP16, before they are multiplied.
  int most_biased_tokens;
};

inline constexpr OutputKind kOutputKinds[] = {OutputKind::kBf16, OutputKind::kF32,
                                              OutputKind::kAddF32};

// All quants 15, all scales FP16's largest.
PlainInt4 LargestInt4(int64_t outputs, int64_t inputs);
// Scales of a row up to 2^7 apart.
PlainInt4 WidelyScaledInt4(int64_t outputs, int64_t inputs);

// A matrix and activations of which tests use the first tokens: of very different sizes, the sixth
// zero. Needs a GPU. Failures are those of gtest. One thread.
class Int4GemmCase {
 public:
  Int4GemmCase(const Int4GemmKernel& kernel, PlainInt4 weights, int most_tokens);

  // [most_tokens, inputs], BF16: instead of those.
  void SetRows(const std::vector<uint16_t>& rows);

  // Multiplies the first `tokens` and checks all that was written, in rows that are `padding`
  // elements longer than they must be, and that nothing else was. Failures are fatal.
  void Check(int tokens, OutputKind kind, int64_t padding = 0);

  // Multiplies again and again, and compares the bits. Failures are fatal.
  void CheckRepeats(int tokens);

  // The same for a graph in which each product takes the one before as its input: packing overlaps
  // the product before, and the product the packing. One workspace serves all. As many outputs as
  // inputs. Failures are fatal.
  void CheckOverlappingGraph(int tokens);

 private:
  // The bytes of [tokens + 1, Stride(padding)].
  std::vector<uint8_t> Multiply(int tokens, OutputKind kind, int64_t padding);
  int64_t Stride(int64_t padding) const { return (weights_.outputs + 3) / 4 * 4 + padding; }
  void CheckRow(const uint8_t* row, int token, int tokens, OutputKind kind) const;
  void SetBounds(const std::vector<float>& x);

  Int4GemmKernel kernel_;
  PlainInt4 weights_;
  int most_tokens_;
  Int4Matrix matrix_;
  DeviceArray<uint8_t> blocks_, workspace_;
  DeviceArray<float> row_scale_;
  DeviceArray<uint16_t> rows_;
  // [most_tokens, outputs]: products, and how far off the sums may be before they are stored.
  std::vector<double> expected_, biased_bound_, scaled_bound_;
};

}  // namespace fabricast

#endif  // FABRICAST_KERNELS_INT4_INT4_GEMM_CASE_H_
