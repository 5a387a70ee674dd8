#include <cuda_runtime.h>

#include <cfloat>
#include <climits>
#include <cub/block/block_reduce.cuh>
#include <cub/block/block_scan.cuh>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_format.h"
#include "kernels/gpu/cuda_status.h"
#include "kernels/gpu/launch.cuh"
#include "kernels/sampling/philox.h"
#include "kernels/sampling/sampling.h"

namespace fabricast {
namespace {

constexpr int kThreads = 1024;
constexpr int kWarps = kThreads / 32;
// Adjacent elements that a thread loads at once.
constexpr int kVector = 4;
// Such loads in flight: 1,024 threads x 4 x 16 B = 64 KB, what a multiprocessor's share of the L2
// cache (64 B a cycle) delivers in a latency of 1,000 cycles.
constexpr int kUnroll = 4;
// A row is shared by the blocks of a cluster while that leaves no multiprocessor without one; 8 are
// all that a GPU must be able to form.
constexpr int kMostBlocks = 8;
static_assert(kMostBlocks * kWarps <= kThreads);  // a thread knows a part's sum

// Keys are selected by digits of 11, 11 and 10 bits, from the top.
constexpr int kDigitBits = 11;
constexpr int kBins = 1 << kDigitBits;
constexpr int kBinsPerThread = kBins / kThreads;

// Weights, at most 1, are summed as integers in units of 2^-44, exactly and so in any order: 2^19
// of them fit into 64 bits. What this cuts off is less than 2^-44 a token, of a sum of at least 1.
constexpr int kWeightUnitBits = 44;
static_assert(kMaxSampledVocabulary <= 1 << 19);

using Weight = unsigned long long;

// The default algorithm's single warp would hold all threads' sums in its registers, and spill.
using MassScan = cub::BlockScan<double, kThreads, cub::BLOCK_SCAN_WARP_SCANS>;
using WeightScan = cub::BlockScan<Weight, kThreads, cub::BLOCK_SCAN_WARP_SCANS>;

// Of a block's elements, or of a row's.
struct Extremes {
  float largest;      // after the penalty
  int token;          // of the largest, the lowest
  float raw_largest;  // before the penalty
  int nan;
};
struct Combine {
  __device__ Extremes operator()(const Extremes& a, const Extremes& b) const {
    const bool a_wins = a.largest > b.largest || (a.largest == b.largest && a.token < b.token);
    return {a_wins ? a.largest : b.largest, a_wins ? a.token : b.token,
            fmaxf(a.raw_largest, b.raw_largest), a.nan | b.nan};
  }
};
using ReduceExtremes = cub::BlockReduce<Extremes, kThreads>;

struct Shared {
  union {
    ReduceExtremes::TempStorage reduce;
    MassScan::TempStorage mass_scan;
    WeightScan::TempStorage weight_scan;
  };
  // Read by the other blocks of the row. Sums are written alternately: a block that is a barrier
  // behind may still read those before.
  Extremes extremes;
  Weight warp_sums[2][kWarps];
  uint32_t high[kBins], low[kBins];
  uint32_t digit;
  double left;
  // The block's own.
  Extremes gathered[kMostBlocks];
  int reaches, lowest;
  int part;
  Weight before;
  int found;
};

// The blocks that share a row: a thread-block cluster, or one block where there are none.
struct RowBlocks {
  __device__ RowBlocks() {
#if __CUDA_ARCH__ >= 900
    asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(count));
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
#endif
  }

  // Waits for all threads of all of them, and sees what they wrote.
  __device__ void Sync() const {
#if __CUDA_ARCH__ >= 900
    if (count > 1) {
      asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
      asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
      return;
    }
#endif
    __syncthreads();
  }

  // Another block's copy of what is in shared memory.
  template <typename T>
  __device__ T* Of(int other, T* local) const {
#if __CUDA_ARCH__ >= 900
    T* remote;
    asm("mapa.u64 %0, %1, %2;" : "=l"(remote) : "l"(local), "r"(other));
    return remote;
#else
    return local;
#endif
  }

