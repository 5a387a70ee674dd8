#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

#include "absl/strings/str_format.h"
#include "kernels/elementwise/elementwise.h"
#include "kernels/gpu/cuda_status.h"
#include "kernels/gpu/launch.cuh"
#include "kernels/int4/store_activations.cuh"

namespace fabricast {
namespace {

constexpr int kGroup = 128;  // elements: a warp's, 4 a lane
constexpr int kMostWarps = 16;
// Groups of a row that a warp keeps in registers; it reads the others twice. 1,024 threads of a
// multiprocessor then have 128 KB of FP32 in flight; 64 KB took 1.16 times as long.
constexpr int kHeld = 8;
// Up to this many rows are spread so widely that a warp holds Rows::kHeldOfFew at most. Then the
// kernel takes few registers, so that the next one's blocks, which fetch weights, find room beside.
constexpr int kFewTokens = 16;
constexpr int kMostBlocksInCluster = 8;  // on every GPU that has clusters
constexpr int kCopyThreads = 256;

__device__ __forceinline__ void ArriveInCluster() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
#endif
}
__device__ __forceinline__ void WaitForCluster() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
#endif
}

// Stores to where `local`, in this block's shared memory, is in block `rank` of the cluster.
__device__ __forceinline__ void StoreInCluster(float2* local, int rank, float2 value) {
#if __CUDA_ARCH__ >= 900
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(local));
  asm volatile(
      "{\n"
      ".reg .b32 remote;\n"
      "mapa.shared::cluster.u32 remote, %0, %1;\n"
      "st.shared::cluster.v2.f32 [remote], {%2, %3};\n"
      "}\n" ::"r"(address),
      "r"(rank), "f"(value.x), "f"(value.y)
      : "memory");
#endif
}

// Every lane gets the same bits.
__device__ __forceinline__ float WarpSum(float value) {
#pragma unroll
  for (int distance = 16; distance != 0; distance /= 2) {
    value += __shfl_xor_sync(0xffffffff, value, distance);
  }
  return value;
}

// Of magnitudes; a NaN is larger than all.
__device__ __forceinline__ float WarpLargest(float value) {
  return __uint_as_float(__reduce_max_sync(0xffffffff, __float_as_uint(value)));
}
__device__ __forceinline__ float Larger(float a, float b) {
  return __uint_as_float(max(__float_as_uint(a), __float_as_uint(b)));
}
__device__ __forceinline__ float LargestMagnitude(float4 v) {
  return Larger(Larger(fabsf(v.x), fabsf(v.y)), Larger(fabsf(v.z), fabsf(v.w)));
}

__device__ __forceinline__ float4 operator*(float4 a, float4 b) {
  return make_float4(a.x * b.x, a.y * b.y, a.z * b.z, a.w * b.w);
}
__device__ __forceinline__ float4 operator*(float4 a, float b) {
  return make_float4(a.x * b, a.y * b, a.z * b, a.w * b);
}

__device__ __forceinline__ float4 FromBf16(uint2 four) {
  return make_float4(__uint_as_float(four.x << 16), __uint_as_float(four.x & 0xffff0000),
                     __uint_as_float(four.y << 16), __uint_as_float(four.y & 0xffff0000));
}

__device__ __forceinline__ uint16_t Bf16Bits(float value) {
  return __bfloat16_as_ushort(__float2bfloat16_rn(value));
}

// row[k ... k + 3], zeros from `length` on. `vector`: the row's start, its length and so all of its
// fours are aligned.
__device__ __forceinline__ float4 LoadFour(const float* row, int k, int length, bool vector) {
  float4 four = {};
  if (vector) {
    if (k < length) four = *reinterpret_cast<const float4*>(row + k);
  } else {
    if (k < length) four.x = row[k];
    if (k + 1 < length) four.y = row[k + 1];
    if (k + 2 < length) four.z = row[k + 2];
    if (k + 3 < length) four.w = row[k + 3];
  }
  return four;
}
__device__ __forceinline__ uint2 LoadFour(const uint16_t* row, int k, int length, bool vector) {
  uint2 four = {};
  if (vector) {
    if (k < length) four = *reinterpret_cast<const uint2*>(row + k);
  } else {
    if (k < length) four.x = row[k];
    if (k + 1 < length) four.x |= uint32_t{row[k + 1]} << 16;
    if (k + 2 < length) four.y = row[k + 2];
    if (k + 3 < length) four.y |= uint32_t{row[k + 3]} << 16;
  }
  return four;
}

