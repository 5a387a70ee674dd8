#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include "absl/strings/str_format.h"
#include "kernels/gpu/launch.cuh"
#include "kernels/int4/pack_activations.h"
#include "kernels/int4/store_activations.cuh"

namespace fabricast {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;

__device__ float Largest(float value, float (&of_warp)[kWarps]) {
#pragma unroll
  for (int distance = 16; distance != 0; distance /= 2) {
    value = fmaxf(value, __shfl_xor_sync(0xffffffff, value, distance));
  }
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = value;
  __syncthreads();
  for (const float other : of_warp) value = fmaxf(value, other);
  return value;
}

// A block a slot; a warp a group at a time.
__global__ void __launch_bounds__(kThreads)
    PackRows(const __nv_bfloat16* rows, ActivationStore store) {
  __shared__ float of_warp[kWarps];
  AllowNextKernel();
  WaitForPreviousKernels();
  const int slot = static_cast<int>(blockIdx.x);
  const __nv_bfloat16* const row = rows + int64_t{slot} * store.inputs;
  float largest = 0;
  if (slot < store.tokens) {
    for (int i = static_cast<int>(threadIdx.x); i < store.inputs; i += kThreads) {
      largest = fmaxf(largest, fabsf(__bfloat162float(row[i])));
    }
  }
  const float factor = store.FactorFor(Largest(largest, of_warp));
  if (threadIdx.x == 0) store.StoreScale(slot, factor);
  const int lane = static_cast<int>(threadIdx.x % 32);
  for (int group = static_cast<int>(threadIdx.x / 32); group < store.groups; group += kWarps) {
    float value[4] = {};
    for (int i = 0; i < 4; ++i) {
      const int input = group * 128 + lane * 4 + i;
      if (slot < store.tokens && input < store.inputs) {
        value[i] = __bfloat162float(row[input]) * factor;
      }
    }
    store.StoreGroup(slot, group, make_float4(value[0], value[1], value[2], value[3]));
  }
}

}  // namespace

absl::Status PackActivations(const void* rows, const Activations& to,
                             const LaunchOptions& options) {
  if (to.layout.tokens <= 0 || to.layout.inputs <= 0) {
    return absl::InvalidArgumentError(absl::StrFormat("activations of %d tokens x %d inputs",
                                                      to.layout.tokens, to.layout.inputs));
  }
  return LaunchKernel("PackRows", PackRows, dim3(static_cast<unsigned>(to.layout.slots())),
                      dim3(kThreads), 0, options, static_cast<const __nv_bfloat16*>(rows),
                      ActivationStore(to));
}

}  // namespace fabricast