  int count = 1, rank = 0;
};

// The bits of a float that is not NaN so that they are ordered as the floats are; both zeros alike.
__device__ uint32_t OrderedBits(float x) {
  const uint32_t bits = __float_as_uint(x + 0.f);
  return (bits >> 31) != 0 ? ~bits : bits | 0x80000000;
}

// A weight in units of 2^-44, cut off.
__device__ Weight Units(float weight) {
  const uint32_t bits = __float_as_uint(weight);
  const int exponent = bits >> 23;
  const Weight mantissa = (bits & 0x7fffff) | (exponent != 0 ? 0x800000 : 0);
  const int shift = max(exponent, 1) - 150 + kWeightUnitBits;
  return shift >= 0 ? mantissa << shift : shift > -24 ? mantissa >> -shift : 0;
}

// What Select counts of an element: `mass` < 2^24 times Scale(key), which all elements of a digit
// share.
struct CountOfLogits {
  static constexpr float kPad = -INFINITY;  // behind all that is asked for
  static __device__ uint32_t Key(float logit) { return OrderedBits(logit); }
  static __device__ uint32_t Mass(uint32_t) { return 1; }
  static __device__ double Scale(uint32_t) { return 1; }
};
struct MassOfWeights {
  static constexpr float kPad = 0;
  static __device__ uint32_t Key(float weight) { return __float_as_uint(weight); }
  static __device__ uint32_t Mass(uint32_t key) {
    return (key & 0x7fffff) | ((key >> 23) != 0 ? 0x800000 : 0);
  }
  static __device__ double Scale(uint32_t key) {
    const int exponent = max(static_cast<int>(key >> 23), 1) - 150;
    return __hiloint2double((exponent + 1023) << 20, 0);
  }
};

// The elements of a row: parts of consecutive ones, one for each warp of its blocks.
class Row {
 public:
  __device__ Row(float* values, int count, const RowBlocks& blocks, Shared& shared)
      : values_(values),
        count_(count),
        aligned_(reinterpret_cast<uintptr_t>(values) % sizeof(float4) == 0),
        blocks_(blocks),
        shared_(shared) {
    const int parts = blocks.count * kWarps, step = 32 * kVector;
    part_ = ((count + parts - 1) / parts + step - 1) / step * step;
  }

  // f(i, v) for all groups of 4 elements v[0 ... 3] from i on of this block's parts, in any order;
  // `pad` stands for elements beyond the row. What f changes is stored if kStore.
  template <bool kStore, typename F>
  __device__ void ForEach(float pad, F f) const {
    const int first = blocks_.rank * kWarps * part_;
    Visit<kStore>(first + static_cast<int>(threadIdx.x) * kVector, kThreads * kVector,
                  min(count_, first + kWarps * part_), pad, f);
  }

  // The largest key at which the mass of all elements with this key and larger ones reaches the
  // target, which is `share` of the mass of all, or `share` itself if `absolute`. *left: the part
  // of the target that larger keys leave to this one. The same for all threads.
  template <typename Of>
  __device__ uint32_t Select(double share, bool absolute, double* left) const {
    uint32_t prefix = 0;
    int shift = 32;
    double target = share;
#pragma unroll 1
    for (int level = 0; level < 3; ++level) {
      const int bits = level == 2 ? 10 : kDigitBits;
      const int above = shift;
      shift -= bits;
      const uint32_t mask = (1u << bits) - 1;
      for (int bin = threadIdx.x; bin < kBins; bin += kThreads) {
        shared_.high[bin] = shared_.low[bin] = 0;
      }
      __syncthreads();
      ForEach<false>(Of::kPad, [&](int, const float(&value)[kVector]) {
#pragma unroll
        for (int j = 0; j < kVector; ++j) {
          const uint32_t key = Of::Key(value[j]);
          if (level != 0 && key >> above != prefix) continue;
          const uint32_t mass = Of::Mass(key), digit = key >> shift & mask;
          if (mass >> 12 != 0) atomicAdd(&shared_.high[digit], mass >> 12);
          if ((mass & 0xfff) != 0) atomicAdd(&shared_.low[digit], mass & 0xfff);
        }
      });
      blocks_.Sync();
      if (blocks_.rank != 0) {
        for (int bin = threadIdx.x; bin < kBins; bin += kThreads) {
          const uint32_t high = shared_.high[bin], low = shared_.low[bin];
          if (high != 0) atomicAdd(blocks_.Of(0, &shared_.high[bin]), high);
          if (low != 0) atomicAdd(blocks_.Of(0, &shared_.low[bin]), low);
        }
      }
      blocks_.Sync();
      if (blocks_.rank == 0) {
        ChooseDigit<Of>(level == 0 ? 0 : prefix << above, shift, mask, target,
                        level == 0 && !absolute);
      }
      blocks_.Sync();
      const uint32_t digit = *blocks_.Of(0, &shared_.digit);
      target = *blocks_.Of(0, &shared_.left);
      prefix = (level == 0 ? 0 : prefix << bits) | digit;
    }
    *left = target;
    return prefix;
  }

