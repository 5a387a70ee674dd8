#include "runtime/executor/logit_kernels.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "runtime/executor/cpu/targets.h"

// In this order.
// clang-format off
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "runtime/executor/logit_kernels.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "hwy/contrib/math/math-inl.h"
#include "runtime/executor/cpu/lanes-inl.h"
// clang-format on

HWY_BEFORE_NAMESPACE();
namespace fabricast {
namespace HWY_NAMESPACE {

// The largest of count > 0 elements; NaN counts as smallest.
float Largest(const float* values, size_t count) {
  V max = hn::Set(D(), -std::numeric_limits<float>::infinity());
  size_t i = 0;
  for (; i + kVector <= count; i += kVector) {
    const V x = hn::LoadU(D(), values + i);
    max = hn::IfThenElse(hn::Gt(x, max), x, max);
  }
  float largest = hn::GetLane(hn::MaxOfLanes(D(), max));
  for (; i < count; ++i) largest = std::max(largest, values[i]);
  return largest;
}

bool HasNan(const float* values, size_t count) {
  const V one = hn::Set(D(), 1.0f);
  V nan = hn::Zero(D());
  size_t i = 0;
  for (; i + kVector <= count; i += kVector) {
    nan = hn::Or(nan, hn::IfThenElseZero(hn::IsNaN(hn::LoadU(D(), values + i)), one));
  }
  bool any = !hn::AllTrue(D(), hn::Eq(nan, hn::Zero(D())));
  for (; i < count; ++i) any = any || std::isnan(values[i]);
  return any;
}

// Highway's exp of -infinity is 0, as it should be.
double ExponentialsOfBlock(const float* logits, size_t count, float largest, float temperature,
                           float* weights) {
  V16 sum = Zero16();
  const V vlargest = hn::Set(D(), largest);
  const V vtemperature = hn::Set(D(), temperature);
  for (size_t i = 0; i < count; i += kLanes) {
    alignas(64) float x[kLanes];
    const float* from = logits + i;
    const size_t n = std::min<size_t>(kLanes, count - i);
    if (n < kLanes) {
      for (size_t j = 0; j < kLanes; ++j) {
        x[j] = j < n ? logits[i + j] : -std::numeric_limits<float>::infinity();
      }
      from = x;
    }
    V16 weight;
    HWY_UNROLL(4)
    for (size_t v = 0; v < kVectors; ++v) {
      const V logit = hn::LoadU(D(), from + v * kVector);
      weight.v[v] = hn::Exp(D(), hn::Div(hn::Sub(logit, vlargest), vtemperature));
    }
    sum = Add16(sum, weight);
    if (weights == nullptr) continue;
    if (n == kLanes) {
      Store16(weight, weights + i);
    } else {
      Store16(weight, x);
      for (size_t j = 0; j < n; ++j) weights[i + j] = x[j];
    }
  }
  return SumOfLanes(sum);
}

size_t AnyAtLeast(const float* values, size_t count, float threshold, size_t from) {
  const V vthreshold = hn::Set(D(), threshold);
  for (; from + kVector <= count; from += kVector) {
    if (!hn::AllFalse(D(), hn::Ge(hn::LoadU(D(), values + from), vthreshold))) return from;
  }
  return from;
}

}  // namespace HWY_NAMESPACE
}  // namespace fabricast
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace fabricast {

HWY_EXPORT(Largest);
HWY_EXPORT(HasNan);
HWY_EXPORT(ExponentialsOfBlock);
HWY_EXPORT(AnyAtLeast);

LargestLogit FindLargest(absl::Span<const float> logits) {
  const float largest = HWY_DYNAMIC_DISPATCH(Largest)(logits.data(), logits.size());
  return {.value = largest,
          .valid = std::isfinite(largest) &&
                   !HWY_DYNAMIC_DISPATCH(HasNan)(logits.data(), logits.size())};
}

double Exponentials(absl::Span<const float> logits, float largest, float temperature,
                    float* weights, std::vector<double>& block_sums) {
  const auto of_block = HWY_DYNAMIC_DISPATCH(ExponentialsOfBlock);
  block_sums.clear();
  double sum = 0;
  for (size_t i = 0; i < logits.size(); i += kLogitBlock) {
    const size_t count = std::min(kLogitBlock, logits.size() - i);
    block_sums.push_back(of_block(logits.data() + i, count, largest, temperature,
                                  weights == nullptr ? nullptr : weights + i));
    sum += block_sums.back();
  }
  return sum;
}

void CollectAtLeast(absl::Span<const float> values, float threshold,
                    std::vector<int32_t>& indices) {
  const auto find = HWY_DYNAMIC_DISPATCH(AnyAtLeast);
  // A hit is somewhere in the 16 elements from where `find` stops.
  for (size_t i = 0; i < values.size();) {
    i = find(values.data(), values.size(), threshold, i);
    const size_t end = std::min(values.size(), i + 16);
    for (; i < end; ++i) {
      if (values[i] >= threshold) indices.push_back(static_cast<int32_t>(i));
    }
  }
}

void BlockMaxima(absl::Span<const float> values, std::vector<float>& maxima) {
  const auto largest = HWY_DYNAMIC_DISPATCH(Largest);
  maxima.clear();
  for (size_t i = 0; i < values.size(); i += kMaximaBlock) {
    maxima.push_back(largest(values.data() + i, std::min(kMaximaBlock, values.size() - i)));
  }
}

}  // namespace fabricast
#endif  // HWY_ONCE
