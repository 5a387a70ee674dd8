// What elementwise.h promises, in float64 on the CPU.
#ifndef FABRICAST_KERNELS_ELEMENTWISE_ELEMENTWISE_REFERENCE_H_
#define FABRICAST_KERNELS_ELEMENTWISE_ELEMENTWISE_REFERENCE_H_

#include <cmath>
#include <cstdint>
#include <vector>

#include "absl/types/span.h"

namespace fabricast {

// gain * row / sqrt(mean(row^2) + epsilon)
inline std::vector<double> RmsNormReference(absl::Span<const double> row,
                                            absl::Span<const float> gain, double epsilon) {
  double sum = 0;
  for (const double x : row) sum += x * x;
  const double rms = std::sqrt(sum / static_cast<double>(row.size()) + epsilon);
  std::vector<double> result(row.size());
  for (size_t i = 0; i < row.size(); ++i) result[i] = double{gain[i]} * row[i] / rms;
  return result;
}

inline double SwiGluReference(double gate, double up) { return gate / (1 + std::exp(-gate)) * up; }

// Turns pairs i, i + half of a head; the angle is rounded to FP32, as the kernel's and
// transformers' are.
inline std::vector<double> RopeReference(absl::Span<const double> head, int32_t position,
                                         absl::Span<const float> frequencies) {
  const size_t half = head.size() / 2;
  std::vector<double> result(head.size());
  for (size_t i = 0; i < half; ++i) {
    const float angle = static_cast<float>(position) * frequencies[i];
    const double cosine = std::cos(double{angle}), sine = std::sin(double{angle});
    result[i] = head[i] * cosine - head[i + half] * sine;
    result[i + half] = head[i + half] * cosine + head[i] * sine;
  }
  return result;
}

}  // namespace fabricast

#endif  // FABRICAST_KERNELS_ELEMENTWISE_ELEMENTWISE_REFERENCE_H_