  // Sums units(i, value), for Find: the total, the same for all threads. Changes of `value` are
  // stored if kStore.
  template <bool kStore, typename F>
  __device__ Weight Sum(float pad, F units) {
    Weight sum = 0;
    const int first = (blocks_.rank * kWarps + Warp()) * part_;
    Visit<kStore>(first + Lane() * kVector, 32 * kVector, min(count_, first + part_), pad,
                  [&](int i, float(&value)[kVector]) {
#pragma unroll
                    for (int j = 0; j < kVector; ++j) sum += units(i + j, value[j]);
                  });
    for (int distance = 16; distance != 0; distance /= 2) {
      sum += __shfl_xor_sync(0xffffffff, sum, distance);
    }
    sums_ ^= 1;
    if (Lane() == 0) shared_.warp_sums[sums_][Warp()] = sum;
    blocks_.Sync();
    part_sum_ = 0;
    if (static_cast<int>(threadIdx.x) < blocks_.count * kWarps) {
      const int block = static_cast<int>(threadIdx.x) / kWarps;
      part_sum_ = *blocks_.Of(block, &shared_.warp_sums[sums_][threadIdx.x % kWarps]);
    }
    Weight total;
    WeightScan(shared_.weight_scan).ExclusiveSum(part_sum_, part_before_, total);
    __syncthreads();
    return total;
  }

  // After Sum of the same units: the first i at which the sum of units(0 ... i) exceeds `target`,
  // which is less than the total. The same for all threads.
  template <typename F>
  __device__ int Find(F units, Weight target) const {
    if (part_before_ <= target && target < part_before_ + part_sum_) {
      shared_.part = static_cast<int>(threadIdx.x);
      shared_.before = part_before_;
    }
    __syncthreads();
    Weight before = shared_.before;
    const int first = shared_.part * part_, end = min(count_, first + part_);
    for (int at = first; at < end; at += kThreads * kVector) {
      const int i = at + static_cast<int>(threadIdx.x) * kVector;
      float value[kVector];
      Load(i, end, 0, value);
      Weight sum[kVector];
      Weight mine = 0;
#pragma unroll
      for (int j = 0; j < kVector; ++j) sum[j] = mine += units(i + j, value[j]);
      Weight lower, total;
      WeightScan(shared_.weight_scan).ExclusiveSum(mine, lower, total);
      lower += before;
      if (lower <= target && target < lower + mine) {
        int j = 0;
#pragma unroll
        for (int k = 0; k < kVector; ++k) j += lower + sum[k] <= target;
        shared_.found = i + j;
      }
      __syncthreads();
      before += total;
      if (before > target) break;
    }
    return shared_.found;
  }

 private:
  static __device__ int Lane() { return threadIdx.x % 32; }
  static __device__ int Warp() { return threadIdx.x / 32; }
  // A thread's digits: from the top.
  static __device__ int DigitOf(int j) {
    return kBins - 1 - (static_cast<int>(threadIdx.x) * kBinsPerThread + j);
  }

