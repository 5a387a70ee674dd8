// How a kernel writes Activations. For .cu files only.
#ifndef FABRICAST_KERNELS_INT4_STORE_ACTIVATIONS_CUH_
#define FABRICAST_KERNELS_INT4_STORE_ACTIVATIONS_CUH_

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "kernels/int4/activations.h"

namespace fabricast {

// What of Activations a kernel needs, computed once on the host.
struct ActivationStore {
  explicit ActivationStore(const Activations& to)
      : format(to.layout.format),
        tokens(to.layout.tokens),
        rows(to.layout.rows()),
        slots(to.layout.slots()),
        inputs(static_cast<int>(to.layout.inputs)),
        groups(static_cast<int>(to.layout.groups())),
        record_bytes(static_cast<int>(to.layout.record_bytes())),
        data(static_cast<char*>(to.data)),
        token_scale(to.token_scale) {}

  ActivationFormat format;
  int tokens, rows, slots, inputs, groups, record_bytes;
  char* data;
  float* token_scale;

  __device__ bool packed() const {
    return format == ActivationFormat::kMma || format == ActivationFormat::kWgmma;
  }

  // The power of two by which a token's values are multiplied before they are stored, from the
  // largest magnitude of its row; packed formats only, 1 for others. One thread of the token's
  // block stores its inverse: StoreScale.
  __device__ float FactorFor(float largest) const {
    if (!packed() || !(largest > 0) || !isfinite(largest)) return 1;
    int exponent;
    frexpf(largest, &exponent);
    return ldexpf(1, min(15 - exponent, 126));  // Its inverse is a normal number too.
  }
  __device__ void StoreScale(int token, float factor) const {
    if (packed() && token < tokens) token_scale[token] = 1 / factor;
  }

  // Called by all lanes of a warp: lane l has values 4 l ... 4 l + 3 of group `group` of `slot`,
  // multiplied by the token's factor, zeros beyond `inputs`, and zeros for slots >= tokens (packed
  // formats want those stored too, all slots of them).
  __device__ void StoreGroup(int slot, int group, float4 value) const {
    const int lane = threadIdx.x & 31;
    if (!packed()) {
      const int64_t at = static_cast<int64_t>(slot) * inputs + group * 128 + lane * 4;
      const int left = inputs - group * 128 - lane * 4;
      if (slot >= tokens || left <= 0) return;
      const uint2 word = format == ActivationFormat::kBf16Rows ? Bf16(value) : F16(value);
      if (left >= 4 && inputs % 4 == 0) {
        *reinterpret_cast<uint2*>(data + 2 * at) = word;
        return;
      }
      uint16_t* const to = reinterpret_cast<uint16_t*>(data) + at;
      const uint32_t words[2] = {word.x, word.y};
      for (int i = 0; i < min(left, 4); ++i) {
        to[i] = static_cast<uint16_t>(words[i / 2] >> (16 * (i % 2)));
      }
      return;
    }
    char* const record = data + static_cast<int64_t>(group) * record_bytes;
    const uint2 word = F16(value);
    if (format == ActivationFormat::kWgmma) {
      // Inputs 4 l ... 4 l + 3 are those of k16 step 2 (l / 8) + l % 2 that lane quad (l % 8) / 2
      // of an A fragment holds: columns 2 t, 2 t + 1, 2 t + 8, 2 t + 9 of the step.
      const int step = lane / 8 * 2 + lane % 2, quad = lane % 8 / 2;
      char* const row = record + (step / 4 * slots + slot) * 128;
      const int chunk = step % 4 * 2;
      *reinterpret_cast<uint32_t*>(row + ((chunk ^ (slot % 8)) * 16) + quad * 4) = word.x;
      *reinterpret_cast<uint32_t*>(row + (((chunk + 1) ^ (slot % 8)) * 16) + quad * 4) = word.y;
      return;
    }
    // kMma. The sums are of the values as stored.
    const float2 low = __half22float2(*reinterpret_cast<const __half2*>(&word.x));
    const float2 high = __half22float2(*reinterpret_cast<const __half2*>(&word.y));
    float first = low.x + low.y, second = high.x + high.y;
#pragma unroll
    for (int distance = 16; distance != 0; distance /= 2) {
      first += __shfl_xor_sync(0xffffffff, first, distance);
      second += __shfl_xor_sync(0xffffffff, second, distance);
    }
    if (slot < rows) {
      *reinterpret_cast<uint2*>(record + slot * 256 + ((lane * 8) ^ ((slot & 1) << 6))) = word;
    }
    if (lane == 0) {
      reinterpret_cast<float2*>(record + rows * 256)[slot] =
          make_float2(-(1024 * first + 64 * second), -16777216.f * (first + second));
    }
  }

  // What StoreGroup stores for all slots >= tokens of a packed format. By all lanes of a warp.
  __device__ void StoreZeros(int group) const {
    const int lane = threadIdx.x & 31;
    char* const record = data + static_cast<int64_t>(group) * record_bytes;
    if (format == ActivationFormat::kWgmma) {
      for (int slot = tokens; slot < slots; ++slot) {
        *reinterpret_cast<uint2*>(record + (lane / 16 * slots + slot) * 128 + lane % 16 * 8) = {};
      }
      return;
    }
    for (int slot = tokens; slot < rows; ++slot) {
      *reinterpret_cast<uint2*>(record + slot * 256 + lane * 8) = {};
    }
    for (int slot = tokens + lane; slot < slots; slot += 32) {
      reinterpret_cast<float2*>(record + rows * 256)[slot] = {};
    }
  }

  static __device__ uint2 F16(float4 v) {
    const __half2 low = __floats2half2_rn(v.x, v.y), high = __floats2half2_rn(v.z, v.w);
    return make_uint2(*reinterpret_cast<const uint32_t*>(&low),
                      *reinterpret_cast<const uint32_t*>(&high));
  }
  static __device__ uint2 Bf16(float4 v) {
    const __nv_bfloat162 low = __floats2bfloat162_rn(v.x, v.y);
    const __nv_bfloat162 high = __floats2bfloat162_rn(v.z, v.w);
    return make_uint2(*reinterpret_cast<const uint32_t*>(&low),
                      *reinterpret_cast<const uint32_t*>(&high));
  }
};

}  // namespace fabricast

#endif  // FABRICAST_KERNELS_INT4_STORE_ACTIVATIONS_CUH_