// For 16-byte loads and stores.
bool IsAligned(const void* data) { return reinterpret_cast<uintptr_t>(data) % 16 == 0; }
bool IsVector(const void* data, int64_t stride, int64_t length) {
  return IsAligned(data) && stride % 4 == 0 && length % 4 == 0;
}

// Where Produce's rows come from. Weights: read before earlier kernels have ended. Value: all of
// the result but a factor that is the same for the row.

struct NormRows {
  static constexpr bool kNorm = true;
  static constexpr int kHeldOfFew = 2;
  using Weights = float4;
  using Loaded = float4;

  const float* h;
  const int32_t* source_rows;
  const float* gain;
  float epsilon;
  int hidden;
  bool vector;

  __device__ int64_t Row(int token) const {
    return source_rows == nullptr ? token : source_rows[token];
  }
  __device__ Weights LoadWeights(int k) const { return LoadFour(gain, k, hidden, vector); }
  __device__ Loaded Load(int64_t row, int k) const {
    return LoadFour(h + row * hidden, k, hidden, vector);
  }
  __device__ float4 Value(Weights gains, Loaded loaded) const { return gains * loaded; }
  __device__ float SumOfSquares(Loaded v) const {
    return v.x * v.x + v.y * v.y + (v.z * v.z + v.w * v.w);
  }
  __device__ float RowFactor(float sum_of_squares) const {
    return rsqrtf(sum_of_squares / static_cast<float>(hidden) + epsilon);
  }
};

struct SwiGluRows {
  static constexpr bool kNorm = false;
  static constexpr int kHeldOfFew = 4;
  struct Weights {};
  struct Loaded {
    uint2 gate, up;
  };

  const uint16_t* gate_up;
  int64_t stride;
  int ffn;
  bool vector;

  __device__ int64_t Row(int token) const { return token; }
  __device__ Weights LoadWeights(int) const { return {}; }
  __device__ Loaded Load(int64_t row, int k) const {
    const uint16_t* const gate = gate_up + row * stride;
    return {LoadFour(gate, k, ffn, vector), LoadFour(gate + ffn, k, ffn, vector)};
  }
  __device__ float4 Value(Weights, Loaded loaded) const {
    const float4 gate = FromBf16(loaded.gate), up = FromBf16(loaded.up);
    return make_float4(Silu(gate.x), Silu(gate.y), Silu(gate.z), Silu(gate.w)) * up;
  }
  // The approximations' error, 2^-19 at gates of -20, is hidden by the output's rounding, 2^-12.
  static __device__ float Silu(float x) { return __fdividef(x, 1 + __expf(-x)); }
};

struct Bf16Rows {
  static constexpr bool kNorm = false;
  static constexpr int kHeldOfFew = 2;
  struct Weights {};
  using Loaded = uint2;

  const uint16_t* rows;
  int64_t stride;
  int length;
  bool vector;

  __device__ int64_t Row(int token) const { return token; }
  __device__ Weights LoadWeights(int) const { return {}; }
  __device__ Loaded Load(int64_t row, int k) const {
    return LoadFour(rows + row * stride, k, length, vector);
  }
  __device__ float4 Value(Weights, Loaded loaded) const { return FromBf16(loaded); }
};