  __device__ void Load(int i, int end, float pad, float (&value)[kVector]) const {
    if (aligned_ && i + kVector <= end) {
      const float4 loaded = *reinterpret_cast<const float4*>(values_ + i);
      value[0] = loaded.x, value[1] = loaded.y, value[2] = loaded.z, value[3] = loaded.w;
      return;
    }
#pragma unroll
    for (int j = 0; j < kVector; ++j) value[j] = i + j < end ? values_[i + j] : pad;
  }
  __device__ void Store(int i, int end, const float (&value)[kVector]) const {
    if (aligned_ && i + kVector <= end) {
      *reinterpret_cast<float4*>(values_ + i) = make_float4(value[0], value[1], value[2], value[3]);
      return;
    }
#pragma unroll
    for (int j = 0; j < kVector; ++j) {
      if (i + j < end) values_[i + j] = value[j];
    }
  }

  template <bool kStore, typename F>
  __device__ void Visit(int first, int step, int end, float pad, F f) const {
#pragma unroll 1
    for (int i = first; i < end; i += kUnroll * step) {
      float value[kUnroll][kVector];
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) Load(i + u * step, end, pad, value[u]);
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
        f(i + u * step, value[u]);
        if (kStore) Store(i + u * step, end, value[u]);
      }
    }
  }

  // From the histogram: the first digit, from the top, that reaches the target; or, if rounding
  // keeps the sums below it, the last of any mass.
  template <typename Of>
  __device__ void ChooseDigit(uint32_t prefix, int shift, uint32_t mask, double target,
                              bool is_share) const {
    double mass[kBinsPerThread], before[kBinsPerThread], total;
#pragma unroll
    for (int j = 0; j < kBinsPerThread; ++j) {
      const uint32_t digit = DigitOf(j);
      mass[j] = digit > mask ? 0
                             : (shared_.high[digit] * 4096. + shared_.low[digit]) *
                                   Of::Scale(prefix | digit << shift);
    }
    MassScan(shared_.mass_scan).ExclusiveSum(mass, before, total);
    if (is_share) target *= total;
    int reaches = -1, lowest = kBins;
#pragma unroll
    for (int j = kBinsPerThread - 1; j >= 0; --j) {
      if (mass[j] == 0) continue;
      lowest = min(lowest, DigitOf(j));
      if (before[j] + mass[j] >= target) reaches = max(reaches, DigitOf(j));
    }
    reaches = __reduce_max_sync(0xffffffff, reaches);
    lowest = __reduce_min_sync(0xffffffff, lowest);
    if (threadIdx.x == 0) {
      shared_.reaches = -1;
      shared_.lowest = kBins;
    }
    __syncthreads();
    if (Lane() == 0) {
      atomicMax(&shared_.reaches, reaches);
      atomicMin(&shared_.lowest, lowest);
    }
    __syncthreads();
    const int chosen = shared_.reaches >= 0 ? shared_.reaches : shared_.lowest;
#pragma unroll
    for (int j = 0; j < kBinsPerThread; ++j) {
      if (DigitOf(j) != chosen) continue;
      shared_.digit = static_cast<uint32_t>(chosen);
      shared_.left = target - before[j];
    }
  }

  float* values_;
  int count_;
  bool aligned_;
  const RowBlocks& blocks_;
  Shared& shared_;
  int part_;
  int sums_ = 0;
  // Of part threadIdx.x.
  Weight part_sum_ = 0, part_before_ = 0;
};

