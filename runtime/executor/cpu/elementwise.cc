#include "runtime/executor/cpu/elementwise.h"

#include <cmath>
#include <cstddef>
#include <numbers>

#include "runtime/check.h"
#include "runtime/executor/cpu/targets.h"

// In this order.
// clang-format off
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "runtime/executor/cpu/elementwise.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "hwy/contrib/math/math-inl.h"
#include "runtime/executor/cpu/lanes-inl.h"
// clang-format on

HWY_BEFORE_NAMESPACE();
namespace fabricast {
namespace HWY_NAMESPACE {

void RmsNormRow(const float* input, const float* gain, size_t count, float epsilon, float* output) {
  V16 squares = Zero16();
  size_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    const V16 x = Load16(input + i);
    squares = MulAdd16(x, x, squares);
  }
  if (i < count) {
    alignas(64) float tail[kLanes] = {};
    for (size_t j = 0; i + j < count; ++j) tail[j] = input[i + j];
    const V16 x = Load16(tail);
    squares = MulAdd16(x, x, squares);
  }
  const float mean = SumOfLanes(squares) / static_cast<float>(count);
  const float scale = 1.0f / std::sqrt(mean + epsilon);
  for (size_t j = 0; j < count; ++j) output[j] = gain[j] * (input[j] * scale);
}

// x / (1 + exp(-x)) = x * (x < 0 ? e : 1) / (1 + e) with e = exp(-|x|), which cannot overflow.
HWY_INLINE V Silu(V x) {
  const V one = hn::Set(D(), 1.0f);
  const V e = hn::Exp(D(), hn::Neg(hn::Abs(x)));
  const V numerator = hn::IfThenElse(hn::Lt(x, hn::Zero(D())), e, one);
  return hn::Mul(x, hn::Div(numerator, hn::Add(one, e)));
}

void SiluMultiplyRow(size_t count, const float* up, float* gate) {
  size_t i = 0;
  for (; i + kVector <= count; i += kVector) {
    const V product = hn::Mul(Silu(hn::LoadU(D(), gate + i)), hn::LoadU(D(), up + i));
    hn::StoreU(product, D(), gate + i);
  }
  if (i < count) {
    float tail[kVector] = {};
    for (size_t j = 0; i + j < count; ++j) tail[j] = gate[i + j];
    hn::StoreU(Silu(hn::LoadU(D(), tail)), D(), tail);
    for (size_t j = 0; i + j < count; ++j) gate[i + j] = tail[j] * up[i + j];
  }
}

void AddWeightedRow(size_t count, float weight, const float* x, float* sum) {
  const V w = hn::Set(D(), weight);
  size_t i = 0;
  for (; i + kVector <= count; i += kVector) {
    hn::StoreU(hn::MulAdd(w, hn::LoadU(D(), x + i), hn::LoadU(D(), sum + i)), D(), sum + i);
  }
  for (; i < count; ++i) {
    float lane[kVector] = {x[i]};
    float to[kVector] = {sum[i]};
    sum[i] = hn::GetLane(hn::MulAdd(w, hn::LoadU(D(), lane), hn::LoadU(D(), to)));
  }
}

// x - x is 0 unless x is infinite or NaN.
bool AllFiniteRow(size_t count, const float* x) {
  V sum = hn::Zero(D());
  size_t i = 0;
  for (; i + kVector <= count; i += kVector) {
    const V a = hn::LoadU(D(), x + i);
    sum = hn::Add(sum, hn::Sub(a, a));
  }
  bool finite = hn::AllTrue(D(), hn::Eq(sum, hn::Zero(D())));
  for (; i < count; ++i) finite = finite && x[i] - x[i] == 0.0f;
  return finite;
}

}  // namespace HWY_NAMESPACE
}  // namespace fabricast
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace fabricast {

HWY_EXPORT(RmsNormRow);
HWY_EXPORT(SiluMultiplyRow);
HWY_EXPORT(AddWeightedRow);
HWY_EXPORT(AllFiniteRow);

void RmsNorm(const float* input, absl::Span<const float> gain, float epsilon, float* output) {
  HWY_DYNAMIC_DISPATCH(RmsNormRow)(input, gain.data(), gain.size(), epsilon, output);
}

void SiluMultiply(int64_t count, const float* up, float* gate) {
  HWY_DYNAMIC_DISPATCH(SiluMultiplyRow)(static_cast<size_t>(count), up, gate);
}

void AddTo(int64_t count, const float* x, float* sum) {
  for (int64_t i = 0; i < count; ++i) sum[i] += x[i];
}

void AddWeighted(int64_t count, float weight, const float* x, float* sum) {
  HWY_DYNAMIC_DISPATCH(AddWeightedRow)(static_cast<size_t>(count), weight, x, sum);
}

bool AllFinite(int64_t count, const float* x) {
  return HWY_DYNAMIC_DISPATCH(AllFiniteRow)(static_cast<size_t>(count), x);
}

std::vector<float> RopeFrequencies(const DecoderConfig& config) {
  FABRICAST_CHECK(config.head_dim % 2 == 0) << "head_dim=" << config.head_dim;
  std::vector<float> frequencies(config.head_dim / 2);
  const float theta = static_cast<float>(config.rope_theta);
  for (size_t i = 0; i < frequencies.size(); ++i) {
    const float exponent = static_cast<float>(2 * i) / static_cast<float>(config.head_dim);
    frequencies[i] = 1.0f / std::pow(theta, exponent);
  }
  if (!config.rope_scaling) return frequencies;

  const Llama3RopeScaling& scaling = *config.rope_scaling;
  const double context = static_cast<double>(scaling.original_context);
  const float factor = static_cast<float>(scaling.factor);
  const float low = static_cast<float>(scaling.low_freq_factor);
  const float range = static_cast<float>(scaling.high_freq_factor - scaling.low_freq_factor);
  const float longest = static_cast<float>(context / scaling.low_freq_factor);
  const float shortest = static_cast<float>(context / scaling.high_freq_factor);
  for (float& frequency : frequencies) {
    const float wavelength = static_cast<float>(2 * std::numbers::pi) / frequency;
    if (wavelength > longest) {
      frequency /= factor;
    } else if (wavelength >= shortest) {
      const float smooth = (static_cast<float>(context) / wavelength - low) / range;
      frequency = (1.0f - smooth) * frequency / factor + smooth * frequency;
    }
  }
  return frequencies;
}

void RopeAngles(absl::Span<const float> frequencies, int64_t position, float* cosines,
                float* sines) {
  for (size_t i = 0; i < frequencies.size(); ++i) {
    const float angle = static_cast<float>(position) * frequencies[i];
    cosines[i] = std::cos(angle);
    sines[i] = std::sin(angle);
  }
}

void Rotate(int64_t count, const float* cosines, const float* sines, float* head) {
  for (int64_t i = 0; i < count; ++i) {
    const float first = head[i];
    const float second = head[i + count];
    head[i] = first * cosines[i] - second * sines[i];
    head[i + count] = second * cosines[i] + first * sines[i];
  }
}

}  // namespace fabricast
#endif  // HWY_ONCE