// Writes Activations. `split` blocks a token, each with its share of the row's groups; a cluster,
// where anything of the whole row is needed: the sum of squares or the largest magnitude. Then
// every block gets the partial results of all: of each group if they are summed, so that the order,
// and the result to the last bit, are the same for every split; else of each warp. Slots without a
// token are filled by the tokens' blocks in turn.
template <typename Rows, int held>
__global__ void __launch_bounds__(32 * kMostWarps, held == kHeld ? 2 : 3)
    Produce(const Rows rows, const ActivationStore store, const int split) {
  extern __shared__ float2 partials[];  // {sum of squares, largest magnitude}
  AllowNextKernel();
  const int token = blockIdx.x / split, part = blockIdx.x % split;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, warps = blockDim.x / 32;
  const int groups_of_part = (store.groups + split - 1) / split;
  const int first = part * groups_of_part + warp;
  const int end = min(store.groups, (part + 1) * groups_of_part);
  const auto element = [lane](int group) { return group * kGroup + 4 * lane; };
  const bool whole_row = Rows::kNorm || store.packed();
  const bool cluster = whole_row && split > 1;
  // Shared memory of other blocks may be written once all have begun.
  if (cluster) ArriveInCluster();

  constexpr bool kWeightsEarly = held != kHeld;
  typename Rows::Weights weights[held];
  if constexpr (kWeightsEarly) {
#pragma unroll
    for (int i = 0; i < held; ++i) {
      const int group = first + i * warps;
      if (group < end) weights[i] = rows.LoadWeights(element(group));
    }
  }
  WaitForPreviousKernels();
  const int64_t row = rows.Row(token);
  typename Rows::Loaded loaded[held];
#pragma unroll
  for (int i = 0; i < held; ++i) {
    const int group = first + i * warps;
    if (group < end) loaded[i] = rows.Load(row, element(group));
  }
  if (store.slots > store.tokens) {
    for (int group = first; group < end; group += warps) {
      if (group % store.tokens == token) store.StoreZeros(group);
    }
  }
  if (cluster) WaitForCluster();

  float largest = 0;
  const auto publish = [&](int index, float sum) {
    const float2 partial = make_float2(sum, WarpLargest(largest));
    if (!cluster) {
      if (lane == 0) partials[index] = partial;
    } else if (lane < split) {
      StoreInCluster(&partials[index], lane, partial);
    }
  };
  const auto reduce = [&](int group, const typename Rows::Loaded& from, float4 value) {
    largest = Larger(largest, LargestMagnitude(value));
    if constexpr (Rows::kNorm) {
      publish(group, WarpSum(rows.SumOfSquares(from)));
    }
  };
  float4 value[held];
#pragma unroll
  for (int i = 0; i < held; ++i) {
    const int group = first + i * warps;
    if (group < end) {
      value[i] =
          rows.Value(kWeightsEarly ? weights[i] : rows.LoadWeights(element(group)), loaded[i]);
      if (whole_row) reduce(group, loaded[i], value[i]);
    }
  }
  float row_factor = 1, token_factor = 1;
  if (whole_row) {
    for (int group = first + held * warps; group < end; group += warps) {
      const typename Rows::Loaded again = rows.Load(row, element(group));
      reduce(group, again, rows.Value(rows.LoadWeights(element(group)), again));
    }
    if constexpr (!Rows::kNorm) publish(part * warps + warp, 0);
    if (cluster) {
      ArriveInCluster();
      WaitForCluster();
    } else {
      __syncthreads();
    }
    float sum = 0;
    largest = 0;
    const int count = Rows::kNorm ? store.groups : split * warps;
    for (int i = lane; i < count; i += 32) {
      sum += partials[i].x;
      largest = Larger(largest, partials[i].y);
    }
    largest = WarpLargest(largest);
    if constexpr (Rows::kNorm) row_factor = rows.RowFactor(WarpSum(sum));
    token_factor = store.FactorFor(largest * row_factor);
    if (part == 0 && threadIdx.x == 0) store.StoreScale(token, token_factor);
  }
#pragma unroll
  for (int i = 0; i < held; ++i) {
    const int group = first + i * warps;
    if (group < end) store.StoreGroup(token, group, value[i] * row_factor * token_factor);
  }
  for (int group = first + held * warps; group < end; group += warps) {
    const int k = element(group);
    const float4 again = rows.Value(rows.LoadWeights(k), rows.Load(row, k));
    store.StoreGroup(token, group, again * row_factor * token_factor);
  }
}

struct DeviceShape {
  int processors = 0;
  int clusters = 0;  // 1: there are such
};

absl::Status ReadDeviceShape(DeviceShape& shape) {
  int device = 0;
  FABRICAST_RETURN_IF_CUDA_FAILS(cudaGetDevice(&device));
  FABRICAST_RETURN_IF_CUDA_FAILS(
      cudaDeviceGetAttribute(&shape.processors, cudaDevAttrMultiProcessorCount, device));
  FABRICAST_RETURN_IF_CUDA_FAILS(
      cudaDeviceGetAttribute(&shape.clusters, cudaDevAttrClusterLaunch, device));
  return absl::OkStatus();
}

