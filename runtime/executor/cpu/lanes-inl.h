// Vectors of 16 floats on every target: one, two or four of the processor's.
//
// A sum over n elements is 16 sums, one a lane, that are added at the end in one fixed order. So
// its value does not depend on the width of the processor's vectors; targets that fuse multiply and
// add (AVX2, AVX-512, NEON, but not the fallback for others) give the same bits.
//
// Included once a target, after hwy/highway.h.
#if defined(FABRICAST_RUNTIME_EXECUTOR_CPU_LANES_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef FABRICAST_RUNTIME_EXECUTOR_CPU_LANES_INL_H_
#undef FABRICAST_RUNTIME_EXECUTOR_CPU_LANES_INL_H_
#else
#define FABRICAST_RUNTIME_EXECUTOR_CPU_LANES_INL_H_
#endif

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "hwy/highway.h"
#include "runtime/executor/cpu/float_matrix.h"
#include "runtime/executor/cpu/linear.h"

HWY_BEFORE_NAMESPACE();
namespace fabricast {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

using D = hn::CappedTag<float, 16>;
using V = hn::Vec<D>;
inline constexpr size_t kVector = hn::MaxLanes(D());  // lanes of one of the processor's vectors
inline constexpr size_t kVectors = kLanes / kVector;  // that make up 16 lanes
static_assert(kVector * kVectors == kLanes);

struct V16 {
  V v[kVectors];
};

HWY_INLINE V16 Zero16() {
  V16 a;
  HWY_UNROLL(4) for (size_t i = 0; i < kVectors; ++i) a.v[i] = hn::Zero(D());
  return a;
}
HWY_INLINE V16 Set16(float value) {
  V16 a;
  HWY_UNROLL(4) for (size_t i = 0; i < kVectors; ++i) a.v[i] = hn::Set(D(), value);
  return a;
}
HWY_INLINE V16 Load16(const float* p) {
  V16 a;
  HWY_UNROLL(4) for (size_t i = 0; i < kVectors; ++i) a.v[i] = hn::LoadU(D(), p + i * kVector);
  return a;
}
HWY_INLINE void Store16(const V16& a, float* p) {
  HWY_UNROLL(4) for (size_t i = 0; i < kVectors; ++i) hn::StoreU(a.v[i], D(), p + i * kVector);
}

#define FABRICAST_LANEWISE(NAME, OPERATION)                                                 \
  HWY_INLINE V16 NAME(const V16& a, const V16& b) {                                         \
    V16 c;                                                                                  \
    HWY_UNROLL(4) for (size_t i = 0; i < kVectors; ++i) c.v[i] = OPERATION(a.v[i], b.v[i]); \
    return c;                                                                               \
  }
FABRICAST_LANEWISE(Add16, hn::Add)
FABRICAST_LANEWISE(Max16, hn::Max)
#undef FABRICAST_LANEWISE

// a * b + c.
HWY_INLINE V16 MulAdd16(const V16& a, const V16& b, const V16& c) {
  V16 d;
  HWY_UNROLL(4)
  for (size_t i = 0; i < kVectors; ++i) d.v[i] = hn::MulAdd(a.v[i], b.v[i], c.v[i]);
  return d;
}

// Adds lane i + 8 to lane i, then i + 4, i + 2, i + 1. `lanes`: 16 floats.
HWY_INLINE float SumOfLanes(const float* HWY_RESTRICT lanes) {
  float a[8];
  for (int i = 0; i < 8; ++i) a[i] = lanes[i] + lanes[i + 8];
  for (int i = 0; i < 4; ++i) a[i] += a[i + 4];
  for (int i = 0; i < 2; ++i) a[i] += a[i + 2];
  return a[0] + a[1];
}

HWY_INLINE float SumOfLanes(const V16& a) {
  alignas(64) float lanes[kLanes];
  Store16(a, lanes);
  return SumOfLanes(lanes);
}

// The four sums of lanes of 16 floats each, `step` floats apart, in the order of SumOfLanes.
HWY_INLINE void SumOfLanes4(const float* HWY_RESTRICT lanes, size_t step,
                            float* HWY_RESTRICT sums) {
#if HWY_TARGET == HWY_SCALAR
  for (size_t i = 0; i < 4; ++i) sums[i] = SumOfLanes(lanes + i * step);
#else
  const hn::Full128<float> d;
  using V4 = hn::Vec<decltype(d)>;
  V4 a[4];
  HWY_UNROLL(4)
  for (size_t i = 0; i < 4; ++i) {
    const float* p = lanes + i * step;
    a[i] = hn::Add(hn::Add(hn::Load(d, p), hn::Load(d, p + 8)),
                   hn::Add(hn::Load(d, p + 4), hn::Load(d, p + 12)));
  }
  // Rows 0 and 1 interleaved: lanes 0 and 1 of both, lanes 2 and 3 of both.
  const V4 sum01 = hn::Add(hn::InterleaveLower(d, a[0], a[1]), hn::InterleaveUpper(d, a[0], a[1]));
  const V4 sum23 = hn::Add(hn::InterleaveLower(d, a[2], a[3]), hn::InterleaveUpper(d, a[2], a[3]));
  // sum01 is row 0 even, row 1 even, row 0 odd, row 1 odd.
  const V4 even = hn::ConcatLowerLower(d, sum23, sum01);
  const V4 odd = hn::ConcatUpperUpper(d, sum23, sum01);
  hn::StoreU(hn::Add(even, odd), d, sums);
#endif
}

// One of the processor's vectors of T from any address: `d` is for T.
template <class DT>
HWY_INLINE hn::Vec<DT> LoadAnywhere(DT d, const uint8_t* p) {
#if HWY_TARGET == HWY_SCALAR
  hn::TFromD<DT> value;
  std::memcpy(&value, p, sizeof(value));
  return hn::Set(d, value);
#else
  const hn::Repartition<uint8_t, DT> d8;
  return hn::BitCast(d, hn::LoadU(d8, p));
#endif
}

template <WeightFormat kFormat>
inline constexpr size_t kWeightBytes = kFormat == WeightFormat::kF32 ? 4 : 2;

// A vector of weights of a dense format, from any address.
template <WeightFormat kFormat>
HWY_INLINE V LoadWeights(const uint8_t* p) {
  if constexpr (kFormat == WeightFormat::kF32) {
    return LoadAnywhere(D(), p);
  } else {
    const hn::Rebind<uint16_t, D> d16;
    const auto bits = LoadAnywhere(d16, p);
    if constexpr (kFormat == WeightFormat::kBf16) {
      const hn::Rebind<uint32_t, D> d32;
      return hn::BitCast(D(), hn::ShiftLeft<16>(hn::PromoteTo(d32, bits)));
    } else {
#if HWY_TARGET == HWY_SCALAR  // Highway's knows no infinity and no NaN
      return hn::Set(D(), FloatFromF16(hn::GetLane(bits)));
#else
      const hn::Rebind<hwy::float16_t, D> half;
      return hn::PromoteTo(D(), hn::BitCast(half, bits));
#endif
    }
  }
}

template <WeightFormat kFormat>
HWY_INLINE V16 LoadWeights16(const uint8_t* p) {
  V16 a;
  HWY_UNROLL(4)
  for (size_t i = 0; i < kVectors; ++i) {
    a.v[i] = LoadWeights<kFormat>(p + i * kVector * kWeightBytes<kFormat>);
  }
  return a;
}

}  // namespace HWY_NAMESPACE
}  // namespace fabricast
HWY_AFTER_NAMESPACE();

#endif  // per target
