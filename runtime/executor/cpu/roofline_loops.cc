#include "runtime/executor/cpu/roofline_loops.h"

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "runtime/check.h"
#include "runtime/executor/cpu/float_matrix.h"
#include "runtime/executor/cpu/targets.h"

// In this order.
// clang-format off
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "runtime/executor/cpu/roofline_loops.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "runtime/executor/cpu/lanes-inl.h"
// clang-format on

HWY_BEFORE_NAMESPACE();
namespace fabricast {
namespace HWY_NAMESPACE {

// Eight sums, so that no addition waits for the one before.
float Sum(const float* values, size_t count) {
  V sums[8];
  HWY_UNROLL(8) for (size_t i = 0; i < 8; ++i) sums[i] = hn::Zero(D());
  for (size_t k = 0; k + 8 * kVector <= count; k += 8 * kVector) {
    HWY_UNROLL(8)
    for (size_t i = 0; i < 8; ++i) {
      sums[i] = hn::Add(sums[i], hn::LoadU(D(), values + k + i * kVector));
    }
  }
  for (size_t i = 1; i < 8; ++i) sums[0] = hn::Add(sums[0], sums[i]);
  return hn::GetLane(hn::SumOfLanes(D(), sums[0]));
}

// 12 chains: two units with a latency of up to 5 cycles need 10. They begin differently, or the
// compiler makes them one. Returns the operations done.
double MultiplyAdd(int64_t rounds, float* sink) {
  V sums[12];
  HWY_UNROLL(12) for (size_t i = 0; i < 12; ++i) sums[i] = hn::Set(D(), static_cast<float>(i));
  const V a = hn::Set(D(), 0.999f);
  const V b = hn::Set(D(), 0.001f);
  for (int64_t round = 0; round < rounds; ++round) {
    HWY_UNROLL(12) for (size_t i = 0; i < 12; ++i) sums[i] = hn::MulAdd(sums[i], a, b);
  }
  for (size_t i = 1; i < 12; ++i) sums[0] = hn::Add(sums[0], sums[i]);
  *sink = hn::GetLane(sums[0]);
  return static_cast<double>(rounds) * 12 * kVector * 2;
}

}  // namespace HWY_NAMESPACE
}  // namespace fabricast
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace fabricast {

HWY_EXPORT(Sum);
HWY_EXPORT(MultiplyAdd);

namespace {

constexpr int kPasses = 40;

double SecondsSince(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace

double StreamRate(ThreadPool& pool) {
  constexpr int64_t kFloats = int64_t{1} << 25;  // 128 MiB
  constexpr int64_t kPart = int64_t{1} << 18;
  const AlignedFloats values = AllocateFloats(kFloats);
  std::vector<float> sums(kFloats / kPart);
  hwy::GetChosenTarget().Update(hwy::SupportedTargets());  // before the first dispatch
  const auto sum = HWY_DYNAMIC_DISPATCH(Sum);
  double best = 0;
  for (int pass = 0; pass < kPasses; ++pass) {
    const auto start = std::chrono::steady_clock::now();
    pool.Run(kFloats / kPart,
             [&](int64_t part, int) { sums[part] = sum(values.get() + part * kPart, kPart); });
    best = std::max(best, kFloats * 4.0 / SecondsSince(start) / 1e9);
  }
  FABRICAST_CHECK(sums[0] == 0.0f);
  return best;
}

double MultiplyAddRate(ThreadPool& pool) {
  hwy::GetChosenTarget().Update(hwy::SupportedTargets());
  const auto multiply_add = HWY_DYNAMIC_DISPATCH(MultiplyAdd);
  std::vector<float> sinks(pool.threads() * 16);
  std::vector<double> operations(pool.threads() * 16);
  double best = 0;
  for (int pass = 0; pass < kPasses; ++pass) {
    std::fill(operations.begin(), operations.end(), 0);
    const auto start = std::chrono::steady_clock::now();
    pool.Run(100 * pool.threads(), [&](int64_t, int thread) {
      operations[thread * 16] += multiply_add(2'000, &sinks[thread * 16]);
    });
    const double seconds = SecondsSince(start);
    double sum = 0;
    for (const double of_thread : operations) sum += of_thread;
    best = std::max(best, sum / seconds / 1e9);
  }
  FABRICAST_CHECK(sinks[0] > 0);
  return best;
}

}  // namespace fabricast
#endif  // HWY_ONCE