template <typename Rows>
absl::Status LaunchProduce(const char* name, const Rows& rows, const Activations& output,
                           const LaunchOptions& options) {
  const ActivationStore store(output);
  if (store.tokens == 0 || store.groups == 0) return absl::OkStatus();
  DeviceShape device;
  if (absl::Status status = ReadDeviceShape(device); !status.ok()) return status;

  // Until a row's groups are held in registers, and on while there are processors for more blocks
  // and warps with more than a group.
  const bool whole_row = Rows::kNorm || output.layout.packed();
  const int most = !whole_row ? store.groups : device.clusters != 0 ? kMostBlocksInCluster : 1;
  int split = 1;
  while (2 * split <= most && (store.groups > split * kMostWarps * kHeld ||
                               (store.groups > split * kMostWarps &&
                                int64_t{2} * split * store.tokens <= device.processors))) {
    split *= 2;
  }
  const int groups_of_part = (store.groups + split - 1) / split;
  const int warps = std::min(kMostWarps, groups_of_part);
  const bool few = store.tokens <= kFewTokens && groups_of_part <= warps * Rows::kHeldOfFew;
  const auto kernel = few ? Produce<Rows, Rows::kHeldOfFew> : Produce<Rows, kHeld>;

  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(store.tokens * split));
  config.blockDim = dim3(static_cast<unsigned>(32 * warps));
  config.dynamicSmemBytes =
      sizeof(float2) * static_cast<size_t>(Rows::kNorm ? store.groups : split * warps);
  config.stream = options.stream;
  cudaLaunchAttribute attributes[2] = {};
  config.attrs = attributes;
  if (options.overlap_previous) {
    cudaLaunchAttribute& overlap = attributes[config.numAttrs++];
    overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    overlap.val.programmaticStreamSerializationAllowed = 1;
  }
  if (whole_row && split > 1) {
    cudaLaunchAttribute& cluster = attributes[config.numAttrs++];
    cluster.id = cudaLaunchAttributeClusterDimension;
    cluster.val.clusterDim.x = static_cast<unsigned>(split);
    cluster.val.clusterDim.y = 1;
    cluster.val.clusterDim.z = 1;
  }
  return ToStatus(cudaLaunchKernelEx(&config, kernel, rows, store, split), name);
}

// A thread's 4 elements of a row; blocks [row][part].
__global__ void __launch_bounds__(kCopyThreads)
    EmbedKernel(const void* table, ElementType type, const int32_t* tokens, int hidden, int parts,
                bool vector, float* h) {
  AllowNextKernel();
  WaitForPreviousKernels();
  const int64_t row = blockIdx.x / parts;
  const int k = 4 * (blockIdx.x % parts * kCopyThreads + threadIdx.x);
  if (k >= hidden) return;
  const int64_t from = int64_t{tokens[row]} * hidden;
  float4 value;
  if (type == ElementType::kF32) {
    value = LoadFour(static_cast<const float*>(table) + from, k, hidden, vector);
  } else {
    const uint2 four = LoadFour(static_cast<const uint16_t*>(table) + from, k, hidden, vector);
    if (type == ElementType::kBf16) {
      value = FromBf16(four);
    } else {
      const float2 low = __half22float2(*reinterpret_cast<const __half2*>(&four.x));
      const float2 high = __half22float2(*reinterpret_cast<const __half2*>(&four.y));
      value = make_float4(low.x, low.y, high.x, high.y);
    }
  }
  float* const to = h + row * hidden + k;
  if (vector) {
    *reinterpret_cast<float4*>(to) = value;
    return;
  }
  const float values[4] = {value.x, value.y, value.z, value.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (k + i < hidden) to[i] = values[i];
  }
}

// 8 elements a thread, and then the last few.
__global__ void __launch_bounds__(kCopyThreads)
    FromBf16Kernel(const uint16_t* bf16, int64_t count, bool vector, float* f32) {
  AllowNextKernel();
  WaitForPreviousKernels();
  const int64_t at = 8 * (int64_t{blockIdx.x} * kCopyThreads + threadIdx.x);
  if (vector && at + 8 <= count) {
    const uint4 eight = *reinterpret_cast<const uint4*>(bf16 + at);
    reinterpret_cast<float4*>(f32 + at)[0] = FromBf16(make_uint2(eight.x, eight.y));
    reinterpret_cast<float4*>(f32 + at)[1] = FromBf16(make_uint2(eight.z, eight.w));
    return;
  }
  for (int64_t i = at; i < min(at + 8, count); ++i) f32[i] = __uint_as_float(bf16[i] << 16);
}

