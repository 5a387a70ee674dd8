#include "benchmarks/engine/processor_rates.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <atomic>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <numeric>
#include <thread>
#include <vector>

#include "benchmarks/engine/measure.h"
#include "runtime/check.h"

namespace fabricast {
namespace {

constexpr int kPasses = 30;

void OnThreads(int threads, const std::function<void(int)>& work) {
  std::vector<std::thread> others;
  for (int thread = 1; thread < threads; ++thread) others.emplace_back(work, thread);
  work(0);
  for (std::thread& other : others) other.join();
}

// 12 chains: two units with a latency of up to 5 cycles need 10.
#define FABRICAST_CHAINS(VECTOR, SET, MULTIPLY_ADD)                                       \
  VECTOR sums[12];                                                                        \
  for (VECTOR & sum : sums) sum = SET(1.0f);                                              \
  const VECTOR a = SET(0.999f);                                                           \
  const VECTOR b = SET(0.001f);                                                           \
  for (int64_t round = 0; round < rounds; ++round) {                                      \
    _Pragma("GCC unroll 12") for (VECTOR & sum : sums) { sum = MULTIPLY_ADD(sum, a, b); } \
  }                                                                                       \
  for (int i = 1; i < 12; ++i) sums[0] = MULTIPLY_ADD(sums[i], a, sums[0]);               \
  float lane;                                                                             \
  std::memcpy(&lane, &sums[0], sizeof(lane));                                             \
  *sink = lane;                                                                           \
  return static_cast<double>(rounds) * 12 * 2 * (sizeof(VECTOR) / sizeof(float))

#if defined(__x86_64__)
__attribute__((target("avx512f"))) double MultiplyAdd512(int64_t rounds, float* sink) {
  FABRICAST_CHAINS(__m512, _mm512_set1_ps, _mm512_fmadd_ps);
}
__attribute__((target("avx2,fma"))) double MultiplyAdd256(int64_t rounds, float* sink) {
  FABRICAST_CHAINS(__m256, _mm256_set1_ps, _mm256_fmadd_ps);
}
#endif

float Same(float value) { return value; }
float PlainMultiplyAdd(float sum, float a, float b) { return sum * a + b; }
double MultiplyAddPlain(int64_t rounds, float* sink) {
  FABRICAST_CHAINS(float, Same, PlainMultiplyAdd);
}

#undef FABRICAST_CHAINS

using MultiplyAddLoop = double (*)(int64_t rounds, float* sink);

MultiplyAddLoop WidestLoop() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f")) return MultiplyAdd512;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return MultiplyAdd256;
#endif
  return MultiplyAddPlain;
}

}  // namespace

double ReadRate(int threads, double gigabytes) {
  const size_t part = static_cast<size_t>(gigabytes * 1e9 / sizeof(uint64_t) / threads);
  const std::unique_ptr<uint64_t[]> words(new uint64_t[part * threads]);
  std::vector<uint64_t> sums(threads * 8);
  // Whoever writes a page first has it near.
  OnThreads(threads, [&](int thread) { std::fill_n(&words[part * thread], part, thread + 1); });
  std::vector<double> seconds;
  for (int pass = 0; pass < kPasses; ++pass) {
    const double start = CpuSeconds();
    OnThreads(threads, [&](int thread) {
      const uint64_t* begin = &words[part * thread];
      sums[thread * 8] = std::accumulate(begin, begin + part, uint64_t{0});
    });
    seconds.push_back((CpuSeconds() - start) / threads);
  }
  for (int thread = 0; thread < threads; ++thread) {
    FABRICAST_CHECK(sums[thread * 8] == part * (thread + 1)) << sums[thread * 8];
  }
  return static_cast<double>(part * threads * sizeof(uint64_t)) / Undisturbed(seconds);
}

double CopyRate() {
  constexpr size_t kBytes = size_t{64} << 20;
  const std::vector<std::byte> from(kBytes, std::byte{1});
  std::vector<std::byte> to(kBytes);
  std::vector<double> seconds;
  for (int pass = 0; pass < kPasses; ++pass) {
    const double start = CpuSeconds();
    std::memcpy(to.data(), from.data(), kBytes);
    seconds.push_back(CpuSeconds() - start);
    FABRICAST_CHECK(to[pass * 1000] == std::byte{1});
  }
  return kBytes / Undisturbed(seconds);
}

double MultiplyAddRate(int threads) {
  constexpr int kLoops = 500;
  constexpr int64_t kRounds = 20'000;
  const MultiplyAddLoop loop = WidestLoop();
  std::vector<float> sinks(threads * 16);
  std::vector<double> operations(threads * 8);
  std::vector<double> seconds;
  for (int pass = 0; pass < kPasses; ++pass) {
    const double start = CpuSeconds();
    OnThreads(threads, [&](int thread) {
      operations[thread * 8] = 0;
      for (int i = 0; i < kLoops; ++i) operations[thread * 8] += loop(kRounds, &sinks[thread * 16]);
    });
    seconds.push_back((CpuSeconds() - start) / threads);
    FABRICAST_CHECK(sinks[0] > 0) << sinks[0];
  }
  return threads * operations[0] / Undisturbed(seconds);
}

}  // namespace fabricast