// Applies the penalty in place.
__device__ Extremes FindExtremes(const Row& row, const GpuSamplingRow& parameter,
                                 const uint32_t* histories, int64_t history_words) {
  Extremes extremes = {-INFINITY, INT_MAX, -INFINITY, 0};
  const auto update = [&](int i, float logit) {
    extremes.nan |= isnan(logit);
    if (logit > extremes.largest) {
      extremes.largest = logit;
      extremes.token = i;
    }
  };
  if (parameter.history < 0 || parameter.repetition_penalty == 1) {
    row.ForEach<false>(-INFINITY, [&](int i, const float(&logit)[kVector]) {
    // Most groups hold nothing new.
#pragma unroll
      for (int j = 0; j < kVector; ++j) update(i + j, logit[j]);
    });
    extremes.raw_largest = extremes.largest;
    return extremes;
  }
  const uint32_t* const history = histories + parameter.history * history_words;
  const float penalty = parameter.repetition_penalty;
  row.ForEach<true>(-INFINITY, [&](int i, float(&logit)[kVector]) {
    const uint32_t seen = i / 32 < history_words ? history[i / 32] >> (i % 32) : 0;
#pragma unroll
    for (int j = 0; j < kVector; ++j) {
      extremes.raw_largest = fmaxf(extremes.raw_largest, logit[j]);
      if ((seen >> j & 1) != 0) {
        logit[j] = logit[j] < 0 ? logit[j] * penalty : logit[j] / penalty;
      }
      update(i + j, logit[j]);
    }
  });
  return extremes;
}

// The same for all threads of all blocks.
__device__ Extremes Gather(Extremes extremes, const RowBlocks& blocks, Shared& shared) {
  extremes = ReduceExtremes(shared.reduce).Reduce(extremes, Combine());
  if (threadIdx.x == 0) shared.extremes = extremes;
  blocks.Sync();
  if (static_cast<int>(threadIdx.x) < blocks.count) {
    shared.gathered[threadIdx.x] = *blocks.Of(threadIdx.x, &shared.extremes);
  }
  __syncthreads();
  extremes = shared.gathered[0];
  for (int block = 1; block < blocks.count; ++block) {
    extremes = Combine()(extremes, shared.gathered[block]);
  }
  return extremes;
}

// The row holds weights afterwards.
__device__ int DrawToken(Row& row, const GpuSamplingRow& parameter, float largest, int vocabulary) {
  // (l - max) / T instead of l / T - max / T: a small T must not make infinities.
  const float temperature = fmaxf(parameter.temperature, FLT_MIN);
  uint32_t kth = 0;  // of all: the smallest key
  double left;
  if (parameter.top_k > 0 && parameter.top_k < vocabulary) {
    kth = row.Select<CountOfLogits>(parameter.top_k, true, &left);
  }
  Weight total = row.Sum<true>(-INFINITY, [&](int, float& value) {
    value = OrderedBits(value) >= kth ? expf((value - largest) / temperature) : 0.f;
    return Units(value);
  });

  uint32_t smallest = 0;  // key of the least likely that are kept,
  int last = vocabulary;  // and of these the last
  if (parameter.top_p < 1) {
    smallest = row.Select<MassOfWeights>(parameter.top_p, false, &left);
    const auto equal = [&](int, float weight) -> Weight {
      return __float_as_uint(weight) == smallest;
    };
    const Weight equals = row.Sum<false>(0, equal);
    const double wanted = ceil(left / __uint_as_float(smallest));
    if (wanted < static_cast<double>(equals)) {
      last = row.Find(equal, static_cast<Weight>(fmax(wanted, 1.)) - 1);
    }
  }
  const auto kept = [&](int i, float weight) -> Weight {
    const uint32_t key = __float_as_uint(weight);
    return key > smallest || (key == smallest && i <= last) ? Units(weight) : 0;
  };
  if (parameter.top_p < 1) total = row.Sum<false>(0, kept);

  const double uniform = UniformAt(parameter.seed, static_cast<uint64_t>(parameter.position));
  const Weight target = static_cast<Weight>(uniform * static_cast<double>(total));
  return row.Find(kept, target < total ? target : total - 1);
}