__global__ void __launch_bounds__(kCopyThreads)
    ToBf16Kernel(const float* f32, int64_t count, bool vector, uint16_t* bf16) {
  AllowNextKernel();
  WaitForPreviousKernels();
  const int64_t at = 8 * (int64_t{blockIdx.x} * kCopyThreads + threadIdx.x);
  if (vector && at + 8 <= count) {
    const float4* const from = reinterpret_cast<const float4*>(f32 + at);
    const uint2 low = ActivationStore::Bf16(from[0]), high = ActivationStore::Bf16(from[1]);
    *reinterpret_cast<uint4*>(bf16 + at) = make_uint4(low.x, low.y, high.x, high.y);
    return;
  }
  for (int64_t i = at; i < min(at + 8, count); ++i) {
    bf16[i] = Bf16Bits(f32[i]);
  }
}

constexpr int kMostHeadDim = 256;

// A head is turned by `lanes` neighbouring threads, a power of two: thread l has pairs of chunks l,
// l
// + lanes, ... of kChunk; blocks [row][part of the heads]. kChunk: 8, or 1 where a head's half is
// not made of aligned eights.
template <int kChunk>
__global__ void __launch_bounds__(kCopyThreads, 3)
    RopeKernel(const RopeArguments a, const int lanes, const int parts) {
  constexpr int kSteps = kChunk == 8 ? 1 : kMostHeadDim / 2 / 32;
  struct alignas(2 * kChunk) Chunk {
    uint16_t bf16[kChunk];
  };
  struct Pairs {
    Chunk low[kSteps], high[kSteps];
  };
  __shared__ float cosines[kMostHeadDim / 2], sines[kMostHeadDim / 2];

  AllowNextKernel();
  const int head_dim = a.cache.head_dim, half = head_dim / 2;
  const int all_heads = a.heads + 2 * a.cache.kv_heads;
  const int row = blockIdx.x / parts;
  const int lane = threadIdx.x % lanes, at_once = blockDim.x / lanes;
  const int first = blockIdx.x % parts * at_once + threadIdx.x / lanes;
  const float frequency = threadIdx.x < half ? a.frequencies[threadIdx.x] : 0;
  uint16_t* const heads = static_cast<uint16_t*>(a.qkv) + row * a.stride;
  const auto pair = [&](int step) { return (lane + step * lanes) * kChunk; };
  const auto load = [&](int head) {
    Pairs pairs = {};
    const uint16_t* const from = heads + head * head_dim;
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      if (head >= all_heads || pair(step) >= half) continue;
      pairs.low[step] = *reinterpret_cast<const Chunk*>(from + pair(step));
      pairs.high[step] = *reinterpret_cast<const Chunk*>(from + half + pair(step));
    }
    return pairs;
  };

  WaitForPreviousKernels();
  Pairs next = load(first);
  const int cache_slot = a.cache_slots[row];
  if (threadIdx.x < half) {
    const float angle = __fmul_rn(static_cast<float>(a.positions[row]), frequency);
    sincosf(angle, &sines[threadIdx.x], &cosines[threadIdx.x]);
  }
  __syncthreads();
  float cosine[kSteps][kChunk] = {}, sine[kSteps][kChunk] = {};
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
    if (pair(step) >= half) continue;
