// What the attention kernels compute, in float64 and for one query.
#ifndef FABRICAST_KERNELS_ATTENTION_ATTENTION_REFERENCE_H_
#define FABRICAST_KERNELS_ATTENTION_ATTENTION_REFERENCE_H_

#include <algorithm>
#include <cmath>
#include <vector>

#include "absl/types/span.h"

namespace fabricast {

struct AttentionReferenceOutput {
  std::vector<double> output;  // [head_dim]
  std::vector<double>
      absolute;          // the same of the values' absolute values: errors are in proportion
  double max_score = 0;  // the largest |q|.|k| * scale, of absolute values
};

// keys and values: [context][head_dim], of the query's KV head.
inline AttentionReferenceOutput AttentionReference(absl::Span<const float> query,
                                                   absl::Span<const float> keys,
                                                   absl::Span<const float> values, double scale) {
  const size_t head_dim = query.size(), context = keys.size() / head_dim;
  AttentionReferenceOutput result;
  std::vector<double> weights(context);
  double max = -INFINITY;
  for (size_t token = 0; token < context; ++token) {
    double score = 0, absolute = 0;
    for (size_t dim = 0; dim < head_dim; ++dim) {
      const double product = double{query[dim]} * double{keys[token * head_dim + dim]};
      score += product;
      absolute += std::abs(product);
    }
    weights[token] = score * scale;
    max = std::max(max, weights[token]);
    result.max_score = std::max(result.max_score, absolute * std::abs(scale));
  }
  double sum = 0;
  for (double& weight : weights) {
    weight = std::exp(weight - max);
    sum += weight;
  }
  result.output.resize(head_dim);
  result.absolute.resize(head_dim);
  for (size_t token = 0; token < context; ++token) {
    for (size_t dim = 0; dim < head_dim; ++dim) {
      const double part = weights[token] / sum * double{values[token * head_dim + dim]};
      result.output[dim] += part;
      result.absolute[dim] += std::abs(part);
    }
  }
  return result;
}

}  // namespace fabricast

#endif  // FABRICAST_KERNELS_ATTENTION_ATTENTION_REFERENCE_H_
