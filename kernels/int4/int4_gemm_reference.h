// INT4 matrix products on the CPU, in float64.
#ifndef FABRICAST_KERNELS_INT4_INT4_GEMM_REFERENCE_H_
#define FABRICAST_KERNELS_INT4_INT4_GEMM_REFERENCE_H_

#include <cstdint>
#include <vector>

#include "kernels/int4/int4_matrix_reference.h"

namespace fabricast {

// [tokens, outputs]: output[t][n] = sum over k of x[t][k] w[n][k]. `x`: [tokens, inputs].
inline std::vector<double> Int4GemmReference(const PlainInt4& weights, const std::vector<float>& x,
                                             int64_t tokens) {
  std::vector<double> output(static_cast<size_t>(tokens * weights.outputs));
  std::vector<double> row(static_cast<size_t>(weights.inputs));
  for (int64_t n = 0; n < weights.outputs; ++n) {
    for (int64_t k = 0; k < weights.inputs; ++k) row[static_cast<size_t>(k)] = weights.Weight(n, k);
    for (int64_t t = 0; t < tokens; ++t) {
      const float* const values = x.data() + t * weights.inputs;
      double sum = 0;
      for (int64_t k = 0; k < weights.inputs; ++k) sum += values[k] * row[static_cast<size_t>(k)];
      output[static_cast<size_t>(t * weights.outputs + n)] = sum;
    }
  }
  return output;
}

}  // namespace fabricast

#endif  // FABRICAST_KERNELS_INT4_INT4_GEMM_REFERENCE_H_