#pragma unroll
    for (int i = 0; i < kChunk; ++i) {
      cosine[step][i] = cosines[pair(step) + i];
      sine[step][i] = sines[pair(step) + i];
    }
  }

  // All threads go round equally often, because the norm exchanges between lanes.
  for (int base = 0; base < all_heads; base += parts * at_once) {
    const int head = base + first;
    const Pairs pairs = next;
    if (base + parts * at_once < all_heads) next = load(head + parts * at_once);
    const bool is_value = head >= a.heads + a.cache.kv_heads;
    const float* const gain = head < a.heads ? a.q_gain : is_value ? nullptr : a.k_gain;

    const float* const bias =
        a.bias != nullptr && head < all_heads ? a.bias + head * head_dim : nullptr;
    const auto biased = [bias](uint16_t bf16, int dim) {
      const float x = __uint_as_float(bf16 << 16);
      return bias != nullptr ? x + bias[dim] : x;
    };
    float scale = 1;
    if (a.q_gain != nullptr || a.k_gain != nullptr) {
      float sum = 0;
#pragma unroll
      for (int step = 0; step < kSteps; ++step) {
        if (pair(step) >= half) continue;
#pragma unroll
        for (int i = 0; i < kChunk; ++i) {
          const float x = biased(pairs.low[step].bf16[i], pair(step) + i);
          const float y = biased(pairs.high[step].bf16[i], half + pair(step) + i);
          sum += x * x + y * y;
        }
      }
      for (int distance = lanes / 2; distance != 0; distance /= 2) {
        sum += __shfl_xor_sync(0xffffffff, sum, distance);
      }
      scale = rsqrtf(sum / static_cast<float>(head_dim) + a.epsilon);
    }
    if (head >= all_heads) continue;

    const bool is_query = head < a.heads;
    if (!is_query && cache_slot < 0) continue;
    uint16_t* tile = nullptr;
    if (!is_query) {
      const int kv_head = head - a.heads - (is_value ? a.cache.kv_heads : 0);
      tile = static_cast<uint16_t*>(a.cache.data) +
             a.cache.tile(cache_slot / kKvBlockTokens, kv_head, is_value ? 1 : 0);
    }
    const auto place = [&](int dim) {
      return is_query ? heads + head * head_dim + dim
                      : tile + a.cache.in_tile(cache_slot % kKvBlockTokens, dim);
    };
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      if (pair(step) >= half) continue;
      Chunk to_low, to_high;
#pragma unroll
      for (int i = 0; i < kChunk; ++i) {
        float x = biased(pairs.low[step].bf16[i], pair(step) + i);
        float y = biased(pairs.high[step].bf16[i], half + pair(step) + i);
        if (gain != nullptr) {
          x *= gain[pair(step) + i] * scale;
          y *= gain[half + pair(step) + i] * scale;
        }
        const float turned_x = x * cosine[step][i] - y * sine[step][i];
        const float turned_y = y * cosine[step][i] + x * sine[step][i];
        to_low.bf16[i] = Bf16Bits(is_value ? x : turned_x);
        to_high.bf16[i] = Bf16Bits(is_value ? y : turned_y);
      }
      *reinterpret_cast<Chunk*>(place(pair(step))) = to_low;
      *reinterpret_cast<Chunk*>(place(half + pair(step))) = to_high;
    }
  }
}

// Blocks [row][part], 16 elements a thread.
constexpr int kCheckedFours = 4;
__global__ void __launch_bounds__(kCopyThreads)
    FindNotFiniteKernel(const float* h, int hidden, int parts, bool vector,
                        int32_t* first_bad_row) {
  AllowNextKernel();
  WaitForPreviousKernels();
  const int row = blockIdx.x / parts;
  const float* const from = h + static_cast<int64_t>(row) * hidden;
  const int k = 4 * (blockIdx.x % parts * kCheckedFours * kCopyThreads + threadIdx.x);
  float4 fours[kCheckedFours];
#pragma unroll
  for (int i = 0; i < kCheckedFours; ++i) {
    fours[i] = LoadFour(from, k + 4 * i * kCopyThreads, hidden, vector);
  }
  float largest = 0;
#pragma unroll
  for (int i = 0; i < kCheckedFours; ++i) largest = Larger(largest, LargestMagnitude(fours[i]));
  if (!isfinite(largest)) atomicMin(first_bad_row, row);
}