__global__ void __launch_bounds__(kThreads, 1)
    SampleRows(float* logits, int64_t stride, int vocabulary, const GpuSamplingRow* parameters,
               const uint32_t* histories, int64_t history_words, GpuSampledToken* sampled) {
  AllowNextKernel();
  WaitForPreviousKernels();
  __shared__ Shared shared;
  const RowBlocks blocks;
  const int index = static_cast<int>(blockIdx.x) / blocks.count;
  const GpuSamplingRow& parameter = parameters[index];
  if (parameter.skip != 0) return;
  Row row(logits + index * stride, vocabulary, blocks, shared);

  const Extremes extremes =
      Gather(FindExtremes(row, parameter, histories, history_words), blocks, shared);
  const bool valid =
      extremes.nan == 0 && isfinite(extremes.raw_largest) && isfinite(extremes.largest);
  int token = valid ? extremes.token : 0;
  if (valid && parameter.temperature != 0) {
    token = DrawToken(row, parameter, extremes.largest, vocabulary);
  }
  if (blocks.rank == 0 && threadIdx.x == 0) {
    sampled[index] = {token, valid ? 1 : 0, extremes.raw_largest};
  }
  // The others may be reading this block's shared memory.
  blocks.Sync();
}

__global__ void RecordTokens(const int32_t* tokens, const int32_t* history, int count,
                             int vocabulary, int64_t history_words, uint32_t* histories) {
  AllowNextKernel();
  WaitForPreviousKernels();
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= count || history[i] < 0) return;
  const int32_t token = tokens[i];
  if (token < 0 || token >= vocabulary) return;
  atomicOr(&histories[history[i] * history_words + token / 32], 1u << (token % 32));
}

// How many blocks share a row.
absl::StatusOr<int> BlocksOfRow(int rows) {
  int device = 0, major = 0, processors = 0;
  FABRICAST_RETURN_IF_CUDA_FAILS(cudaGetDevice(&device));
  FABRICAST_RETURN_IF_CUDA_FAILS(
      cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
  FABRICAST_RETURN_IF_CUDA_FAILS(
      cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device));
  int blocks = 1;
  while (major >= 9 && blocks < kMostBlocks && int64_t{rows} * blocks * 2 <= processors)
    blocks *= 2;
  return blocks;
}

}  // namespace

absl::Status SampleTokens(float* logits, int64_t stride, int rows, int vocabulary,
                          const GpuSamplingRow* parameters, const uint32_t* histories,
                          GpuSampledToken* sampled, const LaunchOptions& options) {
  if (rows < 0 || vocabulary <= 0 || vocabulary > kMaxSampledVocabulary || stride < vocabulary) {
    return absl::InvalidArgumentError(
        absl::StrFormat("cannot sample %d rows of %d logits, %d apart; a row has 1 to %d, and rows "
                        "do not overlap",
                        rows, vocabulary, stride, kMaxSampledVocabulary));
  }
  if (rows == 0) return absl::OkStatus();
  const absl::StatusOr<int> blocks = BlocksOfRow(rows);
  if (!blocks.ok()) return blocks.status();
  cudaLaunchAttribute attributes[2] = {};
  int count = 0;
  if (options.overlap_previous) {
    attributes[count].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[count++].val.programmaticStreamSerializationAllowed = 1;
  }
  if (*blocks > 1) {
    attributes[count].id = cudaLaunchAttributeClusterDimension;
    attributes[count++].val.clusterDim = {static_cast<unsigned>(*blocks), 1, 1};
  }
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(rows * *blocks);
  config.blockDim = dim3(kThreads);
  config.stream = options.stream;
  config.attrs = attributes;
  config.numAttrs = count;
  return ToStatus(cudaLaunchKernelEx(&config, SampleRows, logits, stride, vocabulary, parameters,
                                     histories, HistoryWords(vocabulary), sampled),
                  "SampleTokens");
}

absl::Status RecordHistory(const int32_t* tokens, const int32_t* history, int count, int vocabulary,
                           uint32_t* histories, const LaunchOptions& options) {
  if (count == 0) return absl::OkStatus();
  constexpr int kRecordThreads = 256;
  return LaunchKernel("RecordHistory", RecordTokens,
                      dim3((count + kRecordThreads - 1) / kRecordThreads), dim3(kRecordThreads), 0,
                      options, tokens, history, count, vocabulary, HistoryWords(vocabulary),
                      histories);
}

}  // namespace fabricast
