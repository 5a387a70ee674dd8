// Matrix products on the CPU, in double.
#ifndef FABRICAST_KERNELS_DENSE_DENSE_REFERENCE_H_
#define FABRICAST_KERNELS_DENSE_DENSE_REFERENCE_H_

#include <cmath>
#include <cstddef>
#include <vector>

#include "absl/types/span.h"

namespace fabricast {

struct ProductReference {
  std::vector<double> values;      // [tokens, outputs]
  std::vector<double> magnitudes;  // the same of absolute values
};

// `input` [tokens, inputs], `weights` [outputs, inputs].
inline ProductReference MultiplyReference(absl::Span<const float> input,
                                          absl::Span<const float> weights, size_t inputs) {
  const size_t tokens = input.size() / inputs, outputs = weights.size() / inputs;
  ProductReference product;
  product.values.reserve(tokens * outputs);
  product.magnitudes.reserve(tokens * outputs);
  for (size_t token = 0; token < tokens; ++token) {
    for (size_t output = 0; output < outputs; ++output) {
      double value = 0, magnitude = 0;
      for (size_t k = 0; k < inputs; ++k) {
        const double term = double{input[token * inputs + k]} * weights[output * inputs + k];
        value += term;
        magnitude += std::abs(term);
      }
      product.values.push_back(value);
      product.magnitudes.push_back(magnitude);
    }
  }
  return product;
}

// How far an FP32 sum of products of 8- or 11-bit factors, which are exact, may be from
// `magnitude`'s sum of `inputs` terms: each addition of at most `inputs` cuts off less than one
// unit in the last place, 2^-23 of the sum of magnitudes (tensor cores do not round).
inline double SumTolerance(double magnitude, size_t inputs) {
  return static_cast<double>(inputs) * 0x1p-23 * magnitude;
}

}  // namespace fabricast

#endif  // FABRICAST_KERNELS_DENSE_DENSE_REFERENCE_H_