int64_t CeilOf(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace

absl::Status Embed(const void* table, ElementType type, const int32_t* tokens, int rows, int hidden,
                   float* h, const LaunchOptions& options) {
  if (rows == 0) return absl::OkStatus();
  const int parts = static_cast<int>(CeilOf(hidden, 4 * kCopyThreads));
  const bool vector = IsVector(table, hidden, hidden) && IsVector(h, hidden, hidden);
  return LaunchKernel("Embed", EmbedKernel, static_cast<unsigned>(rows * parts), kCopyThreads, 0,
                      options, table, type, tokens, hidden, parts, vector, h);
}

absl::Status FromBf16(const void* bf16, int64_t count, float* f32, const LaunchOptions& options) {
  if (count == 0) return absl::OkStatus();
  const uint16_t* const from = static_cast<const uint16_t*>(bf16);
  const bool vector = IsAligned(bf16) && IsAligned(f32);
  return LaunchKernel("FromBf16", FromBf16Kernel,
                      static_cast<unsigned>(CeilOf(count, 8 * kCopyThreads)), kCopyThreads, 0,
                      options, from, count, vector, f32);
}

absl::Status ToBf16(const float* f32, int64_t count, void* bf16, const LaunchOptions& options) {
  if (count == 0) return absl::OkStatus();
  const bool vector = IsAligned(f32) && IsAligned(bf16);
  return LaunchKernel("ToBf16", ToBf16Kernel,
                      static_cast<unsigned>(CeilOf(count, 8 * kCopyThreads)), kCopyThreads, 0,
                      options, f32, count, vector, static_cast<uint16_t*>(bf16));
}

absl::Status RmsNorm(const float* h, const int32_t* source_rows, const float* gain, float epsilon,
                     const Activations& output, const LaunchOptions& options) {
  const int64_t hidden = output.layout.inputs;
  const bool vector = IsVector(h, hidden, hidden) && IsVector(gain, 0, 0);
  return LaunchProduce("RmsNorm",
                       NormRows{h, source_rows, gain, epsilon, static_cast<int>(hidden), vector},
                       output, options);
}

absl::Status SwiGlu(const void* gate_up, int64_t stride, const Activations& output,
                    const LaunchOptions& options) {
  const uint16_t* const from = static_cast<const uint16_t*>(gate_up);
  const int64_t ffn = output.layout.inputs;
  return LaunchProduce("SwiGlu",
                       SwiGluRows{from, stride, static_cast<int>(ffn), IsVector(from, stride, ffn)},
                       output, options);
}

absl::Status PackRows(const void* rows, int64_t stride, const Activations& output,
                      const LaunchOptions& options) {
  const uint16_t* const from = static_cast<const uint16_t*>(rows);
  const int64_t length = output.layout.inputs;
  return LaunchProduce(
      "PackRows", Bf16Rows{from, stride, static_cast<int>(length), IsVector(from, stride, length)},
      output, options);
}

absl::Status RopeAndAppend(const RopeArguments& arguments, const LaunchOptions& options) {
  const int head_dim = arguments.cache.head_dim;
  if (head_dim <= 0 || head_dim % 2 != 0 || head_dim > kMostHeadDim) {
    return absl::UnimplementedError(absl::StrFormat(
        "heads of %d elements: RoPE is for even sizes up to %d", head_dim, kMostHeadDim));
  }
  if (arguments.rows == 0) return absl::OkStatus();
  DeviceShape device;
  if (absl::Status status = ReadDeviceShape(device); !status.ok()) return status;

  const bool eights = head_dim % 16 == 0 && arguments.stride % 8 == 0 && IsAligned(arguments.qkv) &&
                      IsAligned(arguments.cache.data);
  int lanes = 32;
  if (eights) {
    for (lanes = 1; lanes * 16 < head_dim;) lanes *= 2;
  }
  // A block turns all heads of a row, or fewer where there are few rows.
  const int at_once = kCopyThreads / lanes;
  const int all_heads = arguments.heads + 2 * arguments.cache.kv_heads;
  const int64_t parts =
      std::clamp<int64_t>(4 * device.processors / arguments.rows, 1, CeilOf(all_heads, at_once));
  return LaunchKernel("RopeAndAppend", eights ? RopeKernel<8> : RopeKernel<1>,
                      static_cast<unsigned>(arguments.rows * parts), kCopyThreads, 0, options,
                      arguments, lanes, static_cast<int>(parts));
}

absl::Status FindNotFinite(const float* h, int rows, int hidden, int32_t* first_bad_row,
                           const LaunchOptions& options) {
  if (rows == 0) return absl::OkStatus();
  const int parts = static_cast<int>(CeilOf(hidden, 4 * kCheckedFours * kCopyThreads));
  return LaunchKernel("FindNotFinite", FindNotFiniteKernel, static_cast<unsigned>(rows * parts),
                      kCopyThreads, 0, options, h, hidden, parts, IsVector(h, hidden, hidden),
                      first_bad_row);
}

}  // namespace fabricast
